"""Commands that follow jobs as they run: `watch`, `logs`, and how `--wait` waits.

Rule 1: what is shown comes from the job's events, and each change is shown once, over every lost
connection. Rule 2: on a terminal it is bars, elsewhere a line a change; both go to stderr, and what
became of the jobs to stdout.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol

import typer

from service.cli_show import (
    JobId,
    JsonFlag,
    chunks_text,
    connect,
    connect_async,
    exit_code,
    message_text,
    note,
    plain,
    print_json,
    print_table,
    show_job,
    span,
    status_text,
    termination_interrupts,
)

if TYPE_CHECKING:
    from rich import progress as rich_progress

    from service.client import AsyncClient, Client, Event, Job
    from service.client.types import Progress

__all__ = ["Pace", "register", "wait_for"]

#: What shells use for a command ended by Ctrl-C.
EXIT_INTERRUPTED = 130
#: Jobs watched at once: each takes a connection, and the client has 100.
WATCHED_MAX = 50
#: Bars of steps beside that of the whole job.
STEP_BARS_MAX = 12
#: How often it is asked where a job that waits stands in its line: no event tells that.
LOOK_S = 2.0
#: Of what a rate is made: so much of the past, and at least this much.
PACE_S, PACE_MIN_S = 30.0, 1.0
#: How often it is read what running attempts printed, of so many at once.
READ_S, READ_MAX = 1.0, 16
#: By so many characters the place is found where a log that was cut goes on.
SEEN_CHARS = 4096
ATTEMPT_BEGUN = frozenset({"job.started", "task.started"})
#: Events after which an attempt's log is whole, if it printed anything.
ATTEMPT_ENDED = frozenset(
    f"{what}.{how}"
    for what in ("attempt", "task", "job")
    for how in ("failed", "released", "snoozed", "succeeded", "completed", "cancelled")
)

CancelFlag = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels what has not ended.")
]


# --- commands ---------------------------------------------------------------------------------


def watch(
    context: typer.Context,
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The jobs' ids.")],
    cancel_on_interrupt: CancelFlag = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the events, one a line, as they come.")
    ] = False,
) -> None:
    """Follow jobs until they end; exit 1 if one fails."""
    ids = list(dict.fromkeys(job_ids))
    if len(ids) > WATCHED_MAX:
        raise typer.BadParameter(f"watch at most {WATCHED_MAX} jobs at once")
    with connect(context, waits=True) as client:
        jobs = _follow(context, client, ids, _view(ids, as_json), cancel_on_interrupt)
    if not as_json:
        _show(jobs)
    raise typer.Exit(max(map(exit_code, jobs)))


def wait_for(
    context: typer.Context, client: "Client", job_id: str, as_json: bool, cancel_on_interrupt: bool
) -> NoReturn:
    """Wait for the end of a job and show it; exit as it ended."""
    view = _Nothing() if as_json else _view([job_id], as_json)
    [job] = _follow(context, client, [job_id], view, cancel_on_interrupt)
    if as_json:
        print_json(job)
    else:
        show_job(job)
    raise typer.Exit(exit_code(job))


def logs(
    context: typer.Context,
    job_id: JobId,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only these attempts.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print what a job's attempts printed, and with --follow what they print as they run."""
    if follow and as_json:
        raise typer.BadParameter("--follow prints a log, not JSON; leave out one of the two")
    if follow:
        try:
            with termination_interrupts():
                asyncio.run(_follow_logs(connect_async(context), job_id, attempt, task))
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return
    with connect(context) as client:
        text = client.logs(job_id, attempt, task=task)
    if as_json:
        print_json({"id": job_id, "log": text})
    else:
        _print_log(text)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.command()(watch)
    app.command()(logs)


# --- following --------------------------------------------------------------------------------


class _View(Protocol):
    """Where what happens to jobs is shown."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> Any: ...

    def tell(self, job: "Job", event: "Event | None") -> None:
        """Show a job as it is after the event; None: it was looked at."""


def _follow(
    context: typer.Context,
    client: "Client",
    ids: Sequence[str],
    view: _View,
    cancel_on_interrupt: bool,
) -> "list[Job]":
    """Show what happens to the jobs until all ended; return them. Exits when interrupted."""
    try:
        with termination_interrupts(), view:
            return asyncio.run(_all(connect_async(context), ids, view))
    except KeyboardInterrupt:
        _interrupted(client, ids, cancel_on_interrupt)
        raise typer.Exit(EXIT_INTERRUPTED) from None


async def _all(client: "AsyncClient", ids: Sequence[str], view: _View) -> "list[Job]":
    seen: dict[str, Job] = {}
    async with client:
        looking = asyncio.create_task(_look(client, seen, view))
        try:
            return await asyncio.gather(*(_one(client, job_id, seen, view) for job_id in ids))
        finally:
            looking.cancel()


async def _one(client: "AsyncClient", job_id: str, seen: "dict[str, Job]", view: _View) -> "Job":
    async for event in client.watch(job_id):
        if "job" in event:
            seen[job_id] = event["job"]
        else:
            _apply(seen[job_id], event)
        view.tell(seen[job_id], event)
    return await client.status(job_id)


async def _look(client: "AsyncClient", seen: "dict[str, Job]", view: _View) -> None:
    """Keep the place in line of those that wait up to date."""
    from service.client import ApiError, Unreachable

    while True:
        await asyncio.sleep(LOOK_S)
        for job_id in [job_id for job_id, job in seen.items() if job["status"] == "pending"]:
            try:
                job = await client.status(job_id)
            except (ApiError, Unreachable):
                continue  # the events go on, and say what is wrong if they can't
            if job["status"] == seen[job_id]["status"] == "pending":
                seen[job_id] = job
                view.tell(job, None)


def _apply(job: "Job", event: "Event") -> None:
    """Change a job as an event says."""
    job["status"] = event.get("status") or job["status"]
    kind = event["type"]
    if job["status"] != "pending":
        job["queue_position"] = job["eta"] = job["pending_reason"] = None
    if kind == "progress":
        job["progress"] = {"fraction": event["fraction"], "message": event["message"]}
        told = {step["name"]: step for step in event.get("steps", [])}
        for step in job["steps"]:
            if (one := told.get(step["name"])) is not None:
                step["state"] = "running"
                step["chunks"], step["done"] = one["chunks"], one["done"]
                step["running"], step["failed"] = one["running"], one["failed"]
    elif kind.startswith("step."):
        for step in job["steps"]:
            if step["name"] == event["step"]:
                step["state"] = kind.removeprefix("step.")
    elif kind == "job.stopping":
        job["stopping"] = event["reason"]
    elif kind == "job.moved":
        job["queue"] = event["queue"]


def _interrupted(client: "Client", ids: Sequence[str], cancels: bool) -> None:
    from service.client import ApiError

    if not cancels:
        goes_on = f"{ids[0]} goes on" if len(ids) == 1 else "they go on"
        note(f"{goes_on}; `drayman watch {' '.join(ids)}` follows again")
        return
    for job_id in ids:
        try:
            client.cancel(job_id)
        except ApiError as error:
            if error.kind != "conflict":  # it has ended meanwhile
                raise
        else:
            note(f"{job_id} is being cancelled")


def _show(jobs: "list[Job]") -> None:
    if len(jobs) == 1:
        show_job(jobs[0])
        return
    rows = []
    for job in jobs:
        failed = job["error"] if job["status"] == "failed" else None
        told = failed["message"] if failed else job["reason"] or ""
        rows.append([job["id"], job["type"], job["status"], job["attempts"], told[:200]])
    print_table(["ID", "TYPE", "STATUS", "ATTEMPTS", "WHY"], rows, "no jobs")


# --- showing ----------------------------------------------------------------------------------


class Pace:
    """How fast something goes on, from what was seen of it lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def note(self, now: float, done: float) -> None:
        """Take down how much is done at a moment; what is less than before begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while self._seen[0][0] < now - PACE_S and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """So much a second; 0 while it can't be known."""
        if not self._seen:
            return 0.0
        (began_s, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began_s) if now - began_s >= PACE_MIN_S else 0.0

    def left_s(self, total: float) -> float | None:
        """Return how long the rest takes if it goes on so; None while that can't be known."""
        return (total - self._seen[-1][1]) / self.rate if self.rate > 0 else None


class Paces:
    """The pace of a job: of what it says of itself, and of its chunks."""

    def __init__(self) -> None:
        self._fraction, self._chunks = Pace(), Pace()

    def text(self, job: "Job", now: float) -> str:
        """Take down where the job is; return the rate of its chunks and what is left."""
        done = sum(step["done"] for step in job["steps"] if step["chunks"] is not None)
        self._chunks.note(now, done)
        told = [rate_text(self._chunks.rate)] if self._chunks.rate > 0 else []
        progress = job["progress"] if job["status"] == "processing" else None
        if progress and progress["fraction"] is not None:
            self._fraction.note(now, progress["fraction"])
            if (left_s := self._fraction.left_s(1.0)) is not None:
                told.append(f"{span(left_s)} left")
        return ", ".join(told)


def rate_text(rate: float) -> str:
    """Return how many chunks end in a second, or in a minute where that is clearer."""
    return f"{rate:.1f} chunks/s" if rate >= 1 else f"{60 * rate:.1f} chunks/min"


class _Nothing(contextlib.nullcontext[None]):
    """Shows nothing."""

    def tell(self, job: "Job", event: "Event | None") -> None:
        """Show nothing."""


class _Events(contextlib.nullcontext[None]):
    """Prints the events as they come."""

    def tell(self, job: "Job", event: "Event | None") -> None:
        """Print the event on a line of its own."""
        if event is not None:
            typer.echo(json.dumps(event, ensure_ascii=False))


class _Lines(contextlib.nullcontext[None]):
    """Prints a line for each change."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, str] = {}
        self._paces: dict[str, Paces] = {}

    def tell(self, job: "Job", event: "Event | None") -> None:
        """Print how the job is, if that is not what was printed last."""
        job_id = job["id"]
        pace = self._paces.setdefault(job_id, Paces()).text(job, time.monotonic())
        text = status_text(job)
        if self._told.get(job_id) != text:
            self._told[job_id] = text
            note(f"{job_id}  {text}" + (f"  {pace}" if pace else ""))
        if event is not None and event["type"] == "attempt.failed":
            task = f"task {event['task_id']}, " if "task_id" in event else ""
            note(f"{job_id}  {task}attempt {event['attempt']} failed: {event.get('error', '')}")


class _Bars:
    """Bars: one for each job, and of a single job one for each step that runs."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._alone = len(ids) == 1
        self._bars: rich_progress.Progress
        self._of: dict[tuple[str, str | None], rich_progress.TaskID] = {}
        self._paces: dict[tuple[str, str | None], Any] = {}

    def __enter__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.fields[name]}", markup=False),
            TextColumn("{task.fields[status]:<10}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TextColumn("{task.description}", markup=False),
        )
        # What is left in the end is said on stdout.
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bars.start()

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def tell(self, job: "Job", event: "Event | None") -> None:
        """Bring the job's bars up to date."""
        now = time.monotonic()
        progress: Progress = job["progress"] or {"fraction": None, "message": ""}
        runs = job["status"] == "processing"
        fraction = 1.0 if job["status"] == "completed" else progress["fraction"]
        self._show(
            (job["id"], None),
            "" if self._alone else f"{job['type']} {job['id'][-8:]}",
            job["status"],
            message_text(progress, job["steps"]) if runs else status_text(job),
            self._pace((job["id"], None), Paces).text(job, now) if runs else "",
            None if fraction is None else 1.0,
            fraction or 0.0,
        )
        if self._alone:
            self._show_steps(job, now)

    def _show_steps(self, job: "Job", now: float) -> None:
        busy = _busy(job)
        for step in busy:
            pace: Pace = self._pace((job["id"], step["name"]), Pace)
            pace.note(now, step["done"])
            chunks = step["chunks"]
            self._show(
                (job["id"], step["name"]),
                step["name"],
                step["state"],
                step["type"] if chunks is None else chunks_text(step),
                rate_text(pace.rate) if pace.rate > 0 else "",
                chunks,
                step["done"],
            )
        names = {step["name"] for step in busy} | {None}
        for (_, name), bar in self._of.items():
            self._bars.update(bar, visible=name in names)

    def _show(
        self,
        key: tuple[str, str | None],
        name: str,
        status: str,
        told: str,
        pace: str,
        total: float | None,
        done: float,
    ) -> None:
        if key not in self._of:
            self._of[key] = self._bars.add_task("", total=None, name="", status="", pace="")
        self._bars.update(
            self._of[key],
            name=plain(name),
            status=plain(status),
            pace=pace,
            description=plain(told),
            total=total,
            completed=done,
        )

    def _pace(self, key: tuple[str, str | None], kind: type[Any]) -> Any:
        return self._paces.setdefault(key, kind())


def _view(ids: Sequence[str], as_json: bool) -> _View:
    if as_json:
        return _Events()
    return _Bars(ids) if sys.stderr.isatty() else _Lines()


def _busy(job: "Job") -> "list[Any]":
    """Return the steps that have a bar of their own: what runs, and what failed."""
    named = (step for step in job["steps"] if step["name"])
    busy = [step for step in named if step["state"] in ("running", "failed")]
    return busy[:STEP_BARS_MAX]


# --- logs -------------------------------------------------------------------------------------


async def _follow_logs(
    client: "AsyncClient", job_id: str, attempt: int | None, task: str | None
) -> None:
    """Print what attempts print, soon after they did, until the job has ended."""
    async with client:
        logs = _Logs(client, job_id, attempt, task)
        reading = asyncio.create_task(logs.keep_reading())
        try:
            # Chunks are told of only if asked, and why one failed is what one looks for.
            async for event in client.watch(job_id, tasks=True):
                await logs.take(event)
        finally:
            reading.cancel()


class _Logs:
    """The logs of a job's attempts, each printed once, as far as there is something of it."""

    def __init__(
        self, client: "AsyncClient", job_id: str, attempt: int | None, task: str | None
    ) -> None:
        self._client, self._job_id = client, job_id
        self._attempt, self._task = attempt, task
        self._of_tasks = False
        self._steps: set[str] = set()
        #: Of each that runs, what was read last; and those that are printed whole.
        self._running: dict[tuple[str, int], str] = {}
        self._printed: set[tuple[str, int]] = set()
        #: They are read in turn, so that no line comes twice.
        self._turn = asyncio.Lock()

    async def take(self, event: "Event") -> None:
        """Note what began, and print what ended."""
        kind = event["type"]
        if "job" in event:
            self._of_tasks = bool(event["job"]["steps"])
            self._steps = {step["name"] for step in event["job"]["steps"]}
        if "job" in event or (kind in ATTEMPT_BEGUN | ATTEMPT_ENDED and not self._of_tasks):
            for one in await self._client.attempts(self._job_id):
                if one["outcome"] == "running":
                    self._begin((one["task_id"], one["number"]))
                elif one["has_log"]:
                    await self._read((one["task_id"], one["number"]), ended=True)
        elif "task_id" in event and "attempt" in event:
            key = (event["task_id"], event["attempt"])
            if kind in ATTEMPT_BEGUN:
                self._begin(key)
            elif kind == "task.succeeded" and _is_chunk(key[0], self._steps):
                self._running.pop(key, None)  # its log is not told any more
            elif kind in ATTEMPT_ENDED:
                await self._read(key, ended=True)

    async def keep_reading(self) -> None:
        """Print what attempts print while they run."""
        from service.client import ApiError, Unreachable

        while True:
            await asyncio.sleep(READ_S)
            for key in list(self._running)[:READ_MAX]:
                # The events go on, and say what is wrong if they can't.
                with contextlib.suppress(ApiError, Unreachable):
                    await self._read(key)

    def _begin(self, key: tuple[str, int]) -> None:
        # There may be a million chunks: only one that was asked for is shown while it runs.
        is_shown = self._task or not self._of_tasks or not _is_chunk(key[0], self._steps)
        if self._wants(key) and is_shown:
            self._running.setdefault(key, "")

    def _wants(self, key: tuple[str, int]) -> bool:
        return self._task in (None, key[0]) and self._attempt in (None, key[1])

    async def _read(self, key: tuple[str, int], ended: bool = False) -> None:
        """Print what is new in the log of an attempt."""
        if not self._wants(key):
            return
        async with self._turn:
            if key in self._printed or not (ended or key in self._running):
                return
            text = await self._client.logs(self._job_id, key[1], task=key[0])
            new = _new_in(text, self._running.pop(key, ""))
            _print_log("".join(_labelled(new, key)) if self._of_tasks else new)
            if not ended:
                self._running[key] = text
            elif text:  # else it may not have begun: then its number is used again
                self._printed.add(key)


def _new_in(log: str, before: str) -> str:
    """Return what a log has that it did not have before. A long one is cut in its middle."""
    if log.startswith(before):
        return log[len(before) :]
    end = log.rfind(before[-SEEN_CHARS:])
    if end >= 0:
        return log[end + len(before[-SEEN_CHARS:]) :]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(log, before, strict=False))
    return log[sum(1 for _ in same) :]


def _is_chunk(task_id: str, steps: set[str]) -> bool:
    return task_id not in steps and task_id.rpartition(".")[2].isdigit()


def _labelled(text: str, attempt: tuple[str, int]) -> Iterator[str]:
    task_id, number = attempt
    label = task_id if number == 1 else f"{task_id} attempt {number}"
    for line in text.splitlines():
        yield f"[{label}] {line}\n"


def _print_log(text: str) -> None:
    # A file or a pipe gets what was printed (`typer.echo` would change it); a terminal would obey.
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
