"""What a handler does by mistake harms its own attempt only. One worker serves most of it."""

import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.protocol import Outcome
from cluster.worker.board import OUTCOME_BYTES_MAX, SEPARATOR, Board
from cluster.worker.pipe import (
    HEADER_BYTES,
    LogSpan,
    decode_from_child,
    encode,
    ended_frame,
    salvage,
    salvage_ended,
)
from jobs.redact import holds_in_json, redact_json
from tests.worker.conftest import Bench, result_of

JOBS = "tests.worker.odd_jobs"
SECRET = "s3cr3t-XYZZY"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    os.environ["DRAYMAN_SECRET_DB"] = SECRET
    bench = Bench(tmp_path_factory.mktemp("odd") / "store", job_modules=[JOBS])
    await bench.start()
    yield bench
    await bench.close()
    del os.environ["DRAYMAN_SECRET_DB"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_a_loop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    store = tmp_path_factory.mktemp("odd_async") / "store"
    bench = Bench(store, job_modules=[JOBS], mode="async", concurrency=10)
    await bench.start()
    yield bench
    await bench.close()


async def run(bench: Bench, type: str, **params: Any) -> Outcome:
    return await bench.manager.outcome(bench.manager.submit(type, params))


# --- odd ends ---------------------------------------------------------------------------------

ODD = [
    ("snooze_timedelta", "snoozed", ""),
    ("snooze_inf", "failed", "Snooze.delay_s is inf; give a number of seconds"),
    ("snooze_changed", "failed", "Snooze.delay_s is 'soon'"),
    ("discard_error", "discarded", "division by zero"),
    ("discard_mute", "discarded", "(its message raised RuntimeError)"),
    ("surrogate", "failed", "ValueError: bad file \\udcff"),
    ("nan", "failed", "NaN and Infinity have no place in it"),
    ("not_utf8", "failed", "the result is not valid JSON"),
    ("many_files", "failed", "its outcome could not be written"),
    ("once_number", "failed", "the key is a int; give a text"),
    ("once_long", "failed", "the value is 70002 bytes of JSON, 65536 at most"),
]


@pytest.mark.parametrize(("what", "kind", "told"), ODD)
async def test_odd_end_is_told_and_its_child_goes_on(
    bench: Bench, what: str, kind: str, told: str
) -> None:
    child = bench.slot.child_pid

    outcome = await run(bench, "odd.end", what=what)

    assert outcome.kind == kind
    assert told in outcome.error
    assert bench.slot.child_pid == child


@pytest.mark.parametrize(("what", "kind", "told"), ODD)
async def test_odd_end_on_a_loop_is_told_and_its_child_goes_on(
    on_a_loop: Bench, what: str, kind: str, told: str
) -> None:
    child = on_a_loop.slot.child_pid

    outcome = await run(on_a_loop, "odd.async_end", what=what)

    assert outcome.kind == kind
    assert told in outcome.error
    assert on_a_loop.slot.child_pid == child


async def test_snooze_takes_a_timedelta(bench: Bench) -> None:
    outcome = await run(bench, "odd.end", what="snooze_timedelta")

    assert outcome.delay_s == 5.0


async def test_result_on_several_lines_is_a_result(bench: Bench) -> None:
    outcome = await run(bench, "odd.end", what="two_lines")

    assert result_of(outcome) == {"a": [1, 2]}
    assert b"\n" not in bytes(outcome.output)


@pytest.mark.parametrize("what", ["progress_number", "progress_surrogate"])
async def test_odd_progress_message_is_shown_as_text(bench: Bench, what: str) -> None:
    outcome = await run(bench, "odd.end", what=what)

    assert result_of(outcome) == "done"


async def test_long_progress_message_is_cut(bench: Bench) -> None:
    await run(bench, "odd.end", what="progress_long")

    assert all(len(p.message.encode()) <= 1024 for p in bench.manager.progress)


async def test_neighbours_of_an_odd_end_run_once(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    tokens = []
    for n in range(100):
        tokens.append(bench.manager.submit("odd.count", {"n": n, "path": str(path)}))
        if n % 40 == 20:
            bench.manager.submit("odd.end", {"what": "snooze_timedelta"})

    await bench.manager.all_outcomes(tokens, within_s=20)

    ran = Counter(path.read_text().split())
    assert len(ran) == 100
    assert set(ran.values()) == {1}


# --- outcomes that cannot be read -------------------------------------------------------------

GOOD = encode(Outcome(7, "ok", 1.0, 2.0))
BAD = b'[8,"snoozed",1.0,2.0,null,"","",NaN]'
SPAN = encode(LogSpan(7, 0, 9))


def board(tmp_path: Path) -> Board:
    fd = os.open(tmp_path / "board", os.O_RDWR | os.O_CREAT)
    made = Board(fd, create=True)
    os.close(fd)
    return made


async def test_bad_outcome_in_a_frame_spares_the_others() -> None:
    body = ended_frame(SEPARATOR.join([GOOD, BAD, GOOD]), SPAN)[HEADER_BYTES:]

    ended, whole = salvage_ended(body)

    assert whole
    assert [(o.token, o.kind) for o in ended.outcomes] == [(7, "ok"), (8, "failed"), (7, "ok")]
    assert "its outcome could not be read" in ended.outcomes[1].error
    assert ended.logs == [LogSpan(7, 0, 9)]


async def test_bad_outcome_on_a_board_spares_the_others(tmp_path: Path) -> None:
    page = board(tmp_path)
    for encoded in (GOOD, BAD, b'[9,"failed",0,0,null,"\xff"]', GOOD):
        page.keep(encoded)

    kept, whole = salvage(page.kept())

    assert whole
    assert [(o.token, o.kind) for o in kept] == [
        (7, "ok"),
        (8, "failed"),
        (9, "failed"),
        (7, "ok"),
    ]
    page.close()


async def test_frame_of_outcomes_is_read_as_a_whole() -> None:
    body = ended_frame(SEPARATOR.join([GOOD, GOOD]), SPAN)[HEADER_BYTES:]

    ended = decode_from_child(body)

    assert [outcome.token for outcome in ended.outcomes] == [7, 7]


@pytest.mark.parametrize("body", [b"", b"scribble", b'["ended",[\n],[', b'["moved",1,"x",2]'])
async def test_frame_that_is_no_frame_yields_nothing(body: bytes) -> None:
    ended, whole = salvage_ended(body)

    assert (ended.outcomes, whole) == ([], False)


async def test_longest_outcome_fits_an_empty_board(tmp_path: Path) -> None:
    page = board(tmp_path)

    assert page.keep(b"x" * OUTCOME_BYTES_MAX)
    page.clear()
    assert not page.keep(b"x" * (OUTCOME_BYTES_MAX + 1))
    page.close()


# --- secrets ----------------------------------------------------------------------------------


async def test_secret_of_an_earlier_attempt_is_masked_in_a_later_one(bench: Bench) -> None:
    await run(bench, "odd.secret")

    printed = await run(bench, "odd.secret", what="print")
    failed = await run(bench, "odd.secret", what="fail")

    assert bench.log(printed) == "connecting with ***\n"
    assert result_of(printed) == ["***", "a \\ b"]
    assert failed.error == "ValueError: login failed: ***"
    assert SECRET not in bench.log(failed)


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("checkpoint", "checkpoint: the value holds a secret"),
        ("once_key", "once: the key holds a secret"),
        ("once_value", "once: the value holds a secret"),
        ("file", "files: the name of an output holds a secret"),
    ],
)
async def test_secret_in_what_is_kept_is_refused(bench: Bench, what: str, call: str) -> None:
    await run(bench, "odd.secret")

    outcome = await run(bench, "odd.secret", what=what)

    assert call in outcome.error
    assert all(SECRET not in repr((r.key, bytes(r.value))) for r in bench.manager.records)


async def test_what_holds_no_secret_is_kept_as_it_is(bench: Bench) -> None:
    outcome = await run(bench, "odd.secret", what="clean")

    assert outcome.kind == "ok"
    assert any(bytes(r.value) == b'{"n":12345678901234567890}' for r in bench.manager.records)


async def test_document_without_the_secret_is_left_byte_for_byte() -> None:
    document = b'{"n": 123456789012345678901234567890}'

    assert redact_json(document, [SECRET]) == document


async def test_secret_is_found_behind_an_escape() -> None:
    assert holds_in_json(b'{"a":["\\u0073ecret"]}', ["secret"])
    assert not holds_in_json(b'{"a":12}', ["12"])
