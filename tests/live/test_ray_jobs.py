"""`ray job submit -- drayman submit ... --wait`: Ray's own CLI, dashboard and token."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import BIN, WAIT_S, LiveDrayman, run, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


class RayCli:
    """`ray job ...` in a shell beside the Drayman, with what `drayman up` printed."""

    def __init__(self, drayman: LiveDrayman) -> None:
        self._address, self._folder = drayman.said["ray"], drayman.folder
        self._environment = drayman.environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": drayman.said["ray token file"],
        }

    def __call__(self, command: str, *arguments: str) -> tuple[int, str]:
        """Return the exit code, and all that was printed."""
        done = run(
            [str(BIN / "ray"), "job", command, "--address", self._address, *arguments],
            env=self._environment,
            cwd=self._folder,
        )
        return done.returncode, done.stdout + done.stderr

    def submit(self, *arguments: str, runtime_env: dict[str, object] | None = None) -> str:
        """Start a Ray job, and return its id."""
        ray_job = f"test-{uuid.uuid4().hex[:8]}"
        options = ["--no-wait", "--submission-id", ray_job]
        if runtime_env is not None:
            options += ["--runtime-env-json", json.dumps(runtime_env)]
        code, said = self("submit", *options, "--", *arguments)
        assert code == 0, said
        return ray_job


@pytest.fixture
def ray(drayman: LiveDrayman) -> RayCli:
    return RayCli(drayman)


def both(first: Callable[[], object], second: Callable[[], object]) -> list[object]:
    """Run two slow commands at once."""
    with ThreadPoolExecutor(2) as pool:
        started: list[Future[object]] = [pool.submit(first), pool.submit(second)]
        return [one.result() for one in started]


def test_the_exit_code_is_the_jobs(
    drayman: LiveDrayman, ray: RayCli, client: Client, tmp_path: Path
) -> None:
    path, key = tmp_path / "effects", uuid.uuid4().hex
    good = ["drayman", "submit", "live.effect", "--param", f"path={path}", "--key", key, "--wait"]
    bad = ["drayman", "submit", "live.discard", "--label", f"ray={key}", "--wait"]
    # The one finds the API by the run file of this machine, the other one is told where it is.
    nowhere = {"DRAYMAN_HOME": str(tmp_path / "nowhere")}
    told = nowhere | {"DRAYMAN_URL": drayman.url, "DRAYMAN_TOKEN": drayman.said["token"]}
    environment = json.dumps({"env_vars": told})

    (good_code, good_said), (bad_code, bad_said) = both(
        lambda: ray("submit", "--", *good),
        lambda: ray("submit", "--runtime-env-json", environment, "--", *bad),
    )

    assert good_code == 0, good_said
    assert bad_code == 1, bad_said
    (job_id,) = path.read_text().split()
    assert job_id in good_said
    assert "it cannot work" in bad_said
    assert [job["status"] for job in client.jobs(label=f"ray={key}")] == ["failed"]


def test_ray_wants_its_token(drayman: LiveDrayman) -> None:
    answer = run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{drayman.said['ray']}/api/jobs/"]
    )

    assert answer.stdout == "401"


def test_stopping_the_ray_job_cancels_the_job_only_if_asked_to(
    ray: RayCli, client: Client, tmp_path: Path
) -> None:
    begun, opened = [tmp_path / "begun-0", tmp_path / "begun-1"], tmp_path / "opened"
    commands = [
        [
            *("drayman", "submit", "live.gate", "--param", f"begun={path}"),
            *("--param", f"opened={opened}", "--label", f"begun={path.name}", "--wait"),
        ]
        for path in begun
    ]
    commands[1].append("--cancel-on-interrupt")
    ray_jobs = both(lambda: ray.submit(*commands[0]), lambda: ray.submit(*commands[1]))
    until(lambda: all(path.exists() for path in begun), 2 * WAIT_S)

    stopped = both(lambda: ray("stop", str(ray_jobs[0])), lambda: ray("stop", str(ray_jobs[1])))
    kept, cancelled = (next(client.jobs(label=f"begun={path.name}"))["id"] for path in begun)

    assert [code for code, _ in stopped] == [0, 0], stopped
    assert client.wait(cancelled, WAIT_S)["status"] == "cancelled"
    assert client.status(kept)["status"] == "processing"
    opened.touch()
    assert client.wait(kept, WAIT_S)["status"] == "completed"
