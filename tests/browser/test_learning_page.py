"""A group that learns, as an operator sees it: the challenger in shadow, who took whose place and why, and changing that by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.browser.conftest import DESKTOP, PHONE, Fleet, playwright, shoot
from tests.integration.routing.test_learned_live import Live, artifacts, servers, until
from tests.support.gateway import KEY

expect = playwright.expect
SLOW_MS = 30_000

pytestmark = pytest.mark.timeout(300)
__all__ = ["artifacts", "servers"]  # fixtures


@pytest.fixture(scope="module")
def live(servers: tuple[str, str], artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A gateway whose group is decided by an artifact that has it the wrong way round; one that has it right is at hand."""
    found = Live(*servers, tmp_path_factory.mktemp("state"), f', artifact: "{artifacts[1]}"')
    with found.process:
        until(lambda: found.standing()["champion"] != "", 30)
        yield found


@pytest.fixture(scope="module")
def fleet(live: Live) -> Fleet:
    return Fleet(live.process, {})


def test_a_challenger_is_seen_in_shadow_takes_over_by_measure_and_is_moved_by_hand(
    live: Live, artifacts: Any, open_page: Callable[..., Any], judge: Callable[[Any], None]
) -> None:
    page = open_page("/ui/routing")
    page.on("dialog", lambda dialog: dialog.accept())
    group = page.locator("#learned-0")
    rows = group.locator("tbody tr")
    wrong = live.standing()["champion"]
    expect(rows.filter(has_text="champion")).to_contain_text(wrong)
    live.router("promote", str(artifacts[0]))
    expect(rows.filter(has_text="challenger")).to_have_count(1, timeout=SLOW_MS)  # it comes by itself
    right = rows.filter(has_text="challenger").locator("code").inner_text()

    live.judged(20)
    expect(group.get_by_text("of 40")).to_be_visible()
    expect(group.locator("dd").first).to_contain_text("20", timeout=SLOW_MS)
    expect(group.locator("dd").nth(1)).to_contain_text("in squared error")
    expect(group.locator("dd").nth(2)).to_contain_text("%", timeout=SLOW_MS)
    expect(group.get_by_text("decisions in the last hour")).to_be_visible()
    judge(page)
    shoot(page, "learning-desktop-light", full=True)

    live.judged(40)
    expect(rows.filter(has_text="challenger").locator("code")).to_have_text(wrong, timeout=SLOW_MS)
    story = group.locator("ul li")
    expect(story.filter(has_text="promoted").filter(has_text=right)).to_contain_text("its squared error was smaller by")
    expect(story.filter(has_text="demoted").filter(has_text=wrong)).to_contain_text("its squared error was larger by")
    for viewport, scheme in ((DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")):
        other = open_page("/ui/routing", viewport, scheme)
        expect(other.locator("#learned-0")).to_be_visible()
        judge(other)
        assert other.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
        table = other.locator("#learned-0 .scroll")
        assert table.evaluate("one => one.scrollWidth <= one.clientWidth"), "every button is in sight"
        shoot(other, f"learning-{'phone' if viewport is PHONE else 'desktop'}-{scheme}", full=True)

    group.get_by_role("button", name=f"Promote now {wrong}").click()
    expect(page.get_by_role("status").filter(has_text=f"{wrong} decides in g")).to_be_visible(timeout=SLOW_MS)
    expect(rows.filter(has_text="champion")).to_contain_text(wrong)
    expect(story.first).to_contain_text("by hand, master")
    until(lambda: live.standing()["champion"] == wrong)
    group.get_by_role("button", name="Demote the champion of g").click()
    expect(rows.filter(has_text="champion")).to_contain_text(right, timeout=SLOW_MS)
    until(lambda: live.standing()["champion"] == right)
    group.get_by_role("button", name=f"Run in shadow {wrong}").click()
    expect(rows.filter(has_text="challenger")).to_contain_text(wrong, timeout=SLOW_MS)


def test_the_api_tells_the_same_and_refuses_what_does_not_go(live: Live, fleet: Fleet) -> None:
    def call(method: str, path: str, body: Any = None, key: str = KEY) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.request(method, f"{live.process.url}/admin/learning{path}", json=body, headers=headers, timeout=30)

    found = call("GET", "").json()["data"][0]
    assert (found["group"], found["models"], found["quality"]) == ("g", ["weak", "strong"], 0.7)
    roles = {one["role"]: one["version"] for one in found["artifacts"]}
    assert found["routed"]["decisions"] >= 60 and found["trial"]["needed"] == 40
    assert call("POST", "/g/promote", {"version": roles["champion"][:8], "now": True}).json()["changed"] is False
    assert call("POST", "/g/promote", {"version": "0" * 12}).json()["error"]["param"] == "version"
    assert call("POST", "/nobody/demote").status_code == 404
    assert call("GET", "", key="alice-test-key").status_code == 403
    done = call("POST", "/g/promote", {"version": roles["challenger"], "now": True}).json()
    assert (done["role"], done["changed"]) == ("champion", True)
    until(lambda: live.standing()["champion"] == roles["challenger"][:12])
