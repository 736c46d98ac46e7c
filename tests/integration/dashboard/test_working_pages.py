"""Usage, Keys, RAG, Playground and Config without a browser: plain forms, refusals that name the field, and limits that hold here, too."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

HTML = {"accept": "text/html"}
LITERAL = "literal-written-out-in-the-file-1234567890"
NARROW = "key-of-a-narrow-administrator-1"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("state")
    (folder / "upstream-key").write_text("first-upstream-key-0123456789")
    with scripted(models=("tiny", "other")) as one:
        config = f"""
endpoints:
  one: {{url: "{one.url}", provider: openai, api_key: "file:{folder / "upstream-key"}"}}
models:
  tiny: {{endpoint: one, aliases: [small]}}
  other: {{endpoint: one}}
keys:
  api_keys:
    - {{name: narrow, key: {NARROW}, admin: true, models: [tiny], limits: {{requests_per_second: 0.001, burst: 1}}}}
    - {{name: literal, key: {LITERAL}}}
"""
        with GatewayProcess(config, {"STATE_DIRECTORY": str(folder)}) as running:
            yield running


@contextmanager
def signed_in(gateway: GatewayProcess, key: str = KEY) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers=HTML, timeout=20) as client:
        assert client.post("/ui/login", data={"key": key}).status_code == 303
        client.headers["x-csrf"] = re.search(r'<meta name="csrf" content="([^"]+)"', client.get("/ui/fleet").text)[1]
        yield client


@pytest.fixture
def admin(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with signed_in(gateway) as client:
        yield client


def api(gateway: GatewayProcess, path: str) -> Any:
    return httpx.get(gateway.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=20, verify=False).json()


def until(condition: Any, within_s: float = 20.0) -> Any:
    give_up_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < give_up_s, "it did not come true"
        time.sleep(0.05)
    return found


CHANGES = (
    "/ui/keys",
    "/ui/keys/any/change",
    "/ui/keys/any/rotate",
    "/ui/keys/any/revoke",
    "/ui/rag/search",
    "/ui/rag/delete",
    "/ui/playground/chat",
    "/ui/config/reload",
)


@pytest.mark.parametrize("path", CHANGES)
def test_nothing_is_done_for_a_page_that_does_not_show_the_token_of_the_session(
    gateway: GatewayProcess, admin: httpx.Client, path: str
) -> None:
    del admin.headers["x-csrf"]
    assert admin.post(path, data={"name": "sneaked"}).status_code == 403
    assert httpx.post(gateway.url + path, data={"name": "sneaked"}, headers={"accept": "application/json"}).status_code == 401
    assert "sneaked" not in str(api(gateway, "/admin/keys"))


@pytest.mark.parametrize("path", ["/ui/usage", "/ui/usage/sheet", "/ui/keys", "/ui/rag", "/ui/playground", "/ui/config", "/ui/config/live"])
def test_whoever_is_not_signed_in_is_asked_to(gateway: GatewayProcess, path: str) -> None:
    answer = httpx.get(gateway.url + path, headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(
        "/ui/login?next=%2Fui%2F" if "%2F" in answer.headers["location"] else "/ui/login?next=/ui/"
    )


def test_a_key_is_made_by_a_plain_form_and_shown_in_that_answer_only(gateway: GatewayProcess, admin: httpx.Client) -> None:
    form = {"name": "plain", "models": "tiny", "namespaces": "none", "tags": "a, b", "requests_per_second": "2.5", "day_tokens": "1000000"}
    answer = admin.post("/ui/keys", data={**form, "expires": "90d", "show_endpoints": "on"})
    assert answer.status_code == 200
    key = re.search(r'value="(hx-[\w-]{43})"', answer.text)[1]
    assert answer.headers["cache-control"] == "no-store"
    assert key not in admin.get("/ui/keys").text
    told = api(gateway, "/admin/keys/plain")
    assert (told["models"], told["namespaces"], told["tags"]) == (["tiny"], [], ["a", "b"])
    assert (told["limits"]["requests_per_second"], told["limits"]["day_tokens"], told["admin"]) == (2.5, 1_000_000, False)

    # What its page shows goes back as it was: nothing is widened by pressing the button.
    page = admin.get(f"/ui/keys/{told['id']}").text
    shown = dict(re.findall(r'<input id="k-\w+" name="(\w+)"[^>]*?value="([^"]*)"', page))
    before = re.search(r'name="expires_before" value="([^"]*)"', page)[1]
    assert (shown["models"], shown["namespaces"], shown["day_tokens"]) == ("tiny", "none", "1000000")
    assert admin.post(f"/ui/keys/{told['id']}/change", data={**shown, "expires_before": before, "show_endpoints": "on"}).status_code == 303
    after = api(gateway, "/admin/keys/plain")
    assert {**after, "used_at": None} == {**told, "used_at": None}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"name": "master"}, "name: is a name that the gateway uses itself"),
        ({"name": "x", "expires": "tomorrow"}, "expires: "),
        ({"name": "x", "burst": "a few"}, "Burst, requests (burst): should be a whole number"),
        ({"name": "x", "max_concurrent": "-1"}, "limits.max_concurrent: "),
        ({"name": "literal"}, "the configuration has a key called"),
    ],
)
def test_a_form_that_cannot_be_taken_says_which_field(admin: httpx.Client, form: dict[str, str], said: str) -> None:
    answer = admin.post("/ui/keys", data=form)
    assert answer.status_code in (409, 422, 400)
    text = re.sub(r"&#39;|&#34;", "'", answer.text)
    assert said.lower() in text.lower()


def test_a_chat_of_the_playground_is_held_to_the_key_of_the_session(gateway: GatewayProcess) -> None:
    with signed_in(gateway, NARROW) as narrow:
        assert "other" not in re.findall(r"<option>([^<]*)</option>", narrow.get("/ui/playground").text)

        def chat(model: str) -> httpx.Response:
            body = {"model": model, "messages": [{"role": "user", "content": "Say: hello"}]}
            return narrow.post("/ui/playground/chat", json=body, headers={"accept": "application/json", "x-hx-user": "nobody"})

        first = chat("tiny")
        assert first.json()["choices"][0]["message"]["content"] == "hello"
        assert "content-security-policy" in first.headers
        assert chat("other").json()["error"]["code"] == "model_not_allowed"
        limited = chat("tiny")
        assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        id = first.headers["x-hx-decision-id"]
        story = until(lambda: found if (found := api(gateway, f"/admin/requests/{id}")).get("id") == id else None)
        assert (story["key"], story["asked"], story["outcome"], story["endpoint"]) == ("narrow", "tiny", "ok", "one")


def test_a_body_that_is_no_chat_is_refused_as_for_any_client(admin: httpx.Client) -> None:
    answer = admin.post("/ui/playground/chat", content=b"{", headers={"accept": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_documents_that_cannot_be_asked_for_are_told_of(admin: httpx.Client) -> None:
    assert "There are no documents yet." in admin.get("/ui/rag").text
    for path, form, said in (
        ("search", {"query": "door", "limit": "many"}, "limit: should be a whole number"),
        ("search", {"query": "door", "filter": "{year"}, "filter: is not JSON"),
        ("search", {"query": " "}, "query should not be empty"),
        ("delete", {}, "ids: say which documents are to go"),
        ("delete", {"ids": "a", "namespace": "no such name!"}, "namespace"),
    ):
        answer = admin.post(f"/ui/rag/{path}", data=form, headers={"hx-request": "true"})
        assert answer.status_code in (400, 422), answer.text
        assert said.lower() in answer.text.lower()


def test_secrets_of_the_configuration_are_not_shown_and_one_that_changed_is_told_of(gateway: GatewayProcess, admin: httpx.Client) -> None:
    page = admin.get("/ui/config?all=1").text
    assert "It can be served, and is what is served." in page
    for secret in (KEY, LITERAL, NARROW, "first-upstream-key"):
        assert secret not in page
    file = Path(re.search(r"file:(/[^<]+/upstream-key)", page)[1])
    file.write_text("second-upstream-key-0123456789")
    page = admin.get("/ui/config").text
    assert "another secret" in page
    assert "second-upstream-key" not in page
    assert admin.post("/ui/config/reload").status_code == 303
    assert "It can be served, and is what is served." in admin.get("/ui/config").text
    history = until(lambda: [deed for deed in api(gateway, "/admin/audit?action=reload")["data"] if deed["actor"] == "master"])
    assert history[0]["result"] == "ok"


def test_sums_can_be_taken_along(gateway: GatewayProcess, admin: httpx.Client) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "Say: hello"}]}
    assert admin.post("/ui/playground/chat", json=body).status_code == 200
    until(lambda: "tiny" in admin.get("/ui/usage?by=model&span=24+hours").text)
    sheet = admin.get("/ui/usage/sheet?by=model&span=24+hours&bucket=hour")
    assert sheet.headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert sheet.text.splitlines()[0].startswith("at,model,requests")
    assert "Nothing was used like that" in admin.get("/ui/usage?team=nobody").text
    assert admin.get("/ui/usage?span=nonsense&by=nonsense&show=nonsense").status_code == 200


def test_a_gateway_without_keys_is_used_and_closed_from_here(tmp_path: Path) -> None:
    with scripted(models=("tiny",)) as one:
        config = f'endpoints: {{one: {{url: "{one.url}", provider: openai}}}}\nmodels: {{tiny: {{endpoint: one}}}}\n'
        with GatewayProcess(config, {"STATE_DIRECTORY": str(tmp_path)}, key="") as gateway, signed_in(gateway, "") as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Say: hello"}]}
            assert client.post("/ui/playground/chat", json=body).status_code == 200
            assert "let that be an admin key" in client.get("/ui/keys").text
            made = client.post("/ui/keys", data={"name": "first", "admin": "on"})
            key = re.search(r'value="(hx-[\w-]{43})"', made.text)[1]
            until(lambda: client.get("/ui/keys").status_code == 303)  # who came without a key is asked for one
            with signed_in(gateway, key) as again:
                assert "let that be an admin key" not in again.get("/ui/keys").text
                assert again.post("/ui/playground/chat", json=body).status_code == 200
