"""The routes of usage on a real gateway, over both engines: what each key may see, as JSON and as CSV, and errors that name their field."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai}}
  two: {{url: "{two}", provider: openai}}
models:
  tiny: {{endpoint: one, upstream_model: "tiny:1b", cost_per_request: 0.5, weight: 1000000}}
  other: {{endpoint: two, upstream_model: "tiny:1b", weight: 0.0001}}
groups: {{pair: {{models: [tiny, other], policy: weighted}}}}
keys:
  api_keys:
    - {{name: anna, key: "env:ANNA", team: "a team", tags: [x, y], show_endpoints: false}}
    - {{name: bert, key: "env:BERT"}}
load_balancer: {{health_check_interval: 3600, circuit_breaker_threshold: 1000}}
"""
ANNA, BERT = "the-key-of-anna-for-tests", "the-key-of-bert-for-tests"


class Asked:
    """A gateway that was asked some things, and what it answers about them."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway

    def get(self, path: str, bearer: str = KEY, **params: Any) -> httpx.Response:
        answer = httpx.get(self.gateway.url + path, params=params, headers={"authorization": f"Bearer {bearer}"}, timeout=30, verify=False)
        assert answer.headers["x-request-id"]
        return answer

    def rows(self, bearer: str = KEY, **params: Any) -> list[dict[str, Any]]:
        """Rows of the log."""
        answer = self.get("/admin/requests", bearer, **params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def sums(self, bearer: str = KEY, path: str = "/admin/usage", **params: Any) -> list[dict[str, Any]]:
        """Rows of the report."""
        answer = self.get(path, bearer, **params)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    def refused(self, path: str, expected: int, param: str, bearer: str = KEY, **params: Any) -> None:
        """It answers an error in OpenAI's shape that names the field."""
        answer = self.get(path, bearer, **params)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (expected, param), answer.text
        assert error["code"] and error["type"] and f"{param}: " in error["message"]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Two answers and a failover for anna, one answer and two refusals for bert."""
    given = {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")), "ANNA": ANNA, "BERT": BERT}
    if request.param == "postgres":
        given["DATABASE_URL"] = request.getfixturevalue("databases").ready()
    with ExitStack() as running:
        first, second = (running.enter_context(scripted("openai", models=("tiny:1b",))) for _ in range(2))
        gateway = running.enter_context(GatewayProcess(CONFIG.format(one=first.url, two=second.url), given))

        def ask(key: str, content: str, model: str, stream: bool = False) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}
            headers = {"authorization": f"Bearer {key}"}
            return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30, verify=False).status_code

        assert ask(ANNA, "one", "tiny") == ask(ANNA, "two", "tiny", True) == ask(BERT, "three", "tiny") == 200
        first.fault = "status status=500"
        assert ask(ANNA, "four", "pair") == 200
        assert ask(BERT, "five", "tiny") == 500
        assert ask(BERT, "six", "=1+1") == 404
        found = Asked(gateway)
        # The rows are in the store a moment before the housekeeper tells so.
        wait_until(lambda: len((page := found.get("/admin/requests").json()).get("data", ())) == 6 and bool(page["as_of"]), 60)
        yield found
        assert "Traceback" not in gateway.log, gateway.log


def test_the_log_newest_first_with_filters(asked: Asked) -> None:
    rows = asked.rows()
    assert [row["key"] for row in rows] == ["bert", "bert", "anna", "bert", "anna", "anna"]
    assert [row["outcome"] for row in rows] == ["model_not_found", "upstream_error", "ok", "ok", "ok", "ok"]
    assert rows[0]["asked"] == "=1+1" and rows[0]["status"] == 404 and rows[0]["attempts"] == 0
    assert rows[5]["tags"] == ["x", "y"] and rows[5]["team"] == "a team" and rows[5]["cost"] == 0.5 and rows[5]["endpoint"] == "one"
    ids = [row["id"] for row in rows]
    for params, expected in [
        ({"key": "anna"}, [2, 4, 5]),
        ({"stream": "true"}, [4]),
        ({"status": 500}, [1]),
        ({"outcome": "ok", "model": "tiny"}, [3, 4, 5]),
        ({"group": "pair"}, [2]),
        ({"endpoint": "two"}, [2]),
        ({"team": "a team", "route": "chat", "cached": ""}, [2, 4, 5]),
        ({"min_ms": 100000}, []),
        ({"from": "1h", "to": "2100-01-01"}, [0, 1, 2, 3, 4, 5]),
        ({"to": 1_700_000_000}, []),
        ({"from": rows[2]["at"]}, [0, 1, 2]),
    ]:
        assert [row["id"] for row in asked.rows(**params)] == [ids[place] for place in expected], params


def test_pages_by_an_opaque_cursor(asked: Asked) -> None:
    ids, cursor, pages = [], "", 0
    while True:
        page = asked.get("/admin/requests", limit=4, cursor=cursor).json()
        ids += [row["id"] for row in page["data"]]
        pages += 1
        assert page["has_more"] is (page["next"] is not None) and page["as_of"].endswith("Z")
        if not page["has_more"]:
            break
        cursor = page["next"]
    assert ids == [row["id"] for row in asked.rows()] and pages == 2


def test_a_whole_story(asked: Asked) -> None:
    row = asked.rows(group="pair")[0]
    story = asked.get(f"/admin/requests/{row['id']}").json()
    assert story["trail"][0]["endpoint"] == "one" and story["trail"][0]["error"] == "upstream_error"
    assert story["endpoint"] == "two" and story["attempts"] == 2 and story["object"] == "request"
    assert [decision["endpoint"] for decision in story["decisions"]] == ["one", "two"]
    assert asked.get(f"/admin/requests/chatcmpl-{row['id']}").json()["id"] == row["id"]
    mine = asked.get(f"/admin/requests/{row['id']}", ANNA).json()
    assert mine["endpoint"] is None and mine["trail"][0]["endpoint"] is None and mine["decisions"] == []
    asked.refused(f"/admin/requests/{row['id']}", 404, "id", BERT)
    asked.refused("/admin/requests/nothing", 404, "id")


def test_sums(asked: Asked) -> None:
    (whole,) = asked.sums()
    assert (whole["requests"], whole["failed"], whole["cost"]) == (6, 2, 1.5) and "key" not in whole and "at" not in whole
    by_key = asked.sums(by="key,outcome")
    assert (by_key[0]["key"], by_key[0]["outcome"], by_key[0]["requests"]) == ("anna", "ok", 3)
    (day,) = asked.sums(bucket="day", key="anna")
    assert day["requests"] == 3 and day["at"].endswith("T00:00:00Z") and day["mean_ms"] > 0 and day["mean_ttft_ms"] > 0
    assert asked.sums(status=500)[0]["requests"] == 1
    assert asked.sums(model="none") == []
    cut = asked.get("/admin/usage", by="key,outcome", limit=1).json()
    assert cut["has_more"] is True and len(cut["data"]) == 1


def test_a_key_sees_its_own(asked: Asked) -> None:
    assert {row["key"] for row in asked.rows(BERT)} == {"bert"} and len(asked.rows(BERT)) == 3
    assert {row["endpoint"] for row in asked.rows(ANNA)} == {None}
    assert asked.sums(ANNA)[0]["requests"] == 3 and asked.sums(BERT, key="bert")[0]["requests"] == 3
    assert asked.sums(ANNA, "/v1/usage", by="model")[0]["requests"] == 2
    assert asked.sums(KEY, "/v1/usage") == [], "the master key has asked nothing but this"
    for path in ("/admin/requests", "/admin/usage"):
        asked.refused(path, 403, "key", ANNA, key="bert")
        asked.refused(path, 403, "endpoint", ANNA, endpoint="one")
        assert asked.get(path, "a-wrong-key").status_code == 401
    asked.refused("/admin/usage", 403, "by", ANNA, by="endpoint")
    assert asked.sums(BERT, by="endpoint")


def test_values_that_cannot_be_used(asked: Asked) -> None:
    asked.refused("/admin/usage", 400, "by", by="key,colour")
    asked.refused("/admin/usage", 422, "bucket", bucket="week")
    for name, value in {"status": 7, "limit": 0, "min_ms": "long", "stream": "maybe"}.items():
        asked.refused("/admin/requests", 422, name, **{name: value})
    for name, text in {"from": "yesterday", "to": "x" * 20, "key": "a\0"}.items():
        asked.refused("/admin/requests", 400, name, **{name: text})
    asked.refused("/admin/requests", 400, "to", **{"from": "1d", "to": "2d"})
    for cursor in ("x", "AAAA", "ünsinn", "MS4", "LTEueA"):
        asked.refused("/admin/requests", 400, "cursor", cursor=cursor)


def test_sheets_hold_no_formulas(asked: Asked) -> None:
    answer = asked.get("/admin/requests", format="csv")
    assert answer.headers["content-type"].startswith("text/csv") and "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == [row["id"] for row in asked.rows()]
    assert rows[0]["asked"] == "'=1+1" and rows[5]["tags"] == "x y" and rows[5]["cost"] == "0.5"
    assert len(list(csv.DictReader(io.StringIO(asked.get("/admin/requests", format="csv", limit=2).text)))) == 2
    assert "endpoint" not in asked.get("/admin/requests", ANNA, format="csv").text.splitlines()[0]
    sums = list(csv.DictReader(io.StringIO(asked.get("/admin/usage", format="csv", by="key", bucket="month").text)))
    assert sums[0]["key"] == "anna" and sums[0]["requests"] == "3" and "model" not in sums[0]


def test_they_are_described(asked: Asked) -> None:
    paths = asked.get("/openapi.json").json()["paths"]
    for path in ("/admin/usage", "/v1/usage", "/admin/requests", "/admin/requests/{id}"):
        operation = paths[path]["get"]
        assert operation["security"] and operation["responses"]["503"]
        assert all(parameter.get("description") or parameter["in"] == "path" for parameter in operation["parameters"])
    assert one(asked.gateway.port, b"POST /admin/usage HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").status == 405
