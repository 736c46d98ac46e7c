"""Placement: models are loaded where the plan wants them and there is room, by calls that generate nothing, and no more often than that."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from hx_gateway.core.clock import ManualClock
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, DeploymentOptions, Endpoint
from hx_gateway.fleet.facts import LoadedModel, ModelFacts
from hx_gateway.fleet.registry import Kept
from hx_gateway.health.placement import Placement, empty_call
from hx_gateway.health.probes import FetchResult, Unreachable

GB = 1e9


class Server:
    """A `Fetch` that loads what it is asked for into an endpoint's facts."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.status = 200
        self.takes_s = 4.0

    async def __call__(self, endpoint: Endpoint, path: str, body: bytes | None = None, *, timeout_s: float = 3.0) -> FetchResult:
        asked = json.loads(body or b"{}")
        self.calls.append((path, asked))
        self.clock.advance(self.takes_s)
        if self.status == 0:
            raise Unreachable(f"no answer within {timeout_s:g} s")
        if self.status == 200:
            holds(endpoint, **{asked["model"]: 2 * GB})
        return FetchResult(self.status, [], b"{}")


def holds(endpoint: Endpoint, **sizes: float) -> None:
    more = {name: LoadedModel(name, size) for name, size in sizes.items()}
    endpoint.facts.memory = {**endpoint.facts.memory, **more}
    endpoint.facts.loaded = frozenset(endpoint.facts.memory)


def make_endpoint(memory_gb: float = 0.0, most: int = 0) -> Endpoint:
    endpoint = Endpoint("llm-01", Address("http", "127.0.0.1", 9), memory_bytes=memory_gb * GB, max_loaded_models=most)
    endpoint.facts.engine = "ollama"
    endpoint.facts.loaded = frozenset()
    return endpoint


def kept(endpoint: Endpoint, name: str = "m", keep_alive: Any = -1, mode: str = "", **options: Any) -> Kept:
    one = Deployment(name, name, endpoint, mode=mode, options=DeploymentOptions(**options))
    one.size = 2 * GB
    return Kept(one, keep_alive)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def server(clock: ManualClock) -> Server:
    return Server(clock)


async def settle(placement: Placement, endpoint: Endpoint, plan: list[Kept]) -> None:
    placement.look(endpoint, plan)
    while placement._tasks:
        await asyncio.sleep(0)


async def test_a_missing_model_is_loaded_by_an_empty_call_and_its_load_time_learned(server: Server, clock: ManualClock) -> None:
    endpoint = make_endpoint()
    told: list[Endpoint] = []
    placement = Placement(server, clock, told.append)
    plan = [kept(endpoint, num_ctx=4096)]
    await settle(placement, endpoint, plan)
    expected = {"model": "m", "keep_alive": -1, "options": {"num_ctx": 4096}, "prompt": "", "stream": False}
    assert server.calls == [("/api/generate", expected)] and told == [endpoint]
    assert plan[0].deployment.pace.load_s == 4.0
    await settle(placement, endpoint, plan)
    assert len(server.calls) == 1  # it is there


async def test_what_is_in_memory_is_left_alone(server: Server, clock: ManualClock) -> None:
    endpoint = make_endpoint()
    holds(endpoint, **{"m:latest": GB})
    await settle(Placement(server, clock), endpoint, [kept(endpoint)])
    assert server.calls == []


@pytest.mark.parametrize(
    ("mode", "legacy", "call"),
    [
        ("chat", None, ("/api/generate", {"prompt": "", "stream": False})),
        ("embedding", False, ("/api/embed", {"input": []})),
        ("embedding", True, ("/api/embeddings", {"prompt": ""})),
    ],
)
def test_each_kind_of_model_has_its_empty_call(mode: str, legacy: bool | None, call: tuple[str, dict[str, Any]]) -> None:
    endpoint = make_endpoint()
    endpoint.facts.legacy_embeddings = legacy
    path, body = empty_call(kept(endpoint, keep_alive="30m", mode=mode))
    assert path == call[0] and body == {"model": "m", "keep_alive": "30m", **call[1]}


def test_an_embedding_model_is_known_by_what_it_can_do() -> None:
    endpoint = make_endpoint()
    endpoint.facts.about = {"m": ModelFacts("m", able=frozenset(("embedding",)))}
    assert empty_call(kept(endpoint))[0] == "/api/embed"


@pytest.mark.parametrize(
    ("memory_gb", "most", "present", "loads"),
    [
        (0, 0, {}, ["a", "b"]),
        (0, 0, {"a": GB}, ["b"]),
        (0, 0, {"stranger": GB}, []),
        (10, 0, {"stranger": 7 * GB}, ["a"]),
        (12, 0, {"stranger": 7 * GB}, ["a", "b"]),
        (5, 0, {"stranger": 7 * GB}, []),
        (0, 1, {}, ["a"]),
        (100, 2, {"stranger": GB}, ["a"]),
        (100, 1, {"stranger": GB}, []),
    ],
)
async def test_nothing_is_pushed_out(
    server: Server, clock: ManualClock, memory_gb: float, most: int, present: dict[str, float], loads: list[str]
) -> None:
    endpoint = make_endpoint(memory_gb, most)
    holds(endpoint, **present)
    before = dict(endpoint.facts.memory)

    async def quiet(*arguments: Any, **options: Any) -> FetchResult:  # as it is between two probes: facts do not change
        answer = await server(*arguments, **options)
        endpoint.facts.memory = before
        return answer

    await settle(Placement(quiet, clock), endpoint, [kept(endpoint, "a"), kept(endpoint, "b")])
    assert [body["model"] for _, body in server.calls] == loads


async def test_a_model_that_keeps_going_is_loaded_less_and_less_often(server: Server, clock: ManualClock) -> None:
    endpoint = make_endpoint(memory_gb=100)
    placement = Placement(server, clock)
    plan = [kept(endpoint)]
    at: list[float] = []
    for _ in range(600):
        before = len(server.calls)
        endpoint.facts.memory = {}
        await settle(placement, endpoint, plan)
        if len(server.calls) > before:
            at.append(clock.monotonic())
        clock.advance(30.0)
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert pauses == sorted(pauses) and pauses[0] < 100 and 3600 <= pauses[-1] < 3700
    placement.recovered(endpoint)
    endpoint.facts.memory = {}
    count = len(server.calls)
    await settle(placement, endpoint, plan)
    assert len(server.calls) == count + 1  # a server that comes back has lost everything, and gets it back at once


@pytest.mark.parametrize(("status", "words"), [(0, "no answer within 120 s"), (404, "answered 404"), (500, "answered 500")])
async def test_a_failure_is_told_once_and_tried_again_later(
    server: Server, clock: ManualClock, caplog: pytest.LogCaptureFixture, status: int, words: str
) -> None:
    endpoint = make_endpoint()
    server.status = status
    placement = Placement(server, clock)
    plan = [kept(endpoint)]
    for _ in range(4):
        await settle(placement, endpoint, plan)
    assert len(server.calls) == 1
    clock.advance(61.0)
    await settle(placement, endpoint, plan)
    assert len(server.calls) == 2
    (said,) = [record.getMessage() for record in caplog.records]
    assert words in said and "llm-01" in said and "127.0.0.1" not in said
    assert plan[0].deployment.pace.load_s == plan[0].deployment.load_prior_s == 8.0


async def test_hindrances_name_the_setting(server: Server, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    for endpoint in (make_endpoint(), make_endpoint(memory_gb=5), make_endpoint(most=1)):
        holds(endpoint, stranger=4 * GB)
        await settle(Placement(server, clock), endpoint, [kept(endpoint)])
    said = [record.getMessage() for record in caplog.records]
    assert "stranger" in said[0] and "memory_gb" in said[0] and "memory_gb (5)" in said[1] and "max_loaded_models (1)" in said[2]


async def test_only_ollama_is_asked_and_only_for_its_own(server: Server, clock: ManualClock) -> None:
    endpoint, other = make_endpoint(), make_endpoint()
    placement = Placement(server, clock)
    await settle(placement, endpoint, [kept(other)])
    endpoint.facts.engine = "vllm"
    await settle(placement, endpoint, [kept(endpoint)])
    assert server.calls == []


async def test_stopping_gives_up_what_is_under_way(clock: ManualClock) -> None:
    endpoint = make_endpoint()
    begun = asyncio.Event()

    async def never(*_: Any, **__: Any) -> FetchResult:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    placement = Placement(never, clock)
    placement.look(endpoint, [kept(endpoint)])
    placement.look(endpoint, [kept(endpoint)])
    await begun.wait()
    assert len(placement._tasks) == 1
    await placement.stop()
    assert not placement._tasks
