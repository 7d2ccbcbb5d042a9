"""Tasks of planned jobs in a real child: splits, chunks, joins, and steps that read other steps.

One worker serves the whole file; a scripted manager gives it tasks and answers its questions.
"""

import hashlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from cluster.history.lineage import write_lineage
from cluster.protocol import (
    NOTHING,
    Assignment,
    FileInfo,
    InputInfo,
    Inputs,
    LostOutput,
    OrderlyStop,
    Outcome,
    Output,
    refusal_of,
)
from cluster.queue.spec import JobSpec, decode_spec, encode_spec
from cluster.store.objects import open_store
from cluster.tasks import params_hash
from cluster.views import TaskPage, TaskView
from cluster.worker.parts import GROUP_ROWS, GROUPS_MAX, _Manifest
from jobs.errors import NotFound
from tests.worker.conftest import Bench, output_of, result_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOBS = ["tests.worker.planned_jobs"]
TOKENS = itertools.count(1_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["process", "async"])
async def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    store = tmp_path_factory.mktemp("worker") / "store"
    bench = Bench(store, job_modules=JOBS, mode=request.param)
    await bench.start()
    yield bench
    await bench.close()


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


async def run(
    bench: Bench, type: str, inputs: Inputs | None, params: Any = None, **more: Any
) -> Outcome:
    """Run one task and return its outcome."""
    return await bench.manager.outcome(give(bench, type, inputs, params, **more))


def give(
    bench: Bench,
    type: str,
    inputs: Inputs | None,
    params: Any = None,
    *,
    task_id: str = "t",
    attempt: int = 1,
    **spec: Any,
) -> int:
    token = next(TOKENS)
    encoded = encode_spec(JobSpec(type, raw(params or {}), **spec))
    bench.manager._ready.append(
        Assignment(
            token,
            "the-job",
            task_id,
            attempt,
            msgspec.Raw(encoded),
            inputs=NOTHING if inputs is None else raw(inputs),
        )
    )
    bench.manager.wake()
    return token


def lost_of(outcome: Outcome) -> list[LostOutput]:
    assert outcome.kind == "lost", outcome
    return msgspec.json.decode(outcome.output, type=list[LostOutput])


def put(bench: Bench, path: str, data: bytes) -> FileInfo:
    """Keep a file in the store, and return what is known of it."""
    open_store(str(bench.store)).put(path, data)
    return FileInfo(Path(path).name, path, len(data), hashlib.sha256(data).hexdigest())


def answer(bench: Bench, *pages: list[TaskView]) -> list[dict[str, Any]]:
    """Lay out answers to the next questions; return the list that gets the questions."""
    bench.manager.queries.clear()
    bench.manager.answers[:] = [b"+" + msgspec.json.encode(TaskPage(page)) for page in pages]
    return bench.manager.queries


async def split(bench: Bench, params: Any, **more: Any) -> Output:
    return output_of(await run(bench, "parts.book", Inputs("split"), params, **more))


def of_chunk(output: Output, index: int, attempt: int = 1) -> Inputs:
    return Inputs("chunk", index, manifest=output.manifest, split=("split", attempt))


# --- splits and chunks ------------------------------------------------------------------------


async def test_a_split_writes_a_manifest_that_says_what_it_gave_and_nothing_else(
    bench: Bench,
) -> None:
    first = await split(bench, {"pages": 10_000}, task_id="split")
    again = await split(bench, {"pages": 10_000}, task_id="split", attempt=2)
    other = await split(bench, {"pages": 9_999}, task_id="split", attempt=3)

    assert first.chunks == again.chunks == 10_000
    assert first.manifest is not None
    assert again.manifest is not None
    assert first.manifest.path != again.manifest.path
    assert first.chunks_sha256 == again.chunks_sha256 != other.chunks_sha256
    data = (bench.store / first.manifest.path).read_bytes()
    assert first.manifest.sha256 == hashlib.sha256(data).hexdigest() == again.manifest.sha256
    file = pq.ParquetFile(bench.store / first.manifest.path)
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sizes == [GROUP_ROWS, GROUP_ROWS, 10_000 - 2 * GROUP_ROWS]
    assert first.params == params_hash(b'{"pages":10000}')


async def test_a_chunk_gets_its_own_part_and_the_params_of_all(bench: Bench) -> None:
    output = await split(bench, {"pages": 10_000}, task_id="split")
    questions = answer(bench)

    for index in (0, GROUP_ROWS - 1, GROUP_ROWS, 9_999):
        outcome = await run(bench, "parts.book", of_chunk(output, index))

        assert result_of(outcome) == [index, 10_000, "é" * (index % 3)]
    assert questions == []
    data = msgspec.json.encode({"number": 9_999, "text": ""})
    assert output_of(outcome).params == params_hash(data)


async def test_a_manifest_is_read_by_the_group_and_few_groups_stay(bench: Bench) -> None:
    output = await split(bench, {"pages": 6 * GROUP_ROWS}, task_id="split")
    assert output.manifest is not None
    manifest = _Manifest(bench.store / output.manifest.path)

    assert msgspec.json.decode(manifest.chunk(GROUP_ROWS + 1))["number"] == GROUP_ROWS + 1
    assert list(manifest._groups) == [1]
    for group in range(6):
        manifest.chunk(group * GROUP_ROWS)
    assert len(manifest._groups) == GROUPS_MAX


async def test_a_manifest_is_copied_once_by_a_child_that_runs_many_chunks(bench: Bench) -> None:
    output = await split(bench, {"pages": 3}, task_id="split", attempt=77)
    assert output.manifest is not None
    await run(bench, "parts.book", of_chunk(output, 0))
    (bench.store / output.manifest.path).unlink()

    outcome = await run(bench, "parts.book", of_chunk(output, 2))

    assert result_of(outcome) == [2, 3, "éé"]


async def test_a_split_of_nothing_gives_no_chunks(bench: Bench) -> None:
    output = await split(bench, {"pages": 0}, task_id="split")

    assert output.chunks == 0
    assert output.manifest is not None


async def test_a_split_may_keep_a_file_of_any_name(bench: Bench) -> None:
    output = await split(bench, {"what": "file"}, task_id="split")

    [kept] = output.files
    assert (bench.store / kept.path).read_bytes() == b"not the manifest"
    assert result_of(await run(bench, "parts.book", of_chunk(output, 1))) == [1, 3, "é"]


@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [
        ("text", "failed", "split returned a str; return or yield the chunks"),
        ("nothing", "failed", "split returned a NoneType; return or yield the chunks"),
        ("wrong", "discarded", "split: chunk 1 does not fit its type"),
        ("breaks", "failed", "ZeroDivisionError"),
    ],
)
async def test_a_split_that_gives_no_chunks_says_why(
    bench: Bench, what: str, kind: str, told: str
) -> None:
    outcome = await run(bench, "parts.book", Inputs("split"), {"what": what}, task_id=what)

    assert (outcome.kind, outcome.output) == (kind, NOTHING)
    assert told in outcome.error
    assert not list((bench.store / "results").glob(f"the-job/{what}/**/*.parquet"))


async def test_a_split_without_end_can_be_stopped(bench: Bench) -> None:
    token = give(bench, "parts.book", Inputs("split"), {"what": "endless"}, task_id="endless")
    await bench.manager.reported(lambda report: token in report.started)
    bench.manager.stops.append(OrderlyStop(token, "cancel"))
    bench.manager.wake()

    outcome = await bench.manager.outcome(token)

    assert (outcome.kind, outcome.cause) == ("stopped", "cancel")


async def test_a_manifest_that_is_gone_or_spoiled_names_the_split_that_made_it(
    bench: Bench,
) -> None:
    for number, spoil in enumerate((Path.unlink, lambda path: path.write_bytes(b"spoiled"))):
        output = await split(bench, {"pages": 5 + number}, task_id="split", attempt=8 + number)
        assert output.manifest is not None
        spoil(bench.store / output.manifest.path)

        outcome = await run(bench, "parts.book", of_chunk(output, 0, 8 + number))

        assert lost_of(outcome) == [LostOutput("split", 8 + number)]
        assert (outcome.cause, outcome.error) == (
            "input lost",
            "the output of split is gone, or not what it was",
        )


async def test_a_chunk_that_does_not_fit_its_type_any_more_is_discarded(bench: Bench) -> None:
    output = output_of(await run(bench, "parts.no_join", Inputs("split"), {"pages": 2}))

    outcome = await run(bench, "parts.book", of_chunk(output, 1))

    assert outcome.kind == "discarded"
    assert outcome.error.startswith("chunk 1 does not fit its type: value: Input should be")


async def test_a_type_that_is_no_fan_out_any_more_is_told(bench: Bench) -> None:
    for role in ("split", "chunk", "join"):
        outcome = await run(bench, "parts.echo", Inputs(role))  # type: ignore[arg-type]

        assert outcome.kind == "discarded"
        assert "'parts.echo' is no fan-out any more; submit the job anew" in outcome.error


async def test_a_join_that_is_not_there_any_more_is_told(bench: Bench) -> None:
    output = output_of(await run(bench, "parts.no_join", Inputs("split"), {"pages": 2}))
    inputs = Inputs("join", manifest=output.manifest, split=("split", 1), count=2)

    outcome = await run(bench, "parts.no_join", inputs)

    assert outcome.kind == "discarded"
    assert "has no join any more" in outcome.error


async def test_split_chunk_and_join_may_be_async(bench: Bench) -> None:
    output = output_of(await run(bench, "parts.async", Inputs("split"), {"pages": 3}))
    chunk = await run(bench, "parts.async", of_chunk(output, 2))
    answer(bench, [TaskView(str(n), "succeeded", 1, index=n, result=raw(n * 10)) for n in range(3)])
    inputs = Inputs("join", manifest=output.manifest, split=("split", 1), count=3)

    joined = await run(bench, "parts.async", inputs)

    assert output.chunks == 3
    assert (result_of(chunk), result_of(joined)) == (20, 30)


# --- joins ------------------------------------------------------------------------------------


def done(index: int, **more: Any) -> TaskView:
    """Return a chunk that is done, as the manager tells of it."""
    fields = {"index": index, "role": "chunk", "result": raw(index)} | more
    return TaskView(
        fields.pop("name", str(index)), "succeeded", fields.pop("attempts", 1), **fields
    )


async def of_join(bench: Bench, count: int, what: str = "", **more: Any) -> Inputs:
    output = await split(bench, {"pages": 4, "what": what}, task_id="split")
    return Inputs("join", manifest=output.manifest, split=("split", 1), count=count, **more)


async def test_a_join_asks_for_the_results_a_page_at_a_time(bench: Bench) -> None:
    inputs = await of_join(bench, 2_500, failed=[(7, "it broke")])
    views = [done(n) for n in range(2_500) if n != 7]
    questions = answer(bench, views[:999], views[999:1_999], views[1_999:])

    outcome = await run(bench, "parts.book", inputs, tenant="acme")

    assert result_of(outcome) == {
        "count": 2_499,
        "in_order": True,
        "sum": sum(range(2_500)) - 7,
        "failed": [[7, "it broke"]],
        "files": [],
        "pages": 4,
    }
    assert [len(question["ids"]) for question in questions] == [999, 1_000, 500]
    asked = {(q["op"], q["job_id"], q["tenant"]) for q in questions}
    assert asked == {("tasks", "the-job", "acme")}


async def test_each_walk_over_the_results_asks_anew(bench: Bench) -> None:
    inputs = await of_join(bench, 2, "twice")
    views = [done(0), done(1)]
    questions = answer(bench, views, views)

    outcome = await run(bench, "parts.book", inputs)

    assert result_of(outcome)["sum"] == 1
    assert len(questions) == 2


async def test_chunks_of_a_step_are_asked_for_by_their_whole_names(bench: Bench) -> None:
    output = await split(bench, {"what": "files"}, task_id="b.split")
    inputs = Inputs("join", manifest=output.manifest, split=("b.split", 1), count=1)
    kept = FileInfo("a.csv", "results/x/a.csv", 1, "0")
    view = done(0, name="b.0", step="b", files=[kept])
    questions = answer(bench, [view], [view])

    outcome = await run(bench, "parts.book", inputs)

    assert result_of(outcome)["files"] == ["output:the-job/b.0/a.csv"]
    assert questions[0]["ids"] == ["b.0"]


async def test_results_that_a_lineage_file_has_are_read_from_there(bench: Bench) -> None:
    inputs = await of_join(bench, 3)
    objects = open_store(str(bench.store))
    write_lineage(objects, 1, 5, "the-job", [done(0), done(1)])
    archived = [done(n, result=NOTHING, archived=True) for n in range(2)]
    answer(bench, [*archived, done(2)])

    outcome = await run(bench, "parts.book", inputs)

    assert result_of(outcome)["sum"] == 3
    objects.delete([info.path for info in objects.list("lineage/")])


async def test_a_large_result_is_read_from_the_store(bench: Bench) -> None:
    inputs = await of_join(bench, 2)
    file = put(bench, "results/the-job/1/1/result.json", b"41")
    large = done(1, result=NOTHING, result_ref=file.path, result_sha256=file.sha256)
    answer(bench, [done(0), large])

    assert result_of(await run(bench, "parts.book", inputs))["sum"] == 41


async def test_results_that_are_gone_or_spoiled_are_named_all_at_once(bench: Bench) -> None:
    inputs = await of_join(bench, 4)
    spoiled = put(bench, "results/the-job/1/1/spoiled.json", b"41")
    gone = {"result": NOTHING, "result_ref": "results/the-job/gone.json"}
    large = {"result": NOTHING, "result_ref": spoiled.path, "result_sha256": "f" * 64}
    views = [done(0), done(1, attempts=3, **large), done(2), done(3, attempts=2, **gone)]
    answer(bench, views)

    outcome = await run(bench, "parts.book", inputs)

    assert sorted(lost_of(outcome), key=lambda lost: lost.task_id) == [
        LostOutput("1", 3),
        LostOutput("3", 2),
    ]


async def test_two_walks_beside_each_other_find_the_same_and_lose_the_same(bench: Bench) -> None:
    inputs = await of_join(bench, 2, "beside")
    answer(bench, [done(0), done(1)], [done(0), done(1)])
    whole = await run(bench, "parts.book", inputs)
    gone = {"result": NOTHING, "result_ref": "results/the-job/beside.json"}
    answer(bench, [done(0), done(1, **gone)], [done(0), done(1, **gone)])
    lacking = await run(bench, "parts.book", inputs)

    assert result_of(whole) == {"pairs": [[0, 0], [1, 1]]}
    assert lost_of(lacking) == [LostOutput("1", 1)]


async def test_a_result_that_does_not_fit_the_join_is_discarded(bench: Bench) -> None:
    inputs = await of_join(bench, 2)
    answer(bench, [done(0), done(1, result=raw("one"))])

    outcome = await run(bench, "parts.book", inputs)

    assert outcome.kind == "discarded"
    assert outcome.error.startswith("result of 1 does not fit its type: value: Input should be")


# --- steps that read what others made -----------------------------------------------------------


def outputs(result: Any = None, **more: Any) -> dict[str, tuple[str, Output]]:
    return {"fetch": ("fetch", Output(raw(result), **more))}


async def test_references_are_filled_in_before_the_handler_sees_its_params(bench: Bench) -> None:
    kept = FileInfo("t.csv", "results/t.csv", 1, "0")
    given = outputs({"rows": [{"id": 7}], "n": None}, files=[kept])
    given["pages"] = ("pages.join", Output(raw("joined"), files=[kept]))
    template = {
        "id": {"$result": "fetch.rows.0.id"},
        "all": [{"$result": "fetch"}, {"x": {"$result": "fetch.n"}}],
        "file": {"$file": "fetch/t.csv"},
        "joined": [{"$result": "pages"}, {"$file": "pages/t.csv"}],
        "plain": {"$result": 7},
    }
    questions = answer(bench)

    outcome = await run(bench, "parts.echo", Inputs("whole", outputs=given), template)

    filled = {
        "id": 7,
        "all": [{"rows": [{"id": 7}], "n": None}, {"x": None}],
        "file": "output:the-job/fetch/t.csv",
        "joined": ["joined", "output:the-job/pages.join/t.csv"],
        "plain": {"$result": 7},
    }
    assert result_of(outcome) == filled
    assert output_of(outcome).params == params_hash(msgspec.json.encode(filled))
    assert questions == []


async def test_a_large_result_that_params_refer_to_is_read_from_the_store(bench: Bench) -> None:
    file = put(bench, "results/the-job/fetch/1/result.json", b'{"rows":[1,2]}')
    given = {"fetch": ("fetch", Output(result_ref=file.path, result_sha256=file.sha256))}
    view = TaskView("fetch", "succeeded", 1, result_ref=file.path, result_sha256=file.sha256)
    template = {"a": {"$result": "fetch.rows.1"}, "b": {"$result": "fetch"}}
    questions = answer(bench, [view])

    outcome = await run(bench, "parts.echo", Inputs("whole", outputs=given), template)

    assert result_of(outcome) == {"a": 2, "b": {"rows": [1, 2]}}
    assert [question["ids"] for question in questions] == [["fetch"]]


@pytest.mark.parametrize("data", [None, b"{}"])
async def test_a_large_result_that_is_gone_or_spoiled_is_lost(
    bench: Bench, data: bytes | None
) -> None:
    path = f"results/the-job/fetch/9/{data is None}.json"
    if data is not None:
        put(bench, path, data)
    given = {"fetch": ("fetch", Output(result_ref=path, result_sha256="0" * 64))}
    answer(bench, [TaskView("fetch", "succeeded", 9, result_ref=path, result_sha256="0" * 64)])

    outcome = await run(
        bench, "parts.echo", Inputs("whole", outputs=given), {"a": {"$result": "fetch"}}
    )

    assert lost_of(outcome) == [LostOutput("fetch", 9)]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (
            {"a": {"$result": "fetch.rows.1"}},
            "step 'fetch' returned nothing at 'rows.1': no '1'; "
            "there is a list of 1, counted from 0",
        ),
        (
            {"a": {"$result": "fetch.row"}},
            "step 'fetch' returned nothing at 'row': no 'row'; there is 'rows'",
        ),
        (
            {"a": {"$result": "fetch.rows.0.id"}},
            "step 'fetch' returned nothing at 'rows.0.id': no 'id'; there is a value without parts",
        ),
        (
            {"a": {"$file": "fetch/u.csv"}},
            "step 'fetch' kept no file 'u.csv'; it kept t.csv, v.csv",
        ),
    ],
)
async def test_a_reference_to_what_is_not_there_is_discarded(
    bench: Bench, template: Any, told: str
) -> None:
    kept = [FileInfo(name, f"results/{name}", 1, "0") for name in ("t.csv", "v.csv")]
    given = outputs({"rows": [0]}, files=kept)

    outcome = await run(bench, "parts.echo", Inputs("whole", outputs=given), template)

    assert (outcome.kind, outcome.error) == ("discarded", f"params: {told}")


async def test_params_that_do_not_fit_once_they_are_filled_in_are_discarded(bench: Bench) -> None:
    inputs = Inputs("whole", outputs=outputs(7))

    outcome = await run(bench, "parts.read", inputs, {"uri": {"$result": "fetch"}})

    assert outcome.kind == "discarded"
    assert outcome.error == "params.uri: Input should be a valid string"


@pytest.mark.parametrize("how", ["fetch", "open"])
async def test_a_file_of_another_task_is_read_and_remembered(bench: Bench, how: str) -> None:
    file = put(bench, "results/the-job/fetch/2/files/t.csv", b"a,b\n")
    answer(bench, [TaskView("fetch", "succeeded", 2, files=[file])])
    uri = "output:the-job/fetch/t.csv"

    outcome = await run(bench, "parts.read", Inputs("whole"), {"uri": uri, "how": how})

    assert result_of(outcome) == "a,b\n"
    assert output_of(outcome).inputs == [InputInfo(uri, file.sha256, 4, 2)]


@pytest.mark.parametrize("how", ["fetch", "open"])
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_file_of_another_task_that_is_gone_or_spoiled_is_lost(
    bench: Bench, how: str, is_there: bool
) -> None:
    file = FileInfo("t.csv", f"results/the-job/fetch/{how}{is_there}/t.csv", 3, "0" * 64)
    if is_there:
        put(bench, file.path, b"xyz")
    answer(bench, [TaskView("fetch", "succeeded", 2, files=[file])])
    params = {"uri": "output:the-job/fetch/t.csv", "how": how}

    outcome = await run(bench, "parts.read", Inputs("whole"), params)

    assert lost_of(outcome) == [LostOutput("fetch", 2)]


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_a_handler_that_swallows_the_loss_ends_as_lost_all_the_same(
    bench: Bench, how: str
) -> None:
    file = FileInfo("t.csv", "results/the-job/fetch/1/nowhere.csv", 3, "0" * 64)
    answer(bench, [TaskView("fetch", "succeeded", 1, files=[file])])
    params = {"uri": "output:the-job/fetch/t.csv", "how": how}

    outcome = await run(bench, "parts.swallow", Inputs("whole"), params)

    assert lost_of(outcome) == [LostOutput("fetch", 1)]


# --- what is being made again -----------------------------------------------------------------


@pytest.mark.parametrize("template", [{"a": {"$result": "fetch"}}, {"a": {"$file": "fetch/t"}}])
async def test_params_wait_for_an_output_that_is_being_made_again(
    bench: Bench, template: Any
) -> None:
    inputs = Inputs("whole", outputs={"fetch": ("fetch", None)})

    needed = await run(bench, "parts.echo", inputs, template)
    beside = await run(bench, "parts.echo", inputs, {"a": 1})

    assert lost_of(needed) == [LostOutput("fetch", 0)]
    assert result_of(beside) == {"a": 1}


async def test_chunks_wait_for_a_manifest_that_is_being_made_again(bench: Bench) -> None:
    outcome = await run(bench, "parts.book", Inputs("chunk", 3, split=("split", 1)))

    assert lost_of(outcome) == [LostOutput("split", 0)]


@pytest.mark.parametrize("state", ["ready", "leased", "backing_off", "waiting"])
async def test_a_join_waits_for_a_chunk_that_is_being_made_again(bench: Bench, state: str) -> None:
    inputs = await of_join(bench, 2)
    answer(bench, [done(0), TaskView("1", state, 2, role="chunk", index=1)])

    outcome = await run(bench, "parts.book", inputs)

    assert lost_of(outcome) == [LostOutput("1", 0)]


@pytest.mark.parametrize("how", ["fetch", "open"])
async def test_a_file_that_is_being_made_again_is_waited_for(bench: Bench, how: str) -> None:
    answer(bench, [TaskView("fetch", "leased", 2)])
    params = {"uri": "output:the-job/fetch/t.csv", "how": how}

    outcome = await run(bench, "parts.read", Inputs("whole"), params)

    assert lost_of(outcome) == [LostOutput("fetch", 0)]


async def test_a_join_asks_again_for_results_that_were_too_large_for_one_answer(
    bench: Bench,
) -> None:
    inputs = await of_join(bench, 3)
    questions = answer(bench, [done(0)], [done(1), done(2)])

    outcome = await run(bench, "parts.book", inputs)

    assert result_of(outcome)["sum"] == 3
    assert [question["ids"] for question in questions] == [["0", "1", "2"], ["1", "2"]]


async def test_what_another_job_lost_is_no_input_to_be_made_again(bench: Bench) -> None:
    file = FileInfo("t.csv", "results/other/0/1/nowhere.csv", 3, "0" * 64)
    answer(bench, [TaskView("0", "succeeded", 1, files=[file])])

    outcome = await run(bench, "parts.read", Inputs("whole"), {"uri": "output:other/0/t.csv"})

    assert outcome.kind == "failed"
    assert "the output of task 0 of job other is gone" in outcome.error
    assert "submit that job anew" in outcome.error


async def test_a_file_that_a_task_did_not_keep_and_a_task_that_is_not_there_are_told(
    bench: Bench,
) -> None:
    kept = FileInfo("t.csv", "results/t.csv", 1, "0")
    answer(bench, [TaskView("fetch", "succeeded", 1, files=[kept])])
    missing = await run(bench, "parts.read", Inputs("whole"), {"uri": "output:the-job/fetch/u.csv"})
    refusal = b"-" + msgspec.json.encode(refusal_of(NotFound("task", "the-job/fetsh")))
    bench.manager.answers[:] = [refusal]
    nobody = await run(bench, "parts.read", Inputs("whole"), {"uri": "output:the-job/fetsh/u.csv"})
    odd = await run(bench, "parts.read", Inputs("whole"), {"uri": "output:the-job"})

    assert (missing.kind, nobody.kind, odd.kind) == ("failed",) * 3
    assert "that task kept t.csv" in missing.error
    assert "the-job/fetsh" in nobody.error
    assert "write it as output:JOB/TASK/NAME" in odd.error


# --- ctx.submit -------------------------------------------------------------------------------


async def test_jobs_that_an_attempt_submits_leave_with_its_success(bench: Bench) -> None:
    outcome = await run(bench, "parts.submit", None, {"what": "jobs"}, tenant="acme")

    assert result_of(outcome) == [submission.job_id for submission in outcome.submits]
    echo, book, flow = [decode_spec(submission.spec) for submission in outcome.submits]
    assert (echo.type, bytes(echo.params), echo.queue, echo.priority, echo.labels) == (
        "parts.echo", b'{"a":1}', "io", 3, {"x": "y"},
    )  # fmt: skip
    assert echo.plan is None
    assert {(s.tenant, s.parent) for s in (echo, book, flow)} == {("acme", "the-job")}
    assert book.plan is not None
    assert book.plan.steps[0].fans_out
    assert flow.plan is not None
    assert [(step.name, step.type) for step in flow.plan.steps] == [("read", "parts.read")]
    assert msgspec.json.decode(flow.plan.steps[0].params) == {"uri": "u"}


async def test_large_params_of_a_submitted_job_lie_in_the_store(bench: Bench) -> None:
    outcome = await run(bench, "parts.submit", None, {"what": "large"})

    [submission] = outcome.submits
    spec = decode_spec(submission.spec)
    assert spec.params_ref is not None
    assert msgspec.json.decode((bench.store / spec.params_ref).read_bytes()) == {"a": "x" * 20_000}


async def test_an_attempt_that_fails_submits_nothing(bench: Bench) -> None:
    outcome = await run(bench, "parts.submit", None, {"what": "fails"})

    assert (outcome.kind, outcome.submits) == ("failed", [])


async def test_a_submission_that_was_refused_does_not_spoil_the_next(bench: Bench) -> None:
    outcome = await run(bench, "parts.submit", None, {"what": "caught"})

    assert [submission.job_id for submission in outcome.submits] == [result_of(outcome)]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("type", "no job type 'parts.nope' is known here; there is "),
        ("params", "parts.book: params.pages: Input should be a valid integer"),
        ("option", "parts.echo: Object contains unknown field `prio`"),
        ("range", "parts.echo: Expected `int` >= 1"),
        ("flow", "parts.flow: params.uri: Input should be a valid string"),
    ],
)
async def test_what_cannot_be_submitted_is_refused_where_it_is_asked_for(
    bench: Bench, what: str, told: str
) -> None:
    outcome = await run(bench, "parts.submit", None, {"what": what})

    assert (outcome.kind, outcome.submits) == ("failed", [])
    assert told in outcome.error


async def test_an_attempt_may_submit_so_many_jobs_and_no_more(bench: Bench) -> None:
    most = await run(bench, "parts.submit", None, {"what": "many", "pages": 100})
    more = await run(bench, "parts.submit", None, {"what": "many", "pages": 101})

    assert len(most.submits) == len(set(result_of(most))) == 100
    assert (more.kind, more.submits) == ("failed", [])
    assert "an attempt may submit 100 jobs; for more, fan out" in more.error
