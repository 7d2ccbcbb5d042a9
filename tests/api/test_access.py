"""Who may do what: tokens, scopes, tenants."""

import asyncio
from typing import Any

import httpx
import pytest

from cluster.store.memory import MemoryObjects
from jobs.errors import InvalidInput, NotFound, Unavailable
from service.auth import REFRESH_S, STALE_S, Authenticator, TokenStore
from service.problems import Unauthorized
from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}

SUBMIT = [
    ("POST", "/v1/jobs"),
    ("POST", "/v1/jobs/batch"),
    ("POST", "/v1/workflows"),
    ("POST", "/v1/jobs/x/cancel"),
    ("POST", "/v1/jobs/x/retry"),
    ("PUT", "/v1/uploads/a.csv"),
    ("POST", "/v1/dead-letters/redrive"),
    ("POST", "/v1/dead-letters/purge"),
    ("PUT", "/v1/schedules/y"),
    ("DELETE", "/v1/schedules/y"),
    ("POST", "/v1/schedules/y/run"),
    ("POST", "/v1/schedules/y/pause"),
    ("POST", "/v1/schedules/y/resume"),
    ("PUT", "/v1/endpoints/y"),
    ("DELETE", "/v1/endpoints/y"),
    ("POST", "/v1/endpoints/y/rotate"),
    ("POST", "/v1/endpoints/y/test"),
]
READ = [
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/x"),
    ("GET", "/v1/jobs/x/tasks"),
    ("GET", "/v1/jobs/x/tasks/t/files/y"),
    ("HEAD", "/v1/jobs/x/tasks/t/files/y"),
    ("GET", "/v1/jobs/x/attempts"),
    ("GET", "/v1/jobs/x/events"),
    ("GET", "/v1/jobs/x/logs"),
    ("GET", "/v1/jobs/x/params"),
    ("GET", "/v1/jobs/x/result"),
    ("GET", "/v1/jobs/x/files"),
    ("GET", "/v1/jobs/x/files/y"),
    ("HEAD", "/v1/jobs/x/files/y"),
    ("GET", "/v1/dead-letters"),
    ("GET", "/v1/dead-letters/counts"),
    ("GET", "/v1/queues"),
    ("GET", "/v1/schedules"),
    ("GET", "/v1/schedules/y"),
    ("GET", "/v1/endpoints"),
    ("GET", "/v1/endpoints/y"),
    ("GET", "/v1/overview"),
    ("GET", "/metrics"),
]
#: Needs the scope `read` as well, but its answer has no end.
ENDLESS = [("GET", "/v1/events")]
ADMIN = [
    ("POST", "/v1/queues/default/pause"),
    ("POST", "/v1/queues/default/resume"),
    ("POST", "/v1/queues/default/drain"),
    ("POST", "/v1/queues/default/fill"),
    ("GET", "/v1/workers"),
    ("POST", "/v1/workers/default/pause"),
    ("POST", "/v1/workers/default/resume"),
    ("POST", "/v1/workers/default/drain"),
    ("POST", "/v1/tokens"),
    ("GET", "/v1/tokens"),
    ("DELETE", "/v1/tokens/0123456789ab"),
    ("GET", "/v1/config"),
    ("PUT", "/v1/config"),
    ("PUT", "/v1/code"),
    ("POST", "/v1/code/deploy"),
]
ANY = [
    ("GET", "/v1/types"),
    ("GET", "/v1/code"),
    ("GET", "/v1/code/{sha}"),
    ("GET", "/v1/session"),
]
PUBLIC = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/problems", "/problems/conflict"]


@pytest.mark.parametrize(("method", "path"), SUBMIT + READ + ENDLESS + ADMIN + ANY)
async def test_without_a_token_the_answer_is_401(api: RunningApi, method: str, path: str) -> None:
    answer = await api.anonymous().request(method, path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.headers["content-type"] == "application/problem+json"


def test_lists_above_hold_every_operation(api: RunningApi) -> None:
    described = {
        (method.upper(), path)
        for path, operations in api.app.openapi()["paths"].items()
        for method in operations
        if path not in PUBLIC
    }

    def as_template(path: str) -> str:
        for value, name in (
            ("/x", "/{job_id}"),
            ("/t", "/{task_id}"),
            ("/y", "/{name}"),
            ("/a.csv", "/{name}"),
        ):
            path = path.replace(f"{value}/", f"{name}/")
            path = path.removesuffix(value) + name if path.endswith(value) else path
        return path.replace("/default/", "/{name}/").replace("0123456789ab", "{token_id}")

    listed = {(m, as_template(p)) for m, p in SUBMIT + READ + ENDLESS + ADMIN + ANY if m != "HEAD"}
    assert listed == described


@pytest.mark.parametrize("path", PUBLIC)
async def test_public_pages_need_no_token(api: RunningApi, path: str) -> None:
    assert (await api.anonymous().get(path)).status_code == 200


@pytest.mark.parametrize(
    ("scope", "refused"), [("submit", READ + ENDLESS + ADMIN), ("read", SUBMIT + ADMIN)]
)
async def test_token_without_the_scope_is_refused(
    api: RunningApi, scope: Any, refused: list[tuple[str, str]]
) -> None:
    client = api.client("acme", scope)

    answers = [(await client.request(m, p)).status_code for m, p in refused]

    assert set(answers) == {403}


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("submit", SUBMIT + ANY), ("read", READ + ANY), ("admin", SUBMIT + READ + ADMIN + ANY)],
)
async def test_token_with_the_scope_gets_through(
    api: RunningApi, scope: Any, allowed: list[tuple[str, str]]
) -> None:
    client = api.client("acme", scope)

    answers = [(await client.request(m, p)).status_code for m, p in allowed]

    assert not {401, 403} & set(answers)


@pytest.mark.parametrize(
    "header",
    ["Bearer nope", "Bearer dray_" + "x" * 43, "Basic dray_" + "x" * 43, "Bearer", "dray_x", ""],
)
async def test_wrong_token_is_401(api: RunningApi, header: str) -> None:
    answer = await api.anonymous({"Authorization": header}).get("/v1/jobs")

    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", ""),
        ("GET", "/tasks"),
        ("GET", "/attempts"),
        ("GET", "/logs"),
        ("GET", "/params"),
        ("GET", "/result"),
        ("GET", "/files"),
        ("GET", "/files/a.txt"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
    ],
)
async def test_another_tenants_job_is_404(
    api: RunningApi, acme: httpx.AsyncClient, method: str, rest: str
) -> None:
    job = (await acme.post("/v1/jobs", json=GREET)).json()

    answer = await api.client("globex").request(method, f"/v1/jobs/{job['id']}{rest}")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


async def test_lists_show_the_own_tenants_jobs_only(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    globex = api.client("globex")
    mine = (await acme.post("/v1/jobs", json=GREET)).json()["id"]
    theirs = (await globex.post("/v1/jobs", json=GREET)).json()["id"]

    async def ids(client: httpx.AsyncClient, query: str = "") -> set[str]:
        return {job["id"] for job in (await client.get(f"/v1/jobs{query}")).json()["jobs"]}

    assert await ids(acme) == {mine}
    assert await ids(globex) == {theirs}
    assert await ids(admin) == {mine, theirs}
    assert await ids(admin, "?tenant=acme") == {mine}
    assert (await acme.get("/v1/jobs?tenant=globex")).status_code == 403


async def test_redrive_touches_the_own_tenants_jobs_only(
    api: RunningApi, acme: httpx.AsyncClient
) -> None:
    globex = api.client("globex")
    await globex.post("/v1/jobs", json=GREET)
    await api.worker.fail("no")

    mine = await acme.post("/v1/dead-letters/redrive", json={"filter": {}})
    other = await acme.post("/v1/dead-letters/redrive", json={"filter": {"tenant": "globex"}})

    assert (mine.json(), other.status_code) == ({"redriven": 0}, 403)
    assert (await globex.get("/v1/dead-letters")).json()["jobs"]


async def test_token_made_over_http_works_until_it_is_revoked(
    api: RunningApi, admin: httpx.AsyncClient
) -> None:
    made = await admin.post("/v1/tokens", json={"tenant": "acme", "scopes": ["read"], "name": "ci"})
    client = api.anonymous({"Authorization": f"Bearer {made.json()['token']}"})

    assert made.headers["cache-control"] == "no-store"
    assert (await client.get("/v1/jobs")).status_code == 200
    listed = (await admin.get("/v1/tokens")).json()["tokens"]
    assert [t["name"] for t in listed if t["id"] == made.json()["id"]] == ["ci"]
    assert made.json()["token"] not in (await admin.get("/v1/tokens")).text
    assert (await admin.delete(f"/v1/tokens/{made.json()['id']}")).status_code == 200
    assert (await admin.delete(f"/v1/tokens/{made.json()['id']}")).status_code == 404


async def test_store_keeps_no_token_in_the_clear(api: RunningApi) -> None:
    token, _ = api.tokens.create("acme", ["read"])

    kept = [(info.path, api.store.get(info.path)) for info in api.store.list("tokens/")]

    assert not any(token in path or token.encode() in data for path, data in kept)


@pytest.mark.parametrize(
    "body",
    [
        {"tenant": "../x", "scopes": ["read"]},
        {"tenant": "Acme", "scopes": ["read"]},
        {"tenant": "", "scopes": ["read"]},
        {"tenant": "acme", "scopes": []},
        {"tenant": "acme", "scopes": ["root"]},
        {"tenant": "acme", "scopes": ["read"], "name": "x" * 101},
        {"tenant": "acme", "scopes": ["read"], "colour": "red"},
    ],
)
async def test_token_for_nonsense_is_refused(admin: httpx.AsyncClient, body: Any) -> None:
    assert (await admin.post("/v1/tokens", json=body)).status_code == 422


# --- the authenticator by itself, on a clock that the test turns ------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FlakyObjects(MemoryObjects):
    """A store that can stop answering, and counts how often it is asked for a listing."""

    down = False
    listings = 0

    def list(self, prefix: str, start_after: str = "") -> Any:
        self.listings += 1
        if self.down:
            raise Unavailable("the store is down")
        return super().list(prefix, start_after)


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


async def test_revoked_token_is_refused_once_the_reading_is_stale() -> None:
    tokens, clock = TokenStore(MemoryObjects()), Clock()
    authenticator = Authenticator(tokens, clock)
    token, record = tokens.create("acme", ["read"])
    await authenticator.identify(bearer(token))
    tokens.revoke(record.id)

    clock.now += STALE_S

    with pytest.raises(Unauthorized):
        await authenticator.identify(bearer(token))


async def test_known_token_costs_the_store_nothing() -> None:
    store = FlakyObjects()
    tokens, clock = TokenStore(store), Clock()
    authenticator = Authenticator(tokens, clock)
    token, _ = tokens.create("acme", ["read"])

    for _ in range(100):
        await authenticator.identify(bearer(token))

    assert store.listings == 1


async def test_guessed_tokens_share_one_reading() -> None:
    store = FlakyObjects()
    authenticator = Authenticator(TokenStore(store), Clock())
    guesses = [bearer(f"dray_{i:043d}") for i in range(200)]

    found = await asyncio.gather(
        *(authenticator.identify(guess) for guess in guesses), return_exceptions=True
    )

    assert {type(error) for error in found} == {Unauthorized}
    assert store.listings == 1


async def test_new_token_works_right_after_a_reading() -> None:
    tokens, clock = TokenStore(MemoryObjects()), Clock()
    authenticator = Authenticator(tokens, clock)
    token, _ = tokens.create("acme", ["read"])
    await authenticator.identify(bearer(token))
    clock.now += REFRESH_S
    later, _ = tokens.create("globex", ["read"])

    caller = await authenticator.identify(bearer(later))

    assert caller.tenant == "globex"


async def test_known_token_outlives_a_store_that_is_down() -> None:
    store = FlakyObjects()
    tokens, clock = TokenStore(store), Clock()
    authenticator = Authenticator(tokens, clock)
    token, _ = tokens.create("acme", ["read"])
    await authenticator.identify(bearer(token))
    store.down = True

    clock.now += STALE_S

    assert (await authenticator.identify(bearer(token))).tenant == "acme"
    clock.now += STALE_S
    with pytest.raises(Unavailable):
        await authenticator.identify(bearer("dray_" + "x" * 43))


def test_revoking_needs_a_name_that_fits_one() -> None:
    tokens = TokenStore(MemoryObjects())

    with pytest.raises(NotFound):
        tokens.revoke("0123456789ab")
    with pytest.raises(InvalidInput):
        tokens.revoke("../../x")
