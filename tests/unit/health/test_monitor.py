"""The monitor: what it writes down, when it asks again, and how it lets a recovered endpoint back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.health.canned import OLLAMA, Canned

from hx_gateway.core.clock import ManualClock
from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.health.monitor import Monitor
from hx_gateway.health.probes import FetchResult, Unreachable
from hx_gateway.upstream.fetch import fetch as real_fetch


class Named:
    """A provider that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Scripted:
    """A `Fetch` that answers every server alike and counts."""

    def __init__(self) -> None:
        self.up = True
        self.calls: list[str] = []
        self.called = asyncio.Event()

    async def __call__(self, endpoint: Endpoint, path: str) -> FetchResult:
        self.calls.append(f"{endpoint.name}{path}")
        self.called.set()
        if not self.up:
            raise Unreachable("the connection was refused; nothing listens there")
        return FetchResult(200, [], b'{"object":"list","data":[{"id":"m"}]}')


def make(name: str = "e", provider: Any = None, breaker: Breaker | None = None) -> Endpoint:
    return Endpoint(name, Address("http", "127.0.0.1", 9), provider or Named("openai"), breaker=breaker)


def registry(*endpoints: Endpoint, breaker: Breaker | None = None) -> Registry:
    deployments = tuple(Deployment("m", "m", endpoint, breaker=breaker) for endpoint in endpoints)
    return Registry({"m": Target("m", "model", deployments)}, {endpoint.name: endpoint for endpoint in endpoints})


def monitor(source: Callable[[], Registry], fetch: Any, clock: Any = None, interval_s: float = 30.0) -> Monitor:
    return Monitor(source, interval_s, clock or ManualClock(100.0), fetch=fetch, provider_named=Named, spread=lambda: 0.5)


async def test_writes_what_it_learns_and_finds_the_dialect() -> None:
    async with Canned(OLLAMA) as server:
        endpoint = server.endpoint()
        clock = ManualClock(50.0)
        await monitor(lambda: registry(endpoint), real_fetch, clock).check_all()
    assert endpoint.provider.name == "ollama"
    facts = endpoint.facts
    assert (facts.healthy, facts.error, facts.version, facts.checked_s) == (True, "", "0.13.5", 50.0)
    assert facts.models == ("llama3.2:3b", "phi3:latest")
    assert facts.legacy_embeddings is False


async def test_a_dead_server_gets_a_reason_and_keeps_what_was_known_of_it() -> None:
    fetch = Scripted()
    endpoint = make()
    watch = monitor(lambda: registry(endpoint), fetch)
    await watch.check_all()
    fetch.up = False
    await watch.check_all()
    assert endpoint.facts.healthy is False
    assert "refused" in endpoint.facts.error
    assert endpoint.facts.models == ("m",)


async def test_an_endpoint_of_unknown_dialect_that_is_down_stays_unknown() -> None:
    fetch = Scripted()
    fetch.up = False
    endpoint = Endpoint("e", Address("http", "127.0.0.1", 9))
    await monitor(lambda: registry(endpoint), fetch).check_all()
    assert endpoint.provider is None and endpoint.facts.healthy is False


async def test_what_the_operator_said_about_embeddings_stays() -> None:
    async with Canned(OLLAMA) as server:
        endpoint = server.endpoint()
        endpoint.facts.legacy_embeddings = True
        watch = monitor(lambda: registry(endpoint), real_fetch)
        await watch.check_all()
        await watch.check_all()
    assert endpoint.facts.legacy_embeddings is True
    assert endpoint.facts.healthy is True


async def test_a_good_probe_ends_the_endpoints_break_and_lets_its_deployments_try() -> None:
    clock = ManualClock(1000.0)
    ours, model = Breaker(1, 60.0), Breaker(1, 60.0)
    ours.failed(999.0)
    model.failed(999.0)
    endpoint = make(breaker=ours)
    other = Breaker(1, 60.0)
    other.failed(999.0)
    elsewhere = Deployment("m", "m", make("other"), breaker=other)
    fleet = registry(endpoint, breaker=model)
    fleet.targets["x"] = Target("x", "model", (elsewhere,))
    fetch = Scripted()
    watch = monitor(lambda: fleet, fetch, clock)
    assert not ours.allows(1000.0) and not model.allows(1000.0)
    await watch.check(endpoint)
    assert ours.state == "closed" and ours.failures == 0
    assert model.state == "open" and model.allows(1000.0)
    assert not other.allows(1000.0)


async def test_a_bad_probe_leaves_breakers_alone() -> None:
    breaker = Breaker(1, 60.0)
    breaker.failed(99.0)
    endpoint = make(breaker=breaker)
    fetch = Scripted()
    fetch.up = False
    await monitor(lambda: registry(endpoint), fetch).check(endpoint)
    assert breaker.state == "open" and not breaker.allows(100.0)


async def pauses(watch: Monitor, endpoint: Endpoint, clock: ManualClock, times: int) -> list[float]:
    found = []
    for _ in range(times):
        await watch.check(endpoint)
        found.append(watch._schedules[endpoint].due_s - clock.monotonic())
    return found


async def test_trouble_is_looked_at_sooner_and_then_less_and_less_often() -> None:
    clock = ManualClock(100.0)
    endpoint = make()
    fetch = Scripted()
    watch = monitor(lambda: registry(endpoint), fetch, clock)
    assert await pauses(watch, endpoint, clock, 1) == [30.0]
    fetch.up = False
    assert await pauses(watch, endpoint, clock, 6) == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    fetch.up = True
    assert await pauses(watch, endpoint, clock, 1) == [30.0]


async def test_a_server_that_answers_probes_but_fails_requests_is_not_let_back_all_the_time() -> None:
    clock = ManualClock(100.0)
    breaker = Breaker(1, 60.0)
    endpoint = make(breaker=breaker)
    watch = monitor(lambda: registry(endpoint), Scripted(), clock)
    found = []
    for _ in range(4):
        breaker.failed(clock.monotonic())
        found += await pauses(watch, endpoint, clock, 1)
    assert found == [2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(("draw", "pause_s"), [(0.0, 28.5), (1.0, 31.5)])
async def test_probes_of_different_endpoints_drift_apart(draw: float, pause_s: float) -> None:
    clock = ManualClock(0.0)
    endpoint = make()
    watch = Monitor(lambda: registry(endpoint), 30.0, clock, fetch=Scripted(), provider_named=Named, spread=lambda: draw)
    assert await pauses(watch, endpoint, clock, 1) == [pytest.approx(pause_s)]


async def test_runs_by_itself_follows_reloads_and_stops() -> None:
    clock = ManualClock(100.0)
    first, second = make("first"), make("second")
    current = [registry(first)]
    fetch = Scripted()
    watch = monitor(lambda: current[0], fetch, clock)
    watch.start()
    await fetch.called.wait()
    while first.facts.healthy is None:
        await asyncio.sleep(0)
    current[0] = registry(second)
    fetch.called.clear()
    clock.advance(31.0)
    watch.soon(first)  # wakes the loop; the endpoint itself is gone and not asked again
    await fetch.called.wait()
    while second.facts.healthy is None:
        await asyncio.sleep(0)
    assert fetch.calls == ["first/v1/models", "second/v1/models"]
    assert first not in watch._schedules
    await watch.stop()
    clock.advance(1000.0)
    await asyncio.sleep(0)
    assert len(fetch.calls) == 2


async def test_asks_at_once_when_told_of_trouble() -> None:
    endpoint = make()
    fetch = Scripted()
    watch = monitor(lambda: registry(endpoint), fetch)
    watch.start()
    await fetch.called.wait()
    while endpoint.facts.healthy is None:
        await asyncio.sleep(0)
    fetch.called.clear()
    watch.soon(endpoint)
    await fetch.called.wait()
    await watch.stop()
    assert len(fetch.calls) == 2


async def test_one_hanging_server_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hx_gateway.health.monitor.PROBE_LIMIT_S", 0.05)
    hanging, well = make("hanging"), make("well")
    good = Scripted()

    async def fetch(endpoint: Endpoint, path: str) -> FetchResult:
        if endpoint is hanging:
            await asyncio.Event().wait()
        return await good(endpoint, path)

    await monitor(lambda: registry(hanging, well), fetch).check_all()
    assert well.facts.healthy is True
    assert hanging.facts.healthy is False and "no answer within" in hanging.facts.error


async def test_a_broken_probe_is_a_verdict_too(caplog: pytest.LogCaptureFixture) -> None:
    async def fetch(endpoint: Endpoint, path: str) -> FetchResult:
        raise ZeroDivisionError

    endpoint = make()
    await monitor(lambda: registry(endpoint), fetch).check_all()
    assert endpoint.facts.healthy is False
    assert "ZeroDivisionError" in caplog.text


async def test_the_server_of_forwarded_requests_is_watched_too() -> None:
    endpoint = make("litellm")
    await monitor(lambda: Registry({}, {}, forward_to=endpoint), Scripted()).check_all()
    assert endpoint.facts.healthy is True
