"""What the API counts about itself, and what it tells Prometheus of queues and workers.

Counters are those of one API process: behind several, scrape each or read them as samples.
Gauges are read from the manager at the moment of the scrape, so they hold for the whole system.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from cluster.views import QueueView, WorkerView

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds: from a durable acknowledgement in milliseconds to a `Prefer: wait` of half a minute.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_QUEUE_GAUGES = {
    "ready": "Tasks that could start now",
    "leased": "Tasks held by workers",
    "scheduled": "Tasks that wait for their moment",
    "backing_off": "Tasks that wait to be tried again",
    "dead": "Dead letters",
    "oldest_age_s": "Seconds the oldest ready task has waited",
    "drain_rate": "Tasks finished a second, over the last minute",
    "workers": "Workers that serve the queue",
    "paused": "1 if paused",
}


class Metrics:
    """The counters of one API process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "drayman_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "drayman_http_request_seconds",
            "Time from a request's headers to the end of its answer",
            ["route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._accepted = Counter(
            "drayman_jobs_accepted", "Jobs made durable", ["type"], registry=self._registry
        )
        # labels() costs more than the counting itself; the hot path asks for it once.
        self._request_counters: dict[tuple[str, str, int], Counter] = {}
        self._request_timers: dict[str, Histogram] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. `route` is the template of its path, never the path itself."""
        key = (method, route, status)
        counter = self._request_counters.get(key)
        if counter is None:
            counter = self._request_counters[key] = self._requests.labels(method, route, status)
        timer = self._request_timers.get(route)
        if timer is None:
            timer = self._request_timers[route] = self._seconds.labels(route)
        counter.inc()
        timer.observe(seconds)

    def accepted(self, job_type: str, count: int = 1) -> None:
        """Count jobs that are durable and were not known before."""
        self._accepted.labels(job_type).inc(count)

    def render(self, queues: list[QueueView] | None, workers: list[WorkerView] | None) -> bytes:
        """Return everything in Prometheus' text format; None: the manager did not answer."""
        gauges = CollectorRegistry()
        gauges.register(_Snapshot(queues, workers))
        return generate_latest(self._registry) + generate_latest(gauges)


class _Snapshot:
    """What the manager said a moment ago, as gauges."""

    def __init__(self, queues: list[QueueView] | None, workers: list[WorkerView] | None) -> None:
        self._queues, self._workers = queues, workers

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        up = self._queues is not None and self._workers is not None
        yield GaugeMetricFamily("drayman_manager_up", "1 if the manager answered", value=int(up))
        for name, text in _QUEUE_GAUGES.items():
            unit = name.replace("_s", "_seconds") if name.endswith("_s") else name
            gauge = GaugeMetricFamily(f"drayman_queue_{unit}", text, labels=["queue"])
            for queue in self._queues or ():
                gauge.add_metric([queue.name], float(getattr(queue, name)))
            yield gauge
        yield from self._pools()

    def _pools(self) -> Iterable[Metric]:
        workers = GaugeMetricFamily("drayman_pool_workers", "Workers alive", labels=["pool"])
        started = GaugeMetricFamily("drayman_pool_running", "Attempts running", labels=["pool"])
        silent = GaugeMetricFamily(
            "drayman_pool_silent_seconds_max", "Longest time since a report", labels=["pool"]
        )
        pools: dict[str, list[WorkerView]] = {}
        for worker in self._workers or ():
            pools.setdefault(worker.pool, []).append(worker)
        for pool, members in sorted(pools.items()):
            workers.add_metric([pool], len(members))
            started.add_metric([pool], sum(w.started for w in members))
            silent.add_metric([pool], max(w.silent_s for w in members))
        yield from (workers, started, silent)
