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
from hx_gateway.fleet.registry import Kept, Registry, Target
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
    clock = ManualClock(100.0)
    watch = monitor(lambda: registry(endpoint), fetch, clock)
    watch.start()
    await fetch.called.wait()
    while endpoint.facts.healthy is None:
        await asyncio.sleep(0)
    fetch.called.clear()
    clock.advance(1.0)
    watch.soon(endpoint)
    await fetch.called.wait()
    await watch.stop()
    assert len(fetch.calls) == 2


async def test_trouble_noticed_again_and_again_causes_no_storm_of_probes() -> None:
    clock = ManualClock(100.0)
    endpoint = make()
    fetch = Scripted()
    watch = monitor(lambda: registry(endpoint), fetch, clock)
    probed: list[float] = []

    async def tick(seconds: float) -> None:
        """Let time pass in small steps; a probe that is due is made, as the monitor's own loop does."""
        for _ in range(round(seconds / 0.1)):
            clock.advance(0.1)
            watch.soon(endpoint)
            if watch._schedules[endpoint].due_s <= clock.monotonic():
                probed.append(clock.monotonic())
                await watch.check(endpoint)

    await watch.check(endpoint)
    await tick(10.0)
    assert 8 <= len(probed) <= 10, "a server that is well is asked once a second at most"
    fetch.up = False
    await tick(1.5)
    probed.clear()
    await tick(28.0)
    assert len(probed) == 3, "one that is not is asked by the plan alone: after 2, 4, 8 and 16 seconds"
    fetch.up = True
    await tick(16.0)
    assert endpoint.facts.healthy is True


async def test_what_is_noticed_while_a_good_probe_runs_is_looked_at_after_it() -> None:
    clock = ManualClock(100.0)
    endpoint = make()
    fetch = Scripted()

    async def noticed(where: Endpoint, path: str) -> FetchResult:
        answer = await fetch(where, path)
        watch.soon(where)
        return answer

    watch = monitor(lambda: registry(endpoint), noticed, clock)
    await watch.check(endpoint)
    assert watch._schedules[endpoint].due_s == 101.0
    fetch.up = False
    clock.advance(1.0)
    assert await pauses(watch, endpoint, clock, 2) == [2.0, 4.0], "what was found counts more than what was noticed before"


async def test_within_how_long_it_is_looked_at_can_be_said() -> None:
    clock = ManualClock(100.0)
    endpoint = make()
    watch = monitor(lambda: registry(endpoint), Scripted(), clock)
    watch.soon(endpoint)  # not known yet: its first probe is due anyway
    await watch.check(endpoint)
    watch.soon(endpoint, 5.0)
    assert watch._schedules[endpoint].due_s == 105.0
    watch.soon(endpoint, 2.0)
    watch.soon(endpoint, 20.0)
    assert watch._schedules[endpoint].due_s == 102.0, "the earliest counts"
    clock.advance(5.0)
    watch.soon(endpoint)
    assert watch._schedules[endpoint].due_s == 102.0


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


TAGS = {"models": [{"name": "phi3:latest", "size": 2_000_000_000, "digest": "d" * 64}, {"name": "other:1b", "size": 1, "digest": "e" * 64}]}
PS = {"models": [{"name": "phi3:latest", "size": 3_000_000_000, "size_vram": 1_500_000_000, "context_length": 4096}]}
SHOW = {"capabilities": ["completion"], "model_info": {"general.architecture": "phi3", "phi3.context_length": 131072}}


async def test_what_ollama_tells_reaches_deployments_and_residency() -> None:
    answers = {"/api/version": (200, {"version": "0.13.5"}), "/api/tags": (200, TAGS), "/api/ps": (200, PS), "/api/show": (200, SHOW)}
    async with Canned(answers) as server:
        endpoint = server.endpoint()
        one = Deployment("chat", "phi3", endpoint)
        left_out = Deployment("old", "other:1b", endpoint)
        fleet = Registry({"chat": Target("chat", "model", (one,), excluded=((left_out, "it is another"),))}, {"e": endpoint})
        watch = monitor(lambda: fleet, real_fetch)
        await watch.check_all()
        assert endpoint.facts.engine == "ollama" and endpoint.facts.loaded == {"phi3", "phi3:latest"}
        assert (one.size, one.loaded_context, one.context_length, one.spilled) == (3e9, 4096, 4096, 0.5)
        assert one.unable >= {"vision", "tools"} and left_out.size == 1 and left_out.unable >= {"vision"}
        residency = endpoint.residency
        assert residency.managed and list(residency.resident) == ["phi3"] and residency.load_s(one, 100.0) == 0.0
        assert len(server.posted) == 2
        server.answers = {**answers, "/api/ps": (404, {})}
        await watch.check_all()
        assert endpoint.facts.loaded is None and endpoint.facts.memory == {} and not residency.managed
        assert len(server.posted) == 2  # asked about once
        server.answers = {}
        await watch.check_all()
        assert endpoint.facts.healthy is False and endpoint.facts.about["phi3:latest"].studied and one.context_length == 131072


LLAMA = {
    "/v1/models": (200, {"data": [{"id": "tiny", "owned_by": "llamacpp", "meta": {"n_ctx_train": 1024, "size": 2_000_000_000}}]}),
    "/health": (200, {}),
    "/props": (200, {"total_slots": 3, "is_sleeping": False}),
    "/metrics": (200, b"llamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n"),
}


@pytest.mark.parametrize(("configured", "slots"), [(0, 3), (8, 8)])
async def test_an_engine_tells_its_slots_unless_they_are_configured(configured: int, slots: int) -> None:
    async with Canned(LLAMA) as server:
        endpoint = server.endpoint(slots=configured)
        await monitor(lambda: registry(endpoint), real_fetch, ManualClock(70.0)).check_all()
    load = endpoint.facts.load
    assert endpoint.slots == slots and endpoint.facts.slots == 3
    assert load is not None and (load.running, load.waiting) == (1, 4)
    assert not endpoint.residency.managed


async def test_a_sleeping_server_costs_a_load_and_an_awake_one_does_not() -> None:
    asleep = {**LLAMA, "/props": (200, {"total_slots": 3, "is_sleeping": True})}
    async with Canned(asleep) as server:
        endpoint = server.endpoint()
        one = Deployment("m", "tiny", endpoint)
        fleet = Registry({"m": Target("m", "model", (one,))}, {"e": endpoint})
        watch = monitor(lambda: fleet, real_fetch)
        await watch.check_all()
        assert endpoint.facts.sleeping and endpoint.facts.loaded == frozenset() and endpoint.residency.load_s(one, 0.0) == 2.0
        server.answers = LLAMA
        await watch.check_all()
        assert not endpoint.facts.sleeping and endpoint.facts.loaded is None and endpoint.residency.load_s(one, 0.0) == 0.0


async def test_a_study_that_breaks_leaves_the_server_healthy() -> None:
    async with Canned({**LLAMA, "/props": (200, b"\xff\xfe"), "/slots": (200, b"[1, null]"), "/metrics": (200, b"\xff")}) as server:
        endpoint = server.endpoint()
        await monitor(lambda: registry(endpoint), real_fetch).check_all()
    assert endpoint.facts.healthy is True and endpoint.slots == 2


async def test_more_models_to_ask_about_bring_the_next_probe_forward() -> None:
    tags = {"models": [{"name": f"m{number}", "size": 1, "digest": f"{number:064x}"} for number in range(20)]}
    clock = ManualClock(100.0)
    answers = {"/api/version": (200, {"version": "0.13.5"}), "/api/tags": (200, tags), "/api/show": (200, SHOW)}
    async with Canned(answers) as server:
        endpoint = server.endpoint()
        watch = monitor(lambda: registry(endpoint), real_fetch, clock)
        await watch.check_all()
        assert watch._schedules[endpoint].due_s == 102.0
        await watch.check_all()
        assert watch._schedules[endpoint].due_s == 130.0
    assert all(model.studied for model in endpoint.facts.about.values())


async def test_the_plan_is_carried_out_after_a_probe() -> None:
    loaded: list[str] = []

    def load(body: Any) -> tuple[int, Any]:
        loaded.append(body["model"])
        return 200, {"done": True}

    answers = {
        "/api/version": (200, {"version": "0.13.5"}),
        "/api/tags": (200, TAGS),
        "/api/ps": (200, {"models": []}),
        "/api/generate": load,
    }
    async with Canned(answers) as server:
        endpoint = server.endpoint()
        one = Deployment("chat", "phi3", endpoint)
        fleet = Registry({"chat": Target("chat", "model", (one,))}, {"e": endpoint}, placement=[Kept(one, -1)])
        watch = monitor(lambda: fleet, real_fetch)
        await watch.check_all()
        while not loaded:
            await asyncio.sleep(0.001)
        await watch.stop()
    assert loaded == ["phi3"]


async def test_a_server_that_was_away_has_lost_what_it_had_read() -> None:
    fetch = Scripted()
    endpoint = make()
    watch = monitor(lambda: registry(endpoint), fetch)
    await watch.check_all()
    life = endpoint.facts.cache.life
    await watch.check_all()
    assert endpoint.facts.cache.life == life
    fetch.up = False
    await watch.check_all()
    fetch.up = True
    await watch.check_all()
    assert endpoint.facts.cache.life == life + 1
