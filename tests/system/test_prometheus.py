"""A real Prometheus and promtool: what is shipped is valid, every alert fires when it should, and what is scraped equals the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.integration.telemetry.test_workers import CONFIG, WORKERS, Gateway
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess, free_port
from tests.support.required import program

from hx_gateway.cli.monitoring import FILES, SHIPPED

TESTS = Path(__file__).with_name("alerts.test.yml")
RULES = ("recording-rules.yml", "alert-rules.yml")


def promtool(*words: str | Path, given: bytes | None = None) -> str:
    """What promtool says; fails the test where it complains."""
    done = subprocess.run([program("promtool"), *map(str, words)], input=given, capture_output=True, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything that is shipped."""
    for name in FILES:
        (tmp_path / name).write_bytes(SHIPPED.joinpath(name).read_bytes())
    return tmp_path


def test_rules_and_configuration_are_valid(folder: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", *(folder / name for name in RULES))
    assert "SUCCESS" in promtool("check", "config", folder / "prometheus.yml")


def test_every_alert_fires_when_it_should_and_is_silent_otherwise(folder: Path) -> None:
    rules = yaml.safe_load((folder / "alert-rules.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        del rule["annotations"]  # promtool wants every value in them; that they can be made is what `check rules` says
    (folder / "alert-rules.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(TESTS, folder)
    assert "SUCCESS" in promtool("test", "rules", folder / TESTS.name)
    cases = yaml.safe_load(TESTS.read_text())["tests"]
    fired = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}
    silent = {test["alertname"] for case in cases for test in case["alert_rule_test"] if not test["exp_alerts"]}
    assert fired == silent == {rule["alert"] for rule in rules["groups"][0]["rules"]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of four workers."""
    state, port = tmp_path_factory.mktemp("state"), free_port()
    with Scripted() as backend, GatewayProcess(
        CONFIG.format(url=backend.url, port=port), {"XDG_STATE_HOME": str(state)}, workers=WORKERS
    ) as process:  # fmt: skip
        yield Gateway(process, port, state)


def test_what_is_scraped_has_no_lint(gateway: Gateway) -> None:
    asyncio.run(gateway.load(12))
    promtool("check", "metrics", given=one(gateway.process.port, request(b"", method="GET", path="/metrics")).body)


class Prometheus:
    """A Prometheus that scrapes one gateway every second."""

    def __init__(self, folder: Path, target: str) -> None:
        self.port = free_port()
        self.log = folder / "log"
        config = yaml.safe_load((folder / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ]

    def ask(self, path: str, **query: str) -> object:
        """The data of an answer of its API; None while it has none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            try:
                connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
                return json.loads(connection.getresponse().read()).get("data")
            except (OSError, ValueError):
                return None

    def value(self, query: str) -> float | None:
        """The one value a query gives."""
        found = self.ask("query", query=query)
        result = found["result"] if isinstance(found, dict) else []
        return float(result[0]["value"][1]) if result else None

    def __enter__(self) -> Prometheus:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def test_what_prometheus_knows_after_the_load_equals_the_ledger(gateway: Gateway, folder: Path) -> None:
    with Prometheus(folder, f"127.0.0.1:{gateway.exporter}") as prometheus:
        wait_until(lambda: prometheus.value('up{job="hx-gateway"}') == 1.0, 60)
        asyncio.run(gateway.load(400))
        wait_until(lambda: gateway.ledger()[0] == gateway.total("hx_gateway_requests_total"), 60)
        rows, prompt, completion, attempts, cost = gateway.ledger()
        assert rows >= 400

        def same() -> bool:
            return (
                prometheus.value("sum(hx_gateway_requests_total)") == rows
                and prometheus.value('sum(hx_gateway_tokens_total{kind="prompt"})') == prompt
                and prometheus.value('sum(hx_gateway_tokens_total{kind="completion"})') == completion
                and prometheus.value("sum(hx_gateway_attempts_total)") == attempts
                and abs((prometheus.value("sum(hx_gateway_cost_total)") or 0.0) - cost) < 1e-6
                and prometheus.value("sum(hx_gateway_journal_records_total)") == rows
                and prometheus.value("sum(hx_gateway_response_seconds_count)") == rows
            )

        wait_until(same, 60)
        rules = prometheus.ask("rules")
        assert isinstance(rules, dict)
        broken = [rule for group in rules["groups"] for rule in group["rules"] if rule.get("lastError")]
        assert len(rules["groups"]) == 2 and not broken
        wait_until(lambda: prometheus.value("job:hx_gateway_requests:rate5m") is not None, 60)
