"""The dashboard, as people use it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, expect

from service.client import Client
from tests.browser.conftest import HOSTILE
from tests.support.dashboard import Board

PAGES = {
    "/": "Overview",
    "/jobs": "Jobs",
    "/queues": "Queues",
    "/dead-letters": "Dead letters",
    "/schedules": "Schedules",
    "/workers": "Workers",
    "/submit?type=shop.order": "Submit a job",
    "/jobs/{night}": "shop.night",
    "/jobs/{invoice}": "shop.invoice",
    "/jobs/{failed}": "shop.fail",
}
VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 800}},
    "dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}


def heading(page: Any, name: str) -> Any:
    return page.get_by_role("heading", level=1, name=name)


def error_at(page: Any, label: str) -> Any:
    """Return where the form says what is wrong with one field."""
    told = page.get_by_label(label, exact=True).get_attribute("aria-describedby")
    return page.locator(f"#{told.split()[-1]}")


# --- signing in -------------------------------------------------------------------------------


def test_the_link_signs_in_and_its_token_leaves_the_address(page: Any, drayman: Board) -> None:
    assert page.url == f"{drayman.url}/"
    [cookie] = page.context.cookies([f"{drayman.url}/v1/jobs"])
    assert cookie["value"] == drayman.token
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/v1")
    assert page.evaluate("document.cookie") == ""
    assert (
        page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])").find("dray_") < 0
    )

    page.reload()

    expect(heading(page, "Overview")).to_be_visible()


def test_the_link_signs_in_where_the_page_is_open_already(browser: Any, drayman: Board) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(drayman.url)
    expect(heading(page, "Sign in to Drayman")).to_be_visible()

    page.goto(f"{drayman.url}/#token=dray_wrong")
    expect(page.get_by_role("alert")).to_contain_text("This link is not valid")
    page.goto(drayman.link)
    expect(heading(page, "Overview")).to_be_visible()

    assert page.url == f"{drayman.url}/"
    context.close()


def test_a_wrong_link_leaves_those_signed_in_who_are(page: Any, drayman: Board) -> None:
    page.goto(f"{drayman.url}/#token=dray_wrong")
    expect(page.get_by_text("This link is not valid")).to_be_visible()
    expect(heading(page, "Overview")).to_be_visible()
    assert page.url == f"{drayman.url}/"

    page.goto("about:blank")
    page.goto(f"{drayman.url}/queues#token=dray_wrong")

    expect(page.get_by_text("This link is not valid")).to_be_visible()
    expect(heading(page, "Queues")).to_be_visible()


def test_a_link_without_a_token_asks_for_it_and_says_where_it_is(
    browser: Any, drayman: Board
) -> None:
    context = browser.new_context()
    page = context.new_page()

    page.goto(f"{drayman.url}/queues")
    page.get_by_text("Where is the token?").click()
    expect(page.get_by_text("drayman token create")).to_be_visible()
    page.get_by_label("Token", exact=True).fill("dray_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    page.get_by_label("Token", exact=True).fill(drayman.token)
    page.get_by_role("button", name="Sign in").click()

    expect(heading(page, "Queues")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(heading(page, "Sign in to Drayman")).to_be_visible()
    context.close()


def test_a_page_of_another_site_can_use_the_session_for_nothing(
    page: Any, drayman: Board, client: Client, neighbour: str
) -> None:
    """The worst place: another port of this machine, which cookies take for the same site."""
    other = page.context.new_page()
    other.goto(neighbour)

    with other.expect_response(f"{drayman.url}/v1/jobs") as answer:
        other.evaluate(
            """url => fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include',
                 body: JSON.stringify({type: 'shop.echo', labels: {from: 'elsewhere'}})})""",
            f"{drayman.url}/v1/jobs",
        )
    with pytest.raises(Error):
        other.evaluate(
            "url => fetch(url, {credentials: 'include'}).then(answer => answer.text())",
            f"{drayman.url}/v1/queues",
        )

    assert answer.value.status == 403
    assert list(client.jobs(label="from=elsewhere")) == []


def test_a_token_that_is_revoked_ends_the_session(browser: Any, drayman: Board) -> None:
    token, record = drayman.tokens.create("default", ["read"], "brief")
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{drayman.url}/#token={token}")
    expect(heading(page, "Overview")).to_be_visible()
    expect(page.get_by_role("link", name="Submit a job")).to_have_count(0)

    drayman.tokens.revoke(record.id)

    expect(page.get_by_role("alert")).to_contain_text("The session is over")
    context.close()


# --- every page -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view",
    ["light", *(pytest.param(view, marks=pytest.mark.soak) for view in ("dark", "phone"))],
)
def test_every_page_has_no_serious_fault_for_those_who_see_or_reach_it_otherwise(
    browser: Any, drayman: Board, shop: dict[str, str], view: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(reduced_motion="reduce", **VIEWS[view])
    page = context.new_page()
    page.goto(drayman.link)
    heading(page, "Overview").wait_for()
    found = []
    for path, name in PAGES.items():
        page.goto(drayman.url + path.format(**shop))
        heading(page, name).wait_for()
        page.wait_for_load_state("load")
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        results = Axe().run(page).response["violations"]
        found += [(path, "scrolls sideways", [])] if wide else []
        found += [
            (path, one["id"], [node["target"] for node in one["nodes"]][:3])
            for one in results
            if one["impact"] in ("serious", "critical")
        ]
    context.close()
    assert found == []


def test_no_page_is_wider_than_a_phone(browser: Any, drayman: Board, shop: dict[str, str]) -> None:
    def on_ray(route: Any) -> None:
        """Name the nodes as Ray does."""
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("node-a", "0123abcd" * 7))

    context = browser.new_context(**VIEWS["phone"])
    page = context.new_page()
    page.route("**/v1/workers", on_ray)
    page.goto(drayman.link)
    heading(page, "Overview").wait_for()
    for path, name in PAGES.items():
        page.goto(drayman.url + path.format(**shop))
        heading(page, name).wait_for()
        page.wait_for_load_state("load")
        if path == "/workers":
            expect(page.get_by_role("heading", name="0123abcd", exact=True)).to_have_attribute(
                "title", "0123abcd" * 7
            )
            expect(page.get_by_role("button", name="Drain").first).to_be_in_viewport(ratio=1)
        if path == "/":
            expect(page.get_by_role("row").filter(has_text="shop.echo")).not_to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        cut = page.evaluate(
            "[...document.querySelectorAll('.scroll:has(> table)')]"
            ".filter(one => one.scrollWidth > one.clientWidth).length"
        )
        assert cut == 0, path
    context.close()


def test_hostile_text_is_shown_as_text_wherever_it_appears(
    page: Any, drayman: Board, shop: dict[str, str]
) -> None:
    for path in (
        "/",
        "/jobs",
        "/jobs?label=" + "note%3D%3Cimg%20src%3Dx%20onerror%3D%22window.pwned%3D1%22%3E",
        "/jobs?type=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
        "/dead-letters?type=shop.fail&queue=default&cause=error",
        f"/jobs/{shop['failed']}",
        f"/jobs/{shop['echo']}",
        "/jobs/%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
        "/schedules/%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
        "/submit?type=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E",
    ):
        page.goto(drayman.url + path)
        page.locator("main :is(h1, h3)").first.wait_for()
        assert page.evaluate("window.pwned") is None, path
        assert page.locator("main img[src=x], main script").count() == 0, path
    page.goto(f"{drayman.url}/jobs/{shop['echo']}")
    expect(page.locator(".log").first).to_contain_text(HOSTILE)
    expect(page.locator(".facts")).to_contain_text(HOSTILE)
    page.get_by_role("button", name="page.html").click()

    expect(page.locator("dialog .log")).to_contain_text("<h1>")
    assert page.evaluate("window.pwned") is None


# --- what people do ---------------------------------------------------------------------------


def test_a_job_is_submitted_from_its_form_and_its_pdf_is_seen(page: Any) -> None:
    page.keyboard.press("c")
    page.get_by_label("Find a job type").fill("invoice")
    page.get_by_role("button", name="shop.invoice").click()
    page.get_by_label("pages", exact=True).fill("many")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_text("write a whole number")).to_be_visible()
    page.get_by_label("pages", exact=True).fill("99")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(error_at(page, "pages")).to_contain_text("20")
    page.get_by_label("pages", exact=True).fill("3")

    page.get_by_role("button", name="Submit", exact=True).click()

    expect(heading(page, "shop.invoice")).to_contain_text("completed")
    expect(page.locator("iframe")).to_have_attribute("src", re.compile("^blob:"))
    with page.context.expect_page() as tab:
        page.get_by_role("link", name="Open in a tab").click()
    assert tab.value.evaluate("document.contentType") == "application/pdf"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download invoice.pdf").click()
    assert download.value.path().read_bytes().startswith(b"%PDF")


def test_a_job_is_submitted_with_the_keyboard_alone(page: Any) -> None:
    page.keyboard.press("c")
    expect(page.get_by_label("Find a job type")).to_be_focused()
    page.keyboard.type("shop.echo")
    page.keyboard.press("Enter")
    expect(page.get_by_label("text")).to_be_focused()
    page.keyboard.type("by hand")

    page.keyboard.press("Enter")

    expect(heading(page, "shop.echo")).to_contain_text("completed")


def test_a_link_to_the_form_of_no_type_says_so(page: Any, drayman: Board) -> None:
    page.goto(f"{drayman.url}/submit?type=nope")

    expect(page.get_by_text("There is no such type")).to_be_visible()


def test_a_form_follows_its_schema_through_lists_and_objects(page: Any, drayman: Board) -> None:
    page.goto(f"{drayman.url}/submit?type=shop.order")
    page.get_by_label("customer").fill("Ada")
    page.get_by_label("article").fill("tea")
    page.get_by_label("size").select_option("large")
    page.get_by_role("button", name="Add address").click()
    page.get_by_label("street").fill("Mill Lane")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(error_at(page, "city")).to_be_visible()
    page.get_by_label("city", exact=True).fill("Ely")
    page.get_by_label("gift").check()
    page.get_by_label("due").fill("2026-12-24")
    page.get_by_role("button", name="As JSON").click()
    written = json.loads(page.get_by_label("Params as JSON").input_value())
    page.get_by_role("button", name="As a form").click()
    expect(page.get_by_label("street")).to_have_value("Mill Lane")

    page.get_by_role("button", name="Submit", exact=True).click()

    expect(heading(page, "shop.order")).to_contain_text("completed")
    assert written == {
        "customer": "Ada",
        "lines": [{"article": "tea", "size": "large"}],
        "address": {"street": "Mill Lane", "city": "Ely"},
        "gift": True,
        "due": "2026-12-24",
    }


def test_a_running_job_moves_without_a_reload_until_it_is_cancelled(
    page: Any, drayman: Board, client: Client
) -> None:
    job = client.submit("shop.sleep", {"seconds": 60})
    page.goto(f"{drayman.url}/jobs")
    page.evaluate("window.still = 'the same page'")
    page.locator(f"a[href='/jobs/{job['id']}']").click()
    expect(page.get_by_text(re.compile("shelf .* of 40"))).to_be_visible()

    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()

    expect(heading(page, "shop.sleep")).to_contain_text("cancelled")
    assert page.evaluate("window.still") == "the same page"


def test_pages_keep_up_while_the_stream_of_events_is_down(
    page: Any, drayman: Board, client: Client
) -> None:
    page.route("**/v1/events*", lambda route: route.abort())
    page.goto(f"{drayman.url}/jobs?label=when=late")
    expect(page.get_by_text("No job matches")).to_be_visible()

    job = client.submit("shop.echo", {"text": "late"}, labels={"when": "late"})

    expect(page.locator(f"a[href='/jobs/{job['id']}']")).to_contain_text("completed")


def test_a_failed_job_says_why_and_is_redriven_with_its_like(
    page: Any, drayman: Board, client: Client, tmp_path: Any
) -> None:
    job = client.submit("shop.reject", {"message": "no such article"})
    client.wait(job["id"], timeout_s=30)
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.get_by_role("button", name="shop.reject").click()
    expect(page.get_by_text("no such article")).to_be_visible()

    head = page.locator(".group > header", has_text="shop.reject")
    head.get_by_role("button", name="Redrive", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Redrive").click()

    expect(page.get_by_text("1 job will be tried again")).to_be_visible()
    page.goto(f"{drayman.url}/jobs/{job['id']}")
    expect(page.get_by_text("It failed for good after 2 attempts.")).to_be_visible()
    page.goto(f"{drayman.url}/dead-letters?type=shop.reject")
    page.get_by_role("button", name="Purge these", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Purge").click()
    expect(page.get_by_text("No dead letters")).to_be_visible()


def test_a_failed_job_is_redriven_with_other_params(
    page: Any, drayman: Board, client: Client
) -> None:
    job = client.submit("shop.flaky", {"failures": 99})
    client.wait(job["id"], timeout_s=30)
    page.goto(f"{drayman.url}/dead-letters?type=shop.flaky")
    page.get_by_role("button", name="Edit and redrive").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("failures")).to_have_value("99")
    dialog.get_by_role("button", name="As JSON").click()
    dialog.get_by_label("Params as JSON").fill('{"failures": "many"}')
    dialog.get_by_role("button", name="Redrive", exact=True).click()
    expect(dialog.get_by_role("alert").filter(has_text="failures: ")).to_be_visible()
    dialog.get_by_label("Params as JSON").fill('{"failures": ')
    dialog.get_by_role("button", name="As a form").click()
    expect(dialog.get_by_role("alert").filter(has_text="no JSON")).to_be_visible()
    dialog.get_by_label("Params as JSON").fill('{"failures": 98}')
    dialog.get_by_role("button", name="As a form").click()
    dialog.get_by_label("failures").fill("0")

    dialog.get_by_role("button", name="Redrive", exact=True).click()

    expect(page.get_by_text("No dead letters")).to_be_visible()
    assert client.wait(job["id"], timeout_s=30)["status"] == "completed"


def test_groups_of_dead_letters_say_why_before_they_are_opened(
    page: Any, drayman: Board, client: Client
) -> None:
    for message in ("no such article", "no such shelf"):
        client.wait(client.submit("shop.reject", {"message": message})["id"], timeout_s=30)

    page.goto(f"{drayman.url}/dead-letters")

    group = page.locator(".group", has_text="shop.reject")
    expect(group.locator(".fold")).to_contain_text("no such shelf")
    page.goto(drayman.url)
    expect(page.get_by_role("region", name="Why jobs failed")).to_contain_text("no such shelf")
    client.redrive(type="shop.reject")


def test_a_queue_is_paused_and_goes_on_again(page: Any, drayman: Board, client: Client) -> None:
    page.goto(f"{drayman.url}/queues")
    slow = page.get_by_role("region", name="Queue slow")
    slow.get_by_role("button", name="Pause").click()
    expect(slow.get_by_text("paused", exact=True)).to_be_visible()
    job = client.submit("shop.echo", {}, queue="slow")
    page.goto(f"{drayman.url}/jobs/{job['id']}")
    expect(page.get_by_text("queue slow is paused").first).to_be_visible()
    page.goto(f"{drayman.url}/queues")

    slow.get_by_role("button", name="Resume").click()

    expect(slow.get_by_role("button", name="Pause")).to_be_visible()
    assert client.wait(job["id"], timeout_s=30)["status"] == "completed"
    slow.get_by_role("button", name="Limits").click()
    page.get_by_role("dialog").get_by_label("Unfinished jobs").fill("77")
    page.get_by_role("dialog").get_by_role("button", name="Set").click()
    expect(slow).to_contain_text("of 77 unfinished jobs")


def test_a_schedule_is_made_run_and_deleted(page: Any, drayman: Board, client: Client) -> None:
    page.goto(f"{drayman.url}/schedules")
    page.get_by_role("button", name="New schedule").click()
    page.get_by_label("Job type").select_option("shop.echo")
    page.get_by_label("Name").fill("nightly")
    page.get_by_label("Cron line").fill("99 * * * *")
    page.get_by_role("button", name="Create").click()
    expect(error_at(page, "Cron line")).not_to_be_empty()
    page.get_by_label("Cron line").fill("0 2 * * *")
    page.get_by_label("text").fill("from the schedule")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("link", name="nightly").click()
    expect(page.get_by_role("listitem").filter(has_text="2:00")).not_to_have_count(0)

    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_text("Its job is submitted")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()

    expect(page.get_by_text("No schedules")).to_be_visible()
    assert "nightly" in {job["schedule"] for job in client.jobs(type="shop.echo")}


def test_steps_files_and_what_each_made_are_seen(
    page: Any, drayman: Board, shop: dict[str, str]
) -> None:
    page.goto(f"{drayman.url}/jobs/{shop['night']}")
    page.get_by_role("button", name="chart: succeeded").click()
    expect(page.get_by_role("row").filter(has_text="picture.png")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="invoice.pdf")).to_have_count(0)

    page.goto(f"{drayman.url}/jobs/{shop['film']}")
    expect(page.locator("video")).to_have_js_property("videoWidth", 320)
    page.goto(f"{drayman.url}/jobs/{shop['picture']}")
    expect(page.locator(".preview img")).to_have_js_property("naturalWidth", 640)
    page.get_by_role("button", name="shelves.csv").click()
    expect(page.locator("dialog .log")).to_contain_text("29,841")


def test_the_keyboard_is_enough(page: Any, drayman: Board, shop: dict[str, str]) -> None:
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    for key, name in (("q", "Queues"), ("w", "Workers"), ("s", "Schedules"), ("j", "Jobs")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(heading(page, name)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("shop.night")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("type=shop.night"))
    page.keyboard.press("Escape")
    expect(page.locator("[data-row]")).to_have_count(1)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{drayman.url}/jobs/{shop['night']}")

    page.keyboard.press("t")

    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize(
    ("path", "width"),
    [
        ("/jobs", 390),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (("/jobs", 1280), ("/submit", 390), ("/submit", 1280))
        ),
    ],
)
def test_every_page_says_that_drayman_does_not_answer_until_it_does(
    page: Any, drayman: Board, width: int, path: str
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(drayman.url + path)
    away = page.get_by_role("status").filter(has_text=re.compile(r"No answer since \d\d:\d\d:\d\d"))
    expect(away).to_have_count(0)

    page.route("**/*", lambda route: route.abort())

    expect(away).to_be_in_viewport(timeout=20_000)
    page.unroute("**/*")
    expect(away).to_have_count(0)
    managerless = page.get_by_role("status").filter(has_text="The queue manager is away")
    refused = {"status": 503, "json": {"type": "/problems/unavailable"}}
    page.route(re.compile("/v1/|/readyz"), lambda route: route.fulfill(**refused))
    expect(managerless).to_be_in_viewport(timeout=20_000)
    page.unroute_all()
    expect(managerless).to_have_count(0)


def test_the_end_of_an_id_finds_a_job_that_is_listed(
    page: Any, drayman: Board, client: Client
) -> None:
    job = client.submit("shop.echo", {})
    page.goto(f"{drayman.url}/jobs")
    page.locator(f"a[href='/jobs/{job['id']}']").wait_for()

    page.get_by_label("Search jobs").fill(job["id"][-8:])
    page.keyboard.press("Enter")

    expect(page).to_have_url(f"{drayman.url}/jobs/{job['id']}")


def test_the_first_paint_comes_at_once(page: Any) -> None:
    page.reload()
    heading(page, "Overview").wait_for()

    painted_ms = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )

    print(f"first paint after {painted_ms:.0f} ms")
    assert painted_ms < 5_000


def test_who_has_scrolled_goes_on_seeing_the_same_rows(
    page: Any, drayman: Board, client: Client
) -> None:
    for _ in client.submit_many([{"type": "shop.tick"}] * 60):
        pass
    page.goto(f"{drayman.url}/jobs")
    expect(page.locator("[data-row='5']")).to_be_attached()
    page.evaluate("scrollTo(0, 900)")
    row = page.locator("[data-row='30']")
    expect(row).to_be_attached()
    seen, top = row.get_attribute("href"), row.bounding_box()["y"]

    client.submit("shop.tick", {})

    expect(page.locator("[data-row='31']")).to_have_attribute("href", seen)
    assert abs(page.locator(f"a[href='{seen}']").bounding_box()["y"] - top) < 1


# --- logs and params --------------------------------------------------------------------------


def test_the_log_of_a_running_job_grows_where_it_is_read(
    page: Any, drayman: Board, client: Client, tmp_path: Path
) -> None:
    pen, paper = tmp_path / "go", tmp_path / "over"
    job = client.submit("shop.diary", {"go": str(pen), "over": str(paper), "note": HOSTILE})
    page.goto(f"{drayman.url}/jobs/{job['id']}")
    log = page.locator(".log")
    expect(log).to_contain_text("line 399\n")
    expect(heading(page, "shop.diary")).to_contain_text("processing")
    log.evaluate("node => { node.scrollTop = 500; }")

    pen.touch()

    expect(log).to_contain_text("and then")
    assert log.evaluate("node => node.scrollTop") == 500
    log.evaluate("node => { node.scrollTop = node.scrollHeight; }")
    paper.touch()
    expect(log).to_contain_text("the end")
    expect(heading(page, "shop.diary")).to_contain_text("completed")
    assert log.evaluate("node => node.scrollTop + node.clientHeight >= node.scrollHeight - 2")
    assert log.evaluate("node => node.childNodes.length") == 2
    shown = page.get_by_role("region", name="Params").locator("pre")
    expect(shown).to_contain_text(f'"go": "{pen}"')
    expect(shown).to_contain_text(json.dumps(HOSTILE))
    assert page.evaluate("window.pwned") is None


def test_large_params_are_shown_in_part(page: Any, drayman: Board, client: Client) -> None:
    job = client.submit("shop.echo", {"text": "x" * 100_000})

    page.goto(f"{drayman.url}/jobs/{job['id']}")

    shown = page.get_by_role("region", name="Params").locator("pre")
    expect(shown).to_contain_text("the rest is left out")
    assert len(shown.text_content()) < 66_000


def test_a_stream_that_has_nothing_more_to_tell_is_not_asked_for_again(
    page: Any, drayman: Board, shop: dict[str, str]
) -> None:
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if "/events" in one.url else None)
    page.route("**/jobs/*/events", lambda route: route.fulfill(status=204))
    page.goto(f"{drayman.url}/jobs/{shop['failed']}")
    expect(heading(page, "shop.fail")).to_be_visible()

    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    with page.expect_response(re.compile("/attempts$")):
        pass

    assert len([url for url in asked if shop["failed"] in url]) == 1
