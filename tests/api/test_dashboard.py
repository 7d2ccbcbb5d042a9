"""What the dashboard stands on: the page and its files, the cookie, and the overview."""

import re
from typing import Any

import httpx
import pytest

from service.auth import cookie_name
from service.routes.dashboard import PATHS
from tests.support.api import RunningApi

GREET: dict[str, Any] = {"type": "greet", "params": {"name": "Ada"}}
OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def browser(api: RunningApi) -> httpx.AsyncClient:
    """A client as a browser is: it has a cookie and no header, and says where a page is from."""
    token, _ = api.tokens.create("acme", ["submit", "read"])
    client = api.anonymous()
    signed_in = await client.post("/v1/session", json={"token": token}, headers=OURS)
    assert signed_in.json() == {"tenant": "acme", "scopes": ["read", "submit"]}
    return client


# --- the page and its files -------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_the_page_is_the_same_at_each_of_its_addresses(api: RunningApi, path: str) -> None:
    client = api.anonymous()

    page = await client.get(path.format(job_id="a", name="b"))

    assert page.text == (await client.get("/")).text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert page.headers["cache-control"] == "no-cache"


async def test_an_address_that_is_no_page_gets_the_page_in_a_browser_and_a_problem_elsewhere(
    api: RunningApi,
) -> None:
    client = api.anonymous()
    as_browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

    page = await client.get("/nope", headers=as_browser)
    problems = [await client.get("/nope"), await client.get("/v1/nope", headers=as_browser)]

    assert (page.status_code, page.text) == (404, (await client.get("/")).text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert {one.status_code for one in problems} == {404}
    assert {one.headers["content-type"] for one in problems} == {"application/problem+json"}


async def test_what_the_page_loads_is_there_and_its_own(api: RunningApi) -> None:
    client = api.anonymous()
    page = (await client.get("/")).text

    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    answers = [await client.get(link) for link in links if link != "/docs"]

    assert len(answers) > 10
    assert all(link.startswith("/") for link in links)
    assert {answer.status_code for answer in answers} == {200}
    assert all("immutable" in answer.headers["cache-control"] for answer in answers)
    assert re.findall(r"<script(?! (?:type=\"module\" )?src=)|<style|\son\w+=", page) == []


async def test_no_module_parses_html_or_names_another_host(api: RunningApi) -> None:
    client = api.anonymous()
    page = (await client.get("/")).text

    for link in set(re.findall(r'"(/assets/[^"]+\.(?:js|css))"', page)):
        text = (await client.get(link)).text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, link


@pytest.mark.parametrize(
    "path",
    [
        "/assets/0000000000000000/main.js",
        "/assets/{version}/nothing.js",
        "/assets/{version}/__init__.py",
        "/assets/{version}/../app.py",
        "/assets/{version}/%2e%2e%2fapp.py",
        "/assets/{version}//etc/passwd",
    ],
)
async def test_a_file_that_is_none_of_the_dashboards_is_not_found(
    api: RunningApi, path: str
) -> None:
    client = api.anonymous()
    page = (await client.get("/")).text
    found = re.search(r"/assets/(\w+)/", page)
    assert found is not None

    answer = await client.get(path.format(version=found[1]))

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


# --- the cookie -------------------------------------------------------------------------------


async def test_the_cookie_is_for_the_api_alone_and_no_script_reads_it(api: RunningApi) -> None:
    token, _ = api.tokens.create("acme", ["read"])

    plain = await api.anonymous(OURS).post("/v1/session", json={"token": token})
    secret = await api.anonymous(OURS | {"X-Forwarded-Proto": "https"}).post(
        "/v1/session", json={"token": token}
    )

    assert plain.headers["set-cookie"] == (f"drayman={token}; Path=/v1; HttpOnly; SameSite=Strict")
    assert secret.headers["set-cookie"].endswith("; Secure")
    assert plain.headers["cache-control"] == "no-store"


async def test_with_the_cookie_a_browser_reads_and_submits(browser: httpx.AsyncClient) -> None:
    made = await browser.post("/v1/jobs", json=GREET, headers=OURS)
    batch = await browser.post("/v1/jobs/batch", content='{"type": "greet"}', headers=OURS)

    assert (made.status_code, batch.status_code) == (202, 202)
    assert (await browser.get(f"/v1/jobs/{made.json()['id']}", headers=OURS)).status_code == 200
    assert (await browser.get("/v1/session", headers=OURS)).json()["tenant"] == "acme"


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"Sec-Fetch-Site": "cross-site"}),
        ("GET", {"Sec-Fetch-Site": "same-site"}),
        ("POST", {"Sec-Fetch-Site": "cross-site"}),
        ("POST", {"Sec-Fetch-Site": "same-site", "Origin": "http://drayman.test"}),
        ("POST", {"Sec-Fetch-Site": "none"}),
        ("POST", {"Origin": "http://evil.test"}),
        ("POST", {"Origin": "null"}),
        ("POST", {"Origin": "http://drayman.test.evil.test"}),
        ("POST", {"Origin": "http://drayman.test:8000"}),
        ("POST", {}),
    ],
)
async def test_the_cookie_counts_for_nothing_from_another_origin(
    api: RunningApi, browser: httpx.AsyncClient, method: str, headers: dict[str, str]
) -> None:
    answers = [
        await browser.request(method, "/v1/jobs", json=GREET, headers=headers),
        await browser.request(
            method, "/v1/jobs/x" if method == "GET" else "/v1/jobs/x/cancel", headers=headers
        ),
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert (await browser.get("/v1/jobs", headers=OURS)).json()["jobs"] == []


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("GET", {"Sec-Fetch-Site": "none"}),
        ("POST", {"Origin": "http://drayman.test"}),
        ("POST", {"Sec-Fetch-Site": "same-origin"}),
    ],
)
async def test_the_cookie_counts_where_the_page_is_ours(
    browser: httpx.AsyncClient, method: str, headers: dict[str, str]
) -> None:
    answer = await browser.request(method, "/v1/jobs", json=GREET, headers=headers)

    assert answer.status_code < 300


async def test_nobody_is_signed_in_by_a_page_of_another_site(api: RunningApi) -> None:
    token, _ = api.tokens.create("acme", ["read"])

    answer = await api.anonymous({"Sec-Fetch-Site": "cross-site"}).post(
        "/v1/session", json={"token": token}
    )

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"token": "dray_" + "x" * 43}, 401),
        ({"token": ""}, 401),
        ({"token": "x; Domain=evil.test"}, 401),
        ({"token": 7}, 422),
        ({}, 422),
        ({"token": "x", "more": 1}, 422),
    ],
)
async def test_no_cookie_is_set_for_what_is_no_token(
    api: RunningApi, body: Any, status: int
) -> None:
    answer = await api.anonymous(OURS).post("/v1/session", json=body)

    assert answer.status_code == status
    assert "set-cookie" not in answer.headers


async def test_signing_out_lets_the_browser_forget(browser: httpx.AsyncClient) -> None:
    answer = await browser.delete("/v1/session", headers=OURS)

    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await browser.get("/v1/session", headers=OURS)).status_code == 401


async def test_a_header_ranks_before_the_cookie(
    api: RunningApi, browser: httpx.AsyncClient
) -> None:
    token, _ = api.tokens.create("globex", ["read"])

    answer = await browser.get("/v1/session", headers={"Authorization": f"Bearer {token}"})

    assert answer.json()["tenant"] == "globex"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"127.0.0.1:8000", b"drayman_8000"),
        (b"[::1]:8001", b"drayman_8001"),
        (b"jobs.example.org", b"drayman"),
        (b"[::1]", b"drayman"),
        (b"a:b; Domain=x", b"drayman"),
        (b"", b"drayman"),
    ],
)
def test_two_draymans_on_one_machine_have_a_cookie_each(host: bytes, name: bytes) -> None:
    assert cookie_name(host) == name


# --- the overview -----------------------------------------------------------------------------


async def test_the_overview_counts_what_ended_lately(
    api: RunningApi, admin: httpx.AsyncClient
) -> None:
    for _ in range(3):
        await admin.post("/v1/jobs", json=GREET)
    await api.worker.succeed("hello")
    await api.worker.fail("no")

    found = (await admin.get("/v1/overview")).json()

    ended = [sum(counts) for counts in zip(*found["recent"]["ended"], strict=True)]
    assert ended == [1, 1, 0]
    assert found["recent"]["wait_s"]["p50"] >= 0
    assert found["workers"]["alive"] == 1


async def test_the_overview_of_a_tenant_is_of_its_own_jobs(api: RunningApi) -> None:
    acme, globex = api.client("acme"), api.client("globex")
    await acme.post("/v1/jobs", json=GREET)
    await api.worker.succeed("hello")

    seen = [(await client.get("/v1/overview")).json()["recent"] for client in (acme, globex)]

    assert [sum(map(sum, one["ended"])) for one in seen] == [1, 0]
    assert seen[1]["run_s"] is None
