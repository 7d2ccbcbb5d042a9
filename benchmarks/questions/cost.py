"""What does a job cost, and what does Drayman cost while there are none?

CPU per no-op job by kind of process, accepted in NDJSON batches into a paused queue, then run from
it, then compacted; bytes per job on the disk; memory beside that of the same Ray and Serve with an
empty application; CPU and store requests of an idle Drayman. What it doesn't show: the submitter's
own cost, and single submissions, which cost more each.
"""

import contextlib
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure
from benchmarks.load import LINE
from benchmarks.processes import COMPACTION, OWN, Meter, kinds_of, pids_of, pss_mb
from benchmarks.server import Server, running

__all__ = ["ask", "store_calls"]

BATCH, WARM_JOBS = 10_000, 1_000
#: Long enough for accepting and running, as no compaction is to fall into these.
COMPACT_AFTER_S = 16.0
COMPACTED_S, LOOK_S = 180.0, 0.5
IDLE_LOOK_S, TRACE_S = 2.0, 30.0
#: Less than this is not worth a row.
SHOWN_US = 0.05
WRITERS = [kind for kind in OWN if kind != COMPACTION]
#: System calls that take a path; with the store in a bucket, most would be requests.
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")

figure = partial(Figure, "cost", DRAYMAN)


def ask(asked: Asked) -> Iterator[Figure]:
    """Measure idle first, then under load, then what is below Drayman."""
    idle_s, jobs = asked.size(asked.idle_s, 20.0), asked.size(100_000, 20_000)
    compact = ("--compact-after", str(asked.size(COMPACT_AFTER_S, COMPACT_AFTER_S / 2)))
    with running(*asked.options, *compact) as server:
        _accept(server, WARM_JOBS)
        _wait_compacted(server, WARM_JOBS)
        ours = pss_mb(server)
        yield from _idle(server, idle_s)
        yield from _store_calls(server, min(idle_s, TRACE_S))
        # The time until the next compaction runs from the last one, and nothing was since long.
        _accept(server, 1)
        _wait_compacted(server, WARM_JOBS + 1)
        yield from _work(server, jobs, WARM_JOBS + 1)
    with running(*asked.options, module=("benchmarks.bare",)) as server:
        bare = pss_mb(server)
    yield from _memory(ours, bare)


def _memory(ours: Mapping[str, float], bare: Mapping[str, float]) -> Iterator[Figure]:
    total, below = sum(ours.values()), sum(bare.values())
    parts = ", ".join(f"{kind} {ours[kind]:.0f}" for kind in OWN if kind in ours)
    yield figure("memory (PSS), idle, all processes", "MB", [total], parts)
    yield figure("memory (PSS), bare Ray and Serve", "MB", [below])
    yield figure("memory (PSS), added by Drayman", "MB", [total - below])


def _idle(server: Server, seconds: float) -> Iterator[Figure]:
    with Meter(server, IDLE_LOOK_S) as meter:
        time.sleep(seconds)
    cpu_s = meter.cpu_s()
    own = {kind: 100 * cpu_s[kind] / seconds for kind in OWN if kind in cpu_s}
    rays = {kind: 100 * cpu_s[kind] / seconds for kind in cpu_s if kind not in OWN}
    note = f"of one core, over {seconds:g} s: "
    yield figure("idle CPU, Drayman's own", "%", [sum(own.values())], note + _parts(own))
    yield figure("idle CPU, Ray's and Serve's", "%", [sum(rays.values())], note + _parts(rays))


def _parts(shares: Mapping[str, float]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {share:.2f}" for kind, share in ordered)


def _store_calls(server: Server, seconds: float) -> Iterator[Figure]:
    what = "idle store calls"
    pids = [pid for pid, kind in kinds_of(server).items() if kind in OWN]
    with tempfile.NamedTemporaryFile(prefix="drayman-bench-") as file:
        trace = ["strace", "-f", "-qq", "-e", "trace=%file,getdents64", "-o", file.name]
        attach = [word for pid in pids for word in ("-p", str(pid))]
        try:
            tracer = subprocess.Popen([*trace, *attach], stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            yield figure(what, "a minute", note="strace is not installed")
            return
        time.sleep(seconds)
        was_refused = tracer.poll() is not None
        tracer.terminate()
        tracer.wait()
        calls = store_calls(Path(file.name).read_text(errors="replace"), str(server.store))
    if was_refused:
        yield figure(what, "a minute", note="strace may not look into these processes")
        return
    parts = ", ".join(f"{name} {count}" for name, count in calls.most_common())
    note = f"in {seconds:g} s: {parts or 'none'}"
    yield figure(what, "a minute", [sum(calls.values()) * 60 / seconds], note)


def store_calls(trace: str, store: str) -> Counter[str]:
    """Return how often each system call named a path in the store, from strace's output."""
    lines = [line for line in trace.splitlines() if f'"{store}' in line]
    return Counter(found[1] for line in lines if (found := CALL.match(line)))


def _work(server: Server, jobs: int, earlier: int) -> Iterator[Figure]:
    sizes = _sizes(server)
    with contextlib.ExitStack() as until_compacted:
        with contextlib.ExitStack() as until_run:
            with server.paused():
                with Meter(server) as meter:
                    _accept(server, jobs)
                yield from _used("accept", meter, jobs)
                whole = until_compacted.enter_context(Meter(server))
                meter = until_run.enter_context(Meter(server))
            server.drain()
        yield from _used("run", meter, jobs)
        journal = _sizes(server)["journal"] - sizes["journal"]
        yield figure("journal, accepted and run", "bytes/job", [journal / jobs])
        _wait_compacted(server, earlier + jobs)
    yield figure("compaction: CPU", "µs/job", [whole.cpu_s()[COMPACTION] * 1e6 / jobs])
    yield figure("compaction: written", "bytes/job", [whole.written()[COMPACTION] / jobs])
    history = _sizes(server)["history"] - sizes["history"]
    yield figure("history, compacted", "bytes/job", [history / jobs])


def _used(phase: str, meter: Meter, jobs: int) -> Iterator[Figure]:
    """Yield what a phase took, without a compaction that fell into it."""
    cpu_us = {kind: cpu_s * 1e6 / jobs for kind, cpu_s in meter.cpu_s().items()}
    cpu_us.pop(COMPACTION, None)
    for kind, us in sorted(cpu_us.items(), key=lambda item: -item[1]):
        if us >= SHOWN_US:
            yield figure(f"{phase}: CPU, {kind}", "µs/job", [us])
    yield figure(f"{phase}: CPU, all", "µs/job", [sum(cpu_us.values())])
    written = sum(count for kind, count in meter.written().items() if kind in WRITERS)
    yield figure(f"{phase}: written", "bytes/job", [written / jobs])


def _accept(server: Server, jobs: int) -> None:
    with server.client() as client:
        for start in range(0, jobs, BATCH):
            body = b"\n".join([LINE] * min(BATCH, jobs - start))
            client.post("/v1/jobs/batch", content=body).raise_for_status()


def _sizes(server: Server) -> dict[str, int]:
    """Return the bytes of each folder of the store."""
    sizes = dict.fromkeys(("journal", "history"), 0)
    for path in server.store.rglob("*"):
        if path.is_file() and (top := path.relative_to(server.store).parts[0]) in sizes:
            sizes[top] += path.stat().st_size
    return sizes


def _wait_compacted(server: Server, jobs: int) -> None:
    """Return once so many jobs are in history, and nobody writes there any more."""
    deadline = time.monotonic() + COMPACTED_S
    while _in_history(server) < jobs or pids_of(server, COMPACTION):
        assert time.monotonic() < deadline, "nothing was compacted"
        time.sleep(LOOK_S)


def _in_history(server: Server) -> int:
    # A file may be superseded, and so deleted, between two looks.
    with contextlib.suppress(OSError):
        files = server.store.glob("history/jobs/**/*.parquet")
        return sum(pq.read_metadata(file).num_rows for file in files)
    return 0
