"""Code over HTTP: sent, deployed, pinned."""

from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest

from cluster.code import CODE_BYTES_MAX, CodeStore, Deployed, pack
from cluster.queue.spec import decode_spec
from cluster.store.memory import MemoryObjects
from jobs.errors import Unavailable
from service.catalog import Catalog
from tests.support.api import RunningApi, greet
from tests.support.bundles import shop

GOOD: dict[str, Any] = {"type": "shop.invoice", "params": {"cents": 5}}


async def put(admin: httpx.AsyncClient, data: bytes) -> str:
    answer = await admin.put("/v1/code", content=data)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["code"])


async def deploy(admin: httpx.AsyncClient, code: str, **more: Any) -> dict[str, Any]:
    answer = await admin.post("/v1/code/deploy", json={"code": code} | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def code_of_next(api: RunningApi) -> str:
    return decode_spec((await api.worker.take()).spec).code


async def test_code_is_kept_shown_and_deployed(
    api: RunningApi, admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    kept = {"code": bundle.sha, "modules": ["shop"], "types": ["shop.invoice"]}

    sent = await admin.put("/v1/code", content=bundle.data)
    again = await admin.put("/v1/code", content=bundle.data)
    before = await acme.post("/v1/jobs", json=GOOD)
    done = await deploy(admin, bundle.sha)
    after = await acme.post("/v1/jobs", json=GOOD)

    assert sent.json() == again.json() == kept
    assert (await acme.get(f"/v1/code/{bundle.sha}")).json() == kept
    assert (before.status_code, before.json()["errors"][0]["field"]) == (422, "type")
    assert done == {"code": bundle.sha, "types": ["shop.invoice"]}
    assert (await acme.get("/v1/code")).json() == {"types": {"shop.invoice": bundle.sha}}
    assert after.status_code == 202, after.text
    assert await code_of_next(api) == bundle.sha


async def test_a_job_keeps_the_code_it_was_submitted_with(
    api: RunningApi, admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    v1, v2 = shop(tmp_path / "1", "v1"), shop(tmp_path / "2", "v2")
    for bundle in (v1, v2):
        await put(admin, bundle.data)
        await deploy(admin, bundle.sha)
        await acme.post("/v1/jobs", json=GOOD)
    await acme.post("/v1/jobs", json=GOOD | {"code": v1.sha})

    assert [await code_of_next(api) for _ in range(3)] == [v1.sha, v2.sha, v1.sha]


async def test_deployed_types_are_listed_with_their_schema(
    admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    await put(admin, bundle.data)
    await deploy(admin, bundle.sha)

    listed = {t["name"]: t for t in (await admin.get("/v1/types")).json()["types"]}

    assert (listed["shop.invoice"]["code"], listed["greet"]["code"]) == (bundle.sha, "")
    assert listed["shop.invoice"]["builtin"] is False
    assert listed["shop.invoice"]["summary"] == "Write an invoice, as of v1."
    assert listed["shop.invoice"]["params_schema"]["required"] == ["cents"]


async def test_a_type_the_cluster_was_started_with_is_replaced_and_given_back(
    api: RunningApi, admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    [card] = bundle.card.types
    greet = msgspec.structs.replace(
        bundle.card, types=[msgspec.structs.replace(card, name="greet")]
    )
    sha = await put(admin, pack(greet, {"shop.py": (b"", False)}))
    await deploy(admin, sha)

    replaced = await acme.post("/v1/jobs", json={"type": "greet", "params": {"cents": 1}})
    built_in = {"type": "greet", "params": {"name": "Ada"}}
    old = await acme.post("/v1/jobs", json=built_in | {"code": ""})
    await deploy(admin, "", types=["greet"])
    back = await acme.post("/v1/jobs", json=built_in)

    assert [a.status_code for a in (replaced, old, back)] == [202, 202, 202]
    assert [await code_of_next(api) for _ in range(3)] == [sha, "", ""]


@pytest.mark.parametrize(
    ("params", "field", "reason"),
    [
        ({}, "params", "required"),
        ({"cents": 0}, "params.cents", "minimum"),
        ({"cents": "5"}, "params.cents", "integer"),
        ({"cents": 1, "sent": 1}, "params", "'sent' was unexpected"),
        ([], "params", "object"),
    ],
)
async def test_params_of_a_deployed_type_are_checked_by_its_schema(
    admin: httpx.AsyncClient,
    acme: httpx.AsyncClient,
    tmp_path: Path,
    params: Any,
    field: str,
    reason: str,
) -> None:
    bundle = shop(tmp_path, "v1")
    await put(admin, bundle.data)
    await deploy(admin, bundle.sha)

    answer = await acme.post("/v1/jobs", json={"type": "shop.invoice", "params": params})

    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == field
    assert reason in error["reason"]


async def test_unique_jobs_of_a_deployed_type_count_defaults(
    admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1", ', unique_for_s=60.0, unique_by=("customer",)')
    await put(admin, bundle.data)
    await deploy(admin, bundle.sha)

    ids = [
        (await acme.post("/v1/jobs", json={"type": "shop.invoice", "params": params})).json()["id"]
        for params in (
            {"cents": 1},
            {"cents": 2, "customer": "nobody"},
            {"cents": 1, "customer": "A"},
        )
    ]

    assert ids[0] == ids[1] != ids[2]


async def test_lines_of_a_batch_find_types_that_others_deployed(
    api: RunningApi, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    await acme.post("/v1/jobs", json={"type": "greet", "params": {"name": "Ada"}})
    CodeStore(api.store).put(bundle.data)
    Deployed(api.store).deploy(bundle.sha, ["shop.invoice"])  # as by another replica

    lines = [GOOD, GOOD | {"type": "shop.none"}, GOOD | {"code": bundle.sha}]
    body = b"\n".join(map(msgspec.json.encode, lines))
    answer = await acme.post("/v1/jobs/batch", content=body)

    first, second, third = map(msgspec.json.decode, answer.text.splitlines())
    assert "id" in first
    assert "id" in third
    assert second["problem"]["errors"][0]["field"] == "type"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"code": "0" * 64}, "code"),
        ({"code": "abc"}, "code"),
        ({"code": ""}, "type"),
        ({"type": "shop.none"}, "type"),
    ],
)
async def test_what_is_not_there_is_refused_by_name(
    admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path, change: Any, field: str
) -> None:
    bundle = shop(tmp_path, "v1")
    await put(admin, bundle.data)
    await deploy(admin, bundle.sha)

    answer = await acme.post("/v1/jobs", json=GOOD | change)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_the_same_key_for_other_code_is_another_request(
    admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    v1, v2 = shop(tmp_path / "1", "v1"), shop(tmp_path / "2", "v2")
    answers = []
    for bundle in (v1, v1, v2):
        await put(admin, bundle.data)
        body = GOOD | {"code": bundle.sha}
        answers.append(await acme.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}))

    assert [a.status_code for a in answers] == [202, 202, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[2].json()["type"] == "/problems/key-reused"


async def test_other_replicas_and_later_runs_know_what_is_deployed(
    api: RunningApi, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    other = Catalog({}, api.store)
    await other.learn([])
    assert "shop.invoice" not in other

    await put(admin, bundle.data)
    await deploy(admin, bundle.sha)

    assert other.needs("shop.invoice", None)
    await other.learn([("shop.invoice", None)])
    assert not other.needs("shop.invoice", None)
    assert other.find("shop.invoice").code == bundle.sha


async def test_a_bundle_s_scope_is_its_own_types_and_what_the_cluster_was_started_with(
    api: RunningApi, tmp_path: Path
) -> None:
    bundle = shop(tmp_path, "v1")
    CodeStore(api.store).put(bundle.data)
    Deployed(api.store).deploy("0" * 64, ["shop.other"])
    catalog = Catalog({"greet": greet}, api.store)
    await catalog.learn([("shop.invoice", bundle.sha)])

    assert sorted(catalog.scope(bundle.sha)) == ["greet", "shop.invoice"]
    assert sorted(catalog.scope("")) == ["greet"]


class Store(MemoryObjects):
    """A store with a switch."""

    away = False

    def list(self, prefix: str, start_after: str = "") -> Any:
        if self.away:
            raise Unavailable("switched off by the test")
        return super().list(prefix, start_after)


async def test_while_the_store_is_away_known_types_go_on(tmp_path: Path) -> None:
    store, bundle = Store(), shop(tmp_path, "v1")
    CodeStore(store).put(bundle.data)
    Deployed(store).deploy(bundle.sha, ["shop.invoice"])
    catalog = Catalog({}, store)
    await catalog.learn([])

    store.away = True
    await catalog.learn([("shop.invoice", None)])

    assert catalog.find("shop.invoice").code == bundle.sha
    with pytest.raises(Unavailable):
        await catalog.learn([("shop.new", None)])


async def test_a_bundle_that_was_lost_takes_only_its_own_types_away(tmp_path: Path) -> None:
    store, bundle = MemoryObjects(), shop(tmp_path, "v1")
    CodeStore(store).put(bundle.data)
    Deployed(store).deploy(bundle.sha, ["shop.invoice"])
    Deployed(store).deploy("0" * 64, ["shop.lost"])
    catalog = Catalog({}, store)

    await catalog.learn([])

    assert list(catalog) == ["shop.invoice"]


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (b'{"type":"nonsense"}', "params schema"),
        (b'{"$ref":"http://127.0.0.1:9/x.json"}', "Retrieval is disabled"),
        (b'{"$ref":"file:///etc/passwd"}', "Retrieval is disabled"),
        (b'{"properties":{"a":{"pattern":"("}}}', "params schema"),
        (b"[]", "params schema"),
    ],
)
async def test_a_schema_that_is_none_or_leads_elsewhere_is_refused(
    api: RunningApi, admin: httpx.AsyncClient, tmp_path: Path, schema: bytes, told: str
) -> None:
    bundle = shop(tmp_path, "v1")
    [card] = bundle.card.types
    kind = msgspec.structs.replace(card, schema=msgspec.Raw(schema))
    data = pack(msgspec.structs.replace(bundle.card, types=[kind]), {"shop.py": (b"", False)})

    answer = await admin.put("/v1/code", content=data)

    assert answer.status_code == 422
    assert told in answer.json()["errors"][0]["reason"]
    assert list(api.store.list("code/")) == []


async def test_the_server_never_imports_what_it_is_sent(
    api: RunningApi, admin: httpx.AsyncClient, acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    bundle, witness = shop(tmp_path, "v1"), tmp_path / "witness"
    evil = f"open({str(witness)!r}, 'w').close()\n".encode()

    sha = await put(admin, pack(bundle.card, {"shop.py": (evil, False)}))
    await deploy(admin, sha)
    answer = await acme.post("/v1/jobs", json=GOOD)
    await admin.get("/v1/types")

    assert answer.status_code == 202
    assert not witness.exists()


async def test_code_takes_an_admin(acme: httpx.AsyncClient, tmp_path: Path) -> None:
    bundle = shop(tmp_path, "v1")

    sent = await acme.put("/v1/code", content=bundle.data)
    deployed = await acme.post("/v1/code/deploy", json={"code": bundle.sha})

    assert (sent.status_code, deployed.status_code) == (403, 403)


async def test_what_is_too_large_is_refused_before_it_is_read(admin: httpx.AsyncClient) -> None:
    answer = await admin.put(
        "/v1/code", content=b"", headers={"Content-Length": str(CODE_BYTES_MAX + 1)}
    )

    assert answer.status_code == 413
    assert "uploads" in answer.json()["detail"]


async def test_answers_are_as_the_document_promises(
    api: RunningApi, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    document = api.app.openapi()
    bundle = shop(tmp_path, "v1")
    calls: list[tuple[str, str, str, dict[str, Any]]] = [
        ("PUT", "/v1/code", "/v1/code", {"content": bundle.data}),
        ("PUT", "/v1/code", "/v1/code", {"content": b"no zip"}),
        ("GET", "/v1/code", "/v1/code", {}),
        ("GET", "/v1/code/{sha}", f"/v1/code/{bundle.sha}", {}),
        ("GET", "/v1/code/{sha}", "/v1/code/nope", {}),
        ("POST", "/v1/code/deploy", "/v1/code/deploy", {"json": {"code": bundle.sha}}),
        ("POST", "/v1/code/deploy", "/v1/code/deploy", {"json": {"code": "0" * 64}}),
        (
            "POST",
            "/v1/code/deploy",
            "/v1/code/deploy",
            {"json": {"code": bundle.sha, "types": ["shop.none"]}},
        ),
        ("POST", "/v1/code/deploy", "/v1/code/deploy", {"json": {"code": "nope"}}),
    ]

    statuses = []
    for method, template, path, request in calls:
        answer = await admin.request(method, path, **request)
        promised = document["paths"][template][method.lower()]["responses"]
        assert str(answer.status_code) in promised, (method, path, answer.text)
        content = promised[str(answer.status_code)]["content"]
        schema = content[answer.headers["content-type"]]["schema"]
        jsonschema.Draft202012Validator(schema | {"components": document["components"]}).validate(
            answer.json()
        )
        statuses.append(answer.status_code)

    assert statuses == [200, 422, 200, 200, 404, 200, 404, 422, 422]
