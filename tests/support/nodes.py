"""A Ray of two nodes on this machine, for Drayman to join: `python -m tests.support.nodes`.

It prints its address and the process of the second node's raylet, and lives until its input ends.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tests.support.live import ROOT, WAIT_S

__all__ = ["TwoNodes"]

OBJECT_STORE_BYTES = 80 * 2**20


class TwoNodes:
    """Runs within a `with` block, its processes marked by the environment it is given."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nodes"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        #: Of the GCS, and the raylet of the node that is not the head.
        self.address, self.raylet = words[0], int(words[1])
        self.lost_node = words[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every node."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(WAIT_S)
        self._process.stdout.close()


def _main() -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
    raylet = node.all_processes["raylet"][0].process.pid
    print(cluster.address, raylet, node.node_id, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _main()
