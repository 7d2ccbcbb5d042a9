"""`/metrics`: what Prometheus reads, and what the dashboard asks Prometheus for."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
#: Units that are not those of Prometheus: seconds, bytes, ratios.
NOT_BASE = re.compile(r"_(s|ms|minutes|hours|kb|mb|gb|percent)(_|$)")


async def scraped(client: httpx.AsyncClient) -> dict[str, Metric]:
    """Return what `/metrics` says, as Prometheus' own parser reads it."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    """Return the one sample with these labels."""
    family = found.get(name) or found[name.removesuffix("_total")]
    [sample] = [s for s in family.samples if s.name == name and s.labels == labels]
    return sample.value


@pytest.fixture
async def busy(api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient) -> RunningApi:
    """An API with something to say of everything: run times, refusals, dead letters, a worker."""
    for _ in range(5):
        await acme.post("/v1/jobs", json=GREET)
        await api.worker.succeed(1)
    await acme.post("/v1/jobs", json=GREET)
    await api.worker.fail("no")
    await acme.get("/v1/jobs/nope")
    await admin.post("/v1/queues/io/drain")
    lines = json.dumps(GREET | {"queue": "io"}) + "\n" + json.dumps(GREET | {"queue": "io"})
    await acme.post("/v1/jobs/batch", content=lines)
    await acme.post("/v1/jobs", json=GREET | {"queue": "io"})
    await acme.post("/v1/jobs", json=GREET)
    await acme.post("/v1/jobs", json=GREET)
    await api.worker.take()
    return api


async def test_metrics_tell_of_queues_pools_and_dead_letters(
    busy: RunningApi, admin: httpx.AsyncClient
) -> None:
    found = await scraped(admin)

    assert value(found, "drayman_manager_up") == 1
    for name, told in {"ready": 1, "leased": 1, "dead": 1, "depth": 2, "paused": 0}.items():
        assert value(found, f"drayman_queue_{name}", queue="default") == told, name
    assert value(found, "drayman_queue_draining", queue="io") == 1
    assert value(found, "drayman_queue_bytes", queue="default") > 0
    assert value(found, "drayman_queue_depth_limit", queue="default") == 1_000_000
    assert value(found, "drayman_queue_run_seconds", queue="default") >= 0
    assert value(found, "drayman_queue_eta_seconds", queue="default") >= 0
    assert value(found, "drayman_queue_drain_rate", queue="default") > 0
    assert value(found, "drayman_pool_running", pool="cpu") == 1
    labels = {"queue": "default", "type": "greet", "cause": "error"}
    assert value(found, "drayman_dead_letters", **labels) == 1


async def test_metrics_count_requests_jobs_and_refusals(
    busy: RunningApi, admin: httpx.AsyncClient
) -> None:
    found = await scraped(admin)

    assert value(found, "drayman_jobs_accepted_total", type="greet") == 8
    requests = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "404"}
    assert value(found, "drayman_http_requests_total", **requests) == 1
    # Two lines of a batch, and one submission by itself.
    assert value(found, "drayman_refusals_total", scope="queue", queue="io") == 3


async def test_refusal_of_a_tenant_does_not_name_it(
    acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    config = (await admin.get("/v1/config")).json()
    await admin.put("/v1/config", json=config | {"tenants": {"acme": {"depth_max": 1}}})
    await acme.post("/v1/jobs", json=GREET)

    refused = await acme.post("/v1/jobs", json=GREET)

    found = await scraped(admin)
    assert refused.status_code == 429
    assert value(found, "drayman_refusals_total", scope="tenant", queue="") == 1


async def test_many_dead_letters_are_not_counted_at_every_scrape(
    api: RunningApi,
    acme: httpx.AsyncClient,
    admin: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.routes.operate.DEAD_FEW", 0)
    labels = {"queue": "default", "type": "greet", "cause": "error"}
    told = []
    for _ in range(2):
        await acme.post("/v1/jobs", json=GREET)
        await api.worker.fail("no")
        found = await scraped(admin)
        told.append(value(found, "drayman_dead_letters", **labels))

    assert told == [1, 1]
    assert value(found, "drayman_queue_dead", queue="default") == 2


async def test_what_is_not_known_yet_is_not_told(api: RunningApi, admin: httpx.AsyncClient) -> None:
    found = await scraped(admin)

    assert found["drayman_queue_eta_seconds"].samples == []
    assert found["drayman_queue_run_seconds"].samples == []


async def test_metrics_go_on_while_the_manager_is_away(
    api: RunningApi, acme: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    api.port.away = True
    await acme.get("/v1/queues")

    found = await scraped(admin)

    assert value(found, "drayman_manager_up") == 0
    assert found["drayman_queue_ready"].samples == []
    assert value(found, "drayman_refusals_total", scope="unavailable", queue="") == 1


async def test_names_follow_the_rules_of_prometheus(
    busy: RunningApi, admin: httpx.AsyncClient
) -> None:
    for name, family in (await scraped(admin)).items():
        if name.endswith("_created"):
            continue  # the client library's own
        assert re.fullmatch(r"drayman_[a-z_]+", name), name
        assert family.documentation, name
        assert not NOT_BASE.search(name), name
        assert not re.search(r"_(seconds|bytes)_", name), f"{name}: the unit comes last"
        if family.type == "counter":
            assert any(sample.name == f"{name}_total" for sample in family.samples), name
        else:
            assert not name.endswith(("_total", "_count", "_sum", "_bucket")), name


# --- the dashboard ----------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(files("service").joinpath("grafana.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


async def test_dashboard_asks_for_metrics_that_there_are_and_leaves_none_out(
    busy: RunningApi, admin: httpx.AsyncClient
) -> None:
    found = await scraped(admin)
    samples = {sample.name for family in found.values() for sample in family.samples}
    made_beside = re.compile(r"_(created|count|sum)$")

    named = {name for _, told in expressions() for name in re.findall(r"drayman_[a-z_]+", told)}

    assert named <= samples
    assert {name for name in samples if not made_beside.search(name)} <= named


async def test_dashboard_groups_by_labels_that_there_are(
    busy: RunningApi, admin: httpx.AsyncClient
) -> None:
    found = await scraped(admin)
    labels = {
        sample.name: set(sample.labels) for family in found.values() for sample in family.samples
    }

    for title, told in expressions():
        [name] = set(re.findall(r"drayman_[a-z_]+", told))
        for group in re.findall(r" by \(([^)]*)\)", told):
            assert set(re.split(r", ?", group)) <= labels[name], (title, told)
        for wanted in re.findall(r"\{([^}]*)\}", told):
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|=|!~)", wanted))
            assert used <= labels[name], (title, told)


def test_panels_do_not_lie_on_each_other_and_have_a_unit() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"], panel["title"]
    assert len({panel["id"] for panel in panels()}) == len(panels())
