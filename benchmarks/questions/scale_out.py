"""Do more nodes run more jobs?

A Ray of 1, 2 and 4 nodes of one CPU, all on this machine, each with one worker whose handler
sleeps for 20 ms, so that the machine's cores are not what limits it. What it doesn't show: a
network between the nodes, nor how many nodes one manager can feed.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.asking import DRAYMAN, Asked
from benchmarks.figures import Figure
from benchmarks.marks import Marks, marks_file
from benchmarks.server import ROOT, Server, clean_environment, running

__all__ = ["ask"]

NODES = (1, 2, 4)
NAP_S = 0.02
#: Of the work of one round.
ROUND_S = 4.0
START_S = 60.0
LOOK_S = 0.1
OBJECT_STORE_BYTES = 80 * 2**20


def ask(asked: Asked) -> Iterator[Figure]:
    """Start a cluster of each size, and let Drayman join it."""
    for nodes in asked.size(NODES, NODES[:2]):
        with _cluster(nodes) as address, running(*_options(address, nodes)) as server:
            spread = _wait_workers(server, nodes)
            jobs = round(nodes * asked.size(ROUND_S, 1.0) / NAP_S)
            rates = [_rate(server, jobs) for _ in range(asked.repeats + 1)][1:]
        note = f"workers on {spread} nodes; ideal {nodes / NAP_S:g}"
        what = f"jobs of 20 ms, {nodes} node{'s' * (nodes > 1)}"
        yield Figure("scale_out", DRAYMAN, what, "jobs/s", rates, note)


def _options(address: str, nodes: int) -> list[str]:
    return ["--address", address, "--shared-mount", "--pool", f"cpu:size={nodes}"]


def _wait_workers(server: Server, nodes: int) -> int:
    """Return on how many nodes the workers are, once all are there."""
    deadline = time.monotonic() + START_S
    while server.slots() < nodes:
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(LOOK_S)
    with server.api() as api:
        return len({worker["node"] for worker in api.workers() if worker["pool"] == "cpu"})


def _rate(server: Server, jobs: int) -> float:
    with marks_file(jobs) as marks, server.client() as client:
        began = time.time()
        body = marks.lines(0, jobs).replace(b'"pad"', b'"seconds":%g,"pad"' % NAP_S)
        client.post("/v1/jobs/batch", content=body).raise_for_status()
        marks.wait(jobs)
        rate = jobs / (_last(marks, jobs) + NAP_S - began)
        server.drain()
    return rate


def _last(marks: Marks, jobs: int) -> float:
    assert not marks.not_run(jobs) + marks.run_twice(jobs)
    return max(marks.began(jobs))


@contextmanager
def _cluster(nodes: int) -> Iterator[str]:
    """Run a Ray of so many nodes in a process of its own; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.questions.scale_out", str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _main(nodes: int) -> None:
    from ray.cluster_utils import Cluster

    each = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**each)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _main(int(sys.argv[1]))
