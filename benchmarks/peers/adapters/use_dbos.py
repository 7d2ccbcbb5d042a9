"""DBOS queue: polls every 50 ms (1 s by default); `python use_dbos.py NAME` is a worker."""

import os
import sys
import threading

from body import PAYLOAD, run
from dbos import DBOS, DBOSClient

CONFIG = {
    "name": "peers",
    "application_version": "1",
    "system_database_url": os.environ["PEER_BROKER"],
    "console_log_level": "WARNING",
}
QUEUE, POLL_S, CONCURRENCY = "jobs", 0.05, 50
ORDER = {"workflow_name": "job", "queue_name": QUEUE, "application_name": "peers"}
job = DBOS.workflow(name="job")(run)
client: DBOSClient


def open() -> None:
    global client
    # Makes the schema and the queue, and leaves the work to others.
    _launch("producer")
    DBOS.destroy()
    client = DBOSClient(system_database_url=CONFIG["system_database_url"])


def enqueue(n: int, nap_s: float = 0.0) -> None:
    client.enqueue(ORDER, n, PAYLOAD, nap_s)


def _launch(name: str) -> None:
    DBOS(config={**CONFIG, "executor_id": name})
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_S)


if __name__ == "__main__":
    _launch(sys.argv[1])
    threading.Event().wait()
