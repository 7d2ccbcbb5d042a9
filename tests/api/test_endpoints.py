"""Webhook endpoints over HTTP, and what `notify` of a job takes, refuses and shows."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from standardwebhooks import Webhook

from cluster.endpoints import OVERLAP_S, SECRETS_MAX, Endpoints
from cluster.store.memory import MemoryObjects
from jobs.errors import Conflict, InvalidInput, NotFound
from jobs.library.notify_email import notify_email
from jobs.library.notify_push import notify_push
from jobs.library.notify_webhook import notify_webhook
from tests.support.api import RunningApi, running_api

HERE = "/v1/endpoints/billing"
URL = "https://billing.example.com/hooks"
GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
PUSH = {
    "endpoint": "https://push.example.com/abc",
    "expirationTime": None,
    "keys": {
        "p256dh": "B" + "AE" + "BAQE" * 21,
        "auth": "MDEyMzQ1Njc4OWFiY2RlZg",
    },
}


@pytest.fixture
async def api() -> AsyncIterator[RunningApi]:
    async with running_api(types=[notify_webhook, notify_email, notify_push]) as running:
        yield running


@pytest.fixture
def acme(api: RunningApi) -> httpx.AsyncClient:
    return api.client("acme")


async def put(client: httpx.AsyncClient, name: str = "billing", url: str = URL) -> dict[str, Any]:
    answer = await client.put(f"/v1/endpoints/{name}", json={"url": url})
    assert answer.status_code in (200, 201), answer.text
    shown: dict[str, Any] = answer.json()
    return shown


# --- endpoints ------------------------------------------------------------------------------------


async def test_a_new_endpoint_has_a_secret_that_is_shown_once(acme: httpx.AsyncClient) -> None:
    answer = await acme.put(HERE, json={"url": URL})

    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert made["secret"].startswith("whsec_")
    assert Webhook(made["secret"])
    assert (made["endpoint"]["url"], made["endpoint"]["disabled"]) == (URL, None)
    again = await acme.put(HERE, json={"url": URL})
    assert again.status_code == 200
    for shown in (again, await acme.get(HERE), await acme.get("/v1/endpoints")):
        assert "whsec_" not in shown.text


async def test_an_endpoint_is_its_tenants_own(api: RunningApi, acme: httpx.AsyncClient) -> None:
    await put(acme)
    other, admin = api.client("other"), api.client("ops", "admin")

    assert (await other.get(HERE)).status_code == 404
    assert (await other.get("/v1/endpoints")).json() == {"endpoints": []}
    assert (await other.get("/v1/endpoints?tenant=acme")).status_code == 403
    found = (await admin.get("/v1/endpoints?tenant=acme")).json()["endpoints"]
    assert [one["name"] for one in found] == ["billing"]


async def test_putting_an_endpoint_changes_where_it_leads_and_keeps_its_secret(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    made = await put(acme)

    shown = await put(acme, url="https://new.example.com/")

    assert shown["url"] == "https://new.example.com/"
    found = Endpoints(api.store).delivery("acme", "billing", time.time())
    assert found.secrets == (made["secret"],)


async def test_rotating_makes_a_new_secret_beside_the_old_one(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    made = await put(acme)

    answer = await acme.post(f"{HERE}/rotate")

    new = answer.json()["secret"]
    assert new != made["secret"]
    assert len(answer.json()["endpoint"]["secrets"]) == 2
    found = Endpoints(api.store).delivery("acme", "billing", time.time())
    assert found.secrets == (new, made["secret"])


async def test_deleting_an_endpoint_deletes_its_secrets(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await put(acme)

    assert (await acme.delete(HERE)).status_code == 204

    assert (await acme.delete(HERE)).status_code == 404
    assert list(api.store.list("endpoints/")) == []


async def test_a_test_is_a_delivery_like_any_other_but_tried_once(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    await put(acme)

    answer = await acme.post(f"{HERE}/test")

    assert answer.status_code == 202
    job = answer.json()
    assert (job["type"], job["max_attempts"]) == ("notify.webhook", 1)
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (await acme.get(answer.headers["location"])).json()["status"] == "pending"


@pytest.mark.parametrize(
    ("name", "body", "field"),
    [
        ("Billing", {"url": URL}, "name"),
        ("a" * 64, {"url": URL}, "name"),
        ("billing", {}, "url"),
        ("billing", {"url": "ftp://x.example"}, "url"),
        ("billing", {"url": "https://user:pw@x.example"}, "url"),
        ("billing", {"url": "https://x.example/ \n"}, "url"),
        ("default", {"url": URL}, "url"),
    ],
)
async def test_an_endpoint_that_cannot_be_is_refused_by_field(
    acme: httpx.AsyncClient, name: str, body: dict[str, Any], field: str
) -> None:
    answer = await acme.put(f"/v1/endpoints/{name}", json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("path", ["/rotate", "/test"])
async def test_what_is_not_there_is_not_found(acme: httpx.AsyncClient, path: str) -> None:
    assert (await acme.post(HERE + path)).status_code == 404


async def test_a_token_that_may_only_read_puts_nothing(api: RunningApi) -> None:
    reader = api.client("acme", "read")

    assert (await reader.put(HERE, json={"url": URL})).status_code == 403
    assert (await reader.post(f"{HERE}/rotate")).status_code == 403
    assert (await reader.get("/v1/endpoints")).status_code == 200


async def test_the_default_endpoint_has_a_secret_and_leads_nowhere(
    acme: httpx.AsyncClient,
) -> None:
    made = await acme.put("/v1/endpoints/default", json={})

    assert made.status_code == 201
    assert made.json()["endpoint"]["url"] == ""
    assert (await acme.post("/v1/endpoints/default/test")).status_code == 422


# --- secrets over time ----------------------------------------------------------------------------


@pytest.fixture
def endpoints() -> Endpoints:
    return Endpoints(MemoryObjects())


def test_an_old_secret_signs_for_a_day_after_it_was_replaced(endpoints: Endpoints) -> None:
    _, old = endpoints.put("acme", "billing", URL, 0.0)
    new = endpoints.rotate("acme", "billing", 1e6)

    assert endpoints.delivery("acme", "billing", 1e6 + OVERLAP_S - 1).secrets == (new, old)
    assert endpoints.delivery("acme", "billing", 1e6 + OVERLAP_S).secrets == (new,)


def test_a_secret_that_expired_is_deleted_with_the_next_rotation(endpoints: Endpoints) -> None:
    _, old = endpoints.put("acme", "billing", URL, 0.0)
    endpoints.rotate("acme", "billing", 1e6)
    endpoints.rotate("acme", "billing", 3e6)

    kept = [endpoints._objects.get(info.path) for info in endpoints._objects.list("endpoints/")]
    assert not any(old.encode() in data for data in kept)


def test_secrets_in_force_are_few(endpoints: Endpoints) -> None:
    endpoints.put("acme", "billing", URL, 0.0)
    for n in range(1, SECRETS_MAX):
        endpoints.rotate("acme", "billing", float(n))

    with pytest.raises(Conflict, match="within a day"):
        endpoints.rotate("acme", "billing", 10.0)


def test_the_default_secret_is_made_when_it_is_first_needed_and_only_then(
    endpoints: Endpoints,
) -> None:
    with pytest.raises(NotFound):
        endpoints.get("acme", "default", 0.0)

    first = endpoints.delivery("acme", "default", 1.0)

    assert endpoints.delivery("acme", "default", 2.0) == first
    assert [one.name for one in endpoints.of("acme", 3.0)] == ["default"]


def test_a_disabled_endpoint_stays_so_until_it_is_put_again(endpoints: Endpoints) -> None:
    endpoints.put("acme", "billing", URL, 0.0)
    endpoints.disable("acme", "billing", "it answered 410", 5.0)

    record = endpoints.get("acme", "billing", 6.0)
    assert (record.disabled, record.disabled_at) == ("it answered 410", 5.0)
    assert endpoints.delivery("acme", "billing", 6.0).disabled

    endpoints.put("acme", "billing", URL, 7.0)
    assert not endpoints.delivery("acme", "billing", 8.0).disabled


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "a" * 64])
def test_no_name_leaves_the_tenants_folder(endpoints: Endpoints, name: str) -> None:
    with pytest.raises(InvalidInput):
        endpoints.delivery("acme", name, 0.0)


# --- whom a job tells -----------------------------------------------------------------------------

ALL: list[dict[str, Any]] = [
    {"webhook": "billing"},
    {"on": ["failed", "failed"], "email": "ann@example.org"},
    {"on": ["started", "cancelled"], "email": ["ann@example.org", "bob@example.org"]},
    {"push": PUSH},
]


async def test_a_job_shows_whom_it_tells_and_where_the_deliveries_are(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    body = GREET | {"notify": ALL, "webhook": URL}

    accepted = (await acme.post("/v1/jobs", json=body)).json()

    assert accepted["notify"] == [
        {"on": ["completed", "failed"], "type": "notify.webhook", "to": "billing"},
        {"on": ["failed"], "type": "notify.email", "to": "ann@example.org"},
        {
            "on": ["started", "cancelled"],
            "type": "notify.email",
            "to": "ann@example.org, bob@example.org",
        },
        {"on": ["completed", "failed"], "type": "notify.push", "to": PUSH["endpoint"]},
        {"on": ["completed", "failed"], "type": "notify.webhook", "to": URL},
    ]
    await api.worker.succeed({"said": "hello"})
    job = (await acme.get(accepted["links"]["self"])).json()
    assert (job["status"], job["notify"]) == ("completed", accepted["notify"])
    told = (await acme.get(accepted["links"]["notifications"])).json()["jobs"]
    assert sorted(one["type"] for one in told) == [
        "notify.email",
        "notify.push",
        "notify.webhook",
        "notify.webhook",
    ]
    completed = [one for one in told if one["labels"]["event"] == "job.completed"]
    assert {one["status"] for one in completed} == {"pending"}
    assert {one["tenant"] for one in told} == {"acme"}


async def test_a_workflow_tells_too(acme: httpx.AsyncClient) -> None:
    body = {"steps": [{"name": "a", **GREET}], "webhook": URL, "notify": ALL[1:2]}

    accepted = await acme.post("/v1/workflows", json=body)

    assert [one["to"] for one in accepted.json()["notify"]] == ["ann@example.org", URL]


async def test_a_schedule_and_a_batch_may_say_whom_to_tell(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    scheduled = await acme.put(
        "/v1/schedules/nightly", json={"cron": "0 3 * * *", "job": GREET | {"webhook": URL}}
    )
    fired = (await acme.post("/v1/schedules/nightly/run")).json()
    lines = msgspec.json.encode(GREET | {"webhook": URL})
    sent = await acme.post(
        "/v1/jobs/batch", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )

    assert scheduled.status_code == 201
    ids = [fired["id"], msgspec.json.decode(sent.content)["id"]]
    for job_id in ids:
        job = (await acme.get(f"/v1/jobs/{job_id}")).json()
        assert [one["to"] for one in job["notify"]] == [URL]


async def test_the_same_key_with_another_target_is_another_request(
    acme: httpx.AsyncClient,
) -> None:
    headers = {"Idempotency-Key": "k"}
    await acme.post("/v1/jobs", json=GREET | {"webhook": URL}, headers=headers)

    same = await acme.post("/v1/jobs", json=GREET | {"webhook": URL}, headers=headers)
    other = await acme.post("/v1/jobs", json=GREET, headers=headers)

    assert (same.status_code, other.status_code) == (202, 422)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"notify": [{}]}, "notify.0"),
        ({"notify": [{"webhook": URL, "email": "a@b.org"}]}, "notify.0"),
        ({"notify": [{"webhook": URL, "on": []}]}, "notify.0.on"),
        ({"notify": [{"webhook": URL, "on": ["exploded"]}]}, "notify.0.on.0"),
        ({"notify": [{"webhook": URL}, {"email": "ann"}]}, "notify.1.email.0"),
        ({"notify": [{"email": ["a@b.org"] * 21}]}, "notify.0.email"),
        ({"notify": [{"webhook": "ftp://x.example/"}]}, "notify.0.webhook"),
        ({"notify": [{"webhook": "No Name"}]}, "notify.0.webhook"),
        ({"notify": [{"push": {"endpoint": "https://x.example"}}]}, "notify.0.push.keys"),
        (
            {"notify": [{"push": PUSH | {"keys": {"p256dh": "x", "auth": "y"}}}]},
            "notify.0.push.keys.p256dh",
        ),
        ({"notify": [{"sms": "1"}]}, "notify.0"),
        ({"webhook": "https://user:pw@x.example"}, "webhook"),
        ({"webhook": "default"}, "webhook"),
        ({"notify": [{"webhook": URL}] * 11}, "notify"),
        ({"notify": [{"webhook": URL}] * 10, "webhook": URL}, "notify"),
    ],
)
async def test_a_target_that_is_none_is_refused_by_its_place(
    acme: httpx.AsyncClient, wrong: dict[str, Any], field: str
) -> None:
    answer = await acme.post("/v1/jobs", json=GREET | wrong)

    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"].startswith(field), answer.text


async def test_a_failed_job_with_other_params_still_tells(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    accepted = (await acme.post("/v1/jobs", json=GREET | {"webhook": URL})).json()
    await api.worker.fail("no paper")
    await acme.post(f"{accepted['links']['self']}/retry", json={"params": {"name": "Bob"}})
    await api.worker.succeed()  # what told of the failure
    await api.worker.succeed()

    told = (await acme.get(accepted["links"]["notifications"])).json()["jobs"]
    assert sorted(one["labels"]["event"] for one in told) == ["job.completed", "job.failed"]


async def test_without_the_types_that_tell_it_says_so(acme: httpx.AsyncClient) -> None:
    async with running_api() as bare:
        answer = await bare.client("acme").post("/v1/jobs", json=GREET | {"webhook": URL})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "webhook"
