"""One form for every log line, and no credential in any."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from hx_gateway.telemetry.logs import HIDDEN, configure_logs, redact, scrub


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_own_lines_and_those_of_libraries_look_alike() -> None:
    stream = io.StringIO()
    configure_logs("INFO", "json", stream)
    structlog.get_logger("hx_gateway.test").info("started", port=8000)
    logging.getLogger("hx_gateway.other").warning("endpoint %s is not healthy: %s", "llm-01", "refused")
    logging.getLogger("uvicorn.error").info("listening", extra={"color_message": "\x1b[36mlistening"})
    first, second, third = logged(stream)
    assert first["event"] == "started" and first["port"] == 8000 and first["logger"] == "hx_gateway.test"
    assert second["event"] == "endpoint llm-01 is not healthy: refused" and second["level"] == "warning"
    assert third["event"] == "listening" and "color_message" not in third
    assert all(line["timestamp"].endswith("Z") for line in (first, second, third))


def test_level_decides() -> None:
    stream = io.StringIO()
    configure_logs("warning", "json", stream)
    logging.getLogger("a").info("no")
    structlog.get_logger("b").info("no")
    logging.getLogger("a").warning("yes")
    assert [line["event"] for line in logged(stream)] == ["yes"]


def test_setting_up_twice_does_not_log_twice() -> None:
    stream = io.StringIO()
    configure_logs("INFO", "json", stream)
    configure_logs("INFO", "json", stream)
    logging.getLogger("a").info("once")
    assert len(logged(stream)) == 1


@pytest.mark.parametrize("format", ["console", "json"])
def test_no_credential_reaches_the_stream(format: str) -> None:
    secret = "sk-hx-abcdefghijkl0123"
    stream = io.StringIO()
    configure_logs("INFO", format, stream)
    log = structlog.get_logger("t")
    log.info("call", authorization=f"Bearer {secret}", headers={"X-Api-Key": secret, "cookie": "c=" + secret}, nested=[{"api_key": secret}])
    log.info("text with Authorization: Bearer %s inside", secret)
    logging.getLogger("t").info("redis://user:%s@cache:6379 %s", secret, [secret])
    logging.getLogger("t").info("extra", extra={"master_key": secret, "body": secret.encode()})
    try:
        raise ValueError(f"bad key {secret}")
    except ValueError:
        logging.getLogger("t").exception("failed")
    written = stream.getvalue()
    assert "failed" in written and "ValueError" in written
    assert secret not in written and "abcdefghijkl" not in written
    assert written.count(HIDDEN) >= 7


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Proxy-Authorization",
        "x-api-key",
        "api_key",
        "apikey",
        "MASTER_KEY",
        "token",
        "auth_token",
        "Set-Cookie",
        "password",
        "client_secret",
    ],
)
def test_names_that_are_hidden(name: str) -> None:
    assert redact(None, "info", {name: "v"}) == {name: HIDDEN}


@pytest.mark.parametrize("name", ["event", "model", "prompt_tokens", "completion_tokens", "keys", "key_name", "monkey", "endpoint"])
def test_names_that_are_shown(name: str) -> None:
    assert redact(None, "info", {name: "v"}) == {name: "v"}


def test_scrub_leaves_other_text_alone() -> None:
    text = "GET http://llm-01:11434/v1/models answered 200 in 3 ms; task-4 took risk-free steps"
    assert scrub(text) == text
    assert scrub("postgres://hx:pw@sql/db") == f"postgres://hx:{HIDDEN}@sql/db"
    assert scrub("X-API-Key: abcdef") == f"X-API-Key: {HIDDEN}"


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"monitoring\.log_level.*LOUD"):
        configure_logs("LOUD")
    with pytest.raises(ValueError, match=r"monitoring\.log_format.*xml"):
        configure_logs("INFO", "xml")
