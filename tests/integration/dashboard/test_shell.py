"""The dashboard of a gateway with two workers: who gets in, what is refused, and what all workers know."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.control.dashboard import PAGES

USER = "key-of-somebody-else"
HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with scripted(models=("tiny",)) as one, scripted(models=("tiny",)) as two:
        config = f"""
endpoints:
  one: {{url: "{one.url}", provider: openai}}
  two: {{url: "{two.url}", provider: openai}}
models:
  tiny: {{endpoints: [one, two]}}
load_balancer: {{algorithm: round_robin}}
keys: {{api_keys: [{{name: user, key: {USER}}}]}}
http: {{trusted_proxies: [127.0.0.1]}}
"""
        state = tmp_path_factory.mktemp("state")
        with GatewayProcess(config, {"STATE_DIRECTORY": str(state)}, workers=2) as running:
            yield running


@pytest.fixture
def visitor(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers=HTML, timeout=20) as client:
        yield client


@pytest.fixture
def admin(visitor: httpx.Client) -> httpx.Client:
    assert visitor.post("/ui/login", data={"key": KEY}).status_code == 303
    return visitor


def until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    give_up_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < give_up_s, "it did not come true"
        time.sleep(0.05)
    return found


def csrf_of(client: httpx.Client) -> str:
    found = re.search(r'<meta name="csrf" content="([^"]+)"', client.get("/ui/fleet").text)
    assert found is not None
    return found.group(1)


def api(gateway: GatewayProcess, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, gateway.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=20, verify=False, **options)


def ask(gateway: GatewayProcess, **headers: str) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Say: hello"}]}
    return httpx.post(
        f"{gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}", **headers}, timeout=20, verify=False
    )


def test_the_first_page_asks_for_a_key(visitor: httpx.Client) -> None:
    answer = visitor.get("/", follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path == "/ui/login"
    assert 'type="password"' in answer.text


@pytest.mark.parametrize("page", [page.path for page in PAGES])
def test_no_page_is_shown_without_a_session(visitor: httpx.Client, page: str) -> None:
    answer = visitor.get(f"/ui{page}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/login?next=/ui{page}")
    assert visitor.get(f"/ui{page}/live", headers={"accept": "text/event-stream"}).status_code in (401, 404)


@pytest.mark.parametrize("page", [page.path for page in PAGES])
def test_every_page_opens_in_every_worker(gateway: GatewayProcess, admin: httpx.Client, page: str) -> None:
    for _ in range(6):  # each a connection of its own, so that both workers answer some
        answer = httpx.get(f"{gateway.url}/ui{page}", headers=HTML, cookies=admin.cookies, timeout=20)
        assert answer.status_code == 200
        assert 'aria-current="page"' in answer.text
        assert not re.search(r'\sstyle="|<script>|<style|\son\w+="|https?://(?!127\.0\.0\.1)', answer.text), "nothing the policy forbids"


@pytest.mark.parametrize(("key", "status"), [("wrong", 401), ("", 401), (USER, 403)])
def test_only_an_admin_key_gets_in(visitor: httpx.Client, key: str, status: int) -> None:
    answer = visitor.post("/ui/login", data={"key": key})
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text
    assert key == "" or key not in answer.text


def test_the_cookie_is_out_of_reach_and_every_answer_is_strict(visitor: httpx.Client) -> None:
    answer = visitor.post("/ui/login", data={"key": KEY})
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui"))
    for checked in (answer, visitor.get("/ui/fleet"), visitor.get("/ui/static/hx.css"), visitor.get("/ui/nothing")):
        policy = checked.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert checked.headers["x-content-type-options"] == "nosniff"
    assert visitor.get("/ui/fleet").headers["cache-control"] == "no-store"


def by_way_of(gateway: GatewayProcess, peer: str, address: str, proto: str = "http") -> httpx.Client:
    """A client whose connection comes from ``peer``, which says that it passes on what ``address`` asks."""
    headers = {**HTML, "x-forwarded-for": address, "x-forwarded-proto": proto}
    return httpx.Client(base_url=gateway.url, headers=headers, transport=httpx.HTTPTransport(local_address=peer), timeout=20)


def test_the_cookie_goes_by_tls_alone_where_a_trusted_proxy_ends_it(gateway: GatewayProcess) -> None:
    with by_way_of(gateway, "127.0.0.1", "192.0.2.20", "https") as proxied:
        cookie = proxied.post("/ui/login", data={"key": KEY}).headers["set-cookie"]
        assert cookie.startswith("__Secure-hx-session-") and "; Secure" in cookie
        session = {"cookie": cookie.partition(";")[0]}
        assert proxied.get("/ui/fleet", headers=session).status_code == 200
        assert proxied.get("/ui/fleet", headers={**session, "x-forwarded-proto": "http"}).status_code == 303
    for peer, proto in (("127.0.0.1", "http"), ("127.0.0.2", "https")):
        with by_way_of(gateway, peer, "192.0.2.20", proto) as other:
            cookie = other.post("/ui/login", data={"key": KEY}).headers["set-cookie"]
            assert cookie.startswith("hx-session-") and "Secure" not in cookie, "no proxy that is trusted says https"


def test_a_guesser_keeps_nobody_out_but_itself(gateway: GatewayProcess) -> None:
    with by_way_of(gateway, "127.0.0.1", "192.0.2.30") as guesser, by_way_of(gateway, "127.0.0.1", "192.0.2.31") as other:
        assert [guesser.post("/ui/login", data={"key": "guess"}).status_code for _ in range(11)] == [401] * 10 + [429]
        refused = guesser.post("/ui/login", data={"key": KEY})
        assert refused.status_code == 429 and "from your address" in refused.text
        assert other.post("/ui/login", data={"key": KEY}).status_code == 303
    entries = until(lambda: [one for one in api(gateway, "GET", "/admin/audit").json()["data"] if one["address"] == "192.0.2.31"])
    assert entries[0]["action"] == "dashboard.sign_in"
    codes = []
    for number in range(11):
        with by_way_of(gateway, "127.0.0.2", f"192.0.2.{number}") as untrusted:
            codes.append(untrusted.post("/ui/login", data={"key": "guess"}).status_code)
    assert codes == [401] * 10 + [429], "who is not trusted has one address, whatever it says"


def test_after_signing_in_one_is_where_one_wanted_to_be_and_nowhere_else(visitor: httpx.Client) -> None:
    answer = visitor.post("/ui/login", data={"key": KEY, "next": "/ui/requests?since=1h"})
    assert answer.headers["location"] == "/ui/requests?since=1h"
    for elsewhere in ("https://example.com/", "//example.com", "/v1/models", "/ui/\\example.com"):
        assert visitor.post("/ui/login", data={"key": KEY, "next": elsewhere}).headers["location"] == "/ui/fleet"


def test_a_form_of_more_fields_than_there_are_is_refused(visitor: httpx.Client) -> None:
    answer = visitor.post("/ui/login", data={f"field-{number}": "" for number in range(300)})
    assert answer.status_code == 400 and "at most 200 fields" in answer.text


def test_signing_out_ends_the_session_everywhere(gateway: GatewayProcess, admin: httpx.Client) -> None:
    cookies = dict(admin.cookies)
    assert admin.post("/ui/logout", data={"csrf": csrf_of(admin)}).status_code == 303
    for _ in range(4):
        assert httpx.get(f"{gateway.url}/ui/fleet", headers=HTML, cookies=cookies).status_code == 303


def test_a_change_needs_the_sessions_own_token(gateway: GatewayProcess, admin: httpx.Client) -> None:
    for data in ({}, {"csrf": "x" * 32}):
        answer = admin.post("/ui/fleet/one/drain", data=data)
        assert answer.status_code == 403
        assert "load it again" in answer.text
    assert api(gateway, "GET", "/admin/endpoints").json()["data"][0]["drained"] is None


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://example.com"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, {"sec-fetch-site": "same-site"}],
)
def test_pages_of_other_origins_are_refused(admin: httpx.Client, headers: dict[str, str]) -> None:
    csrf = csrf_of(admin)
    assert admin.post("/ui/fleet/one/drain", data={"csrf": csrf}, headers=headers).status_code == 403
    if "origin" not in headers:
        assert admin.get("/ui/fleet", headers=headers).status_code == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert admin.get("/ui/fleet", headers=followed).status_code == 200, "a link from elsewhere may be followed"


def test_files_come_with_their_kind_and_only_those(visitor: httpx.Client) -> None:
    script = visitor.get("/ui/static/hx.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert visitor.get("/ui/static/hx.js", headers={"if-none-match": script.headers["etag"]}).status_code == 304
    for name in ("../frame.py", "..%2fframe.py", "nothing.js", "vendor", "%2fetc%2fpasswd"):
        assert visitor.get(f"/ui/static/{name}").status_code == 404


def standing(gateway: GatewayProcess) -> dict[str, tuple[bool, str | None, bool]]:
    """Whether each server of the model is available, why not, and whether it is healthy."""
    (tiny,) = (one for one in api(gateway, "GET", "/models/status").json()["models"] if one["name"] == "tiny")
    return {one["endpoint"]: (one["available"], one["reason"], one["healthy"]) for one in tiny["deployments"]}


def test_draining_holds_in_all_workers_and_undraining_too(gateway: GatewayProcess, admin: httpx.Client) -> None:
    csrf = csrf_of(admin)
    answer = admin.post("/ui/fleet/one/drain", data={"csrf": csrf}, follow_redirects=True)
    assert "one is drained" in answer.text
    assert "Drained by master" in answer.text and '<span class="badge warn">drained</span>' in answer.text
    until(lambda: all(standing(gateway) == {"one": (False, "drained", True), "two": (True, None, True)} for _ in range(4)))
    until(lambda: all(ask(gateway).headers["x-hx-endpoint"] == "two" for _ in range(8)))

    def removed() -> dict[str, str | None]:
        told = api(gateway, "POST", "/v1/route/explain", json={"model": "tiny", "messages": [{"role": "user", "content": "x"}]}).json()
        return {one["endpoint"]: one["removed"] for one in told["candidates"]}

    until(lambda: all(removed() == {"one": "its endpoint is drained", "two": None} for _ in range(4)))
    os.kill(gateway.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert {ask(gateway).headers["x-hx-endpoint"] for _ in range(8)} == {"two"}, "a reload changes nothing about it"
    both = admin.post("/ui/fleet/two/drain", data={"csrf": csrf}, follow_redirects=True)
    assert "Nothing serves tiny now." in both.text
    until(lambda: ask(gateway).status_code == 503)
    for name in ("one", "two"):
        assert api(gateway, "POST", f"/admin/endpoints/{name}/undrain").json()["changed"] is True
    until(lambda: {ask(gateway).headers.get("x-hx-endpoint") for _ in range(8)} == {"one", "two"})


def test_what_cannot_be_drained_is_told(gateway: GatewayProcess, admin: httpx.Client) -> None:
    answer = api(gateway, "POST", "/admin/endpoints/nothing/drain")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "name")
    assert httpx.post(f"{gateway.url}/admin/endpoints/one/drain", headers={"authorization": f"Bearer {USER}"}).status_code == 403
    page = admin.post("/ui/fleet/nothing/drain", data={"csrf": csrf_of(admin)})
    assert page.status_code == 404
    assert "There is no endpoint" in page.text


def test_a_request_is_in_the_log_with_why_it_went_there_whichever_worker_decided(gateway: GatewayProcess, admin: httpx.Client) -> None:

    def weighed() -> str | None:
        """A request of which all that was weighed is kept; a worker keeps a few between two sweeps, which may be late."""
        id = ask(gateway).headers["x-hx-decision-id"]
        (attempt,) = until(lambda: api(gateway, "GET", f"/admin/decisions/{id}").json().get("attempts"))
        return id if attempt["explanation"] else None

    ids = [until(weighed) for _ in range(4)]
    for id in ids:

        def story(id: str = id) -> str:
            return admin.get(f"/ui/requests/{id}").text

        # It is there once its record is shipped; the worker that decided is asked, and left out where it does not answer in time.
        until(lambda: "round_robin picked it" in story() and "Candidate" in story())
        decisions = until(lambda id=id: api(gateway, "GET", f"/admin/decisions/{id}").json().get("attempts"))
        assert [one["chosen"] for one in decisions[0]["explanation"]["candidates"]].count(True) == 1
    log = admin.get("/ui/requests").text
    assert all(id in log for id in ids)
    assert "No request is like that" in admin.get("/ui/requests?model=nothing").text


def test_the_log_is_paged_by_place(gateway: GatewayProcess, admin: httpx.Client) -> None:
    ids = [ask(gateway).headers["x-hx-decision-id"] for _ in range(55)]

    def pages() -> tuple[str, str]:
        first = admin.get("/ui/requests").text
        older = re.search(r'rel="next" href="([^"]+)"', first)
        return first, admin.get(f"/ui/requests{older.group(1)}".replace("&amp;", "&")).text if older else ""

    until(lambda: (text := "".join(pages())) and all(id in text for id in ids))  # each worker tells the store of its own, when it does
    first, second = pages()
    on = [set(re.findall(r'href="/ui/requests/(\w{26})"', page)) for page in (first, second)]
    assert len(on[0]) == 50
    assert not on[0] & on[1]
    assert set(ids) <= on[0] | on[1]
    assert "data-live" in first
    assert "data-live" not in second


def test_a_prompt_is_explained_without_being_sent(gateway: GatewayProcess, admin: httpx.Client) -> None:
    form = {"csrf": csrf_of(admin), "name": "tiny", "prompt": "<b>why</b>"}
    told = admin.post("/ui/routing/explain", data=form, headers={"hx-request": "true"})
    assert told.status_code == 200
    assert "tiny on " in told.text
    assert "<html" not in told.text
    wrong = admin.post("/ui/routing/explain", data={**form, "name": "<i>x</i>"}, headers={"hx-request": "true"})
    assert wrong.status_code == 404
    assert "<i>" not in wrong.text


def events(client: httpx.Client, path: str, most: int) -> list[dict[str, Any]]:
    found = []
    with client.stream("GET", path, headers={"accept": "text/event-stream"}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                found.append(json.loads(line[6:]))
                if len(found) >= most:
                    break
    return found


def test_a_page_lives(gateway: GatewayProcess, admin: httpx.Client) -> None:
    threading.Timer(0.3, lambda: [ask(gateway) for _ in range(4)]).start()
    found = events(admin, "/ui/fleet/live", 4)
    assert {"figures", "servers", "e0", "e1"} <= found[0].keys()
    assert all("servers" not in later for later in found[1:]), "what is unchanged is not sent again"
    assert found[-1]["data"]["series"].keys() == {"one", "two"}


def test_a_stream_ends_with_its_session(gateway: GatewayProcess, admin: httpx.Client) -> None:
    csrf = csrf_of(admin)
    with httpx.stream("GET", f"{gateway.url}/ui/fleet/live", cookies=admin.cookies, timeout=20) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: {"))
        admin.post("/ui/logout", data={"csrf": csrf})
        assert "event: signed-out" in list(lines)


def test_a_session_ends_with_its_key(gateway: GatewayProcess, visitor: httpx.Client) -> None:
    made = api(gateway, "POST", "/admin/keys", json={"name": "operator", "admin": True}).json()
    until(lambda: visitor.post("/ui/login", data={"key": made["key"]}).status_code == 303)
    assert "operator" in visitor.get("/ui/fleet").text
    api(gateway, "DELETE", f"/admin/keys/{made['id']}")
    until(lambda: visitor.get("/ui/fleet").status_code == 303)


def test_it_can_be_switched_off_while_running(gateway: GatewayProcess, admin: httpx.Client) -> None:
    before = gateway.path.read_text()

    def status(path: str) -> int:
        """On a connection of its own, so that each worker is asked sooner or later."""
        return httpx.get(gateway.url + path, headers=HTML, cookies=admin.cookies, timeout=20).status_code

    try:
        gateway.path.write_text(before + "gateway: {disable_admin_ui: true}\n")
        until(lambda: {status(path) for path in ("/", "/ui/fleet", "/ui/login", "/ui/static/hx.css") * 4} == {404})
        assert ask(gateway).status_code == 200
    finally:
        gateway.path.write_text(before)
        until(lambda: all(status("/ui/fleet") == 200 for _ in range(16)))


def test_readers_of_live_pages_do_not_hold_up_the_end(gateway: GatewayProcess, admin: httpx.Client) -> None:
    """The last test of this gateway: it ends it."""
    assert gateway.process is not None
    with admin.stream("GET", "/ui/fleet/live") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data: {"))
        gateway.process.send_signal(signal.SIGTERM)
        assert "event: draining" in list(lines)
    assert gateway.stop() == 0


def test_a_gateway_without_keys_says_that_it_is_open(tmp_path: Path) -> None:
    config = "models: {tiny: {endpoint: 'http://127.0.0.1:9'}}"
    with (
        GatewayProcess(config, {"STATE_DIRECTORY": str(tmp_path)}, key="") as running,
        httpx.Client(base_url=running.url, headers=HTML, timeout=20) as client,
    ):
        assert client.get("/ui/fleet").status_code == 303
        assert "No key is configured" in client.get("/ui/login").text
        assert client.post("/ui/login").status_code == 303
        assert "whoever reaches this port may do everything here" in client.get("/ui/fleet").text
