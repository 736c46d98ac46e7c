"""The pipeline: stages in order, those that wait, those that fail, clients that leave meanwhile, and stages from outside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from tests.integration.protocol.wire import PING, one, request
from tests.support.background import scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Response
from hx_gateway.dataplane.pipeline import Pipeline
from hx_gateway.testing.factories import DeafClient


class Ends:
    """What became of an exchange."""

    def __init__(self, *stages: Any) -> None:
        self.what: list[Any] = []
        self.pipeline = Pipeline(stages, self.proceed, lambda _, response: self.what.append(response.status), self.refuse)
        self.exchange = Exchange("01", CHAT, b"POST", b"/", {}, [], b"", DeafClient(), 0.0)

    def proceed(self, exchange: Exchange) -> None:
        """All stages let it pass."""
        assert exchange.owner is None
        self.what.append("proceeded")

    def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """A stage, or a fault, refused it."""
        self.what.append(failure.kind.code)

    async def run(self) -> list[Any]:
        """Run, and let everything happen that is due."""
        self.pipeline.run(self.exchange)
        for _ in range(10):
            await asyncio.sleep(0)
        return self.what


def passing(log: list[str], name: str) -> Any:
    def stage(exchange: Exchange) -> None:
        log.append(name)

    return stage


def waiting(log: list[str], name: str, answer: Response | None = None, until: asyncio.Event | None = None) -> Any:
    def stage(exchange: Exchange) -> Any:
        async def wait() -> Response | None:
            log.append(f"{name} begins")
            if until is not None:
                await until.wait()
            else:
                await asyncio.sleep(0)
            log.append(f"{name} ends")
            return answer

        return wait()

    return stage


def raising(error: Exception) -> Any:
    def stage(exchange: Exchange) -> None:
        raise error

    return stage


async def test_in_order_and_without_a_task_where_nobody_waits() -> None:
    log: list[str] = []
    ends = Ends(passing(log, "a"), passing(log, "b"))
    ends.pipeline.run(ends.exchange)
    assert (log, ends.what) == (["a", "b"], ["proceeded"]), "no turn of the loop was needed"


async def test_in_order_where_some_wait() -> None:
    log: list[str] = []
    ends = Ends(passing(log, "a"), waiting(log, "b"), passing(log, "c"), waiting(log, "d"), passing(log, "e"))
    assert await ends.run() == ["proceeded"]
    assert log == ["a", "b begins", "b ends", "c", "d begins", "d ends", "e"]


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_ends_it(late: bool) -> None:
    log: list[str] = []
    answer = Response(418, b"")
    stage = waiting(log, "w", answer) if late else lambda exchange: answer
    assert await Ends(stage, passing(log, "never")).run() == [418]
    assert "never" not in log


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("error", "code"), [(Failure(errors.RATE_LIMITED, "no"), "rate_limit_exceeded"), (KeyError("x"), "internal_error")]
)
async def test_what_a_stage_raises(late: bool, error: Exception, code: str, caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    stages = [waiting(log, "w"), raising(error)] if late else [raising(error)]
    assert await Ends(*stages, passing(log, "never")).run() == [code]
    assert "never" not in log
    assert ("01" in caplog.text) == (code == "internal_error"), "the log finds the fault by the request's id"


async def test_what_a_waiting_stage_raises() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise Failure(errors.OVERLOADED, "no")

    assert await Ends(lambda exchange: fail()).run() == ["overloaded"]


async def test_a_client_that_leaves_while_a_stage_waits() -> None:
    log: list[str] = []
    never = asyncio.Event()
    ends = Ends(waiting(log, "w", until=never), passing(log, "next"))
    ends.pipeline.run(ends.exchange)
    await asyncio.sleep(0)
    owner = ends.exchange.owner
    assert owner is not None
    owner.pause()
    owner.resume()
    owner.client_gone()
    never.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert (log, ends.what) == (["w begins"], ["client_closed"])


PLUGIN = """
import asyncio
import json

from hx_gateway.core.interfaces import Response


def build(gateway):
    assert gateway.config.service.name == "with-a-plugin"

    def stage(exchange):
        if exchange.notes.get(b"x-hx-tags") == b"teapot":
            return Response(418, json.dumps({"stage": "from outside"}).encode(), b"content-type: application/json\\r\\n")
        if exchange.notes.get(b"x-hx-tags") == b"slow":
            return wait()
        return None

    async def wait():
        await asyncio.sleep(0.01)
        return None

    return stage
"""


def test_a_stage_from_outside_by_its_dotted_path(tmp_path: Path) -> None:
    (tmp_path / "hx_test_plugin.py").write_text(PLUGIN)
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with scripted("openai", models=("tiny:1b",)) as backend:
        config = f"""
service: {{name: with-a-plugin}}
models: {{tiny: {{endpoint: "{backend.url}", provider: openai, upstream_model: "tiny:1b"}}}}
pipeline: {{stages: [authenticate, "hx_test_plugin:build", inspect, resolve, limits, admission]}}
"""
        with GatewayProcess(config, {"PYTHONPATH": paths}) as gateway:
            assert one(gateway.port, request(PING)).content == "pong"
            answer = one(gateway.port, request(PING, "x-hx-tags: teapot"))
            assert (answer.status, answer.body) == (418, b'{"stage": "from outside"}')
            assert answer.header("x-request-id")
            assert one(gateway.port, request(PING, "x-hx-tags: slow")).content == "pong"
            assert one(gateway.port, request(PING, "x-hx-tags: teapot", key="wrong")).status == 401, "it stands behind authenticate"
