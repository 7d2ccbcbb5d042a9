"""`jobs.testing`: running a handler in-process."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs import Context, Discard, StopRequested, job
from jobs.errors import InvalidInput, LeaseLost, NotFound
from jobs.testing import run


class Params(BaseModel):
    n: int = 3


class Leaving(Params):
    way: str


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    share: float


@job("sdk.copy")
def copy(ctx: Context, params: Params) -> dict[str, Any]:
    """Do a little of everything."""
    start = ctx.resumed_from or 0
    for row in range(start, params.n):
        ctx.progress(row / params.n, f"row {row}")
        ctx.checkpoint(row + 1)
    print("copied")
    ctx.log(f"with {ctx.secret('api.key')}")
    ctx.files.write("out.bin", ctx.files.fetch("upload:in.bin").read_bytes())
    paid = ctx.once("pay", lambda key: key)
    return {"rows": params.n - start, "paid": paid}


@job("sdk.async")
async def asynchronous(ctx: Context, params: Params) -> int:
    return params.n


@job("sdk.discard")
def discarding(ctx: Context, params: Params) -> None:
    ctx.progress(0.5)
    raise Discard("hopeless")


@job("sdk.lock")
def unserialisable(ctx: Context, params: Params) -> object:
    return object()


@job("sdk.leave")
def leave(ctx: Context, params: Leaving) -> object:
    """Leave something for others to find, in the way asked for."""
    text = ctx.secret("api.key") if params.n == 0 else "x" * params.n
    if params.way == "checkpoint":
        ctx.checkpoint({"seen": text})
    elif params.way == "key":
        ctx.once(text, lambda key: 1)
    elif params.way == "effect":
        ctx.once("pay", lambda key: text)
    elif params.way == "file":
        ctx.files.write(f"{text}.txt", b"")
    return Constants(share=float("nan"))


@pytest.fixture
def copied() -> Callable[..., Any]:
    def run_copy(**settings: Any) -> Any:
        script = {"files": {"upload:in.bin": b"data"}, "secrets": {"api.key": "s3cret"}}
        return run(copy, {"n": 3}, **(script | settings))

    return run_copy


def test_everything_a_handler_did_is_told(copied: Callable[..., Any]) -> None:
    finished = copied()

    assert finished.result == {"rows": 3, "paid": "job-1:task-1:pay"}
    assert finished.files == {"out.bin": b"data"}
    assert finished.progress[-1] == (2 / 3, "row 2")
    assert finished.checkpoints == [1, 2, 3]
    assert finished.once == {"pay": "job-1:task-1:pay"}


def test_secrets_are_masked_in_the_log(copied: Callable[..., Any]) -> None:
    assert copied().logs == "copied\nwith ***\n"


def test_checkpoint_of_an_earlier_attempt_is_resumed(copied: Callable[..., Any]) -> None:
    assert copied(checkpoint=2, attempt=2).result["rows"] == 1


def test_recorded_effect_is_not_repeated(copied: Callable[..., Any]) -> None:
    assert copied(once={"pay": "receipt 7"}).result["paid"] == "receipt 7"


def test_effect_in_doubt_is_not_repeated_by_itself(copied: Callable[..., Any]) -> None:
    assert isinstance(copied(in_doubt={"pay"}).error, RuntimeError)


def test_stop_reaches_the_handler_in_its_next_context_call(copied: Callable[..., Any]) -> None:
    finished = copied(stop_after=3)

    assert isinstance(finished.error, StopRequested)
    assert finished.checkpoints == [1]


def test_lost_lease_refuses_further_records(copied: Callable[..., Any]) -> None:
    finished = copied(lease_lost_after=2)

    assert isinstance(finished.error, LeaseLost)
    assert finished.checkpoints == [1, 2]


def test_missing_input_and_secret_are_errors(copied: Callable[..., Any]) -> None:
    assert isinstance(copied(files={}).error, NotFound)
    assert isinstance(copied(secrets={}).error, InvalidInput)


def test_async_handler_is_awaited() -> None:
    assert run(asynchronous, Params(n=4)).result == 4


def test_result_raises_what_the_handler_raised() -> None:
    finished = run(discarding)

    with pytest.raises(Discard, match="hopeless"):
        _ = finished.result
    assert finished.progress == [(0.5, "")]


def test_result_must_be_data() -> None:
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        _ = run(unserialisable).result


def test_params_are_validated() -> None:
    with pytest.raises(ValidationError):
        run(copy, {"n": "many"})


@pytest.mark.parametrize("way", ["checkpoint", "key", "effect", "file"])
def test_a_secret_left_where_others_read_it_is_refused_as_on_a_worker(way: str) -> None:
    finished = run(leave, {"way": way, "n": 0}, secrets={"api.key": "s3cret"})

    assert isinstance(finished.error, InvalidInput)
    assert "holds a secret" in str(finished.error)
    assert not [*finished.checkpoints, *finished.once, *finished.files]


@pytest.mark.parametrize(("way", "kept"), [("checkpoint", "checkpoints"), ("effect", "once")])
def test_what_is_too_large_to_keep_is_refused_as_on_a_worker(way: str, kept: str) -> None:
    finished = run(leave, {"way": way, "n": 64 * 1024}, secrets={"api.key": "s3cret"})

    assert "65536 at most" in str(finished.error)
    assert not getattr(finished, kept)


def test_a_result_that_others_cannot_read_fails_the_test_as_it_fails_the_job() -> None:
    finished = run(leave, {"way": "none", "n": 1})

    assert "NaN and Infinity" in str(finished.error)
