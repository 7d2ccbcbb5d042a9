"""Handlers that do by mistake what spoils an outcome, or what others should not see."""

import datetime
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict

from jobs import Context, Discard, Snooze, job

CACHE: dict[str, str] = {}


class Number(BaseModel):
    n: int = 0
    path: str = ""


class Named(BaseModel):
    what: str = ""


class NotFinite(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    x: float = float("nan")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@job("odd.count")
def count(ctx: Context, params: Number) -> int:
    if params.path:
        with open(params.path, "a") as file:
            file.write(f"{params.n}\n")
    return params.n


@job("odd.end")
def end(ctx: Context, params: Named) -> Any:
    return ended_oddly(ctx, params.what)


@job("odd.async_end", queue="io")
async def async_end(ctx: Context, params: Named) -> Any:
    return ended_oddly(ctx, params.what)


def ended_oddly(ctx: Context, what: str) -> Any:
    match what:
        case "snooze_timedelta":
            raise Snooze(datetime.timedelta(seconds=5))
        case "snooze_inf":
            raise Snooze(float("inf"))
        case "snooze_changed":
            error = Snooze(1)
            error.delay_s = "soon"  # type: ignore[assignment]
            raise error
        case "discard_error":
            raise Discard(ZeroDivisionError("division by zero"))
        case "discard_mute":
            raise Discard(Mute())
        case "surrogate":
            raise ValueError("bad file \udcff")
        case "nan":
            return NotFinite()
        case "not_utf8":
            return msgspec.Raw(b'"\xff"')
        case "two_lines":
            return msgspec.Raw(b'{\n  "a": [1,\n2]}')
        case "many_files":
            ctx._runtime._outputs.update(  # type: ignore[attr-defined]
                (str(n), "x" * 1000) for n in range(1000)
            )
            return 1
        case "progress_number":
            ctx.progress(0.5, 7)  # type: ignore[arg-type]
        case "progress_surrogate":
            ctx.progress(0.5, "\udcff")
        case "progress_long":
            ctx.progress(0.5, "é" * 1_000_000)
        case "once_number":
            ctx.once(7, lambda key: 1)  # type: ignore[arg-type]
        case "once_long":
            ctx.once("k", lambda key: "x" * 70_000)
    return "done"


@job("odd.secret")
def secret(ctx: Context, params: Named) -> Any:
    if "it" not in CACHE:
        CACHE["it"] = ctx.secret("db")
    it = CACHE["it"]
    match params.what:
        case "fail":
            raise ValueError(f"login failed: {it}")
        case "print":
            print("connecting with", it)
        case "checkpoint":
            ctx.checkpoint({"session": [it]})
        case "once_key":
            ctx.once(f"login {it}", lambda key: 1)
        case "once_value":
            ctx.once("login", lambda key: {"token": it})
        case "file":
            ctx.files.write(f"dump-{it}.txt", b"x")
        case "clean":
            ctx.checkpoint({"n": 12345678901234567890})
            ctx.files.write("dump.txt", b"x")
            ctx.once("login", lambda key: 7)
    return [it, "a \\ b"]
