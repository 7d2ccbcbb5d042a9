"""POST /v1/jobs: what is accepted, how it is answered, and what repeating it does."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx

from tests.support.api import RunningApi

GREET = {"type": "greet", "params": {"name": "Ada"}}


async def test_accepted_job_is_answered_with_itself(acme: httpx.AsyncClient) -> None:
    answer = await acme.post("/v1/jobs", json=GREET)

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["queue"], job["tenant"]) == ("pending", "default", "acme")
    assert datetime.fromisoformat(job["submitted_at"]) <= datetime.now(UTC)
    assert (await acme.get(answer.headers["location"])).json()["id"] == job["id"]


async def test_accepted_answer_has_the_fields_of_the_job_itself(acme: httpx.AsyncClient) -> None:
    accepted = (await acme.post("/v1/jobs", json=GREET)).json()

    shown = (await acme.get(f"/v1/jobs/{accepted['id']}")).json()

    moving = {"submitted_at", "queue_position", "eta", "pending_reason"}
    assert {k: v for k, v in accepted.items() if k not in moving} == {
        k: v for k, v in shown.items() if k not in moving
    }


async def test_every_option_arrives_at_the_job(acme: httpx.AsyncClient) -> None:
    run_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    options = {
        "queue": "io",
        "priority": 7,
        "run_at": run_at.isoformat(),
        "timeout_s": 30,
        "expires_at": (run_at + timedelta(hours=1)).isoformat(),
        "max_attempts": 5,
        "labels": {"team": "ads"},
    }

    job = (await acme.post("/v1/jobs", json=GREET | options)).json()

    shown = (await acme.get(f"/v1/jobs/{job['id']}")).json()
    assert (shown["status"], shown["queue"], shown["priority"]) == ("scheduled", "io", 7)
    assert (shown["max_attempts"], shown["labels"]) == (5, {"team": "ads"})
    assert datetime.fromisoformat(shown["run_at"]) == run_at


async def test_delay_schedules_the_job(acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET | {"delay_s": 60})).json()

    assert job["status"] == "scheduled"
    assert datetime.fromisoformat(job["run_at"]) > datetime.now(UTC) + timedelta(seconds=50)


async def test_params_travel_as_they_were_written(api: RunningApi, acme: httpx.AsyncClient) -> None:
    body = b'{"type": "greet", "params": { "name" : "\\u00e9",\n "times": 2 }}'

    await acme.post("/v1/jobs", content=body)

    assignment = await api.worker.take()
    assert b'{ "name" : "\\u00e9",\n "times": 2 }' in bytes(assignment.spec)


async def test_large_params_travel_by_reference(api: RunningApi, acme: httpx.AsyncClient) -> None:
    params = {"name": "Ada", "note": "x" * 100_000}

    answer = await acme.post("/v1/jobs", json={"type": "greet", "params": params})

    assert answer.status_code == 202
    [stored] = list(api.store.list("params/"))
    assert stored.bytes > 100_000
    assert stored.path.encode() in bytes((await api.worker.take()).spec)


async def test_same_key_gives_the_same_job(acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": '"abc-1"'}
    first = await acme.post("/v1/jobs", json=GREET, headers=headers)

    second = await acme.post("/v1/jobs", json=GREET, headers=headers)

    assert (second.status_code, second.json()["id"]) == (202, first.json()["id"])
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers


async def test_bare_and_quoted_keys_are_the_same_key(acme: httpx.AsyncClient) -> None:
    first = await acme.post("/v1/jobs", json=GREET, headers={"Idempotency-Key": '"k1"'})

    second = await acme.post("/v1/jobs", json=GREET, headers={"Idempotency-Key": "k1"})

    assert second.json()["id"] == first.json()["id"]


async def test_same_request_written_differently_is_the_same(acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    one = b'{"type":"greet","params":{"name":"Ada","times":2}}'
    other = b'{ "params": {"times": 2.0, "name": "Ada"}, "type": "greet" }'
    first = await acme.post("/v1/jobs", content=one, headers=headers)

    second = await acme.post("/v1/jobs", content=other, headers=headers)

    assert second.json()["id"] == first.json()["id"]


async def test_key_reused_for_another_request_is_refused(acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await acme.post("/v1/jobs", json=GREET, headers=headers)

    second = await acme.post("/v1/jobs", json=GREET | {"priority": 1}, headers=headers)

    assert (second.status_code, second.json()["type"]) == (422, "/problems/key-reused")
    assert second.json()["job_id"] == first.json()["id"]


async def test_tenants_do_not_share_keys(api: RunningApi, acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await acme.post("/v1/jobs", json=GREET, headers=headers)

    other = await api.client("globex").post("/v1/jobs", json=GREET, headers=headers)

    assert other.status_code == 202
    assert other.json()["id"] != first.json()["id"]


async def test_three_clicks_give_one_job_of_a_unique_type(acme: httpx.AsyncClient) -> None:
    clicks = [{"type": "greet.once", "params": {"name": "Ada", "note": str(i)}} for i in range(3)]

    answers = [await acme.post("/v1/jobs", json=click) for click in clicks]

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_unique_type_still_tells_other_params_apart(acme: httpx.AsyncClient) -> None:
    ids = {
        (await acme.post("/v1/jobs", json={"type": "greet.once", "params": {"name": n}})).json()[
            "id"
        ]
        for n in ("Ada", "Bob")
    }

    assert len(ids) == 2


async def test_given_key_ranks_before_a_types_own_uniqueness(acme: httpx.AsyncClient) -> None:
    click = {"type": "greet.once", "params": {"name": "Ada"}}

    ids = {
        (await acme.post("/v1/jobs", json=click, headers={"Idempotency-Key": k})).json()["id"]
        for k in ("k1", "k2")
    }

    assert len(ids) == 2


async def test_key_made_for_retries_ranks_behind_uniqueness(acme: httpx.AsyncClient) -> None:
    click = {"type": "greet.once", "params": {"name": "Ada"}}

    ids = {
        (await acme.post("/v1/jobs", json=click, headers={"Drayman-Request-Id": k})).json()["id"]
        for k in ("r1", "r2")
    }

    assert len(ids) == 1


async def test_key_made_for_retries_makes_a_retry_safe(acme: httpx.AsyncClient) -> None:
    headers = {"Drayman-Request-Id": "r1"}

    ids = {(await acme.post("/v1/jobs", json=GREET, headers=headers)).json()["id"] for _ in "ab"}

    assert len(ids) == 1


async def test_replay_shows_the_job_as_it_is_now(api: RunningApi, acme: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k1"}
    await acme.post("/v1/jobs", json=GREET, headers=headers)
    await api.worker.succeed("hello Ada")

    again = await acme.post("/v1/jobs", json=GREET, headers=headers)

    assert (again.status_code, again.json()["status"]) == (202, "completed")


async def test_prefer_wait_answers_with_the_finished_job(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    answer, _ = await asyncio.gather(
        acme.post("/v1/jobs", json=GREET, headers={"Prefer": "respond-async, wait=20"}),
        api.worker.succeed("hello Ada"),
    )

    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=20")
    assert (answer.json()["status"], answer.json()["result"]) == ("completed", "hello Ada")


async def test_prefer_wait_that_runs_out_answers_202(acme: httpx.AsyncClient) -> None:
    answer = await acme.post("/v1/jobs", json=GREET, headers={"Prefer": "wait=0"})

    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert answer.headers["preference-applied"] == "wait=0"


async def test_traceparent_is_kept(acme: httpx.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    job = (await acme.post("/v1/jobs", json=GREET, headers={"traceparent": trace})).json()

    assert (await acme.get(f"/v1/jobs/{job['id']}")).json()["traceparent"] == trace


async def test_unusable_traceparent_is_ignored(acme: httpx.AsyncClient) -> None:
    job = await acme.post("/v1/jobs", json=GREET, headers={"traceparent": "00-0-0-0"})

    assert (job.status_code, job.json()["traceparent"]) == (202, None)
