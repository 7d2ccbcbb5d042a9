"""What handlers may do, and what becomes of it. One worker serves the whole file."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from cluster.protocol import Recorded, refusal_of
from cluster.worker.capture import LOG_BYTES_MAX
from jobs.errors import LeaseLost
from tests.worker.conftest import Bench

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    os.environ["DRAYMAN_SECRET_SMTP_PASSWORD"] = 'hunter2"two'
    bench = Bench(tmp_path_factory.mktemp("worker") / "store")
    await bench.start()
    yield bench
    await bench.close()
    del os.environ["DRAYMAN_SECRET_SMTP_PASSWORD"]


async def run(bench: Bench, type: str, params: dict[str, Any] | None = None, **spec: Any) -> Any:
    return await bench.manager.outcome(bench.manager.submit(type, params, **spec))


@pytest.mark.parametrize("value", [None, 0, "text", [1, 2], {"a": {"b": None}}, 1.5, True])
async def test_result_comes_back_as_json(bench: Bench, result: Any, value: Any) -> None:
    outcome = await run(bench, "test.ok", {"value": value})

    assert result(outcome) == value
    assert outcome.started_at <= outcome.ended_at
    assert outcome.log == ""


async def test_context_tells_the_handler_who_it_is(bench: Bench, result: Any) -> None:
    outcome = await run(
        bench,
        "test.about",
        attempt=3,
        tenant="acme",
        labels={"team": "a"},
        checkpoint=msgspec.Raw(b'{"row":7}'),
    )

    about = result(outcome)
    assert about["attempt"] == 3
    assert about["tenant"] == "acme"
    assert about["labels"] == {"team": "a"}
    assert about["resumed_from"] == {"row": 7}
    assert about["job_id"] == f"job-{outcome.token}"


async def test_handler_never_runs_in_the_process_of_the_worker(bench: Bench, result: Any) -> None:
    outcome = await run(bench, "test.about")

    assert result(outcome)["pid"] not in {os.getpid(), bench.slot.keeper_pid}


async def test_pydantic_model_is_a_result(bench: Bench, result: Any) -> None:
    assert result(await run(bench, "test.model", {"n": 4})) == {"n": 4}


async def test_raised_error_fails_the_attempt_and_its_traceback_is_logged(bench: Bench) -> None:
    outcome = await run(bench, "test.fail_times", {"n": 5})

    assert (outcome.kind, outcome.cause) == ("failed", "error")
    assert outcome.error == "ValueError: attempt 1 of 5 to fail"
    assert "in fail_times" in bench.log(outcome)
    assert "cluster/worker/child.py" not in bench.log(outcome)


async def test_discard_snooze_and_retry_are_told_apart(bench: Bench) -> None:
    discarded = await run(bench, "test.discard")
    snoozed = await run(bench, "test.snooze", {"seconds": 7})
    retried = await run(bench, "test.retry", {"seconds": 3})

    assert (discarded.kind, discarded.error) == ("discarded", "it cannot work")
    assert (snoozed.kind, snoozed.delay_s) == ("snoozed", 7)
    assert (retried.kind, retried.error, retried.delay_s) == ("failed", "busy", 3)


async def test_sys_exit_is_a_failure_not_a_crash(bench: Bench) -> None:
    outcome = await run(bench, "test.sys_exit", {"n": 3})

    assert (outcome.kind, outcome.error) == ("failed", "SystemExit: 3")


async def test_job_of_an_unknown_type_waits_and_names_what_is_known(bench: Bench) -> None:
    outcome = await run(bench, "test.no_such")

    assert (outcome.kind, outcome.delay_s) == ("snoozed", 30.0)
    assert "'test.no_such' is not known on this worker" in outcome.error
    assert "test.ok" in outcome.error


async def test_params_that_no_longer_fit_are_discarded_with_the_field(bench: Bench) -> None:
    outcome = await run(bench, "test.big", {"n": "many"})

    assert outcome.kind == "discarded"
    assert outcome.error.startswith("params.n: ")


async def test_result_that_is_not_data_fails_and_says_what_to_return(bench: Bench) -> None:
    outcome = await run(bench, "test.not_json")

    assert outcome.kind == "failed"
    assert "cannot be written as JSON (it holds a lock)" in outcome.error


async def test_large_result_lies_in_the_store(bench: Bench, output: Any) -> None:
    outcome = await run(bench, "test.big", {"n": 100_000})

    found = output(outcome)
    assert found.result_ref == f"results/job-{outcome.token}/task-{outcome.token}/1/result.json"
    assert msgspec.json.decode((bench.store / found.result_ref).read_bytes()) == "x" * 100_000


async def test_params_by_reference_are_read_from_the_store(bench: Bench, result: Any) -> None:
    (bench.store / "params").mkdir()
    (bench.store / "params" / "p1").write_bytes(b'{"value":"from afar"}')

    outcome = await run(bench, "test.ok", params_ref="params/p1")

    assert result(outcome) == "from afar"


async def test_output_files_are_kept_and_scratch_is_not(
    bench: Bench, output: Any, result: Any
) -> None:
    outcome = await run(bench, "test.files")

    text, table = output(outcome).files
    assert (text.name, text.bytes, text.media_type) == ("out.txt", 5, "text/plain")
    assert (bench.store / text.path).read_bytes() == b"hello"
    assert (table.name, table.media_type) == ("kept.csv", "text/csv")
    assert not os.path.exists(result(outcome))  # noqa: ASYNC240


async def test_unclosed_file_of_a_failed_attempt_is_not_kept(bench: Bench) -> None:
    outcome = await run(bench, "test.half_file")

    assert outcome.error == "ValueError: before the rest"
    assert not list(bench.store.glob(f"results/job-{outcome.token}/**/half.txt"))


async def test_upload_of_the_same_tenant_can_be_fetched(bench: Bench, result: Any) -> None:
    folder = bench.store / "uploads" / "acme"
    folder.mkdir(parents=True)
    (folder / "in.txt").write_text("uploaded")

    mine = await run(bench, "test.fetch", {"value": "upload:in.txt"}, tenant="acme")
    other = await run(bench, "test.fetch", {"value": "upload:in.txt"}, tenant="rival")

    assert result(mine) == "uploaded"
    fix = "send it with PUT /v1/uploads/in.txt (drayman upload)"
    assert (other.kind, other.error) == ("failed", f"NotFound: no upload 'in.txt'; {fix}")


# --- logs -------------------------------------------------------------------------------------


async def test_everything_printed_lands_in_the_log_of_its_attempt(bench: Bench) -> None:
    outcome = await run(bench, "test.print_everywhere")

    assert set(bench.log(outcome).splitlines()) == {
        "printed",
        "to stderr",
        "logged",
        "written",
        "from a program",
    }


async def test_each_attempt_has_only_its_own_lines(bench: Bench) -> None:
    tokens = [bench.manager.submit("test.print", {"n": n}) for n in (2, 0, 1)]

    two, none, one = await bench.manager.all_outcomes(tokens)

    assert bench.log(two) == "line 0\nline 1\n"
    assert none.log == ""
    assert bench.log(one) == "line 0\n"


async def test_long_log_keeps_head_and_tail(bench: Bench) -> None:
    outcome = await run(bench, "test.print", {"n": 300_000})

    log = bench.log(outcome)
    assert len(log) < LOG_BYTES_MAX + 100
    assert log.startswith("line 0\n")
    assert log.endswith("line 299999\n")
    assert "bytes left out" in log


# --- secrets ----------------------------------------------------------------------------------


async def test_secret_reaches_the_handler_and_nothing_else(bench: Bench, result: Any) -> None:
    outcome = await run(bench, "test.secret", {"value": "smtp.password"})

    assert result(outcome) == {"it": "***", "***": ["***"]}
    assert bench.log(outcome) == "the secret is ***\n"
    assert "hunter2" not in repr(bench.manager.progress)
    assert any(p.message == "using ***" for p in bench.manager.progress)


async def test_secret_in_an_error_is_masked(bench: Bench) -> None:
    outcome = await run(bench, "test.secret_fails", {"value": "smtp.password"})

    assert outcome.error == "ValueError: no entry with ***"
    assert "hunter2" not in bench.log(outcome)


async def test_missing_secret_says_where_to_put_it(bench: Bench) -> None:
    outcome = await run(bench, "test.secret", {"value": "no.such"})

    assert "set DRAYMAN_SECRET_NO_SUCH" in outcome.error


async def test_children_do_not_inherit_secrets(bench: Bench) -> None:
    environment = Path(f"/proc/{bench.slot.child_pid}/environ").read_bytes()  # noqa: ASYNC240

    assert b"DRAYMAN_KEEPER" in environment
    assert b"hunter2" not in environment


# --- records ----------------------------------------------------------------------------------


async def test_checkpoint_is_durable_before_the_handler_goes_on(bench: Bench, result: Any) -> None:
    outcome = await run(bench, "test.checkpoint", {"value": {"row": 9}})

    record = bench.manager.records[-1]
    assert result(outcome) == "saved"
    assert (record.token, record.op) == (outcome.token, "checkpoint")
    assert bytes(record.value) == b'{"row":9}'


async def test_checkpoint_waits_while_the_manager_is_away(
    bench: Bench, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def answer(record: Any) -> Recorded:
        calls.append(record)
        if len(calls) < 3:
            raise ConnectionError("away")
        return Recorded()

    monkeypatch.setattr(bench.manager, "answer", answer)
    outcome = await run(bench, "test.checkpoint", {"value": 1})

    assert result(outcome) == "saved"
    assert len(calls) == 3


async def test_lost_lease_is_raised_in_the_handler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.manager, "answer", lambda r: refusal_of(LeaseLost(r.token)))
    outcome = await run(bench, "test.checkpoint", {"value": 1})

    assert outcome.kind == "failed"
    assert outcome.error.startswith("LeaseLost: ")


@pytest.mark.parametrize(
    ("found", "value", "expected"),
    [("new", b"null", {"key": "job-N:task-N:pay"}), ("done", b'"as before"', "as before")],
)
async def test_once_runs_the_effect_only_if_it_is_new(
    bench: Bench,
    result: Any,
    monkeypatch: pytest.MonkeyPatch,
    found: Any,
    value: bytes,
    expected: Any,
) -> None:
    monkeypatch.setattr(
        bench.manager,
        "answer",
        lambda r: Recorded(found, msgspec.Raw(value)) if r.op == "once_claim" else Recorded(),
    )
    outcome = await run(bench, "test.once", {})

    told = msgspec.json.encode(result(outcome)).decode().replace(str(outcome.token), "N")
    assert msgspec.json.decode(told) == expected


async def test_effect_in_doubt_fails_unless_told_otherwise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.manager, "answer", lambda r: Recorded("in_doubt"))
    outcome = await run(bench, "test.once", {})

    assert outcome.kind == "failed"
    assert "choose in_doubt='repeat' or 'skip'" in outcome.error


# --- progress ---------------------------------------------------------------------------------


async def test_progress_is_throttled_and_ends_with_the_latest(bench: Bench) -> None:
    outcome = await run(bench, "test.progress", {"n": 1000})

    mine = [p for p in bench.manager.progress if p.token == outcome.token]
    assert 1 <= len(mine) <= 5
    assert (mine[-1].fraction, mine[-1].message) == (1.0, "last step")


async def test_async_handler_runs_in_a_process_worker_too(bench: Bench, result: Any) -> None:
    assert result(await run(bench, "test.async_ok", {"seconds": 0.01})) == "slept"


async def test_finished_result_waits_for_a_store_that_is_away(bench: Bench, output: Any) -> None:
    results, aside = bench.store / "results", bench.store / "aside"
    results.mkdir(parents=True, exist_ok=True)
    results.rename(aside)
    results.symlink_to(results)  # Every write below it fails, as on a disk that is away.
    token = bench.manager.submit("test.big", {"n": 100_000})
    await bench.manager.reported(lambda report: token in report.started)

    results.unlink()
    aside.rename(results)
    found = output(await bench.manager.outcome(token))

    assert (bench.store / found.result_ref).exists()
