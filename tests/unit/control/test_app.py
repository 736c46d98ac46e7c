"""What all answers of the control plane have in common: error shape, ids, CORS; and the documentation."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import APIRouter
from pydantic import BaseModel
from tests.unit.control.house import KEYS, House, answer

from hx_gateway.control.app import create_app
from hx_gateway.control.dashboard.frame import Desk
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure
from hx_gateway.health.detect import SERVICE_MARK

ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


class Body(BaseModel):
    """Something to get wrong."""

    count: int


def broken() -> httpx.AsyncClient:
    """A client of an app with routes that go wrong, in front of all others."""
    wrong = APIRouter()

    async def fault() -> None:
        raise ZeroDivisionError("secret detail")

    async def validated(body: Body) -> Body:
        return body

    async def later() -> None:
        raise Failure(errors.OVERLOADED, "come again", retry_after_s=1.2)

    wrong.add_api_route("/fault", fault, methods=["GET"])
    wrong.add_api_route("/validated", validated, methods=["POST"])
    wrong.add_api_route("/later", later, methods=["GET"])
    app = create_app(House())
    app.router.routes[:0] = wrong.routes
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_unknown_routes() -> None:
    async with House().client() as client:
        for method in ("GET", "POST", "DELETE"):
            found = await client.request(method, "/nowhere")
            assert found.status_code == 404
            error = found.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == "not_found" and "/nowhere" in error["message"]


async def test_a_fault_of_our_own_tells_only_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async with broken() as client:
        found = await client.get("/fault", headers={"x-request-id": "mine-1"})
    assert found.status_code == 500
    error = found.json()["error"]
    assert error["code"] == "internal_error" and "mine-1" in error["message"] and "secret" not in found.text
    assert found.headers["x-request-id"] == "mine-1"
    assert "ZeroDivisionError" in caplog.text and "mine-1" in caplog.text


async def test_a_fault_behind_a_page_is_a_page_with_its_id(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fault(self: Desk, name: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Desk, "file", fault)
    transport = httpx.ASGITransport(create_app(House()), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        page = await client.get("/ui/static/hx.css", headers={"accept": "text/html"})
        told = await client.get("/ui/static/hx.css")
    assert page.status_code == told.status_code == 500
    assert (
        page.headers["x-request-id"] in page.text and page.text.startswith("<!doctype html>") and "content-security-policy" in page.headers
    )
    assert told.json()["error"]["code"] == "internal_error" and "secret" not in page.text + told.text
    assert caplog.text.count("internal error in request") == 2 and "ZeroDivisionError" in caplog.text


async def test_validation_names_the_field_and_not_the_value() -> None:
    async with broken() as client:
        found = await client.post("/validated", json={"count": "sk-secret-value"})
        malformed = await client.post("/validated", content=b"{", headers={"content-type": "application/json"})
    assert found.status_code == 422
    error = found.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "count")
    assert "sk-secret-value" not in found.text
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "invalid_json")


async def test_a_failure_says_when_to_come_again() -> None:
    async with broken() as client:
        found = await client.get("/later")
    assert (found.status_code, found.headers["retry-after"], found.headers["retry-after-ms"]) == (503, "2", "1200")


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/models", "/v1/models/none", "/metrics"])
async def test_every_answer_has_an_id_and_our_mark(path: str) -> None:
    async with House({"keys": KEYS}).client() as client:
        ours = await client.get(path)
        theirs = await client.get(path, headers={"x-request-id": "a.b:c_d-1"})
        unfit = await client.get(path, headers={"x-request-id": "two words"})
        long = await client.get(path, headers={"x-request-id": "x" * 129})
    assert all(ULID.fullmatch(found.headers["x-request-id"]) for found in (ours, unfit, long))
    assert theirs.headers["x-request-id"] == "a.b:c_d-1"
    assert ours.headers[SERVICE_MARK[0].decode()] == SERVICE_MARK[1].decode()


async def test_cors_is_off_unless_asked_for() -> None:
    async with House().client() as client:
        found = await client.get("/healthz", headers={"origin": "https://app.example"})
        preflight = await client.options("/v1/models", headers={"origin": "https://app.example", "access-control-request-method": "GET"})
    assert not any(name.startswith("access-control") for name in found.headers)
    assert preflight.status_code == 405


async def test_cors_as_configured() -> None:
    cors = {"enabled": True, "allow_origins": ["https://app.example"], "allow_headers": ["authorization", "content-type"]}
    house = House({"cors": cors, "keys": KEYS}, script=answer())
    asking = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "Authorization,content-type",
    }
    async with house.client() as client:
        for path in ("/v1/chat/completions", "/v1/models", "/v1/rerank"):
            preflight = await client.options(path, headers=asking)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "https://app.example"
            assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        assert (await client.options("/v1/models", headers={**asking, "origin": "https://evil.example"})).status_code == 403
        refused = await client.get("/v1/models", headers={"origin": "https://app.example"})
        other = await client.get("/healthz", headers={"origin": "https://evil.example"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers and other.headers["vary"] == "Origin"


class Links(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "action")]


async def test_docs_is_one_page_that_needs_nothing_from_elsewhere() -> None:
    async with House({"keys": KEYS}).client() as client:
        found = await client.get("/docs")
        assert (await client.get("/redoc")).status_code == 404
    assert found.headers["content-type"].startswith("text/html")
    links = Links()
    links.feed(found.text)
    assert links.scripts == 0
    assert set(links.fetched) == {"data:,", "openapi.json"}
    for path in ("/v1/chat/completions", "/v1/models/{id}", "/healthz/deps", "/metrics", "/v1/{path}"):
        assert f"<code>{path}</code>" in found.text
    assert "Return exactly the text: HX-OK" in found.text


async def test_openapi_describes_every_route_of_the_contract() -> None:
    house = House()
    async with house.client() as client:
        document = (await client.get("/openapi.json")).json()
    paths = document["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/models/{id}", "/healthz", "/readyz", "/health",
            "/healthz/deps", "/models/status", "/metrics"} <= set(paths)  # fmt: skip
    names = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(names) == len(set(names))
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(schemas)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        operation = paths[path]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        assert set(content["example"]) <= set(schema["properties"]) and set(schema["required"]) <= set(content["example"])
        assert operation["security"] == [{"bearer": []}]
        assert "example" in operation["responses"]["200"]["content"]["application/json"]
    assert "security" not in paths["/healthz"]["get"]
    assert paths["/v1/models"]["get"]["security"]
