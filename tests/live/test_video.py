"""`video.transcode` on a real cluster: a real film, a real kill."""

import subprocess
import time
from collections import Counter
from pathlib import Path

import av
import imageio_ffmpeg
import psutil
import pytest

from service.client import Client
from service.demo import film_path
from tests.live.test_kills import all_workers_are_free
from tests.support.eventually import gone
from tests.support.live import LiveDrayman, kill, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

#: What is killed with its worker is gone a moment later; this is for busy machines.
GONE_S = 10.0
LOOPS = 3


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some seconds of Big Buck Bunny, with sound."""
    path = tmp_path_factory.mktemp("film") / "bunny.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error"]
    command += ["-stream_loop", str(LOOPS - 1), "-i", str(film_path()), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    return path


def encoders_of(worker: str) -> list[int]:
    """Return the ffmpegs that work in the scratch directory of that worker."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or [""]
        if "ffmpeg" in Path(command[0]).name and f"/drayman-{worker}-" in " ".join(command):
            found.append(process.info["pid"])
    return found


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.long
def test_kill_of_a_worker_costs_the_segment_it_encoded_and_leaves_no_encoder(
    drayman: LiveDrayman, client: Client, film: Path, tmp_path: Path
) -> None:
    until(lambda: all_workers_are_free(client))
    params = {
        "source": client.upload(film)["uri"],
        "segments_min": 6,
        "preset": "slow",
        "renditions": [{"height": 720}, {"height": 480}],
    }
    job_id = client.submit("video.transcode", params)["id"]
    until(lambda: client.status(job_id)["steps"][0]["done"] >= 2)
    running = until(
        lambda: [
            task
            for task in client.tasks(job_id)
            if task["state"] == "leased" and task["role"] == "chunk"
        ]
    )
    victim = running[0]["worker"]
    (worker,) = [w for w in client.workers() if w["name"] == victim]
    encoders = until(lambda: encoders_of(victim))
    hit = {task["task_id"] for task in client.tasks(job_id) if task["worker"] == victim}
    finished = {task["task_id"] for task in client.tasks(job_id) if task["state"] == "succeeded"}

    kill(worker["pid"])
    killed_at = time.monotonic()
    until(lambda: all(map(gone, encoders)))
    took_s = time.monotonic() - killed_at
    job = client.wait(job_id)

    assert job["status"] == "completed", job
    assert took_s < GONE_S
    attempts = Counter({t["task_id"]: t["attempts"] for t in client.tasks(job_id)})
    again = {task_id for task_id, count in attempts.items() if count > 1}
    assert again <= hit
    assert not again & finished
    assert len(encoders) == 1  # whatever else it held had not begun
    files = {file["name"]: file for file in client.files(job_id)}
    made = client.download(files["480p.mp4"], tmp_path)
    assert frames(made) == frames(film)
