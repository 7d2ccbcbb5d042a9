"""What is wrong with a Drayman that runs, in words, and what to do about it.

Rule 1: it only reads, and judges what the API says: `diagnose` asks, the rest is pure. Rule 2: what
is as somebody wanted it is a note; wrong is what keeps work from being done.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from service.finding import Finding, Level
from service.launch import APPLICATION
from service.schemas.jobs import Job, JobList
from service.schemas.operate import Ready
from service.schemas.queues import DeadCount, DeadCounts, Queue, Queues, Worker, Workers
from service.schemas.schedules import Schedule, Schedules

__all__ = [
    "clocks",
    "dead_letters",
    "diagnose",
    "disk",
    "manager",
    "queues",
    "replicas",
    "schedules",
    "workers",
]

#: How long an answer may take.
ASK_S = 5.0
#: A manager that is slower than this waits for its store, or has too much to do.
SLOW_S = 0.5
#: Work that waited for longer is told of, though it may be as it should.
OLD_S = 600.0
#: A queue as full as this will soon refuse what comes.
FULL = 0.8
#: A worker that is silent for so long is not well; given up it is by its pool's own setting.
SILENT_S = 10.0
#: So many that died within so long are more than bad luck.
GROWING, LATELY_S = 10, 3600.0
#: Kinds of dead letters that are named.
KINDS = 3
#: Clocks that differ less may be one.
SKEW_S = 2.0
JOBS_LOOKED_AT = 100
SCHEDULES_AT_ONCE = 1_000
#: Where Ray's dashboard tells of Serve.
SERVED_PATH = "/api/serve/applications/"
GIB, FREE_MIN = 1 << 30, 1 << 30

T = TypeVar("T")


def diagnose(name: str, url: str, token: str, store: str) -> Iterator[Finding]:
    """Ask the Drayman at `url` how it is."""
    with httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=ASK_S,
        trust_env=False,
    ) as client:

        def ask(path: str, kind: type[T], **filters: Any) -> T:
            answer = client.get(path, params=filters).raise_for_status()
            return msgspec.json.decode(answer.content, type=kind)

        try:
            yield from manager(ask("/readyz", Ready).manager_s)
            now = time.time()
            served = ask("/v1/queues", Queues).queues
            yield from queues(served)
            yield from workers(ask("/v1/workers", Workers).workers)
            limit = JOBS_LOOKED_AT
            failed = ask("/v1/jobs", JobList, status="failed", limit=limit).jobs
            yield from dead_letters(ask("/v1/dead-letters/counts", DeadCounts).counts, failed, now)
            page = ask("/v1/schedules", Schedules, limit=SCHEDULES_AT_ONCE)
            fire = page.schedules
            while page.next_after is not None:
                page = ask(
                    "/v1/schedules", Schedules, limit=SCHEDULES_AT_ONCE, after=page.next_after
                )
                fire += page.schedules
            yield from schedules(fire, now)
            done = ask("/v1/jobs", JobList, status="completed", limit=limit).jobs
            yield from clocks(done, now)
        except httpx.HTTPError as error:
            told = f"{type(error).__name__}: {error}".rstrip(": ")
            yield Finding(
                f"{name} answers",
                "wrong",
                f"it does not ({told}); if this stays, stop it with `drayman down` and start it "
                "again: jobs stay in the store",
            )
        except msgspec.MsgspecError as error:
            text = f"it is of another version than this command, and can't be judged ({error})"
            yield Finding(f"{name} answers", "note", text)
    yield from disk(store)


class _Replica(msgspec.Struct, frozen=True):
    state: str


class _Deployment(msgspec.Struct, frozen=True):
    target_num_replicas: int
    replicas: list[_Replica]
    message: str = ""


class _Application(msgspec.Struct, frozen=True):
    deployments: dict[str, _Deployment]


class _Served(msgspec.Struct, frozen=True):
    """What Ray's dashboard says of Serve, as far as it is looked at."""

    applications: dict[str, _Application]


def replicas(url: str, token: str) -> Iterator[Finding]:
    """Ask Ray's dashboard at `url` how many processes answer the API.

    The edge sends nothing to a replica that is gone, so the API itself can't tell.
    """
    try:
        answer = httpx.get(
            f"{url}{SERVED_PATH}",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ASK_S,
            trust_env=False,
        ).raise_for_status()
        served = msgspec.json.decode(answer.content, type=_Served)
    except (httpx.HTTPError, msgspec.MsgspecError) as error:
        text = f"Ray's dashboard at {url} does not say ({type(error).__name__}: {error})"
        yield Finding("replicas", "note", text)
        return
    application = served.applications.get(APPLICATION, _Application({}))
    for api in application.deployments.values():
        wanted = api.target_num_replicas
        running = sum(replica.state == "RUNNING" for replica in api.replicas)
        text = f"{running} of {wanted} answer the API"
        if running < wanted:
            why = f": {api.message}" if api.message else ""
            text += f"{why}; Serve starts what is missing: if this stays, look into its log"
        level: Level = "wrong" if running < wanted else "ok"
        yield Finding("replicas", level, text, {"running": running, "wanted": wanted})


def manager(answer_s: float) -> Iterator[Finding]:
    """Judge how long the manager takes, which includes what it has to write first."""
    took = f"the manager answers in {answer_s * 1000:.0f} ms"
    if answer_s > SLOW_S:
        took += "; look whether the store is slow (`journal_write_in_doubt` in the log), and "
        took += "whether this machine has a core for the manager"
    level: Level = "wrong" if answer_s > SLOW_S else "ok"
    yield Finding("manager", level, took, {"manager_s": answer_s})


def queues(found: Sequence[Queue]) -> Iterator[Finding]:
    """Judge what waits, and why."""
    troubled = False
    for queue in found:
        for level, text in _of_queue(queue):
            troubled = True
            facts = {"ready": queue.ready, "parked": queue.parked, "depth": queue.depth}
            yield Finding(f"queue {queue.name}", level, text, facts)
    if not troubled:
        yield Finding("queues", "ok", "work runs, or there is none")


def _of_queue(queue: Queue) -> Iterator[tuple[Level, str]]:
    name, waiting = queue.name, queue.ready + queue.parked
    if queue.paused:
        told = f"paused, and {waiting} tasks wait; `drayman queues resume {name}` lets them run"
        yield ("wrong", told) if waiting else ("note", "paused; nothing waits")
    elif queue.pending_reason and waiting:
        yield "wrong", f"{waiting} tasks wait and none can start: {queue.pending_reason}"
    elif waiting and not queue.workers and not queue.leased and queue.oldest_age_s > ASK_S:
        yield "wrong", f"{waiting} tasks wait and no worker serves it; see `drayman workers`"
    elif queue.oldest_age_s > OLD_S:
        yield (
            "note",
            f"{queue.ready} tasks are ready, the oldest for {_span(queue.oldest_age_s)}; give its "
            "pool more workers (`drayman plan` says how many), or stop what floods it",
        )
    if queue.parked > max(queue.leased, 1):
        yield (
            "note",
            f"{queue.parked} tasks wait at a limit and {queue.leased} run: the limit is what holds "
            "them; `drayman config` shows it",
        )
    if queue.draining:
        yield "wrong", f"takes nothing new; `drayman queues fill {name}` lets it"
    for what, used, most in (
        ("jobs", queue.depth, queue.depth_max),
        ("bytes of specs", queue.bytes, queue.bytes_max),
    ):
        if most and used >= FULL * most:
            yield (
                "wrong",
                f"holds {used:,} of {most:,} {what}; beyond it submissions are refused: add "
                "workers, or submit less",
            )


def workers(found: Sequence[Worker]) -> Iterator[Finding]:
    """Judge who is there to work."""
    if not found:
        text = "there are none; they come with work, unless their pools' `max` is 0"
        yield Finding("workers", "note", text)
        return
    silent = [worker for worker in found if worker.silent_s > SILENT_S]
    for worker in silent:
        text = f"silent for {_span(worker.silent_s)} on node {worker.node}; look at its machine"
        yield Finding(f"worker {worker.name}", "wrong", text, {"silent_s": worker.silent_s})
    paused = [worker.name for worker in found if worker.paused]
    if paused:
        text = f"paused: {', '.join(paused)}; `drayman workers resume NAME` gives one work again"
        yield Finding("workers", "note", text)
    if not silent and not paused:
        running = sum(worker.started for worker in found)
        yield Finding("workers", "ok", f"{len(found)} live, {running} attempts run")
    held: dict[str, float] = {}
    for worker in found:
        if worker.gpus:
            held[worker.pool] = held.get(worker.pool, 0.0) + worker.gpus
    if held:
        told = ", ".join(f"pool {pool} holds {count:g}" for pool, count in held.items())
        yield Finding("gpus", "ok", told, {"gpus": held})


def dead_letters(
    counts: Sequence[DeadCount], failed: Sequence[Job], now: float
) -> Iterator[Finding]:
    """Judge what failed; `failed` are the latest of it."""
    total = sum(one.count for one in counts)
    if not total:
        yield Finding("dead letters", "ok", "none")
        return
    lately = sum(1 for job in failed if _at(job.finished_at) > now - LATELY_S)
    kinds = sorted(counts, key=lambda one: -one.count)[:KINDS]
    told = "; ".join(f"{one.count} {one.type} ({one.cause})" for one in kinds)
    text = (
        f"{total}, {lately}{'' if lately < JOBS_LOOKED_AT else ' or more'} of the last hour: "
        f"{told}; `drayman dead-letters` shows why, `drayman redrive` tries again"
    )
    level: Level = "wrong" if lately >= GROWING else "note"
    yield Finding("dead letters", level, text, {"count": total, "lately": lately})


def schedules(found: Sequence[Schedule], now: float) -> Iterator[Finding]:
    """Judge whether schedules fire."""
    for one in found:
        name = f"schedule {one.name}"
        if not one.paused and not one.next:
            over = one.ends_at is not None and _at(one.ends_at) <= now
            why = "it is over" if over else f"{one.cron!r} has no moment to come"
            text = f"fires no more: {why}; delete it, or put it anew"
            yield Finding(name, "note" if over else "wrong", text)
        elif one.paused and one.last_at is None:
            yield Finding(name, "note", "paused before it ever fired")
        elif one.skipped > one.fired:
            text = (
                f"skipped {one.skipped} ticks and fired {one.fired}: its job runs longer than the "
                "time between two, or Drayman was away"
            )
            yield Finding(name, "note", text)


def clocks(done: Sequence[Job], now: float) -> Iterator[Finding]:
    """Judge whether workers' clocks agree with the manager's: attempts say when they ran."""
    behind = ahead = 0.0
    for job in done:
        if job.started_at is not None:
            behind = max(behind, _at(job.submitted_at) - _at(job.started_at))
        ahead = max(ahead, _at(job.finished_at) - now)
    for skew_s, how in ((behind, "behind"), (ahead, "ahead")):
        if skew_s > SKEW_S:
            text = (
                f"a worker's clock is {skew_s:.0f} s {how} the manager's; let every node's follow "
                "the same server (NTP): times that are shown and learned are wrong until then"
            )
            yield Finding("clocks", "wrong", text, {"skew_s": skew_s})


def disk(store: str) -> Iterator[Finding]:
    """Judge whether a store in a folder has room."""
    parts = urlsplit(store)
    if parts.scheme not in ("", "file"):
        return
    folder = Path(parts.path if parts.scheme else store).expanduser()
    if not folder.is_dir():
        text = f"{folder} is not there: it was moved, or its disk is not mounted"
        yield Finding("store", "wrong", text)
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free for {folder}"
    if free < FREE_MIN:
        text += "; make room: with less than `--free-space-min-mb` new work is refused"
    yield Finding("store", "wrong" if free < FREE_MIN else "ok", text, {"free_bytes": free})


def _at(moment: datetime | None) -> float:
    return 0.0 if moment is None else moment.timestamp()


def _span(seconds: float) -> str:
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"
