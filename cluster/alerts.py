"""Tells an operator that dead letters grow: one POST, which is a job like any other.

Rule: what tells of trouble makes none. Alerts that fail are not alerted of, and there is at most
one in so long, which tells of all since the last.
"""

from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import structlog

from cluster.catalog import limit_keys
from cluster.commit import CommitLog
from cluster.config import Alerts, Config
from cluster.queue import commands as c
from cluster.queue.spec import JobSpec, decode_head, encode_spec

__all__ = ["ALERTS_TENANT", "AlertSender"]

log = structlog.get_logger(__name__)

#: Whose the jobs are that carry alerts.
ALERTS_TENANT = "drayman-alerts"
#: The job type that carries them, the limit it counts against, and where it waits if it can.
CARRIER, CARRIER_LIMIT, CARRIER_QUEUE = "http.call", "http:{host}", "io"
#: Kinds of dead letters that are named in one alert.
KINDS_TOLD = 20


class AlertSender:
    """Watches the dead letters."""

    def __init__(self, commit: CommitLog, *, new_id: Callable[[], str]) -> None:
        self._commit, self._new_id = commit, new_id
        self._told_at = float("-inf")
        #: Dead letters as they were told of last; those there are at the start are no news.
        self._known: int | None = None

    def look(self, config: Config) -> bool:
        """Submit an alert if there is reason for one; return whether there was."""
        state, alerts = self._commit.state, config.alerts
        count = len(state.dead)
        if self._known is None or count < self._known or not alerts.dead_letters_url:
            self._known = count
            return False
        now = self._commit.clock.monotonic()
        if count == self._known or now - self._told_at < alerts.every_s:
            return False
        grown = self._grown(self._known)
        self._known = count
        if not grown:
            return False
        self._told_at = now
        self._submit(config, alerts, grown)
        return True

    def _grown(self, before: int) -> Counter[tuple[str, str, str]]:
        """Count those that came last, by queue, type and cause."""
        letters = list(self._commit.state.dead.values())[before:]
        return Counter(
            (task.job.queue, task.job.type, task.past[-1].cause if task.past else "")
            for task in letters
            if task.job.tenant != ALERTS_TENANT
        )

    def _submit(self, config: Config, alerts: Alerts, grown: Counter[tuple[str, str, str]]) -> None:
        url = alerts.dead_letters_url
        told = {
            "type": "dead_letters.grew",
            "count": len(self._commit.state.dead),
            "new": sum(grown.values()),
            "kinds": [
                {"queue": queue, "type": kind, "cause": cause, "new": count}
                for (queue, kind, cause), count in grown.most_common(KINDS_TOLD)
            ],
        }
        params = {"url": url, "method": "POST", "body": told}
        queue = CARRIER_QUEUE if CARRIER_QUEUE in config.all_queues else config.default_queue
        spec = JobSpec(
            CARRIER,
            msgspec.Raw(msgspec.json.encode(params)),
            tenant=ALERTS_TENANT,
            queue=queue,
            labels={"alert": "dead-letters"},
            limits=limit_keys([CARRIER_LIMIT], {"host": urlsplit(url).netloc.lower()}),
        )
        raw = encode_spec(spec)
        self._commit.run(c.Submit(self._new_id(), decode_head(raw), raw, admitted=True))
        log.warning("dead_letters_grew", new=told["new"], count=told["count"], told=url)
