"""What the API counts about itself, and what it tells Prometheus of queues, pools and dead letters.

Counters are those of one API process: behind several, scrape each or read them as samples.
Gauges are read from the manager at the moment of the scrape, so they hold for the whole system.
Rule: a label has few values. Tenants, keys of limits and jobs are none.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from cluster.signals import BOUNDS_S, Signal, Spread
from cluster.views import DeadCount, QueueView, WorkerView
from jobs.errors import Overloaded, Unavailable

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds: from a durable acknowledgement in milliseconds to a `Prefer: wait` of half a minute.
BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

#: By name after `drayman_queue_`: what it says, and how it is read off. None: it is not known.
_QUEUE_GAUGES: dict[str, tuple[str, Callable[[QueueView], float | None]]] = {
    "ready": ("Tasks that could start now", lambda q: q.ready),
    "parked": ("Tasks that wait at a limit", lambda q: q.parked),
    "leased": ("Tasks held by workers", lambda q: q.leased),
    "scheduled": ("Tasks that wait for their moment", lambda q: q.scheduled),
    "backing_off": ("Tasks that wait to be tried again", lambda q: q.backing_off),
    "dead": ("Tasks that are dead letters", lambda q: q.dead),
    "depth": ("Unfinished jobs", lambda q: q.depth),
    "depth_limit": ("Unfinished jobs beyond which submissions are refused", lambda q: q.depth_max),
    "bytes": ("What the specs of unfinished jobs take in memory", lambda q: q.bytes),
    "limit_bytes": ("Bytes beyond which submissions are refused", lambda q: q.bytes_max),
    "oldest_age_seconds": ("How long the oldest ready task has waited", lambda q: q.oldest_age_s),
    "drain_rate": ("Tasks finished a second, over the last minute", lambda q: q.drain_rate),
    "run_seconds": ("Mean run time of its attempts", lambda q: q.run_s),
    "eta_seconds": (
        "When a job that came now would start",
        lambda q: q.eta.seconds if q.eta is not None else None,
    ),
    "workers": ("Workers that serve it", lambda q: q.workers),
    "paused": ("1 if nothing is started from it", lambda q: q.paused),
    "draining": ("1 if it takes nothing new", lambda q: q.draining),
    "stalled": (
        "1 if something waits and nothing could start: see its pending_reason",
        lambda q: q.pending_reason is not None,
    ),
}

#: By name after `drayman_pool_`: the same of the workers of a pool.
_POOL_GAUGES: dict[str, tuple[str, Callable[[list[WorkerView]], float]]] = {
    "workers": ("Workers alive", len),
    "running": ("Attempts running", lambda pool: sum(w.started for w in pool)),
    "held": ("Tasks held, those that were not begun included", lambda p: sum(w.held for w in p)),
    "free_slots": ("Slots with nothing to do", lambda pool: sum(w.free for w in pool)),
    "paused": ("Workers that are given nothing", lambda pool: sum(w.paused for w in pool)),
    "draining": ("Workers that finish and end", lambda pool: sum(w.draining for w in pool)),
    "silence_seconds": (
        "Longest time since a worker's report",
        lambda pool: max(w.silent_s for w in pool),
    ),
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
        self._refusals = Counter(
            "drayman_refusals",
            "Requests, or lines of batches, told to come later: 429 for a tenant, else 503",
            ["scope", "queue"],
            registry=self._registry,
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

    def refused(self, error: Exception) -> None:
        """Count a refusal, if the error is one."""
        if isinstance(error, Overloaded):
            self._refusals.labels(error.scope, error.name if error.scope == "queue" else "").inc()
        elif isinstance(error, Unavailable):
            self._refusals.labels("unavailable", "").inc()

    def render(
        self,
        queues: list[QueueView] | None,
        workers: list[WorkerView] | None,
        dead: list[DeadCount] | None,
        signals: list[Signal] | None,
    ) -> bytes:
        """Return everything in Prometheus' text format; None: the manager did not answer."""
        gauges = CollectorRegistry()
        gauges.register(_Snapshot(queues, workers, dead, signals))
        return generate_latest(self._registry) + generate_latest(gauges)


class _Snapshot:
    """What the manager said a moment ago, as gauges."""

    def __init__(
        self,
        queues: list[QueueView] | None,
        workers: list[WorkerView] | None,
        dead: list[DeadCount] | None,
        signals: list[Signal] | None,
    ) -> None:
        self._queues, self._workers, self._dead = queues, workers, dead
        self._signals = signals

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        up = None not in (self._queues, self._workers, self._dead, self._signals)
        yield GaugeMetricFamily("drayman_manager_up", "1 if the manager answered", value=int(up))
        for name, (text, read) in _QUEUE_GAUGES.items():
            gauge = GaugeMetricFamily(f"drayman_queue_{name}", text, labels=["queue"])
            for queue in self._queues or ():
                if (value := read(queue)) is not None:
                    gauge.add_metric([queue.name], float(value))
            yield gauge
        dead = GaugeMetricFamily(
            "drayman_dead_letters",
            "Dead letters, by what they died of",
            labels=["queue", "type", "cause"],
        )
        for one in self._dead or ():
            dead.add_metric([one.queue, one.type, one.cause], one.count)
        yield dead
        pools: dict[str, list[WorkerView]] = {}
        for worker in self._workers or ():
            pools.setdefault(worker.pool, []).append(worker)
        for name, (text, sum_up) in _POOL_GAUGES.items():
            gauge = GaugeMetricFamily(f"drayman_pool_{name}", text, labels=["pool"])
            for pool, members in sorted(pools.items()):
                gauge.add_metric([pool], float(sum_up(members)))
            yield gauge
        yield from self._attempts()

    def _attempts(self) -> Iterable[Metric]:
        labels = ["queue", "type"]
        ended = CounterMetricFamily(
            "drayman_attempts", "Attempts that ended, by how", labels=[*labels, "outcome"]
        )
        wait = HistogramMetricFamily(
            "drayman_attempt_wait_seconds", "From ready to started", labels=labels
        )
        run = HistogramMetricFamily(
            "drayman_attempt_run_seconds", "From started to ended", labels=labels
        )
        for signal in self._signals or ():
            kind = [signal.queue, signal.type]
            for outcome, count in signal.outcomes.items():
                ended.add_metric([*kind, outcome], count)
            wait.add_metric(kind, _buckets(signal.wait), signal.wait.sum)
            run.add_metric(kind, _buckets(signal.run), signal.run.sum)
        yield ended
        yield wait
        yield run


def _buckets(spread: Spread) -> list[tuple[str, float]]:
    """Return the counts up to each bound, as Prometheus has them."""
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    return [
        (bound, float(sum_)) for bound, sum_ in zip(bounds, accumulate(spread.counts), strict=True)
    ]
