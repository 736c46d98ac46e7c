"""Fleet, Requests and Routing as an operator sees them: what fails turns red, and every request says why it went where it went."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.browser.conftest import DESKTOP, PHONE, SHOTS, Fleet, playwright, serve, shoot
from tests.support.gateway import KEY

expect = playwright.expect
SLOW_MS = 20_000
PATHS = ("/ui/fleet", "/ui/requests", "/ui/routing")

pytestmark = pytest.mark.timeout(300)


def test_signing_in_by_keyboard_and_out_again(chromium: Any, fleet: Fleet, judge: Callable[[Any], None]) -> None:
    page = chromium.new_context(base_url=fleet.gateway.url).new_page()
    page.goto("/")
    judge(page)
    shoot(page, "sign-in")
    page.keyboard.type("no such key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="not known to this gateway")).to_be_visible()
    judge(page)
    page.get_by_label("Admin key").fill(fleet.gateway.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/fleet")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/ui/login")
    page.goto("/ui/requests")
    assert "/ui/login" in page.url
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("path", PATHS)
def test_every_page_is_readable(
    fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None], path: str, viewport: dict[str, int], scheme: str
) -> None:
    end = fleet.busy()
    try:
        page = open_page(path, viewport, scheme)
        if path == "/ui/fleet":
            expect(page.locator("#plot-tokens canvas")).to_be_visible(timeout=SLOW_MS)
            page.wait_for_timeout(6000 if SHOTS else 0)  # for the picture: lines are made of time
        elif path == "/ui/requests":
            expect(page.locator("tbody tr").nth(20)).to_be_visible(timeout=SLOW_MS)
        else:
            page.get_by_label("Model or group").select_option("hx-chat")
            page.get_by_label("Prompt").fill("Which servers could answer this?")
            page.get_by_role("button", name="Explain").click()
            expect(page.locator("#explained tr.chosen")).to_be_visible(timeout=SLOW_MS)
        judge(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
        shoot(page, f"{path.rpartition('/')[2]}-{'phone' if viewport is PHONE else 'desktop'}-{scheme}")
    finally:
        end()


def test_the_theme_can_be_switched_and_is_remembered(open_page: Callable[..., Any]) -> None:
    page = open_page()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Switch between dark and light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.goto("/ui/routing")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_page_that_is_opened_later_shows_what_was_before(
    fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]
) -> None:
    for _ in range(40):
        assert fleet.ask("phi3").status_code == 200

    def written() -> float:
        answer = httpx.get(f"{fleet.gateway.url}/admin/history", headers={"authorization": f"Bearer {KEY}"}, timeout=30)
        return sum(value or 0 for value in answer.json()["endpoints"].get("llm-02", {}).get("completion_tokens_per_s", ()))

    give_up_s = time.monotonic() + 60
    while not written():  # until the step of ten seconds is over
        assert time.monotonic() < give_up_s
        time.sleep(0.2)
    opened = time.strftime("%H:%M:%S", time.gmtime())
    page = open_page(viewport={"width": 1280, "height": 1400})
    for plot, series in (("tokens", "llm-02"), ("requests", "llm-02"), ("waits", "p95"), ("load", "under way")):
        expect(page.locator(f"#plot-{plot} canvas")).to_be_visible(timeout=SLOW_MS)
        expect(page.locator(f"#plot-{plot} .u-legend")).to_contain_text(series)
    over = page.locator("#plot-tokens .u-over").bounding_box()
    legend = page.locator("#plot-tokens .u-legend .u-value")
    shown = {}
    for part in range(100):
        page.mouse.move(over["x"] + over["width"] * part / 100, over["y"] + 40)
        at, *values = legend.all_inner_texts()
        shown[at] = values[1]
    before = [value for at, value in shown.items() if at != "–" and at <= opened and value not in ("–", "0 tokens/s")]
    assert before, f"opened at {opened}: {shown}"
    judge(page)
    shoot(page, "fleet-history", full=True)


def test_what_is_left_of_a_minute_is_seen_to_go(fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]) -> None:
    page = open_page(viewport={"width": 1280, "height": 1400})
    card = page.locator("article.server", has=page.get_by_role("heading", name="llm-02"))
    requests, tokens = card.locator(".minute > div").all()
    expect(requests).to_contain_text("6 of 6 requests a minute left")
    expect(tokens).to_contain_text("1\u202f500 of 1\u202f500 tokens a minute left")
    for _ in range(7):  # by both workers, which know one sum; the last one waits ten seconds for its turn
        assert fleet.ask("phi3-limited").status_code == 200
    expect(requests).to_contain_text("0 of 6 requests a minute left", timeout=SLOW_MS)
    judge(page)
    shoot(page, "fleet-limits", full=True)
    phone = open_page("/ui/fleet", PHONE, "dark")
    expect(phone.locator(".minute > div").first).to_contain_text("of 6 requests a minute left")
    judge(phone)
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
    shoot(phone, "fleet-limits-phone", full=True)


def test_a_killed_server_turns_red_and_its_traffic_moves(fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]) -> None:
    page = open_page()
    card = page.locator("article.server", has=page.get_by_role("heading", name="llm-01"))
    expect(card.get_by_text("up", exact=True)).to_be_visible(timeout=SLOW_MS)
    end = fleet.busy()
    try:
        expect(page.locator("#plot-tokens canvas")).to_be_visible(timeout=SLOW_MS)
        fleet.servers["llm-01"].send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        expect(card.get_by_text("down", exact=True)).to_be_visible(timeout=SLOW_MS)
        print(f"red {time.monotonic() - killed_s:.2f} s after the kill")
        red = card.locator(".badge.bad").first.evaluate("one => getComputedStyle(one).color")
        expect(card).to_have_css("border-left-color", red)
        expect(card.get_by_role("alert").or_(card.locator(".notice.bad")).first).to_be_visible()
        shoot(page, "fleet-server-down")
        judge(page)
        assert {answer.headers["x-hx-endpoint"] for answer in (fleet.ask("llama3.2-3b") for _ in range(8))} == {"llm-02"}
        port = int(card.locator(".mono").inner_text().rpartition(":")[2])
        fleet.servers["llm-01"] = serve("openai", port, "llama3.2-3b")
        expect(card.get_by_text("up", exact=True)).to_be_visible(timeout=60_000)
    finally:
        end()


def test_a_request_is_opened_and_says_why_it_went_there(fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]) -> None:
    page = open_page("/ui/requests")
    answer = fleet.ask("hx-chat", "Count to 7")
    id = answer.headers["x-hx-decision-id"]
    row = page.locator(f"#r-{id}")
    expect(row).to_be_visible(timeout=SLOW_MS)  # it comes by itself
    row.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/requests/{id}")
    chosen = page.locator("tr.chosen")
    expect(chosen).to_contain_text(answer.headers["x-hx-endpoint"])
    assert re.search(r"\d+(\.\d+)? m?s", chosen.inner_text()), "its terms are seconds"
    expect(page.get_by_text("What would change it")).to_be_visible()
    judge(page)
    shoot(page, "request-desktop-light")


def test_a_server_is_drained_and_put_back(fleet: Fleet, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Drain llm-02").click()
    expect(page.get_by_role("status").filter(has_text="llm-02 is drained")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text("Drained by master")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("button", name="Put llm-02 back into service").click()
    expect(page.get_by_role("status").filter(has_text="llm-02 is back in service")).to_be_visible(timeout=SLOW_MS)
    give_up_s = time.monotonic() + 20
    while fleet.ask("phi3").status_code != 200:
        assert time.monotonic() < give_up_s


def test_what_is_looked_for_is_found_and_the_rest_is_not_shown(fleet: Fleet, open_page: Callable[..., Any]) -> None:
    fleet.ask("phi3")
    fleet.ask("llama3.2-3b")
    page = open_page("/ui/requests")
    page.locator("#filter summary").click()
    page.get_by_label("Model", exact=True).select_option("phi3")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**model=phi3**")
    expect(page.locator("tbody tr").first).to_be_visible(timeout=SLOW_MS)
    assert all("llama" not in text for text in page.locator("tbody tr td:nth-child(3)").all_inner_texts())


def test_a_page_whose_gateway_is_stopped_says_so(chromium: Any, fleet: Fleet) -> None:
    """The last test of this gateway: it ends it."""
    page = chromium.new_context(base_url=fleet.gateway.url).new_page()  # of its own: here the console has something to complain of
    page.goto("/")
    page.get_by_label("Admin key").fill(fleet.gateway.key)
    page.keyboard.press("Enter")
    expect(page.locator("#plot-tokens canvas")).to_be_visible(timeout=SLOW_MS)
    assert fleet.gateway.stop() == 0
    expect(page.locator("#lost")).to_contain_text("Connection lost", timeout=SLOW_MS)
    page.context.close()
