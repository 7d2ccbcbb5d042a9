"""Numbers that a handler's author may get wrong are refused where they are written."""

import math
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from jobs import Context, Discard, Retry, RetryPolicy, Snooze, job
from jobs.outcome import DELAY_MAX_S


class Nothing(BaseModel):
    pass


def handler(ctx: Context, params: Nothing) -> None:
    return None


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "5", None, True, timedelta(seconds=-1)])
def test_wait_that_is_no_wait_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Snooze\.delay_s is .*; give a number of seconds"):
        Snooze(value)


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "5"])
def test_retry_after_no_wait_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Retry\.after_s is "):
        Retry("busy", after_s=value)


def test_wait_may_be_a_timedelta() -> None:
    assert Snooze(timedelta(minutes=2)).delay_s == 120.0
    assert Retry("busy", timedelta(seconds=3)).after_s == 3.0


@pytest.mark.parametrize("value", [timedelta(days=9999), 1e300, 10**400])
def test_wait_of_many_years_is_cut(value: Any) -> None:
    assert Snooze(value).delay_s == DELAY_MAX_S


@pytest.mark.parametrize("kind", [Discard, Retry])
def test_reason_may_be_the_error_itself(kind: Any) -> None:
    assert str(kind(ValueError("no such row"))) == "no such row"


@pytest.mark.parametrize("field", ["base_s", "factor", "max_s"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0, 10**400])
def test_policy_without_an_end_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"RetryPolicy\.{field} is "):
        RetryPolicy(**{field: value})


@pytest.mark.parametrize(
    ("policy", "ceiling_s"),
    [
        (RetryPolicy(factor=1e200), 600.0),
        (RetryPolicy(factor=10**200), 600.0),
        (RetryPolicy(base_s=1e308, factor=1e200), 600.0),
        (RetryPolicy(base_s=0.0, factor=1e200), 0.0),
    ],
)
def test_steep_policy_waits_its_maximum(policy: RetryPolicy, ceiling_s: float) -> None:
    assert policy.wait_s(60, 0.5) == ceiling_s / 2


@pytest.mark.parametrize("limit", ["timeout_s", "grace_s", "unique_for_s"])
@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_limit_without_an_end_is_refused(limit: str, value: float) -> None:
    declare = job("sdk.limits", **{limit: value})  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=f"{limit} must be a finite number"):
        declare(handler)
