"""`verify` finds what is planted, names it, and finds nothing where nothing is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.faults.conftest import wait_until
from tests.integration.ops.conftest import Fleet, config_for
from tests.support.background import Scripted
from tests.support.gateway import KEY, GatewayProcess, free_port

from hx_gateway.ops import verify_gateway, verify_names
from hx_gateway.ops.verify import Expect, run
from hx_gateway.ops.verify_client import Client
from hx_gateway.ops.verify_node import run_node
from hx_gateway.ops.verify_report import Report, Result
from hx_gateway.testing.script import Model

WHOLE = Expect(
    names=("small", "large", "emb-premium", "hx-chat", "gpt-4o"),
    dimensions={"emb-premium": 16},
    members={"hx-chat": frozenset({"small", "large"})},
    default="hx-chat",
)


def verify(fleet: Fleet, expect: Expect = WHOLE) -> Report:
    return run(fleet.gateway.url, KEY, expect, timeout_s=20)


def failed(report: Report) -> dict[tuple[str, str], str]:
    assert not report.ok
    return {(one.check, one.subject): one.detail for one in report.failures}


def test_nothing_is_found_where_nothing_is_wrong(fleet: Fleet) -> None:
    report = verify(fleet)
    assert report.ok, report.failures
    passed = {(one.check, one.subject) for one in report.results if one.state == "passed"}
    assert passed >= {
        ("chat", "small"), ("stream", "large"), ("embeddings", "emb-premium"), ("group header", "hx-chat"), ("spread", "small"),
        ("auth", ""), ("limits", ""), ("documents", ""), ("endpoint", "two"), ("counters", ""), ("overhead", ""), ("chat", "gpt-4o"),
        ("store", "sqlite"),
    }  # fmt: skip
    assert all(sent == well > 0 for sent, well in report.counters.values())
    assert set(report.counters) == set(WHOLE.names)
    left = Client(fleet.gateway.url, KEY).ask("GET", "/admin/keys").json()["data"]
    assert all(key["revoked_at"] for key in left), "the key of the check is revoked again"
    assert shelves(fleet) == []


def shelves(fleet: Fleet) -> list[str]:
    """The collections of documents."""
    found = Client(fleet.gateway.url, KEY).ask("GET", "/v1/rag/collections").json()["result"]["collections"]
    return [one["name"] for one in found]


def test_a_failed_check_of_documents_leaves_nothing_either(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_gateway, "_found", lambda *_: ["kettle"])  # as if the search were wrong
    found = failed(verify(fleet))
    assert found["documents", ""] == "a search for a stored text found ['kettle'] instead of it"
    assert shelves(fleet) == []


# Faults of a model server: what is planted, where it shows, and what is said.
PLANTED = {
    "fickle": (("chat", "large"), "not deterministic"),
    "early_finish": (("stream", "large"), "stream order"),
    "no_usage": (("chat", "large"), "usage is missing"),
    "truncated": (("stream", "large"), "broke"),
    "empty_embedding": (("embeddings", "emb-premium"), "502"),
    "status": (("chat", "large"), "502"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_of_a_server_is_named(fleet: Fleet, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_names, "_SETTLED_S", 0.1)
    check, words = PLANTED[fault]
    fleet.fail("one", f"{fault} after=2 status=502" if fault == "status" else fault)
    found = failed(verify(fleet))
    assert words in found[check], found


def test_a_dead_server_is_named_though_others_stand_in(fleet: Fleet) -> None:
    fleet.fail("two", "refuse")
    client = Client(fleet.gateway.url, KEY)
    wait_until(lambda: client.ask("GET", "/admin/endpoints").json()["data"][1]["healthy"] is False)
    report = verify(fleet)
    assert set(failed(report)) == {("endpoint", "two")}, "what others can serve goes on"
    assert "refused" in failed(report)["endpoint", "two"]
    fleet.fail("two", None)
    wait_until(lambda: client.ask("GET", "/admin/endpoints").json()["data"][1]["healthy"] is True)


def test_what_the_configuration_promises_must_be_there(fleet: Fleet) -> None:
    found = failed(
        verify(
            fleet,
            Expect(
                names=("hx-chat-premium",),
                dimensions={"emb-premium": 1024},
                members={"hx-chat": frozenset({"mistral"})},
                stores=("redis", "postgres"),
            ),
        )
    )
    assert set(found) == {
        ("listed", "hx-chat-premium"),
        ("embeddings", "emb-premium"),
        ("available", "hx-chat"),
        *(("store", name) for name in ("redis", "postgres")),
    }
    assert "gateway runs without: SQLite file" in found["store", "postgres"]
    assert found["embeddings", "emb-premium"] == "vectors have 16 dimensions instead of 1024"
    assert found["available", "hx-chat"] == "served by large, small instead of mistral"


def test_limits_that_are_off_and_a_store_that_is_down(servers: dict[str, Scripted], tmp_path: Path) -> None:
    more = "pipeline: {stages: [authenticate, inspect, resolve, admission]}\n"
    redis = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with GatewayProcess(config_for(servers, tmp_path, more), redis) as gateway:
        found = failed(run(gateway.url, KEY, WHOLE, timeout_s=20))
    assert set(found) == {("limits", ""), ("store", "redis")}
    assert "x-ratelimit-limit-requests" in found["limits", ""] and "down" in found["store", "redis"]


def test_a_gateway_that_lets_anyone_in(servers: dict[str, Scripted], tmp_path: Path) -> None:
    with GatewayProcess(config_for(servers, tmp_path), key="") as gateway:
        found = failed(run(gateway.url, "", WHOLE, timeout_s=20))
        assert set(found) == {("auth", "")}
        assert "open to anyone" in found["auth", ""] and "GET /admin/endpoints with no key" in found["auth", ""]
        report = run(gateway.url, "", Expect(anyone=True), timeout_s=20)
        assert report.ok, report.failures


def test_a_gateway_that_is_not_there_and_a_wrong_key(fleet: Fleet) -> None:
    gone = run(f"http://127.0.0.1:{free_port()}", KEY)
    assert [one.check for one in gone.results] == ["ready"] and "refused" in failed(gone)["ready", ""].lower()
    wrong = run(fleet.gateway.url, "hx-wrong")
    assert "401" in failed(wrong)["models", ""] and "invalid_api_key" in failed(wrong)["models", ""]
    with pytest.raises(ValueError, match="no http or https address"):
        run("ftp://127.0.0.1", KEY)


def test_the_command_prints_and_writes_reports_and_never_the_key(fleet: Fleet, tmp_path: Path) -> None:
    def command(*words: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hx_gateway", "verify", "--url", fleet.gateway.url, *words],
            capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "HX_API_KEY": key},
        )  # fmt: skip

    done = command("--config", str(fleet.gateway.path), "--report", str(tmp_path / "report.xml"), key=KEY)
    assert done.returncode == 0 and not done.stderr
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.tag == "testsuite" and int(suite.get("tests", "0")) == len(suite.findall("testcase")) > 20
    done = command("--name", "hx-none", "--report", str(tmp_path / "report.json"), "--json")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("FAILED listed of hx-none")
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "report.json").read_text()) and told["summary"]["failed"] == 1 and not told["ok"]
    assert told["counters"]["hx-chat"]["ok"] > 0
    assert KEY not in done.stdout + done.stderr + (tmp_path / "report.xml").read_text()
    assert command("--key", "NOT_SET_ANYWHERE").returncode == 2
    assert command("--dimensions", "1024").returncode == 2


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_a_server_by_itself(dialect: str) -> None:
    models = (Model("tiny:1b", ("completion",)), Model("vectors:latest" if dialect == "ollama" else "vectors", ("embedding",)))
    with Scripted(dialect, models=models) as backend:
        report = run_node(backend.url, dimensions={"vectors": 16}, models=("tiny:1b", "vectors"))
        assert report.ok, report.failures
        assert {(one.check, one.subject) for one in report.results} >= {("stream", "tiny:1b"), ("embeddings", "vectors")}
        found = failed(run_node(backend.url, models=("tiny:1b", "large:70b")))
        assert found == {("listed", "large:70b"): f"it does not have this model; it has tiny:1b, {models[1].name}"}


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        ("fickle", "chat", "not deterministic"),
        ("other_model", "chat", "wrong model: 'tiny:1b' was asked, and the answer says it is from 'not-tiny:1b'"),
        ("no_usage", "chat", "usage is missing"),
        ("early_finish", "stream", "stream order: event"),
        ("repeated_finish", "stream", "more after the finish reason"),
        ("usage_in_last", "stream", "usage and a choice"),
        ("truncated after=1", "stream", "without [DONE]"),
        ("error_event", "stream", "the stream broke"),
        ("status status=500", "models", "500"),
        ("refuse", "models", "refused"),
    ],
)
def test_each_fault_of_a_server_by_itself(fault: str, check: str, words: str) -> None:
    with ExitStack() as opened:
        server = Scripted("openai", models=(Model("tiny:1b", ("completion",)),))
        backend = opened.enter_context(server)

        async def break_it() -> None:
            backend.fault = fault  # type: ignore[assignment]

        server.run(break_it)
        found = failed(run_node(backend.url, models=("tiny:1b",)))
    assert [name for name, _ in found] == [check] and words.lower() in next(iter(found.values())).lower(), found


def test_a_health_check_is_quick_and_needs_no_key(fleet: Fleet) -> None:
    def ready(url: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hx_gateway", "verify", "--ready", "--url", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (ready(fleet.gateway.url).returncode, ready(fleet.gateway.url).stdout) == (0, "")
    gone = ready(f"http://127.0.0.1:{free_port()}")
    assert gone.returncode == 1 and gone.stderr.startswith("hx-gateway: not ready: ") and "Traceback" not in gone.stderr


def test_a_key_that_is_no_administrators_verifies_what_it_may(fleet: Fleet) -> None:
    admin = Client(fleet.gateway.url, KEY)
    made = admin.ask("POST", "/admin/keys", {"name": "reader", "models": ["small"], "expires": "10m"}).wanted(201).json()
    try:
        report = run(fleet.gateway.url, made["key"], timeout_s=20)
    finally:
        admin.ask("DELETE", f"/admin/keys/{made['id']}")
    assert report.ok, report.failures
    assert set(report.counters) == {"small"}
    assert {one.check: one.detail for one in report.results if one.state == "skipped"}["limits"].startswith("no limited key could be made")


def test_a_server_that_gets_nothing_is_named_and_a_drained_one_is_not_blamed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_names, "_SETTLED_S", 0.1)
    admin = Client(fleet.gateway.url, KEY)
    made = admin.ask("POST", "/admin/keys", {"name": "looker", "models": ["small"], "expires": "10m"}).wanted(201).json()

    def taken_out(result: Result) -> None:  # when it was just seen to be in service
        if (result.check, result.subject) == ("endpoint", "two"):
            admin.ask("POST", "/admin/endpoints/two/drain").wanted()

    try:
        report = run(fleet.gateway.url, made["key"], on_result=taken_out, timeout_s=20)
        assert "none went to small on two; is it drained?" in failed(report)["spread", "small"]
        for report in (verify(fleet), run(fleet.gateway.url, made["key"], timeout_s=20)):
            assert report.ok, report.failures
            assert ("endpoint", "two", "skipped") in {(one.check, one.subject, one.state) for one in report.results}
    finally:
        admin.ask("POST", "/admin/endpoints/two/undrain").wanted()
        admin.ask("DELETE", f"/admin/keys/{made['id']}")
