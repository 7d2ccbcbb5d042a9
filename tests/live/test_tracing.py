"""A trace of one workflow: from the request to the last webhook, one tree."""

from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.support.collector import Collected, collecting
from tests.support.live import LiveDrayman, until
from tests.support.receiver import Receiver, receiving

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(240)]

JOBS = '''\
from pydantic import BaseModel

from jobs import Context, Results, RetryPolicy, fan_out, job


class Nothing(BaseModel):
    pass


def split(ctx: Context, params: Nothing) -> list[int]:
    return [1, 2, 3]


def join(ctx: Context, params: Nothing, results: Results[int]) -> int:
    return sum(results.values())


@fan_out("traced.squares", split=split, join=join)
def squares(ctx: Context, params: Nothing, chunk: int) -> int:
    return chunk * chunk


@job("traced.twice", retry=RetryPolicy(base_s=0.01, max_s=0.01))
def twice(ctx: Context, params: Nothing) -> str:
    """Fail once, then submit another job."""
    if ctx.attempt == 1:
        raise ValueError("the first time it fails")
    ctx.submit("traced.leaf", {})
    return ctx.traceparent


@job("traced.leaf")
def leaf(ctx: Context, params: Nothing) -> str:
    return ctx.traceparent
'''
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


def start(folder: Path, otlp: str) -> LiveDrayman:
    (folder / "traced.py").write_text(JOBS)
    options = ["--no-dashboard", "--http-allow", "127.0.0.0/8", "--otlp", otlp]
    drayman = LiveDrayman(folder, jobs="traced", cwd=folder, options=options)
    try:
        drayman.up()
    except BaseException:
        drayman.close()
        raise
    return drayman


def flow(drayman: LiveDrayman, receiver: Receiver, flag: int) -> str:
    """Submit the workflow with the caller's context; return its id."""
    call = {"url": f"{receiver.url}/called", "method": "POST"}
    request = {
        "steps": [
            {"name": "call", "type": "http.call", "params": call},
            {"name": "squares", "type": "traced.squares"},
            {"name": "twice", "type": "traced.twice", "after": ["squares"]},
        ],
        "name": "traced.flow",
        "webhook": f"{receiver.url}/told",
    }
    headers = {"Authorization": f"Bearer {drayman.said['token']}", "traceparent": f"{CALLER}{flag}"}
    answer = httpx.post(f"{drayman.url}/v1/workflows", json=request, headers=headers, timeout=30)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_workflow_is_one_connected_tree_from_the_request_to_the_last_webhook(
    tmp_path: Path,
) -> None:
    with collecting() as collector, receiving() as receiver:
        drayman = start(tmp_path, collector.url)
        try:
            with drayman.client() as client:
                unwanted = flow(drayman, receiver, 0)
                client.wait(unwanted)
                job_id = flow(drayman, receiver, 1)
                result = client.wait(job_id)["result"]
            trace = lambda: collector.trace(CALLER[3:35])  # noqa: E731
            names = {"POST /v1/workflows", "job notify.webhook", "job traced.leaf"}
            until(lambda: names <= {span.name for span in trace()})
            until(lambda: len(receiver.heard) == 4)
            spans = trace()
            doctor = drayman.run("doctor").stdout
        finally:
            drayman.close()

    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_id not in by_id]
    assert [(span.name, span.parent_id) for span in roots] == [
        ("POST /v1/workflows", CALLER[36:52])
    ]
    assert len(by_id) == len(spans)
    counts = Counter(span.name for span in spans)
    assert counts == {
        "POST /v1/workflows": 1,
        "job traced.flow": 1,
        "step call": 1,
        "run http.call": 1,
        "step squares": 1,
        "run traced.squares": 5,
        "step twice": 1,
        "run traced.twice": 2,
        "wait": 10,
        "job traced.leaf": 1,
        "run traced.leaf": 1,
        "job notify.webhook": 1,
        "run notify.webhook": 1,
    }
    assert unwanted not in {span.attributes.get("drayman.job") for span in collector.spans}
    assert all(span.start_ns <= span.end_ns for span in spans)
    (failed,) = [span for span in spans if span.failed]
    assert (failed.name, failed.attributes["drayman.attempt"]) == ("run traced.twice", 1)
    assert failed.attributes["drayman.cause"] == "error"

    def above(span: Collected) -> list[str]:
        return [span.name, *(above(by_id[span.parent_id]) if span.parent_id in by_id else [])]

    def the(name: str) -> Collected:
        return next(span for span in spans if span.name == name)

    top = ["job traced.flow", "POST /v1/workflows"]
    assert above(the("run traced.squares")) == ["run traced.squares", "step squares", *top]
    assert above(the("job notify.webhook")) == ["job notify.webhook", *top]
    assert above(the("job traced.leaf")) == [
        "job traced.leaf",
        "run traced.twice",
        "step twice",
        *top,
    ]
    assert "ok    manager:" in doctor
    # What a handler and a receiver were told is the span of the attempt.
    assert by_id[result.split("-")[2]].name == "run traced.twice"
    heard = [h.headers["traceparent"].split("-") for h in receiver.heard]
    joined = [by_id[own].name for _, _, own, flag in heard if flag == "01"]
    assert sorted(joined) == ["run http.call", "run notify.webhook"]
