"""What is over leaves: the journal is folded, then jobs leave memory; dead letters have a limit.

The manager's side of a compaction: when it is worth one, and what is journalled of it. Another
process carries it out (`compaction.py`).
"""

from itertools import islice

import msgspec
import structlog

from cluster.commit import Clock, CommitLog
from cluster.compaction import CompactionDone, CompactionPlan, CompactorPort
from cluster.protocol import encode
from cluster.queue import commands as c
from cluster.queue.plan import steps_of
from cluster.settings import ClusterSettings

__all__ = ["Housekeeper"]

log = structlog.get_logger(__name__)

#: How often it is looked whether the journal should be folded, and how long after a compaction, or
#: one that failed, the next may begin.
COMPACT_LOOK_S = 1.0
COMPACT_PAUSE_S = 10.0
COMPACT_RETRY_S = 10.0
#: Whatever comes first: so much written, or so many jobs that only wait to leave memory; or half as
#: much as the snapshot has, where that is more.
COMPACT_BYTES = 64 << 20
COMPACT_FINISHED = 100_000
#: A segment more may wait for each so many rows of the snapshot.
COMPACT_ROWS_A_SEGMENT = 100
#: Jobs that leave memory in one tick: few enough that no reply waits for it.
EVICT_MAX = 2_000
#: Dead letters let go in one second, where there are too many.
PURGE_MAX = 10_000


class Housekeeper:
    """Keeps journal and memory as small as what is not over."""

    def __init__(
        self, commit: CommitLog, compactor: CompactorPort, settings: ClusterSettings, clock: Clock
    ) -> None:
        self._commit, self._compactor = commit, compactor
        self._settings, self._clock = settings, clock
        self._compacted_bytes = 0
        #: What the last compaction of this life left.
        self._snapshot = CompactionDone(last=0, seq=0, finished=0, rows=0)

    async def compact_forever(self) -> None:
        """Fold the journal whenever that is worth it."""
        compacted_at, wait_s = self._clock.monotonic(), COMPACT_LOOK_S
        while True:
            await self._clock.sleep(wait_s)
            wait_s = COMPACT_LOOK_S
            if not (self._commit.state.planned or self._should_compact(compacted_at)):
                continue
            try:
                await self.compact()
            except Exception as error:
                # Whatever the carrier raises: the plan stands, and is carried out again.
                log.warning("compaction_failed", error=str(error), next_try_s=COMPACT_RETRY_S)
                wait_s = COMPACT_RETRY_S
            else:
                compacted_at = self._clock.monotonic()
                self._compacted_bytes = self._commit.bytes_written

    def _should_compact(self, compacted_at: float) -> bool:
        state, settings = self._commit.state, self._settings
        segments = self._commit.number - state.compacted
        age_s = self._clock.monotonic() - compacted_at
        if age_s < COMPACT_PAUSE_S or segments < 2:
            return False
        # Each compaction reads and writes the whole snapshot: a large one has to be worth it.
        snapshot = self._snapshot
        chunks = sum(len(step.finished) for job in state.plans.values() for step in steps_of(job))
        return (
            segments >= settings.compact_segments + snapshot.rows // COMPACT_ROWS_A_SEGMENT
            or self._commit.bytes_written - self._compacted_bytes
            >= max(COMPACT_BYTES, snapshot.snapshot_bytes // 2)
            or len(state.finished) + chunks >= max(COMPACT_FINISHED, snapshot.rows // 2)
            or (age_s >= settings.compact_after_s and bool(state.finished or chunks))
        )

    async def compact(self) -> None:
        """Have the journal folded up to here, and journal that it is."""
        self._commit.run(c.PlanCompaction(self._commit.number))
        await self._commit.barrier()
        state = self._commit.state
        plan = CompactionPlan(
            first=state.compacted + 1,
            last=state.planned,
            covered=state.compacted,
            claims=list(state.claims),
            retention_days=self._settings.retention_days,
        )
        began = self._clock.monotonic()
        reply = await self._compactor.compact(encode(plan))
        done = msgspec.json.decode(reply, type=CompactionDone)
        self._snapshot = done
        self._commit.run(c.EndCompaction(done.last, done.seq))
        await self._commit.barrier()
        log.info(
            "compacted",
            segments=plan.last - plan.first + 1,
            finished=done.finished,
            rows=done.rows,
            took_s=round(self._clock.monotonic() - began, 2),
        )

    def evict(self) -> None:
        """Let go of jobs that history has."""
        self._commit.run(c.Evict(EVICT_MAX))

    def let_go_of_dead(self, kept: int) -> None:
        """Purge the oldest dead letters where there are more than are to be kept."""
        dead = self._commit.state.dead
        surplus = len(dead) - kept
        if surplus <= 0:
            return
        oldest = islice(
            (t.job for t in dead.values() if t.job.finished_at), min(surplus, PURGE_MAX)
        )
        for job_id in list(dict.fromkeys(job.id for job in oldest)):
            self._commit.run(c.Purge(job_id))
        log.warning("dead_letters_let_go", count=surplus)
