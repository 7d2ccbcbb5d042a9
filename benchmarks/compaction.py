"""What compaction costs those who wait for an acknowledgement: `python -m benchmarks.compaction`.

Two fresh Draymans one after the other, with the same 200,000 finished jobs in the journal and the
same load: the first compacts as seldom as can be, the second all the time.
"""

import asyncio
import time

from benchmarks.load import LINE, Load, fire, post
from benchmarks.server import Server, running

__all__ = ["main"]

FINISHED, CONNECTIONS, SECONDS = 200_000, 4, 40.0


def main() -> None:
    """Print one row for each Drayman."""
    print("| compaction | acks/s | p50 ms | p99 ms | worst ms | snapshots |")
    print("|---|---|---|---|---|---|")
    seldom = _measure("never", "100000")
    always = _measure("all the time", "1")
    added = always.percentile_ms(0.99) - seldom.percentile_ms(0.99)
    print(f"added to the p99: {added:.1f} ms")


def _measure(name: str, compact_after_s: str) -> Load:
    with running("--compact-after", compact_after_s) as server:
        _finish(server)
        load = asyncio.run(
            fire(server.address, post(server), connections=CONNECTIONS, seconds=SECONDS)
        )
        snapshots = len(list((server.store / "snapshots").rglob("*"))) if _has(server) else 0
    figures = [load.per_s, *(load.percentile_ms(share) for share in (0.5, 0.99, 1.0))]
    print(
        f"| {name} | " + " | ".join(f"{f:,.1f}" for f in figures) + f" | {snapshots} |", flush=True
    )
    return load


def _has(server: Server) -> bool:
    return (server.store / "snapshots").exists()


def _finish(server: Server) -> None:
    body = b"\n".join([LINE] * 10_000)
    with server.client() as client:
        for _ in range(FINISHED // 10_000):
            client.post("/v1/jobs/batch", content=body).raise_for_status()
        while any(q["ready"] + q["leased"] for q in client.get("/v1/queues").json()["queues"]):
            time.sleep(0.1)


if __name__ == "__main__":
    main()
