"""The finished chunks of a job: what each was made from, by whom, and where its output lies.

    lineage/<job>/<first segment>-<last segment>.parquet

Written by the compactor for chunks that finished in those segments, before the manager forgets
them: the join of an unfinished job, and whoever asks years later, find them here. Rule 1: a file is
created, never changed. Rule 2: of a chunk with several rows (its output was lost and made again)
the one with most attempts counts. Rule 3: they go with their job, when its history does.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from threading import Lock

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from cluster.store.contract import Objects
from cluster.store.parquet import encode_table, open_table
from cluster.tasks import PAGE_MAX
from cluster.views import StepView, TaskPage, TaskView
from jobs.errors import Corrupt, NotFound

__all__ = [
    "LINEAGE",
    "Lineage",
    "lineage_files",
    "lineage_prefix",
    "lineage_row",
    "record_page",
    "write_lineage",
]

_MOMENT = pa.timestamp("us", tz="UTC")
LINEAGE = pa.schema(
    [
        pa.field("job_id", pa.string(), nullable=False),
        pa.field("task_id", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        #: Number of the chunk, from 0.
        pa.field("chunk", pa.int64(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("recoveries", pa.int32(), nullable=False),
        pa.field("worker", pa.string()),
        pa.field("node", pa.string()),
        #: Fingerprints of the code and of the params.
        pa.field("code", pa.string()),
        pa.field("params", pa.string()),
        pa.field("started_at", _MOMENT),
        pa.field("ended_at", _MOMENT),
        #: URIs of what it read, and what it kept.
        pa.field("inputs", pa.list_(pa.string()), nullable=False),
        pa.field("files", pa.list_(pa.string()), nullable=False),
        #: JSON.
        pa.field("result", pa.string()),
        #: The task as the API answers it, as JSON.
        pa.field("record", pa.binary(), nullable=False),
    ]
)
#: Rows of one group: as many as a page of tasks.
GROUP_ROWS = 1_000
#: Groups kept in memory: a join walks through them in order.
GROUPS_MAX = 16
_NAME = re.compile(r"lineage/(?P<job>[^/]+)/\d{20}-\d{20}\.parquet")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TaskView).decode


def lineage_prefix(job_id: str) -> str:
    """Return under what the lineage of a job lies."""
    return f"lineage/{job_id}/"


def write_lineage(
    objects: Objects, first: int, last: int, job_id: str, tasks: Iterable[TaskView]
) -> None:
    """Write chunks of a job that finished in segments `first` to `last`."""
    ordered = sorted(tasks, key=lambda task: (task.step, task.index))
    columns = zip(*[lineage_row(job_id, task) for task in ordered], strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, LINEAGE, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=LINEAGE)
    path = f"{lineage_prefix(job_id)}{first:020d}-{last:020d}.parquet"
    objects.put_if_absent(path, encode_table(table, GROUP_ROWS))


def lineage_files(objects: Objects) -> Iterator[tuple[str, str, int]]:
    """Yield (job, path, bytes) of every file there is."""
    for info in objects.list("lineage/"):
        if match := _NAME.fullmatch(info.path):
            yield match["job"], info.path, info.bytes


def lineage_row(job_id: str, task: TaskView) -> tuple[object, ...]:
    """Return the columns of LINEAGE, in their order; moments are microseconds."""
    result = bytes(task.result)
    return (
        job_id,
        task.task_id,
        task.step,
        task.index,
        task.type,
        task.attempts,
        task.recoveries,
        task.worker,
        task.node or None,
        task.code or None,
        task.params or None,
        _moment(task.started_at),
        _moment(task.ended_at),
        [one.uri for one in task.inputs],
        [file.path for file in task.files],
        None if result == b"null" else result.decode(),
        _encode(task),
    )


def _moment(seconds: float | None) -> int | None:
    return round(seconds * 1_000_000) if seconds else None


def record_page(
    lineage: "Lineage",
    job_id: str,
    steps: Sequence[StepView],
    tasks: Sequence[TaskView],
    *,
    ids: Sequence[str] | None = None,
    first: int = 0,
    limit: int = PAGE_MAX,
) -> TaskPage:
    """Return tasks of a job that only history knows: `tasks` are all but its chunks that finished
    or never began.

    By place as `cluster.tasks.task_page` does, or those named. Raises NotFound.
    """
    known = {task.task_id: task for task in tasks}
    cut = _cut_short(steps, tasks)
    if ids is not None:
        named = TaskPage([_named(job_id, known, steps, one) for one in ids])
        return lineage.filled(job_id, named, cut)
    found: list[TaskView] = []
    at, last = 0, first + min(limit, PAGE_MAX)
    for step in steps or [StepView("", "", "")]:
        mine = [task for task in tasks if task.step == step.name and task.role != "chunk"]
        size = len(mine) + (step.chunks or 0)
        for place in range(max(first - at, 0), min(last - at, size)):
            if step.chunks and 0 < place <= step.chunks:
                found.append(_chunk(known, step, place - 1))
            else:
                found.append(mine[0 if place == 0 else place - (step.chunks or 0)])
        at += size
    return lineage.filled(job_id, TaskPage(found, last if last < at else None), cut)


def _cut_short(steps: Sequence[StepView], tasks: Sequence[TaskView]) -> set[str]:
    """Return the steps that have chunks which never began: their job was cancelled before."""
    begun = Counter(t.step for t in tasks if t.role == "chunk" and t.state != "succeeded")
    return {step.name for step in steps if step.done + begun[step.name] < (step.chunks or 0)}


def _chunk(known: dict[str, TaskView], step: StepView, index: int) -> TaskView:
    name = f"{step.name}.{index}" if step.name else str(index)
    return known.get(name) or TaskView(
        name,
        "succeeded",
        1,
        step=step.name,
        type=step.type,
        role="chunk",
        index=index,
        archived=True,
    )


def _named(
    job_id: str, known: dict[str, TaskView], steps: Sequence[StepView], task_id: str
) -> TaskView:
    if task_id in known:
        return known[task_id]
    name, _, number = task_id.rpartition(".")
    for step in steps:
        if step.name == name and number.isascii() and number.isdecimal() and len(number) < 10:
            index = int(number)
            if index < (step.chunks or 0) and str(index) == number:
                return _chunk(known, step, index)
    raise NotFound("task", f"{job_id}/{task_id}")


class _Index(msgspec.Struct):
    """What each group of rows of a file spans: (step, chunk) of its first row and its last."""

    spans: list[tuple[tuple[str, int], tuple[str, int]]]


class Lineage:
    """The finished chunks of one store's jobs. Every call blocks; safe to share between threads."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._indexes: OrderedDict[str, _Index] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], dict[tuple[str, int], TaskView]] = OrderedDict()
        self._lock = Lock()

    def filled(self, job_id: str, page: TaskPage, cut_short: Collection[str] = ()) -> TaskPage:
        """Return the page with its archived tasks as their files have them.

        Of steps that were `cut_short`, those in no file never began. Raises Corrupt for any other.
        """
        wanted = [task for task in page.tasks if task.archived]
        if not wanted:
            return page
        found = self.find(job_id, [(task.step, task.index) for task in wanted])
        tasks = []
        for task in page.tasks:
            if task.archived:
                known = found.get((task.step, task.index))
                if known is None and task.step not in cut_short:
                    raise Corrupt(lineage_prefix(job_id), f"has no row of task {task.task_id}")
                task = known or replace(task, state="cancelled", attempts=0, archived=False)
            tasks.append(task)
        return TaskPage(tasks, page.next_after)

    def find(self, job_id: str, keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], TaskView]:
        """Return those of the chunks, named by step and number, that a file has."""
        wanted = sorted(keys)
        found: dict[tuple[str, int], TaskView] = {}
        if not wanted:
            return found
        for path, group in self._spanning(job_id, wanted[0], wanted[-1]):
            rows = self._rows(path, group)
            for key in wanted:
                row = rows.get(key)
                if row is not None and (key not in found or row.attempts >= found[key].attempts):
                    found[key] = row
        return found

    def _spanning(
        self, job_id: str, low: tuple[str, int], high: tuple[str, int]
    ) -> Iterator[tuple[str, int]]:
        for info in sorted(self._objects.list(lineage_prefix(job_id)), key=lambda i: i.path):
            if _NAME.fullmatch(info.path):
                for group, (first, last) in enumerate(self._index(info.path).spans):
                    if first <= high and low <= last:
                        yield info.path, group

    def _index(self, path: str) -> _Index:
        with self._lock:
            known = self._indexes.get(path)
        if known is not None:
            return known
        with self._objects.open_read(path) as source:
            file = open_table(source)
            spans = []
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["step", "chunk"])
                ends = [(table["step"][at].as_py(), table["chunk"][at].as_py()) for at in (0, -1)]
                spans.append((ends[0], ends[1]))
        with self._lock:
            self._indexes[path] = index = _Index(spans)
            while len(self._indexes) > GROUPS_MAX * 16:
                self._indexes.popitem(last=False)
        return index

    def _rows(self, path: str, group: int) -> dict[tuple[str, int], TaskView]:
        with self._lock:
            known = self._groups.get((path, group))
            if known is not None:
                self._groups.move_to_end((path, group))
                return known
        with self._objects.open_read(path) as source:
            records = open_table(source).read_row_group(group, columns=["record"])["record"]
        views = [_decode(record) for record in records.to_pylist()]
        rows = {(view.step, view.index): view for view in views}
        with self._lock:
            self._groups[path, group] = rows
            while len(self._groups) > GROUPS_MAX:
                self._groups.popitem(last=False)
        return rows
