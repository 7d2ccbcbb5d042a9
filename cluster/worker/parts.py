"""Tasks of planned jobs as the child runs them: steps, splits, chunks, joins.

Rule 1: what a task needs of others it gets as references and looks up itself: the manager hands out
names, not data. Rule 2: a split writes its chunks, with the params all of them share, into one
manifest, so that a chunk needs nothing but its number; the manifest is read by the group of rows
and each group once. Rule 3: what is missing or spoiled ends the attempt by the name of the task
that made it (`Reading.lose`), never as a failure of this one.
"""

import asyncio
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from cluster.planning import dig, replaced
from cluster.protocol import FileInfo, Inputs, Output
from cluster.queue.plan import CHUNKS_MAX
from cluster.queue.spec import JobSpec
from cluster.tasks import params_hash
from cluster.views import TaskView
from cluster.worker.attempt import Attempt, AttemptContext, SplitResult
from cluster.worker.reading import BEING_MADE
from jobs.definition import JobDefinition
from jobs.errors import NotFound
from jobs.fan_out import FanOut
from jobs.outcome import Discard, StopRequested
from jobs.results import ChunkFailure, ChunkResult, Results

__all__ = ["Parts"]

MANIFEST = "chunks.parquet"
#: Chunks in one group of rows, and groups kept in memory.
GROUP_ROWS, GROUPS_MAX = 4_096, 4
#: Keys that are named to whoever asked for one that is not there.
KEYS_SHOWN = 10
#: Chunks whose results a join asks for at once.
PAGE = 1_000

_SCHEMA = pa.schema([pa.field("chunk", pa.string(), nullable=False)])
_decode_inputs = msgspec.json.Decoder(Inputs).decode


class _Manifest:
    """One manifest, copied to this machine."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        metadata = self._file.schema_arrow.metadata or {}
        self.params: bytes = metadata.get(b"params", b"{}")
        self.params_hash = params_hash(self.params)
        self._groups: OrderedDict[int, list[str]] = OrderedDict()

    def chunk(self, index: int) -> bytes:
        """Return a chunk as JSON."""
        group, row = divmod(index, GROUP_ROWS)
        rows = self._groups.get(group)
        if rows is None:
            rows = self._file.read_row_group(group)["chunk"].to_pylist()
            self._groups[group] = rows
            while len(self._groups) > GROUPS_MAX:
                self._groups.popitem(last=False)
        return rows[row].encode()


class Parts:
    """What one child knows of planned jobs: the manifests it read."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._manifests: OrderedDict[str, _Manifest] = OrderedDict()

    def prepare(
        self,
        attempt: Attempt,
        ctx: AttemptContext,
        spec: JobSpec,
        definition: JobDefinition,
        params: Callable[[], bytes],
        validate: Callable[[bytes], Any],
    ) -> tuple[Callable[[], Any], bool]:
        """Return what runs the task, and whether that returns a coroutine.

        `params` reads the job's own, `validate` makes a type's model of them. Raises Discard for
        what no retry can mend.
        """
        inputs = _decode_inputs(attempt.assignment.inputs)
        if inputs.role in ("whole", "split"):
            filled = _filled(attempt, inputs, params())
            attempt.params = params_hash(filled)
            model = validate(filled)
            if inputs.role == "whole":
                call = partial(definition.handler, ctx, model)
                return call, definition.is_async
            split = _as_fan_out(definition).split
            is_async = inspect.iscoroutinefunction(split)
            make = partial(_split, attempt, _as_fan_out(definition), filled)
            if is_async:
                return partial(_split_async, split, ctx, model, make), True
            return lambda: make(split(ctx, model)), False
        fan_out = _as_fan_out(definition)
        manifest = self._manifest(attempt, inputs)
        model = validate(manifest.params)
        if inputs.role == "chunk":
            data = manifest.chunk(inputs.index)
            attempt.params = params_hash(data)
            chunk = _read(lambda: fan_out.chunk.validate_json(data), f"chunk {inputs.index}")
            return partial(fan_out.handler, ctx, model, chunk), fan_out.is_async
        join = fan_out.join
        if join is None:
            raise Discard(f"job type {fan_out.name!r} has no join any more; submit the job anew")
        attempt.params = manifest.params_hash
        failed = [ChunkFailure(index, error) for index, error in inputs.failed]
        results: Results[Any] = Results(
            _Walk(attempt, fan_out, inputs), inputs.count - len(failed), failed
        )
        return partial(join, ctx, model, results), inspect.iscoroutinefunction(join)

    def _manifest(self, attempt: Attempt, inputs: Inputs) -> _Manifest:
        """Return the manifest, copied here by the first chunk that needs it."""
        info = inputs.manifest
        if info is None:
            attempt.reading.lose(inputs.split[0], BEING_MADE)
        known = self._manifests.get(info.sha256)
        if known is not None:
            self._manifests.move_to_end(info.sha256)
            return known
        path = self._scratch / f"manifest-{info.sha256}.parquet"
        digest = hashlib.sha256()
        try:
            with attempt.files.open_read(info.path) as source, path.open("wb") as copy:
                while block := source.read(1 << 20):
                    digest.update(block)
                    copy.write(block)
        except NotFound:
            attempt.reading.lose(*inputs.split)
        if digest.hexdigest() != info.sha256:
            attempt.reading.lose(*inputs.split)
        manifest = self._manifests[info.sha256] = _Manifest(path)
        path.unlink()  # mapped: it lives as long as somebody reads it
        while len(self._manifests) > GROUPS_MAX:
            self._manifests.popitem(last=False)
        return manifest


def _as_fan_out(definition: JobDefinition) -> FanOut:
    if not isinstance(definition, FanOut):
        raise Discard(f"job type {definition.name!r} is no fan-out any more; submit the job anew")
    return definition


def _read(read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"]))
        raise Discard(f"{what} does not fit its type: {where or 'value'}: {found['msg']}") from None


# --- params that refer to what other steps made -------------------------------------------------


def _filled(attempt: Attempt, inputs: Inputs, template: bytes) -> bytes:
    """Return params with every reference replaced."""
    if not inputs.outputs:
        return template
    job_id = attempt.assignment.job_id
    results: dict[str, Any] = {}

    def output_of(step: str) -> tuple[str, Output]:
        task_id, output = inputs.outputs[step]
        if output is None:
            attempt.reading.lose(task_id, BEING_MADE)
        return task_id, output

    def what(kind: str, target: str) -> Any:
        if kind == "$file":
            step, _, name = target.partition("/")
            task_id, output = output_of(step)
            if all(file.name != name for file in output.files):
                known = ", ".join(file.name for file in output.files) or "none"
                raise Discard(f"params: step {step!r} kept no file {name!r}; it kept {known}")
            return f"output:{job_id}/{task_id}/{name}"
        step, _, path = target.partition(".")
        if step not in results:
            results[step] = _result(attempt, *output_of(step))
        try:
            return dig(results[step], path)
        except KeyError as error:
            told = f"step {step!r} returned nothing at {path!r}: no {error.args[0]!r}"
            raise Discard(f"params: {told}; {_there(results[step], path)}") from None

    return msgspec.json.encode(replaced(msgspec.json.decode(template), what))


def _there(value: Any, path: str) -> str:
    """Return what JSON data has where a path leads nowhere."""
    for part in path.split("."):
        try:
            value = dig(value, part)
        except KeyError:
            break
    if isinstance(value, dict) and value:
        more = f" and {len(value) - KEYS_SHOWN:,} more" if len(value) > KEYS_SHOWN else ""
        return f"there is {', '.join(repr(key[:100]) for key in list(value)[:KEYS_SHOWN])}{more}"
    if isinstance(value, list):
        return f"there is a list of {len(value):,}, counted from 0"
    return "there is an empty object" if value == {} else "there is a value without parts"


def _result(attempt: Attempt, task_id: str, output: Output) -> Any:
    if output.result_ref is None:
        return msgspec.json.decode(output.result)
    job_id = attempt.assignment.job_id
    view = attempt.reading.task_of(job_id, task_id)
    attempt.reading.insist_on(job_id, view)
    return msgspec.json.decode(attempt.reading.result_of(view))


# --- splitting ----------------------------------------------------------------------------------


async def _split_async(
    split: Callable[..., Any], ctx: Any, model: Any, make: Callable[[Iterable[Any]], None]
) -> None:
    chunks = await split(ctx, model)
    await asyncio.to_thread(make, chunks)


def _split(attempt: Attempt, fan_out: FanOut, params: bytes, chunks: Iterable[Any]) -> None:
    """Write the manifest as the chunks come."""
    if isinstance(chunks, str | bytes) or not isinstance(chunks, Iterable):
        raise TypeError(f"split returned a {type(chunks).__name__}; return or yield the chunks")
    schema = _SCHEMA.with_metadata({b"params": params})
    digest = hashlib.sha256(params)
    count = 0
    a = attempt.assignment
    # Beside its files, of which a split may keep one of this name.
    path = f"results/{a.job_id}/{a.task_id}/{a.attempt}/{MANIFEST}"
    with attempt.files.open_write(path) as file, pq.ParquetWriter(_ForArrow(file), schema) as out:
        for rows in _grouped(fan_out, chunks):
            if (reason := attempt.stop_reason()) is not None:
                raise StopRequested(reason)
            for row in rows:
                digest.update(row + b"\n")
            out.write_table(pa.table([pa.array([r.decode() for r in rows])], schema), GROUP_ROWS)
            count += len(rows)
    info = file.info
    manifest = FileInfo(MANIFEST, path, info.bytes, info.sha256, "application/vnd.apache.parquet")
    attempt.chunks = SplitResult(count, manifest, digest.hexdigest())


def _grouped(fan_out: FanOut, chunks: Iterable[Any]) -> Iterator[list[bytes]]:
    dump = fan_out.chunk.dump_json
    rows: list[bytes] = []
    for index, chunk in enumerate(chunks):
        if index >= CHUNKS_MAX:
            raise Discard(f"split gives more than {CHUNKS_MAX:,} chunks; make each larger")
        try:
            rows.append(dump(chunk, warnings="error"))
        except (PydanticSerializationError, ValueError, TypeError) as error:
            raise Discard(f"split: chunk {index} does not fit its type: {error}") from None
        if len(rows) == GROUP_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


class _ForArrow:
    """A writer of the store as Arrow writes to files: `closed`, `flush`, `tell` beside `write`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.closed = False

    def write(self, data: Any) -> int:
        """Take the next bytes."""
        written: int = self._writer.write(bytes(data))
        return written

    def tell(self) -> int:
        """Return how many bytes came so far."""
        written: int = self._writer.info.bytes
        return written

    def flush(self) -> None:
        """Do nothing: what is written is seen at the end, whole."""

    def close(self) -> None:
        """Leave the closing to whoever opened it."""
        self.closed = True


# --- joining ------------------------------------------------------------------------------------


class _Walk:
    """The results of a fan-out's chunks, asked for a page at a time, each time it is walked."""

    def __init__(self, attempt: Attempt, fan_out: FanOut, inputs: Inputs) -> None:
        self._attempt, self._fan_out, self._inputs = attempt, fan_out, inputs

    def __iter__(self) -> Iterator[ChunkResult[Any]]:
        attempt, inputs = self._attempt, self._inputs
        job_id = attempt.assignment.job_id
        prefix = inputs.split[0].removesuffix("split")
        failed = {index for index, _ in inputs.failed}
        for first in range(0, inputs.count, PAGE):
            indexes = [i for i in range(first, min(first + PAGE, inputs.count)) if i not in failed]
            while indexes:  # the answer may be the first of them only, if they are large
                ids = [f"{prefix}{index}" for index in indexes]
                views = attempt.reading.tasks(job_id, ids=ids).tasks
                attempt.reading.know(job_id, views)
                for view in views:
                    attempt.reading.insist_on(job_id, view)
                    yield self._result(job_id, view)
                indexes = indexes[len(views) :]

    def _result(self, job_id: str, view: TaskView) -> ChunkResult[Any]:
        data = self._attempt.reading.result_of(view)
        value = _read(lambda: self._fan_out.value.validate_json(data), f"result of {view.task_id}")
        files = {file.name: f"output:{job_id}/{view.task_id}/{file.name}" for file in view.files}
        return ChunkResult(view.index, value, files)
