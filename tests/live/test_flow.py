"""What waits, for what, and how long: limits, shares, lanes, overload, dead letters, estimates."""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import ApiError, Client, Json
from tests.support.flow import Receiver, configured, moment, most_within, seconds, workers_of
from tests.support.flow_jobs import marks
from tests.support.live import WAIT_S, LiveDrayman, until

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(300)]

RATE, BURST = 10, 5
#: So that one worker alone could not make all the calls.
ANSWERS_AFTER_S, AT_ONCE = 0.15, 4
#: Of the rate that a limit allows, so much is used at least where nothing else runs.
USED, SOAK_S = 0.9, 60
MAX_RUN_S, AGEING_S, AGED_TURN = 1.0, 2.0, 10
WEIGHT = 3.0
DEPTH_MAX, TENANT_DEPTH_MAX = 50, 20


@pytest.fixture(scope="module")
def even() -> Iterator[Receiver]:
    with Receiver(ANSWERS_AFTER_S) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def bursty() -> Iterator[Receiver]:
    with Receiver(ANSWERS_AFTER_S) as receiver:
        yield receiver


@pytest.fixture(scope="module", autouse=True)
def config(drayman: LiveDrayman, even: Receiver, bursty: Receiver) -> Iterator[None]:
    """Lanes, small pools, limits and shares, in force while these tests run."""
    with (
        drayman.client() as client,
        configured(
            client,
            default_queue="fast",
            ageing_s=AGEING_S,
            queues={
                "fast": {"max_run_s": MAX_RUN_S, "then": "slow", "oom_to": "large"},
                "mixed": {"oom_to": "large"},
                "small": {"depth_max": DEPTH_MAX},
            },
            pools={
                "fast": {
                    "queues": ["fast", "mixed"],
                    "min": 2,
                    "max": 2,
                    "memory_limit_mb": 300,
                    "idle_s": 2,
                },
                "slow": {"queues": ["slow"], "min": 1, "max": 1},
                "large": {"queues": ["large"], "min": 0, "max": 1, "memory_limit_mb": 1000},
                "line": {"queues": ["line", "small"], "min": 1, "max": 1},
                "calls": {
                    "queues": ["calls"],
                    "mode": "async",
                    "concurrency": AT_ONCE,
                    "min": 2,
                    "max": 2,
                },
            },
            limits={
                "http:127.0.0.1:*": {"rate": RATE},
                f"http:{bursty.host}": {"rate": RATE, "burst": BURST},
            },
            tenants={
                "heavy": {"weight": WEIGHT},
                "small": {"depth_max": TENANT_DEPTH_MAX},
            },
            alerts={"dead_letters_url": f"{even.url}alerts", "every_s": 1},
        ),
    ):
        until(lambda: all(len(workers_of(client, pool)) == 2 for pool in ("fast", "calls")))
        yield


def as_tenant(drayman: LiveDrayman, client: Client, tenant: str) -> Client:
    token = client.create_token(tenant, ["submit", "read"])["token"]
    return Client(drayman.url, token, patience_s=WAIT_S)


def submit_many(client: Client, count: int, type: str, params: Any, **options: Any) -> list[str]:
    jobs = ({"type": type, "params": params, **options} for _ in range(count))
    return [line["id"] for line in client.submit_many(jobs)]


def wait_all(client: Client, ids: list[str], within_s: float = WAIT_S) -> list[Json]:
    return [client.wait(job_id, within_s) for job_id in ids]


def has_begun(client: Client, job_id: str) -> bool:
    return bool(client.status(job_id)["status"] == "processing")


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasts_s", [15, pytest.param(SOAK_S, marks=pytest.mark.soak)])
def test_two_workers_call_an_api_as_often_as_its_limit_allows_and_no_more(
    client: Client, even: Receiver, bursty: Receiver, lasts_s: int
) -> None:
    for receiver in (even, bursty):
        receiver.calls.clear()
    count = lasts_s * RATE

    ids = [
        job_id for receiver in (even, bursty) for job_id in submit_calls(client, receiver, count)
    ]
    ended = wait_all(client, ids, 2 * lasts_s)

    assert Counter(job["status"] for job in ended) == {"completed": 2 * count}
    assert len({client.attempts(job_id)[0]["worker"] for job_id in ids[:50]}) == 2
    for receiver in (even, bursty):
        assert len(receiver.calls) == count
        # A burst of one keeps nothing for later: what a machine that stands still misses is lost.
        if lasts_s == SOAK_S:
            assert count / (receiver.calls[-1] - receiver.calls[0]) >= USED * RATE
    # What a machine that stands still brings together is not for a limit to part.
    together = int(RATE * uneven_s(client, ids[:count], even))
    assert most_within(even.calls, 1.0) <= RATE + 1 + together
    assert most_within(even.calls, lasts_s) <= RATE * lasts_s + 1 + together
    together = int(RATE * uneven_s(client, ids[count:], bursty))
    beyond = most_beyond(bursty.calls, BURST, RATE)
    assert beyond <= 1 + together
    assert most_within(bursty.calls, 1.0) > RATE + 1
    print(
        f"even: {count} calls in {even.calls[-1] - even.calls[0]:.1f} s, at most "
        f"{most_within(even.calls, 1.0)} in a second; bursty: {beyond:+.2f} beyond b + 10 t"
    )


def submit_calls(client: Client, receiver: Receiver, count: int) -> list[str]:
    call = {"type": "http.call", "queue": "calls"}
    jobs = (call | {"params": {"url": f"{receiver.url}{n}"}} for n in range(count))
    return [line["id"] for line in client.submit_many(jobs)]


def uneven_s(client: Client, ids: list[str], receiver: Receiver) -> float:
    """Return how much longer the slowest call was on its way from the manager than the quickest."""
    left = [moment(client.attempts(job_id)[0]["leased_at"]) for job_id in ids]
    way = [receiver.came[f"/{n}"] - at for n, at in enumerate(left)]
    return max(way) - min(way)


def most_beyond(calls: list[float], burst: int, rate: float) -> float:
    """Return by how many calls `burst` + `rate` x t was passed in the worst window t."""
    return max(
        last - first + 1 - (burst + rate * (calls[last] - calls[first]))
        for last in range(len(calls))
        for first in range(last + 1)
    )


def test_first_call_of_a_worker_waits_for_no_import(client: Client) -> None:
    """A third of a second, in which calls that were spaced evenly would gather."""
    job = client.submit("flow.loaded", {"module": "httpcore"}, queue="calls")

    assert client.wait(job["id"], WAIT_S)["result"] is True


# --- order ----------------------------------------------------------------------------------------


def test_tenants_share_a_worker_by_their_weights(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    params, window = {"lasts_s": 0.01, "path": str(tmp_path / "runs")}, 200
    client.pause("line")
    with as_tenant(drayman, client, "heavy") as heavy, as_tenant(drayman, client, "light") as light:
        ids = submit_many(light, window // 2, "flow.nap", params, queue="line")
        ids += submit_many(heavy, window, "flow.nap", params, queue="line")
        client.resume("line")
        wait_all(client, ids)

    runs = marks(tmp_path / "runs")
    share = Counter(run.tenant for run in runs[:window])["heavy"] / window
    assert len(runs) == len(ids)
    assert share == pytest.approx(WEIGHT / (WEIGHT + 1), rel=0.05)


def test_low_priority_job_starts_in_time_beside_a_flood_of_high_priority(
    client: Client, tmp_path: Path
) -> None:
    params = {"lasts_s": 0.02, "path": str(tmp_path / "runs")}

    flood = submit_many(client, 180, "flow.nap", params, queue="line", priority=9)
    low = client.submit("flow.nap", params, queue="line", priority=-9)["id"]
    wait_all(client, [low, *flood])

    order = [run.job_id for run in marks(tmp_path / "runs")]
    at = order.index(low)
    (mine,) = client.attempts(low)
    aged_at = moment(client.status(low)["submitted_at"]) + AGEING_S
    near = [client.attempts(other)[0] for other in order[max(0, at - 5 * AGED_TURN) : at]]
    turns = sum(aged_at < moment(other["leased_at"]) for other in near)
    assert at < len(flood)
    assert at - len(near) > 0 or aged_at < moment(mine["leased_at"])
    assert turns <= AGED_TURN, (at, turns)


# --- lanes ----------------------------------------------------------------------------------------


def test_long_job_in_the_fast_lane_goes_on_in_the_slow_one_without_a_new_attempt(
    client: Client, tmp_path: Path
) -> None:
    """Two of them hold both workers: what comes then is run by one that takes their place."""
    gates = [
        {"begun": str(tmp_path / f"begun-{n}"), "opened": str(tmp_path / "opened")}
        for n in range(2)
    ]
    ids = [client.submit("live.gate", gate)["id"] for gate in gates]
    until(lambda: all(client.status(job_id)["queue"] == "slow" for job_id in ids))

    short = client.submit("flow.nap")
    client.wait(short["id"], WAIT_S)
    statuses = [client.status(job_id)["status"] for job_id in ids]
    (tmp_path / "opened").touch()
    ended = wait_all(client, ids)

    assert short["queue"] == "fast"
    assert statuses == ["processing"] * 2
    assert [(job["status"], job["result"], job["queue"]) for job in ended] == [
        ("completed", 1, "slow")
    ] * 2
    assert [len(client.attempts(job_id)) for job_id in ids] == [1, 1]
    until(lambda: len(workers_of(client, "fast")) == 2)


@pytest.mark.soak
def test_short_jobs_do_not_feel_a_long_one_that_leaves_their_lane_with_its_checkpoint(
    client: Client, tmp_path: Path
) -> None:
    before = p95_of_a_stream(client)

    params = {"count": 100, "step_s": 0.05, "path": str(tmp_path / "steps")}
    long = client.submit("flow.steps", params)
    until(lambda: has_begun(client, long["id"]))
    beside = p95_of_a_stream(client)
    ended = client.wait(long["id"], WAIT_S)

    steps = marks(tmp_path / "steps")
    first, second = client.attempts(long["id"])
    began_again = next(
        run.step for run in steps if run.attempt > 1 or run.at > moment(second["leased_at"])
    )
    assert (long["queue"], ended["queue"]) == ("fast", "slow")
    assert (ended["status"], ended["max_attempts"], ended["recoveries"]) == ("completed", 1, 0)
    assert first["outcome"] == "interrupted"
    assert seconds(first, "started_at", "ended_at") == pytest.approx(MAX_RUN_S, abs=1.0)
    assert ended["result"] == began_again > 0
    assert sorted(Counter(run.step for run in steps)) == list(range(100))
    assert len(steps) <= 101
    assert beside <= 2 * before, (before, beside)


def p95_of_a_stream(client: Client) -> float:
    """Submit short jobs for some 4 s, each when it is due; return how long 95 % took at most."""
    ids, due = [], time.monotonic()
    for _ in range(40):
        due += 0.1
        threading.Event().wait(max(0.0, due - time.monotonic()))
        ids.append(client.submit("flow.nap", {"lasts_s": 0.05})["id"])
    took = [seconds(job, "submitted_at", "finished_at") for job in wait_all(client, ids)]
    return statistics.quantiles(took, n=20)[-1]


def test_type_that_nobody_called_long_is_sent_to_the_slow_lane_once_that_is_known(
    client: Client,
) -> None:
    fast = {"queues": {"fast": {"max_run_s": 0.1, "then": "slow"}}}
    with configured(client, **fast):
        ids = submit_many(client, 20, "flow.overlong", {"lasts_s": 0.3})
        accepted_in = client.status(ids[-1])["queue"]
        wait_all(client, ids)
        learned = client.submit("flow.overlong", {"lasts_s": 0.3})
        told = client.submit("flow.overlong", {"lasts_s": 0.0}, expected_s=0.05)
        other = client.submit("flow.nap")
        wait_all(client, [job["id"] for job in (learned, told, other)])

    assert accepted_in == "fast"
    assert (learned["queue"], told["queue"], other["queue"]) == ("slow", "fast", "fast")


def test_job_that_runs_out_of_memory_ends_where_there_is_more_of_it(client: Client) -> None:
    # Not in the fast lane: a slow machine takes longer over the memory than it allows.
    job = client.submit("flow.hungry", {"mb": 500}, queue="mixed")

    ended = client.wait(job["id"], WAIT_S)

    assert (job["queue"], ended["queue"]) == ("mixed", "large")
    assert (ended["status"], ended["result"]) == ("completed", 500 << 20)
    # It may be tried once only, and the first time did not count.
    assert (ended["max_attempts"], ended["recoveries"]) == (1, 0)
    first, second = client.attempts(job["id"])
    assert (first["cause"], second["outcome"]) == ("oom", "succeeded")
    assert second["worker"].startswith("worker-large")


# --- estimates ------------------------------------------------------------------------------------


@pytest.mark.soak
def test_mixed_jobs_start_when_they_were_told_they_would(client: Client) -> None:
    kinds = {"flow.quick": 0.02, "flow.usual": 0.08, "flow.lasting": 0.2}
    warm = [{"type": k, "params": {"lasts_s": s}} for k, s in kinds.items() for _ in range(20)]
    mixed = [{"type": k, "params": {"lasts_s": s}} for k, s in kinds.items() for _ in range(67)]
    chance = random.Random(6)
    for jobs in (warm, mixed):
        chance.shuffle(jobs)
    wait_all(client, submitted(client, warm))

    # When it was asked and when it was answered: the estimate is of a moment between.
    told: list[tuple[str, float, float, Json]] = []
    ids = submitted(client, mixed[:200])
    asked_at = time.time()
    while waiting := list(client.jobs(queue="mixed", status="pending")):
        now = time.time()
        told += [(job["id"], asked_at, now, job["eta"]) for job in waiting if job["eta"]]
        threading.Event().wait(0.7)
        asked_at = time.time()
    began = {job["id"]: moment(job["started_at"]) for job in wait_all(client, ids)}

    early = [began[job_id] < asked + eta["low"] for job_id, asked, _, eta in told]
    late = [began[job_id] > now + eta["high"] for job_id, _, now, eta in told]
    assert {eta["confidence"] for *_, eta in told} == {0.8}
    assert len({job_id for job_id, *_ in told}) > 150
    assert statistics.fmean(early) + statistics.fmean(late) <= 0.2
    print(f"of {len(told)} estimates {sum(early)} were too late, {sum(late)} too early")


def submitted(client: Client, jobs: list[Json]) -> list[str]:
    return [line["id"] for line in client.submit_many(job | {"queue": "mixed"} for job in jobs)]


# --- overload -------------------------------------------------------------------------------------


@pytest.mark.soak
def test_overload_is_refused_with_a_time_to_come_back_and_what_was_accepted_is_done(
    drayman: LiveDrayman, client: Client, tmp_path: Path
) -> None:
    lasts_s, nap_s = 8.0, 0.04
    params = {"lasts_s": nap_s, "path": str(tmp_path / "runs")}
    tenants = ["default", "small"]
    tokens = [client.create_token(tenant, ["submit"])["token"] for tenant in tenants]
    accepted: list[str] = []
    refused: list[httpx.Response] = []
    end = time.monotonic() + lasts_s

    def flood(token: str) -> None:
        body = {"type": "flow.nap", "queue": "small", "params": params}
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=drayman.url, headers=headers, timeout=WAIT_S) as http:
            while time.monotonic() < end:
                answer = http.post("/v1/jobs", json=body)
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
                else:
                    refused.append(answer)

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(flood, token) for token in tokens * 2]:
            one.result(2 * WAIT_S)
    ended = wait_all(client, accepted)

    arrived = len(accepted) + len(refused)
    print(f"{arrived / (lasts_s / nap_s):.1f} times as many as one worker can do: {arrived}")
    assert {answer.status_code for answer in refused} == {429, 503}
    assert min(int(answer.headers["retry-after"]) for answer in refused) >= 1
    assert all("ratelimit" in r.headers for r in refused if r.status_code == 429)
    assert {job["status"] for job in ended} == {"completed"}
    assert Counter(run.job_id for run in marks(tmp_path / "runs")) == Counter(accepted)
    assert len(accepted) - DEPTH_MAX >= 0.7 * lasts_s / nap_s


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (lambda c: c.submit("flow.nap", priority=10**9), "priority"),
        (lambda c: c.submit("flow.nap", delay_s=-1), "delay_s"),
        (lambda c: c.submit("flow.nap", queue_timeout_s=0), "queue_timeout_s"),
        (lambda c: c.submit("flow.nap", queue="nowhere"), "queue"),
        (lambda c: c.put_schedule("odd", "0 0 31 2 *", {"type": "flow.nap"}), "cron"),
        (lambda c: c.put_schedule("odd", "* * * * *", {"type": "no.such"}), "job.type"),
        (
            lambda c: c.put_schedule("odd", "* * * * *", {"type": "flow.nap", "queue": "nowhere"}),
            "job.queue",
        ),
        (lambda c: put_config(c, limits={"api": {"rate": 0}}), "limits.api.rate"),
        (lambda c: put_config(c, limits={"api": {"concurrency": 0}}), "limits.api.concurrency"),
        (lambda c: put_config(c, tenants={"acme": {"weight": 0}}), "tenants.acme.weight"),
        (lambda c: put_config(c, queues={"odd": {}}), "queues.odd"),
        (lambda c: put_config(c, pools={"odd": {"queues": []}}), "pools.odd.queues"),
        (lambda c: put_config(c, default_queue="nowhere"), "default_queue"),
    ],
)
def test_absurd_wish_is_refused_naming_what_is_wrong(
    client: Client, wish: Callable[[Client], Any], field: str
) -> None:
    before = client.config()

    with pytest.raises(ApiError) as refused:
        wish(client)

    assert refused.value.status == 422
    assert [error["field"] for error in refused.value.problem["errors"]] == [field]
    assert client.config() == before
    assert "odd" not in {schedule["name"] for schedule in client.schedules()}


def put_config(client: Client, **changes: Any) -> None:
    with configured(client, **changes):
        pass


# --- dead letters ---------------------------------------------------------------------------------


def test_dead_letters_are_told_of_and_come_back_at_a_limited_rate_mended_or_not_at_all(
    client: Client, even: Receiver, tmp_path: Path
) -> None:
    even.bodies.clear()
    cure, other = tmp_path / "cure", tmp_path / "other"
    ids = submit_many(client, 12, "flow.fragile", {"cure": str(cure)}, queue="line")
    dead = wait_all(client, ids)
    edited, purged, ids = ids[0], ids[1], ids[2:]

    until(lambda: sum(body["new"] for body in even.bodies) >= len(dead))
    other.touch()
    client.retry(edited, {"cure": str(other)})
    mended = client.wait(edited, WAIT_S)
    gone = client.purge(ids=[purged])
    cure.touch()
    redriven = client.redrive(rate=5, type="flow.fragile")
    revived = wait_all(client, ids)

    assert {job["status"] for job in dead} == {"failed"}
    assert sum(body["new"] for body in even.bodies) == len(dead)
    assert even.bodies[0]["type"] == "dead_letters.grew"
    kinds = [kind for body in even.bodies for kind in body["kinds"]]
    assert {(kind["queue"], kind["type"]) for kind in kinds} == {("line", "flow.fragile")}
    assert (mended["status"], mended["result"]) == ("completed", str(other))
    assert (gone, redriven) == (1, len(ids))
    assert {job["status"] for job in revived} == {"completed"}
    began = sorted(moment(job["started_at"]) for job in revived)
    assert most_within(began, 1.0) <= 5 + 1
    assert 1.6 <= began[-1] - began[0] <= 5.0
    assert not list(client.dead_letters(type="flow.fragile"))
