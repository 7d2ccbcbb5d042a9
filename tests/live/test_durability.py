"""Nothing acknowledged is lost: not when everything is killed, nor when the disk is slow."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live import LIVE_JOBS, WAIT_S, LiveDrayman, eventually, until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

DELAY_S = 2.0
SYNCS = ("fsync", "fdatasync")
SENDS = ("write", "writev", "sendto", "sendmsg", "sendmmsg")
RECEIVES = ("read", "readv", "recvfrom", "recvmsg")


# --- everything is killed -----------------------------------------------------------------------


@pytest.fixture
def own(own_module: Path, tmp_path: Path) -> Iterator[LiveDrayman]:
    """A Drayman to kill, started in a user's folder with the module that lies there."""
    live = LiveDrayman(
        tmp_path, jobs=f"greetings,{LIVE_JOBS}", cwd=own_module, options=["--no-dashboard"]
    )
    try:
        live.up()
        yield live
    finally:
        live.close()


def is_haproxy(line: str) -> bool:
    return Path(line.split(" ")[0]).name.startswith("haproxy")


@pytest.mark.long
def test_pending_jobs_outlive_a_kill_of_everything(own: LiveDrayman, tmp_path: Path) -> None:
    with own.client() as client:
        greeting = client.submit("greet", {"name": "Ada"}, key="ada")["id"]
        assert client.wait(greeting, WAIT_S)["result"] == {"text": "Hello Ada"}

    # HAProxy spared, it may still hold the port when the next one comes.
    for number, spare in enumerate([is_haproxy, lambda line: False]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with own.client() as client:
            running, pending = fill(client, folder)

        own.kill_everything(spare)
        own.up()

        with own.client() as client:
            (folder / "opened").touch()
            ended = [client.wait(job_id, WAIT_S) for job_id in [*running, *pending]]
            again = client.submit("greet", {"name": "Ada"}, key="ada")
            assert client.result(greeting) == {"text": "Hello Ada"}
        assert {job["status"] for job in ended} == {"completed"}
        # What ended with the whole machine is charged to no job.
        assert {job["recoveries"] for job in ended} == {0}
        assert sorted((folder / "effects").read_text().split()) == sorted(pending)
        assert again["id"] == greeting


def fill(client: Client, folder: Path) -> tuple[list[str], list[str]]:
    """Keep every worker busy, with jobs waiting behind; return both."""
    count = sum(worker["pool"] == "cpu" for worker in client.workers())
    begun = [folder / f"begun-{number}" for number in range(count)]
    running = [
        client.submit("live.gate", {"begun": str(path), "opened": str(folder / "opened")})["id"]
        for path in begun
    ]
    until(lambda: all(path.exists() for path in begun))
    params = {"path": str(folder / "effects")}
    pending = [client.submit("live.effect", params)["id"] for _ in range(20)]
    return running, pending


# --- the disk is watched, and slow --------------------------------------------------------------


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("strace is missing: apt-get install strace")
    if found is None:
        pytest.skip("strace is missing")
    return found


@contextlib.contextmanager
def traced(strace: str, pid: int, log: Path, *options: str) -> Iterator[None]:
    """Watch the process, every thread of it, until the block ends."""
    command = [strace, "-f", "-ttt", "-y", "-s", "65536", "-o", str(log), *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            assert f"Process {pid} attached" in said, said
            yield
        finally:
            # Asked so, it lets go of the process before it ends.
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=WAIT_S)


def calls(log: Path) -> list[tuple[str, str]]:
    """Return (system call, its text) in the order in which the calls ended.

    A call that another thread interrupts is two lines; the first one holds the arguments.
    """
    begun: dict[str, str] = {}
    found = []
    for line in log.read_text().splitlines():
        thread, _, text = line.split(maxsplit=2)  # short pids are padded
        if text.endswith("<unfinished ...>"):
            begun[thread] = text
            continue
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", text):
            found.append((resumed[1], begun.pop(thread, "") + text))
        elif name := re.match(r"(\w+)\(", text):
            found.append((name[1], text))
    return found


def told(log: Path, job_id: str) -> list[int]:
    """Return which of the calls sent the answer to the batch that has the job.

    It is a frame (`cluster/wire.py`) with the number of the one that asked, and says nothing more
    than that all of the batch was accepted.
    """
    streams: dict[str, bytes] = {}
    answer: tuple[str, bytes] | None = None
    found = []
    for place, (name, call) in enumerate(calls(log)):
        socket = re.search(r"<(?:socket|TCP)[^>]*>", call)
        if socket is None or name not in (*SENDS, *RECEIVES):
            continue
        carried = carried_by(call)
        if name in RECEIVES:
            stream = streams[socket[0]] = streams.get(socket[0], b"") + carried
            asked = re.search(
                rb"(?s)(.{4})\x00{\"gateway\"(?:(?!{\"gateway).)*" + job_id.encode(), stream
            )
            if answer is None and asked is not None:
                answer = socket[0], b"\0\0\0\2" + asked[1] + b"\0{}"
        elif answer is not None and answer[0] == socket[0] and answer[1] in carried:
            found.append(place)
    return found


def carried_by(call: str) -> bytes:
    """Return the bytes that a call carried, from how strace shows them."""
    shown = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', call))
    return shown.encode().decode("unicode_escape").encode("latin-1")


def submit_for_later(client: Client) -> str:
    """Submit a job that nothing else happens to."""
    job_id: str = client.submit("live.effect", {"path": "never"}, delay_s=3600.0)["id"]
    return job_id


def test_both_fsyncs_have_ended_before_a_job_is_acknowledged(
    drayman: LiveDrayman, client: Client, strace: str, tmp_path: Path
) -> None:
    manager, log = drayman.pid("ray::QueueManager"), tmp_path / "strace"
    journal = str(drayman.store / "journal")
    traced_calls = (*SYNCS, *SENDS, *RECEIVES, "link", "linkat")
    options = ["-e", f"trace={','.join(traced_calls)}"]

    def submit_to_manager() -> str | None:
        # Slow under the tracer, the manager may be passed over: then the replica kept the job.
        job_id = submit_for_later(client)
        found = eventually(lambda: bool(told(log, job_id)), within_s=2.0)
        client.cancel(job_id)
        return job_id if found else None

    with traced(strace, manager, log, *options):
        job_id = until(submit_to_manager)

    seen = calls(log)

    def after(start: int, found: Callable[[str, str], bool]) -> int:
        return next(i for i, call in enumerate(seen) if i > start and found(*call))

    wrote = after(-1, lambda name, call: f"<{journal}/" in call and job_id in call)
    file = after(wrote, lambda _, call: synced(call) and f"<{journal}/" in call)
    linked = after(file, lambda name, _: name in ("link", "linkat"))
    folder = after(linked, lambda _, call: synced(call) and f"<{journal}>" in call)
    assert folder < told(log, job_id)[0]


def synced(call: str) -> bool:
    return call.startswith(SYNCS) and call.endswith("= 0")


@pytest.mark.long
def test_no_job_is_acknowledged_before_a_slow_disk_has_it(
    drayman: LiveDrayman, strace: str, tmp_path: Path
) -> None:
    assert drayman.store.is_dir()  # a bucket has no disk of ours to slow down
    manager, names = drayman.pid("ray::QueueManager"), ",".join(SYNCS)
    delay = f"inject={names}:delay_exit={DELAY_S * 1e6:.0f}"

    def timed(_: int) -> tuple[str, float]:
        with drayman.client() as client:
            began = time.monotonic()
            return submit_for_later(client), time.monotonic() - began

    # The replica's disk, too: it accepts by itself where the manager is slow, but not sooner.
    replica = drayman.pid("ray::ServeReplica")
    options = ("-e", f"trace={names}", "-e", delay)
    with (
        traced(strace, manager, tmp_path / "strace", *options),
        traced(strace, replica, tmp_path / "strace-replica", *options),
        ThreadPoolExecutor(8) as pool,
    ):
        answered = list(pool.map(timed, range(8)))

    assert min(took_s for _, took_s in answered) >= DELAY_S
    assert drayman.pid("ray::QueueManager") == manager
    with drayman.client() as client:
        for job_id, _ in answered:
            assert client.status(job_id)["status"] == "scheduled"
            client.cancel(job_id)
