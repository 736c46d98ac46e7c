"""Usage, Keys, RAG, Playground and Config as an administrator uses them: what is done there holds for clients at once."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.browser.conftest import DESKTOP, PHONE, SHOTS, Fleet, playwright, serve, shoot
from tests.support import required
from tests.support.gateway import KEY, GatewayProcess, free_port

from hx_gateway.local import tiny

expect = playwright.expect
SLOW_MS = 20_000
PATHS = ("usage", "keys", "rag", "playground", "config")
LOOKS = [(DESKTOP, "light"), (PHONE, "dark")] + ([(DESKTOP, "dark"), (PHONE, "light")] if SHOTS else [])
ADMIN = {"authorization": f"Bearer {KEY}"}
DOCUMENTS = [
    {"id": "door", "text": "# Doors\n\nThe door opens at nine and closes at five.", "format": "markdown", "metadata": {"year": 2024}},
    {"id": "lamp", "chunks": ["The lamp is switched on at dusk.", "It needs a new bulb every year."]},
]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A real llama.cpp, a scripted chat server and one for embeddings behind a gateway of two workers, with documents."""
    required.llamacpp()
    ports = {name: free_port() for name in ("llm-01", "slow", "orc")}
    servers = {
        "llm-01": serve("openai", ports["llm-01"], "llama3.2-3b", "phi3"),
        "slow": serve("openai", ports["slow"], "qwen3", token_s=0.02),
        "orc": serve("ollama", ports["orc"], "mxbai-embed-large"),
    }
    config = f"""
endpoints:
  llm-01: {{url: "http://127.0.0.1:{ports["llm-01"]}", provider: openai}}
  slow: {{url: "http://127.0.0.1:{ports["slow"]}", provider: openai}}
  orc: {{url: "http://127.0.0.1:{ports["orc"]}", provider: ollama}}
models:
  llama3.2-3b: {{endpoint: llm-01, cost_per_prompt_token: 0.0002, cost_per_completion_token: 0.0006}}
  phi3: {{endpoint: llm-01, cost_per_completion_token: 0.0001}}
  qwen3: {{endpoint: slow}}
  hx-tiny-copy: {{path: {tiny.path()}}}
  emb-premium: {{endpoint: orc, upstream_model: mxbai-embed-large, mode: embedding}}
groups:
  hx-chat: {{models: [llama3.2-3b, phi3], tier: balanced, policy: intelligent}}
"""
    try:
        with GatewayProcess(config, {"STATE_DIRECTORY": str(tmp_path_factory.mktemp("state"))}, workers=2) as gateway:
            running = Fleet(gateway, servers)
            for number in range(12):
                assert running.ask(("hx-chat", "phi3", "hx-tiny-copy")[number % 3], f"Count to {number + 5}").status_code == 200
            store(running, "manuals")
            give_up_s = time.monotonic() + 60
            while not httpx.get(f"{gateway.url}/admin/usage", headers=ADMIN, timeout=30).json()[
                "data"
            ]:  # until the journal is in the store
                assert time.monotonic() < give_up_s
                time.sleep(0.1)
            yield running
    finally:
        for server in servers.values():
            server.kill()
            server.wait()


def store(fleet: Fleet, namespace: str) -> None:
    body = {"namespace": namespace, "documents": DOCUMENTS}
    answer = httpx.post(f"{fleet.gateway.url}/v1/rag/upsert", json=body, headers=ADMIN, timeout=60)
    assert answer.status_code == 200, answer.text


def chat(fleet: Fleet, key: str) -> httpx.Response:
    body = {"model": "phi3", "messages": [{"role": "user", "content": "ping"}]}
    return httpx.post(f"{fleet.gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30)


@pytest.mark.parametrize(
    ("viewport", "scheme"), LOOKS, ids=[f"{'phone' if look is PHONE else 'desktop'}-{scheme}" for look, scheme in LOOKS]
)
def test_every_page_is_readable(
    fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None], viewport: dict[str, int], scheme: str
) -> None:
    page = open_page("/ui/usage", viewport, scheme)
    for name in PATHS:
        page.goto(f"/ui/{name}")
        if name == "usage":
            expect(page.locator("#plot canvas")).to_be_visible(timeout=SLOW_MS)
        elif name == "keys":
            page.locator("#new summary").click()
        elif name == "rag":
            page.get_by_label("Look for").fill("When is it open?")
            page.get_by_label("Namespace").first.fill("manuals")
            page.get_by_label("How").select_option("all")
            page.get_by_role("button", name="Search").click()
            expect(page.get_by_role("region", name="Found, sparse")).to_be_visible(timeout=SLOW_MS)
        elif name == "playground":
            page.get_by_label("Two side by side").check()
            page.get_by_label("Prompt", exact=True).fill("Say: the quick brown fox")
            page.get_by_role("button", name="Send").click()
            expect(page.get_by_text("Ended by")).to_have_count(2, timeout=SLOW_MS)
            page.locator(".why summary").first.click()
        judge(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the side"
        shoot(page, f"{name}-{'phone' if viewport is PHONE else 'desktop'}-{scheme}", full=True)


def test_a_key_is_made_used_replaced_and_revoked(fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]) -> None:
    page = open_page("/ui/keys")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#new summary").click()
    page.get_by_label("Name", exact=True).fill("ci-runner")
    page.get_by_label("Models and groups").fill("phi3")
    page.get_by_label("Requests per second").fill("50")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_text("is kept nowhere and not shown again")).to_be_visible(timeout=SLOW_MS)
    judge(page)
    shoot(page, "key-made")
    expect(page.get_by_label("The key", exact=True)).to_be_focused()
    key = page.get_by_label("The key", exact=True).input_value()
    expect(page.get_by_role("link", name="ci-runner")).to_be_visible()  # the list has it, without a new page
    give_up_s = time.monotonic() + 20
    while chat(fleet, key).status_code != 200:
        assert time.monotonic() < give_up_s
    refused = httpx.post(
        f"{fleet.gateway.url}/v1/chat/completions", json={"model": "hx-chat", "messages": []}, headers={"authorization": f"Bearer {key}"}
    )
    assert refused.status_code == 403
    page.get_by_role("link", name="ci-runner").click()
    expect(page.get_by_label("Models and groups")).to_have_value("phi3")
    page.get_by_label("Team").fill("build")
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("status").filter(has_text="ci-runner is changed")).to_be_visible(timeout=SLOW_MS)
    judge(page)
    shoot(page, "key-desktop-light", full=True)
    page.get_by_label("The old one for").fill("0s")
    page.get_by_role("button", name="Replace ci-runner").click()
    expect(page.get_by_text("ci-runner is replaced")).to_be_visible(timeout=SLOW_MS)
    fresh = page.get_by_label("The key", exact=True).input_value()
    assert fresh != key
    page.reload()
    expect(page.get_by_label("The key", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Revoke ci-runner").click()
    expect(page.get_by_role("status").filter(has_text="ci-runner is revoked")).to_be_visible(timeout=SLOW_MS)
    for dead in (key, fresh):
        while chat(fleet, dead).status_code != 401:
            assert time.monotonic() < give_up_s + 20
    expect(page.get_by_role("row").filter(has_text="key.revoke")).to_contain_text("master")
    page.goto("/ui/keys")
    expect(page.get_by_role("row").filter(has_text="key.create")).to_contain_text("ci-runner")


def test_two_models_stream_side_by_side_and_can_be_stopped(fleet: Fleet, open_page: Callable[..., Any]) -> None:
    page = open_page("/ui/playground")
    page.get_by_label("Two side by side").check()
    page.get_by_label("Model or group", exact=True).select_option("hx-tiny-copy")
    page.get_by_label("Second model or group").select_option("hx-chat")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("Say: hello world")
    prompt.press("Control+Enter")
    sides = [page.locator(f"#side-{number}") for number in (0, 1)]
    for side in sides:
        expect(side.get_by_text("the model", exact=True)).to_be_visible(timeout=SLOW_MS)  # what ended it
        assert side.locator(".theirs").inner_text().strip()
        assert side.locator(".figures dd").first.inner_text().endswith("s"), "the time to the first token"
        assert "→" in side.locator(".figures").inner_text()
    sides[1].locator(".why summary").click()
    expect(sides[1].locator(".why")).to_contain_text("llm-01")
    href = sides[1].get_by_role("link", name="the whole story").get_attribute("href")
    answer = httpx.get(f"{fleet.gateway.url}/admin/requests/{href.rpartition('/')[2]}", headers=ADMIN)
    give_up_s = time.monotonic() + 20
    while answer.status_code == 404:
        assert time.monotonic() < give_up_s
        answer = httpx.get(str(answer.url), headers=ADMIN)
    story = answer.json()
    assert (story["key"], story["group"], story["stream"], story["outcome"]) == ("master", "hx-chat", True, "ok")

    page.get_by_label("Second model or group").select_option("qwen3")
    prompt.fill("Count to 90000")
    page.get_by_role("button", name="Send").click()
    expect(sides[1].locator(".theirs").last).not_to_be_empty(timeout=SLOW_MS)
    stop = page.get_by_role("button", name="Stop")
    stop.click()
    expect(sides[1].get_by_text("you", exact=True)).to_be_visible(timeout=SLOW_MS)
    expect(stop).to_be_disabled()
    give_up_s = time.monotonic() + 20
    while not httpx.get(f"{fleet.gateway.url}/admin/requests?outcome=client_closed&model=qwen3", headers=ADMIN).json()["data"]:
        assert time.monotonic() < give_up_s, "the model server still writes"
    shoot(page, "playground-stopped")


def test_documents_are_found_each_way_and_removed(fleet: Fleet, open_page: Callable[..., Any]) -> None:
    store(fleet, "shelf")
    page = open_page("/ui/rag")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_label("Look for").fill("bulb")
    page.get_by_label("Namespace").first.fill("shelf")
    for mode, marks in (("sparse", ("sparse #1",)), ("dense", ("dense #1",)), ("hybrid", ("sparse #1", "dense #"))):
        page.get_by_label("How").select_option(mode)
        page.get_by_label("Look for").press("Enter")
        found = page.get_by_role("region", name=f"Found, {mode}")
        expect(found.get_by_role("article").first).to_be_visible(timeout=SLOW_MS)
        for mark in marks:
            expect(found.get_by_text(mark).first).to_be_visible()
    expect(found.get_by_role("article").filter(has_text="sparse #1")).to_contain_text("It needs a new bulb every year.")
    page.locator("#remove summary").click()
    page.get_by_label("Namespace").last.fill("shelf")
    page.get_by_label("Ids, with commas").fill("door")
    page.get_by_role("button", name="Remove documents").click()
    expect(page.get_by_role("status").filter(has_text="1 chunk removed from shelf")).to_be_visible(timeout=SLOW_MS)
    page.get_by_role("button", name="Remove all of shelf").click()
    expect(page.get_by_role("status").filter(has_text="2 chunks removed from shelf")).to_be_visible(timeout=SLOW_MS)


def test_what_was_just_used_is_in_the_sums_and_in_the_sheet(fleet: Fleet, open_page: Callable[..., Any]) -> None:
    made = httpx.post(f"{fleet.gateway.url}/admin/keys", json={"name": "notebook", "team": "research"}, headers=ADMIN).json()
    give_up_s = time.monotonic() + 30
    for _ in range(3):
        while chat(fleet, made["key"]).status_code != 200:
            assert time.monotonic() < give_up_s
    page = open_page("/ui/usage?span=24+hours")
    sums = page.get_by_role("region", name="Sums")  # the plot's legend has rows, too
    row = sums.get_by_role("row").filter(has_text="notebook")
    while not row.count() or row.get_by_role("cell").nth(1).inner_text() != "3":
        assert time.monotonic() < give_up_s, page.locator("main").inner_text()
        page.wait_for_timeout(300)
        page.reload()
    row.get_by_role("link", name="notebook").click()
    expect(sums.get_by_role("rowheader").first).to_contain_text("phi3")
    with page.expect_download() as download:
        page.get_by_role("link", name="Sums as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [(one["model"], one["requests"]) for one in rows] == [("phi3", "3")]
    assert float(rows[0]["cost"]) > 0


def test_a_broken_file_is_refused_with_its_place_and_the_old_one_stays(
    fleet: Fleet, open_page: Callable[..., Any], judge: Callable[[Any], None]
) -> None:
    path = fleet.gateway.path
    good = path.read_text()
    page = open_page("/ui/config")
    expect(page.get_by_text("It can be served, and is what is served.")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="keys.master_key")).to_contain_text("env:MASTER_KEY")
    assert KEY not in page.content()
    try:
        path.write_text(good + "load_balancer: {algoritm: round_robin}\n")
        line = good.count("\n") + 1
        page.get_by_role("button", name="Reload").click()
        expect(page.get_by_role("alert").filter(has_text="The reload is refused")).to_contain_text(
            f"Line {line}, column 17: load_balancer.algoritm"
        )
        judge(page)
        shoot(page, "config-refused", full=True)
        assert chat(fleet, KEY).status_code == 200
        expect(page.locator("#history").get_by_text("refused").first).to_be_visible(timeout=SLOW_MS)  # it comes by itself
    finally:
        path.write_text(good)
    page.get_by_role("button", name="Reload").click()
    expect(page.get_by_role("status").filter(has_text="loaded again, in all workers")).to_be_visible(timeout=SLOW_MS)
    expect(page.locator("#history").get_by_role("row").filter(has_text="master").filter(has_text="ok").first).to_be_visible(timeout=SLOW_MS)
