"""Commands about jobs of many tasks: workflows, tasks, lineage, files of tasks.

Rule: tasks come a page at a time, and what is not shown is counted and let go: a job may have a
million.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_code import bundle_of, send
from service.cli_show import (
    JobId,
    JsonFlag,
    chunks_text,
    connect,
    note,
    print_json,
    print_json_list,
    print_table,
    saving,
    span,
    state_text,
    step_text,
)
from service.cli_watch import wait_for

if TYPE_CHECKING:
    from rich.tree import Tree

    from service.client import Json

__all__ = ["register"]

#: Chunks of a step up to which all are shown; and of more, how many that stand out.
CHUNKS_ALL, CHUNKS_OUTSTANDING = 20, 50
#: Inputs and files of a task that are shown.
BRANCHES_MAX = 10
#: The URI of a file that a task kept. Job and task may become folders, so none is "..".
OUTPUT = re.compile(r"output:(\w[\w-]*)/(\w[\w.-]*)/([^/]+)")
#: Characters of a fingerprint, a result and an error that are shown.
SHA_CHARS, TEXT_CHARS = 12, 200


def workflow(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A file with the steps as JSON, or - for stdin.")],
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key gives the same job.")
    ] = None,
    jobs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Run it with the code of this module, from here; repeatable."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit 1 if it fails.")
    ] = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="With --wait: Ctrl-C cancels the job.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit steps that wait for each other as one job; print its id once it is durable."""
    steps, options = _steps(file)
    bundle = bundle_of(jobs) if jobs else None
    with connect(context, waits=wait) as client:
        if bundle is not None:
            send(client, bundle)
            options["code"] = bundle.sha
        job = client.workflow(steps, key=key, **options)
        if wait:
            if not as_json:
                note(job["id"])
            wait_for(context, client, job["id"], as_json, cancel_on_interrupt)
        elif as_json:
            print_json(job)
        else:
            typer.echo(job["id"])


def tasks(
    context: typer.Context,
    job_id: JobId,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only those that failed, for good or last.")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="Begin at this place.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: JsonFlag = False,
) -> None:
    """List a job's tasks: of each step its split, its chunks in order, its join."""
    found: list[Json] = []
    goes_on: int | None = None
    with connect(context) as client:
        # Every place has one task. One more than asked for tells whether there are more.
        asked = None if failed else limit + 1
        for place, task in enumerate(client.tasks(job_id, after=after, limit=asked), after):
            if failed and not _has_failed(task):
                continue
            if len(found) == limit:
                goes_on = place
                break
            found.append(task)
        waits = not as_json and any(task["state"] == "waiting" for task in found)
        ended = waits and client.status(job_id)["finished_at"] is not None
    if as_json:
        print_json(found)
    else:
        print_table(
            ["TASK", "STATE", "ATTEMPTS", "TOOK", "WORKER", "FILES", "ERROR"],
            [_row(task, ended) for task in found],
            "no such tasks",
        )
    if goes_on is not None:
        only = " --failed" if failed else ""
        note(f"there are more: drayman tasks {job_id}{only} --after {goes_on}")


def lineage(
    context: typer.Context,
    job_id: JobId,
    everything: Annotated[
        bool, typer.Option("--all", help="Every chunk, input and file, however many.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show from what a job's outputs were made, by which tasks, and where."""
    with connect(context) as client:
        if as_json:
            print_json_list(client.tasks(job_id))
            return
        job = client.status(job_id)
        tree = _tree(job, client.tasks(job_id), everything)
    _print(tree)


def download(
    context: typer.Context,
    uris: Annotated[
        list[str],
        typer.Argument(metavar="URI...", help="output:JOB/TASK/NAME, as results name them."),
    ],
    to: Annotated[Path, typer.Option(file_okay=False, help="The folder to save them in.")] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Save files that tasks kept; print their paths. Of one name, each goes to TO/JOB/TASK."""
    asked = [_parts_of(uri) for uri in dict.fromkeys(uris)]
    names = Counter(name for _, _, name in asked)
    saved = []
    with connect(context, waits=True) as client:
        for job_id, task_id, name in asked:
            folder = to if names[name] == 1 else to / job_id / task_id
            with saving(folder):
                saved.append(str(client.task_file(job_id, task_id, name, folder)))
            if not as_json:
                typer.echo(saved[-1])
    if as_json:
        print_json(saved)


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    for command in (workflow, tasks, lineage, download):
        app.command()(command)


# --- workflows --------------------------------------------------------------------------------


def _steps(file: str) -> "tuple[list[Json], dict[str, Any]]":
    """Return the steps and the other fields of a workflow. Raises BadParameter."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}") from None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from None
    options = dict(found) if isinstance(found, dict) else {}
    steps = options.pop("steps", None) if isinstance(found, dict) else found
    if not (isinstance(steps, list) and all(isinstance(step, dict) for step in steps)):
        raise typer.BadParameter(f'{file}: write {{"steps": [{{...}}, ...]}}, or the list alone')
    if "key" in options or "wait_s" in options:
        raise typer.BadParameter(f"{file}: give the key with --key, and --wait to wait")
    return steps, options


# --- tasks ------------------------------------------------------------------------------------


def _parts_of(uri: str) -> tuple[str, str, str]:
    """Return the job, the task and the file's name. Raises BadParameter."""
    found = OUTPUT.fullmatch(uri)
    if found is None:
        raise typer.BadParameter(f"{uri!r}: write output:JOB/TASK/NAME")
    return found[1], found[2], found[3]


def _has_failed(task: "Json") -> bool:
    return bool(task["state"] == "dead" or task["error"])


def _row(task: "Json", ended: bool) -> list[Any]:
    files = len(task["files"]) or ""
    error = _cut((task["error"] or "").replace("\n", " "))
    return [
        *(task["task_id"], state_text(task["state"], ended=ended), task["attempts"]),
        *(_took(task), task["worker"], files, error),
    ]


def _took(task: "Json") -> str:
    """Return how long its last attempt ran, or has run so far."""
    if task["started_at"] is None or (task["ended_at"] is None and task["state"] != "leased"):
        return ""
    started = datetime.fromisoformat(task["started_at"])
    ended = datetime.fromisoformat(task["ended_at"]) if task["ended_at"] else datetime.now(UTC)
    return span(max(0.0, (ended - started).total_seconds()))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]} ..."


# --- lineage ----------------------------------------------------------------------------------


def _tree(job: "Json", tasks: "Iterable[Json]", everything: bool) -> "Tree":
    from rich.text import Text
    from rich.tree import Tree

    ended = job["finished_at"] is not None
    steps = {step["name"]: step for step in job["steps"]}
    facts = [job["id"], job["type"], job["status"]]
    if "" in steps and steps[""]["chunks"] is not None:  # a fan-out by itself
        facts.append(chunks_text(steps[""]))
    root = Tree(Text("  ".join(facts)))
    for name, found in groupby(tasks, key=lambda task: task["step"]):
        branch = root.add(Text(f"{name}  {step_text(steps[name], ended=ended)}")) if name else root
        for shown in _folded(found, everything, ended):
            if isinstance(shown, str):
                branch.add(Text(shown, "italic"))
            else:
                _add(branch, job["id"], shown, everything, ended)
    return root


@dataclass
class _Chunks:
    """The chunks of one step as they come: a few to show, the rest as counts."""

    first: "list[Json]" = field(default_factory=list)
    dead: "list[Json]" = field(default_factory=list)
    odd: "list[Json]" = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, task: "Json") -> None:
        """Count a chunk, and keep it if it may be shown."""
        self.counts[task["state"]] += 1
        if len(self.first) <= CHUNKS_ALL:
            self.first.append(task)
        stands_out = self.dead if task["state"] == "dead" else self.odd
        if _stands_out(task) and len(stands_out) < CHUNKS_OUTSTANDING:
            stands_out.append(task)

    def shown(self, ended: bool) -> "list[Json | str]":
        """Return all of a few; of many those that stand out, and a line that counts the others."""
        if len(self.first) <= CHUNKS_ALL:
            return [*self.first]
        some = (self.dead + self.odd)[:CHUNKS_OUTSTANDING]
        rest = self.counts - Counter(task["state"] for task in some)
        told = ", ".join(f"{n:,} {state_text(state, ended=ended)}" for state, n in rest.items())
        line = [f"{rest.total():,} more chunks: {told}; --all shows them"] if rest else []
        return [*sorted(some, key=lambda task: task["index"]), *line]


def _stands_out(task: "Json") -> bool:
    """Whether a chunk is worth a look: it failed, ran more than once, or runs."""
    again = task["attempts"] > 1 or task["recoveries"] or task["needs"]
    return bool(again or task["error"] or task["state"] in ("dead", "leased"))


def _folded(tasks: "Iterable[Json]", everything: bool, ended: bool) -> "Iterator[Json | str]":
    """Yield the tasks of a step to show, in order, and lines that stand for others."""
    chunks = _Chunks()
    for task in tasks:
        if task["role"] == "chunk" and not everything:
            chunks.take(task)
            continue
        yield from chunks.shown(ended)
        chunks = _Chunks()
        yield task
    yield from chunks.shown(ended)


def _add(branch: "Tree", job_id: str, task: "Json", everything: bool, ended: bool) -> None:
    from rich.text import Text

    color = {"succeeded": "green", "dead": "red", "leased": "yellow"}.get(task["state"], "")
    facts = Text.assemble(task["task_id"], "  ", (state_text(task["state"], ended=ended), color))
    for fact in _facts(task):
        facts.append(f"  {fact}")
    node = branch.add(facts)
    inputs = [_from(job_id, one) for one in task["inputs"]]
    files = [f"kept {one['name']}{_size(one)}" for one in task["files"]]
    for what, some in (("inputs", inputs), ("files", files)):
        shown = some if everything else some[:BRANCHES_MAX]
        for line in shown:
            node.add(Text(line))
        if len(shown) < len(some):
            node.add(Text(f"{len(some) - len(shown):,} more {what}; --all shows them", "italic"))
    if task["result"] is not None:
        node.add(Text(f"returned {_cut(json.dumps(task['result'], ensure_ascii=False))}"))
    if task["error"]:
        node.add(Text(f"error: {_cut(task['error'])}", "red"))
    if task["needs"]:
        node.add(Text(f"waits for {', '.join(task['needs'])} to be made again"))


def _facts(task: "Json") -> Iterator[str]:
    attempts = task["attempts"]
    if attempts:
        yield f"{attempts} attempt{'s' if attempts > 1 else ''}"
    if task["recoveries"]:
        yield f"{task['recoveries']} of them recoveries"
    if took := _took(task):
        yield took
    if task["worker"]:
        yield f"on {task['worker']}" + (f" ({task['node'][:SHA_CHARS]})" if task["node"] else "")
    if attempts and task["code"]:
        yield f"code {task['code'][:SHA_CHARS]}"
    if attempts and task["params"]:
        yield f"params {task['params'][:SHA_CHARS]}"


def _from(job_id: str, one: "Json") -> str:
    """Return an input: another task's output by that task, anything else by its URI."""
    where: str = one["uri"]
    if where.startswith("output:"):
        made_in, _, rest = where.removeprefix("output:").partition("/")
        task_id, _, name = rest.partition("/")
        where = f"{task_id} (attempt {one['attempt']}): {name}"
        if made_in != job_id:
            where = f"job {made_in}, {where}"
    return f"from {where}{_size(one)}"


def _size(one: "Json") -> str:
    sha = f"  {one['sha256'][:SHA_CHARS]}" if one["sha256"] else ""
    return f"  {one['bytes']:,} bytes{sha}{'  ephemeral' if one.get('ephemeral') else ''}"


def _print(tree: "Tree") -> None:
    from rich.console import Console

    # Lines are for grep and pipes too: only a terminal has an edge to wrap them at.
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False).print(tree)
