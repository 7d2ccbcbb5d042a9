"""A whole Drayman, started and stopped as users do, with a trivial application in place of ours.

Each run is a process of its own: Ray's settings are read once in the life of one.
"""

import contextlib
import http.server
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service import launch
from service.edge import LOOPBACK, Edge, free_port
from service.runfile import RunFile, RunFolder, find_descendants, is_alive
from tests.support.live import eventually, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

START_S = 150.0

PROGRAM = textwrap.dedent(
    """
    import os, sys
    from service import launch

    def application(run):
        from fastapi import FastAPI, Response
        from ray import serve
        from service.edge import confine_replica

        nonce, api = run.nonce, FastAPI()

        @api.get("/readyz")
        async def readyz():
            return Response(headers={"Drayman-Run": nonce})

        @serve.deployment(ray_actor_options={"num_cpus": 0})
        @serve.ingress(api)
        class Api:
            def __init__(self):
                confine_replica()

        return Api.bind()

    def start_cluster(run):
        return launch.Cluster(token="t0ken", drain=lambda: print("drained", flush=True))

    port, edge, detach = int(sys.argv[1]), sys.argv[2], "--detach" in sys.argv
    settings = launch.Settings(port=port, edge=edge, ray_dashboard="--dashboard" in sys.argv)
    say = lambda line: print(line, flush=True)
    try:
        if detach:
            command = [sys.executable, *(a for a in sys.orig_argv[1:] if a != "--detach")]
            sys.exit(launch.detach(command, settings, say))
        sys.exit(launch.up(settings, application, start_cluster, say))
    except launch.InvalidInput as error:
        say(str(error))
        sys.exit(2)
    """
)


class Drayman:
    """A state folder of its own, and the Draymans started on it."""

    def __init__(self, state: Path) -> None:
        self.state, self.runs = state, RunFolder(state)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, port: int, edge: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), edge, *options],
            env=os.environ | {"DRAYMAN_HOME": str(self.state)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def up(self, port: int, edge: str, *options: str) -> tuple[subprocess.Popen[str], RunFile]:
        process = self.start(port, edge, *options)
        lines = read_until(process, "token: ")
        run = self.runs.read(port)
        assert run is not None, lines
        assert f"url: {run.url}\n" in lines
        return process, run

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=60)
        for run in self.runs.all():
            launch.down(run.port, self.state)


@pytest.fixture
def drayman(tmp_path: Path) -> Iterator[Drayman]:
    instance = Drayman(tmp_path)
    yield instance
    instance.close()


@pytest.fixture(params=list(Edge))
def edge(request: pytest.FixtureRequest) -> str:
    return available(request.param)


def available(edge: Edge) -> str:
    if edge is Edge.HAPROXY and Edge.choose(None) is not Edge.HAPROXY:
        pytest.skip("no HAProxy on this platform")
    return edge.value


def read_until(process: subprocess.Popen[str], start: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"ended with {process.wait()}:\n{''.join(lines)}")


def nothing_left_of(run: RunFile) -> bool:
    return not find_descendants(run.nonce) and not any(map(is_alive, run.processes))


def open_listeners(run: RunFile) -> list[tuple[str, str]]:
    """What of the run listens beyond loopback, and where."""
    found = []
    for pid in {run.driver.pid, *(p.pid for p in find_descendants(run.nonce))}:
        # It may end while we look.
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found += [
                (process.name(), f"{c.laddr.ip}:{c.laddr.port}")
                for c in process.net_connections("tcp")
                if c.status == psutil.CONN_LISTEN and not is_local(c.laddr.ip)
            ]
    return found


def is_local(address: str) -> bool:
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def answers(run: RunFile) -> bool:
    try:
        answer = httpx.get(f"{run.url}/readyz", trust_env=False)
    except httpx.TransportError:
        return False
    return answer.headers.get("Drayman-Run") == run.nonce


def test_it_starts_answers_on_loopback_alone_and_stops_without_a_trace(
    drayman: Drayman, edge: str
) -> None:
    process, run = drayman.up(free_port(), edge)
    assert answers(run)
    assert open_listeners(run) == []
    assert Path(run.token_path).read_text() == "t0ken"

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "drained" in output
    assert nothing_left_of(run)
    assert drayman.runs.all() == []
    assert not Path(run.folder).exists()


def test_host_opens_the_api_alone() -> None:
    settings = launch.Settings(port=8123, host="0.0.0.0")

    assert settings.url == "http://127.0.0.1:8123"


@pytest.mark.long
def test_a_live_run_and_a_foreign_server_on_the_port_are_told_apart(drayman: Drayman) -> None:
    _, run = drayman.up(free_port(), "proxy")
    foreign = http.server.HTTPServer((LOOPBACK, 0), http.server.BaseHTTPRequestHandler)
    with foreign:
        on_live = drayman.start(run.port, "proxy")
        on_foreign = drayman.start(foreign.server_port, "proxy")
        told_live, _ = on_live.communicate(timeout=60)
        told_foreign, _ = on_foreign.communicate(timeout=60)

    assert (on_live.returncode, on_foreign.returncode) == (2, 2)
    assert f"already runs on {run.port} at {run.url}" in told_live
    assert f"{foreign.server_port} is in use by process {os.getpid()}" in told_foreign
    assert answers(run)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "has_come"),
    [
        (signal.SIGINT, lambda drayman, run: bool(find_descendants(run.nonce))),
        (signal.SIGTERM, lambda drayman, run: drayman.runs.path(run.port, "token").exists()),
    ],
    ids=["SIGINT while Ray starts", "SIGTERM while Serve starts"],
)
def test_a_signal_during_the_start_ends_it_in_good_order(
    drayman: Drayman, number: signal.Signals, has_come: Callable[[Drayman, RunFile], bool]
) -> None:
    port = free_port()
    process = drayman.start(port, "proxy")
    run = until(lambda: drayman.runs.read(port), START_S)
    assert run is not None
    until(lambda: has_come(drayman, run), START_S)

    process.send_signal(number)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 130, output
    assert [line for line in output.splitlines() if line.startswith("stop")] == [
        "stopping",
        "stopped; what was not done goes on with the next `drayman up` on this store",
    ]
    assert "Traceback" not in output
    assert nothing_left_of(run)
    assert drayman.runs.all() == []
    assert not Path(run.folder).exists()


@pytest.mark.long
def test_after_everything_was_killed_the_next_up_on_the_port_starts_cleanly(
    drayman: Drayman, edge: str
) -> None:
    process, first = drayman.up(free_port(), edge)
    everything = [process.pid, *(p.pid for p in find_descendants(first.nonce))]
    spared = {p.pid for p in first.processes if p.what == "haproxy"}
    for pid in everything:
        # HAProxy must end by itself: nothing may answer for a run that is gone.
        if pid not in spared and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()

    _, second = drayman.up(first.port, edge)

    assert second.nonce != first.nonce
    assert answers(second)
    assert nothing_left_of(first)
    assert not Path(first.folder).exists()


@pytest.mark.long
def test_haproxy_does_not_outlive_a_ray_that_was_killed(drayman: Drayman) -> None:
    process, run = drayman.up(free_port(), available(Edge.HAPROXY))

    process.kill()
    process.wait()

    assert eventually(lambda: not answers_at_all(run.port), within_s=20)
    assert eventually(lambda: not any(map(is_alive, run.processes)), within_s=60)
    # Ray's own agents take a minute to notice; nobody has to wait for them.
    assert launch.down(run.port, drayman.state).endswith("had died; cleared up after it")
    assert nothing_left_of(run)


def answers_at_all(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((LOOPBACK, port)) == 0


@pytest.mark.long
@pytest.mark.parametrize("vital", ["raylet", "gcs_server"])
def test_up_ends_with_an_error_when_ray_dies_under_it(drayman: Drayman, vital: str) -> None:
    process, run = drayman.up(free_port(), "proxy")
    victim = next(p for p in run.processes if p.what == vital)

    os.kill(victim.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 1
    assert re.search(rf"Ray's {vital} ended unexpectedly", output)
    assert nothing_left_of(run)
    assert drayman.runs.all() == []


@pytest.mark.long
def test_two_detached_draymans_run_side_by_side_and_take_ray_jobs(drayman: Drayman) -> None:
    ports = [free_port(), free_port()]
    edge = Edge.choose(None).value
    starting = [drayman.start(port, edge, "--detach", "--dashboard") for port in ports]
    for process in starting:
        output, _ = process.communicate(timeout=START_S)
        assert process.returncode == 0, output
    runs = [run for port in ports if (run := drayman.runs.read(port)) is not None]

    said = [submit_ray_job(run) for run in runs]

    assert [answers(run) for run in runs] == [True, True]
    assert [open_listeners(run) for run in runs] == [[], []]
    found = [f"found {run.ray_address}" in text for run, text in zip(runs, said, strict=True)]
    assert found == [True, True], said
    assert len({run.dashboard_url for run in runs}) == 2
    assert [launch.down(run.port, drayman.state) for run in runs] == [
        f"stopped the Drayman on {port}" for port in ports
    ]
    assert all(map(nothing_left_of, runs))


def submit_ray_job(run: RunFile) -> str:
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": run.ray_token_path}
    code = "import ray; ray.init(); print('found', ray.get_runtime_context().gcs_address)"
    done = subprocess.run(
        [
            ray_command(),
            "job",
            "submit",
            "--address",
            run.dashboard_url,
            "--",
            "python",
            "-c",
            code,
        ],
        env=os.environ | ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S,
    )
    return done.stdout


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))
