"""Dead letters: counted, redriven at once or at a rate, with other params, and let go for good."""

import json
from typing import Any

import httpx
import pytest

from service.api_settings import ApiSettings
from tests.support.api import RunningApi, running_api

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}


async def dead(
    api: RunningApi,
    client: httpx.AsyncClient,
    error: str = "the printer is on fire",
    **more: Any,
) -> Any:
    """Submit a job that fails for good; return it as it is then."""
    job = (await client.post("/v1/jobs", json=GREET | more)).json()
    await api.worker.fail(error)
    return (await client.get(job["links"]["self"])).json()


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [job["id"] for job in (await client.get("/v1/dead-letters")).json()["jobs"]]


async def test_dead_letters_are_listed_and_redriven(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = await dead(api, acme)

    [found] = (await acme.get("/v1/dead-letters?type=greet")).json()["jobs"]
    redriven = await acme.post("/v1/dead-letters/redrive", json={"filter": {"ids": [job["id"]]}})

    assert (found["id"], found["status"]) == (job["id"], "failed")
    assert found["error"]["message"] == "the printer is on fire"
    assert redriven.json() == {"redriven": 1}
    assert await listed(acme) == []
    assert (await acme.get(job["links"]["self"])).json()["status"] == "pending"


async def test_dead_letters_are_counted_by_queue_type_and_cause(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    for number in range(3):
        await dead(api, acme, type="greet.once", params={"name": str(number)})
    await dead(api, admin)

    everything = (await admin.get("/v1/dead-letters/counts")).json()["counts"]
    own = (await acme.get("/v1/dead-letters/counts?cause=error")).json()["counts"]
    none = (await acme.get("/v1/dead-letters/counts?queue=io")).json()["counts"]

    once = {"queue": "default", "type": "greet.once", "cause": "error", "count": 3}
    once["error"] = "the printer is on fire"
    assert everything == [once, once | {"type": "greet", "count": 1}]
    assert (own, none) == ([once], [])


async def test_counts_tell_what_the_newest_of_a_kind_says(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    for error in ("out of ink", "out of paper " * 100):
        await dead(api, acme, error)

    [found] = (await acme.get("/v1/dead-letters/counts")).json()["counts"]

    assert found["count"] == 2
    assert found["error"] == ("out of paper " * 100)[:500]


async def test_redrive_at_a_rate_spreads_the_jobs(api: RunningApi, acme: httpx.AsyncClient) -> None:
    jobs = [await dead(api, acme) for _ in range(3)]

    answer = await acme.post("/v1/dead-letters/redrive", json={"filter": {}, "rate": 0.01})

    shown = [(await acme.get(job["links"]["self"])).json() for job in jobs]
    assert answer.json() == {"redriven": 3}
    assert {job["status"] for job in shown} == {"pending"}
    assert [job["next_attempt_at"] is None for job in shown] == [True, False, False]
    assert await listed(acme) == []


@pytest.mark.parametrize("rate", [0, -1, 100_001, "1", 1e400])
async def test_rate_that_is_none_is_refused(acme: httpx.AsyncClient, rate: Any) -> None:
    body = json.dumps({"filter": {}, "rate": rate}).replace("Infinity", "1e400")

    answer = await acme.post("/v1/dead-letters/redrive", content=body)

    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("what", ["redrive", "purge"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"filter": None}, "filter"),
        ({"filter": {"colour": "red"}}, "filter"),
        ({"filter": {"ids": "x"}}, "filter.ids"),
        ({"filter": {"ids": ["x"] * 10_001}}, "filter.ids"),
        ({"filters": {}}, "filters"),
        ([], "body"),
    ],
)
async def test_filter_must_be_said(
    api: RunningApi, acme: httpx.AsyncClient, what: str, body: Any, field: str
) -> None:
    job = await dead(api, acme)

    answer = await acme.post(f"/v1/dead-letters/{what}", json=body)

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert await listed(acme) == [job["id"]]


@pytest.mark.parametrize("what", ["redrive", "purge"])
async def test_another_tenants_dead_letters_stay(
    api: RunningApi, acme: httpx.AsyncClient, what: str
) -> None:
    job = await dead(api, acme)
    other = api.client("globex")

    everything = await other.post(f"/v1/dead-letters/{what}", json={"filter": {}})
    by_id = await other.post(f"/v1/dead-letters/{what}", json={"filter": {"ids": [job["id"]]}})
    asked = await other.post(f"/v1/dead-letters/{what}", json={"filter": {"tenant": "acme"}})

    assert (list(everything.json().values()), list(by_id.json().values())) == ([0], [0])
    assert asked.status_code == 403
    assert await listed(acme) == [job["id"]]


async def test_purged_dead_letter_is_gone_for_good(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = await dead(api, acme)
    kept = await dead(api, acme, type="greet.once")

    purged = await acme.post("/v1/dead-letters/purge", json={"filter": {"type": "greet"}})
    again = await acme.post("/v1/dead-letters/purge", json={"filter": {"ids": [job["id"]]}})
    retried = await acme.post(job["links"]["retry"])
    edited = await acme.post(job["links"]["retry"], json={"params": {"name": "Bob"}})

    assert (purged.json(), again.json()) == ({"purged": 1}, {"purged": 0})
    assert (retried.status_code, edited.status_code) == (409, 409)
    assert await listed(acme) == [kept["id"]]
    assert (await acme.get(job["links"]["self"])).json()["status"] == "failed"


async def test_purged_dead_letter_that_is_in_history_can_not_be_tried_again(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = await dead(api, acme)
    await acme.post("/v1/dead-letters/purge", json={"filter": {"type": "greet"}})
    await api.manager._housekeeper.compact()
    api.manager.tick()
    await api.manager._commit.barrier()
    assert job["id"] not in api.manager._state.jobs

    retried = await acme.post(job["links"]["retry"])
    edited = await acme.post(job["links"]["retry"], json={"params": {"name": "Bob"}})

    assert (retried.status_code, edited.status_code) == (409, 409)


# --- with other params ------------------------------------------------------------------------


async def test_retry_with_other_params_keeps_all_else(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    asked = {
        "priority": 7,
        "labels": {"team": "ads"},
        "max_attempts": 5,
        "timeout_s": 7.0,
        "grace_s": 3.0,
        "expected_s": 2.0,
        "limits": ["printer"],
    }
    job = await dead(api, acme, **asked)

    answer = await acme.post(job["links"]["retry"], json={"params": {"name": "Bob", "times": 2}})

    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    spec = json.loads(bytes((await api.worker.take()).spec))
    assert spec["params"] == {"name": "Bob", "times": 2}
    assert {name: spec[name] for name in asked} == asked
    shown = (await acme.get(job["links"]["self"])).json()
    same = ("id", "tenant", "queue", "priority", "labels", "max_attempts", "submitted_at", "code")
    assert {name: shown[name] for name in same} == {name: job[name] for name in same}


async def test_retry_changes_some_params_and_keeps_the_others(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    job = await dead(api, acme, params={"name": "Ada", "times": 2, "note": "x" * 100_000})

    wrong = await acme.post(job["links"]["retry"], json={"set": {"times": 99}})
    both = await acme.post(job["links"]["retry"], json={"set": {"times": 3}, "params": {}})
    answer = await acme.post(job["links"]["retry"], json={"set": {"times": 3, "note": "y"}})

    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "params.times")
    assert (both.status_code, both.json()["errors"][0]["field"]) == (422, "set")
    assert answer.status_code == 202
    spec = json.loads(bytes((await api.worker.take()).spec))
    assert spec["params"] == {"name": "Ada", "times": 3, "note": "y"}


async def test_admin_edits_another_tenants_job_which_stays_theirs(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    job = await dead(api, acme)

    answer = await admin.post(job["links"]["retry"], json={"params": {"name": "Bob"}})

    assert (answer.status_code, answer.json()["tenant"]) == (202, "acme")
    assert json.loads(bytes((await api.worker.take()).spec))["tenant"] == "acme"


async def test_key_of_an_edited_job_still_stands_for_its_first_request(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "k"}
    job = (await acme.post("/v1/jobs", json=GREET, headers=headers)).json()
    await api.worker.fail("no")

    await acme.post(job["links"]["retry"], json={"params": {"name": "Bob"}})
    again = await acme.post("/v1/jobs", json=GREET, headers=headers)

    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (job["id"], "true")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"name": 7}, "params.name"),
        ({}, "params.name"),
        ({"name": "Bob", "times": 99}, "params.times"),
        ({"name": "Bob", "shout": True}, "params.shout"),
        (None, "params"),
        ([], "params"),
    ],
)
async def test_params_that_the_type_does_not_take_change_nothing(
    api: RunningApi, acme: httpx.AsyncClient, params: Any, field: str
) -> None:
    job = await dead(api, acme)

    answer = await acme.post(job["links"]["retry"], json={"params": params})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert await listed(acme) == [job["id"]]


async def test_retry_takes_no_other_field(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = await dead(api, acme)

    answer = await acme.post(job["links"]["retry"], json={"priority": 7})
    broken = await acme.post(job["links"]["retry"], content=b"{")

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "priority")
    assert broken.status_code == 400
    assert await listed(acme) == [job["id"]]


async def test_empty_retry_keeps_the_params(api: RunningApi, acme: httpx.AsyncClient) -> None:
    job = await dead(api, acme)

    answer = await acme.post(job["links"]["retry"], json={})

    assert answer.status_code == 202
    assert json.loads(bytes((await api.worker.take()).spec))["params"] == {"name": "Ada"}


async def test_only_a_failed_job_can_be_edited(acme: httpx.AsyncClient) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer = await acme.post(job["links"]["retry"], json={"params": {"name": "Bob"}})

    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")


async def test_params_of_a_job_of_several_tasks_can_not_be_changed(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    steps = [{"name": "one", "type": "greet", "params": {"name": "Ada"}}]
    job = (await acme.post("/v1/workflows", json={"steps": steps})).json()
    await api.worker.fail("no")

    answer = await acme.post(job["links"]["retry"], json={"params": {"name": "Bob"}})

    assert (answer.status_code, "several tasks" in answer.json()["detail"]) == (409, True)
    assert (await acme.post(job["links"]["retry"])).status_code == 202


async def test_large_new_params_travel_by_reference_and_too_large_ones_not_at_all() -> None:
    async with running_api(ApiSettings(params_bytes_max=200_000)) as api:
        acme = api.client("acme")
        job = await dead(api, acme)

        too_large = await acme.post(
            job["links"]["retry"], json={"params": {"name": "B", "note": "x" * 300_000}}
        )
        large = await acme.post(
            job["links"]["retry"], json={"params": {"name": "B", "note": "x" * 100_000}}
        )

        assert (too_large.status_code, large.status_code) == (413, 202)
        spec = json.loads(bytes((await api.worker.take()).spec))
        assert json.loads(api.store.get(spec["params_ref"]))["name"] == "B"
