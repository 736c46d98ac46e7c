"""Whatever becomes of a request, every count is exact at every moment, its client is answered once, and at the end all is zero."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from time import monotonic
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.dataplane.tripping import MOOD, TRIPS, Call, Client, Pool, Watcher

from hx_gateway.config.load import load_text
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS, Exchange
from hx_gateway.dataplane.run import Run
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.gateway import Gateway

HERE = "tests.unit.dataplane.tripping"
CONFIG = """
endpoints:
  one: {{url: "http://127.0.0.1:1", provider: "{here}:Provider", discover: false}}
  two: {{url: "http://127.0.0.1:2", provider: "{here}:Provider", discover: false, max_concurrent: 2}}
  three: {{url: "http://127.0.0.1:{port}", provider: "{here}:Provider", discover: false}}
models:
  wide: {{endpoints: {places}, max_concurrent: {most}, tokens_per_minute: 100000000}}
  lone: {{endpoint: three, max_concurrent: 2, requests_per_minute: 1000000, tokens_per_minute: 100000000}}
{more}
groups:
  scored: {{models: [wide, lone], policy: own}}
  clever: {{models: [wide], policy: intelligent}}
policies: {{own: {{terms: {{"{here}:term": 1.0}}}}}}
fallbacks: {{wide: {{down: [lone], context: [scored]}}, lone: {{context: [clever]}}}}
load_balancer:
  algorithm: "{here}:Picker"
  max_attempts: 3
  circuit_breaker_threshold: 2
  circuit_breaker_timeout: 600
queue: {{max_waiting: 3, max_wait_seconds: 500}}
http: {{heartbeat_seconds: 5}}
pipeline: {{stages: [authenticate, "{here}:stage", inspect, resolve, limits, admission]}}
"""
NAMES = ("wide", "wide", "lone", "scored", "clever", "gone")
WHOLE = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "pong"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}},
    }
).encode()
VECTORS = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"model":"m","usage":{"prompt_tokens":1,"total_tokens":1}}'
EVENTS = [(b"content-type", b"text/event-stream")]
KINDS = (
    errors.CONNECT_FAILED, errors.CONNECT_TIMEOUT, errors.CONNECTION_RESET, errors.FIRST_BYTE_TIMEOUT, errors.STREAM_BROKEN,
    errors.STREAM_STALLED, errors.TOTAL_TIMEOUT, errors.BAD_RESPONSE,
)  # fmt: skip
REFUSALS = {
    500: b'{"error":{"message":"no","type":"x"}}',
    429: b'{"error":{"message":"full","type":"x"}}',
    401: b'{"error":{"message":"who","type":"x"}}',
    404: b'{"error":{"message":"what","type":"x"}}',
    400: b'{"error":{"message":"the maximum context length is 5","type":"invalid_request_error","code":"context_length_exceeded"}}',
}

ROUTES = (CHAT, CHAT, CHAT, EMBEDDINGS)
PRIORITIES = (b"high", b"normal", b"low")
PASSES: tuple[int | str, ...] = ("nothing", "heartbeats", "breakers", "longest wait", 0, 1, 2, 3)
"""What time brings; a number is a reload of that configuration."""
ANSWERS: tuple[int | bytes, ...] = (b"", b"", b"", b"garbage", *REFUSALS)
"""A good one, one that nobody can read (of a stream: one that ends too soon), or a refusal with its status."""


def config(variant: int) -> GatewayConfig:
    """One of four fleets; a server comes and goes, one changes its address, limits change."""
    text = CONFIG.format(
        here=HERE,
        places=("[one, two]", "[one]", "[two, three]", "[one, two, three]")[variant],
        most=(2, 1, 0, 3)[variant],
        port=(3, 4, 3, 4)[variant],
        more="  gone: {endpoint: two, max_concurrent: 1}" if variant else "",
    )
    loaded = load_text(text, "gateway.yaml", {}).config
    assert loaded is not None
    return loaded


CONFIGS = [config(variant) for variant in range(4)]


def chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return (
        b"data: "
        + json.dumps({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}).encode()
        + b"\n\n"
    )


LAST = chunk("g").replace(b"null", b'"stop"') + b"data: [DONE]\n\n"


class WaysOut(RuleBasedStateMachine):
    """A gateway without sockets; what model servers and clients do is drawn, and its counts are compared with what is under way."""

    def __init__(self) -> None:
        super().__init__()
        MOOD.__init__()  # type: ignore[misc]
        self.loop = asyncio.new_event_loop()
        self.gateway = Gateway(CONFIGS[0])
        self.watcher = Watcher()
        self.proxy = self.gateway.proxy
        self.gateway.observe(self.watcher)
        self.everything: list[Exchange] = []
        self.deployments: dict[Deployment, None] = {}
        self.endpoints: dict[Endpoint, None] = {}
        self.look_around()

    def look_around(self) -> None:
        """Remember every deployment and endpoint there ever was, and script the new ones."""
        for target in self.gateway.registry.targets.values():
            self.deployments.update(dict.fromkeys(target.deployments))
        for endpoint in self.gateway.registry.endpoints.values():
            if endpoint not in self.endpoints:
                self.endpoints[endpoint] = None
                endpoint.pool = Pool(endpoint)

    def do(self, *steps: Callable[[], object]) -> None:
        """Do things within one turn of the loop, then let everything happen that follows from them."""

        async def within() -> None:
            for step in steps:
                step()
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(within())

    # What there is

    def calls(self) -> list[Call]:
        return [call for endpoint in self.endpoints for call in endpoint.pool.under_way()]

    def live(self) -> list[Exchange]:
        return [exchange for exchange in self.everything if not client_of(exchange).over]

    def pick(self, number: int) -> Call:
        calls = self.calls()
        return calls[number % len(calls)]

    def done(self, call: Call) -> None:
        call.endpoint.pool.calls.remove(call)

    # Clients

    @rule(
        name=st.sampled_from(NAMES),
        stream=st.booleans(),
        route=st.sampled_from(ROUTES),
        priority=st.sampled_from(PRIORITIES),
        long=st.booleans(),
        times=st.integers(1, 3),
    )
    def ask(self, name: str, stream: bool, route: Any, priority: bytes, long: bool, times: int) -> None:
        text = "ping " * (500 if long else 1)
        body: dict[str, Any] = {"model": name}
        body |= {"input": text} if route is EMBEDDINGS else {"messages": [{"role": "user", "content": text}], "stream": stream}
        raw = json.dumps(body).encode()
        target = b"/v1" + route.path.encode()
        notes = {b"x-hx-priority": priority}
        for number in range(len(self.everything), len(self.everything) + times):
            exchange = Exchange(f"id-{number}", route, b"POST", target, notes, [], raw, Client(), monotonic())
            self.everything.append(exchange)
            self.do(partial(self.gateway.dispatch, exchange))

    @precondition(lambda self: self.live())
    @rule(number=st.integers(0, 100), slow=st.booleans())
    def leave_or_read_slowly(self, number: int, slow: bool) -> None:
        live = self.live()
        exchange = live[number % len(live)]
        owner = exchange.owner
        assert owner is not None, "nobody is told that the client left"
        self.do(*((owner.pause, owner.resume) if slow else (lambda: left(exchange),)))

    # Model servers

    def answer(self, call: Call, status: int = 200, body: bytes = b"") -> None:
        """As a connection does: it is free, and the handler's no more, before the handler hears of it."""
        self.done(call)
        handler = call.handler
        run = call.run
        if call.streaming:
            handler.call = None
            if not body:
                handler.received(LAST)
            handler.ended()
            return
        if not body:
            body = VECTORS if run is not None and run.exchange.route is EMBEDDINGS else WHOLE
        handler.call = None
        handler.answered(status, [], body)

    def begin(self, call: Call) -> None:
        if call.outgoing.stream and not call.streaming and not call.cancelled:
            call.streaming = call.handler.began(200, EVENTS)

    def piece(self, call: Call) -> None:
        if call.streaming and not call.cancelled:
            call.handler.received(chunk("pon"))

    def fail(self, call: Call, kind: Any) -> None:
        self.done(call)
        call.handler.failed(kind, "no")

    @precondition(lambda self: self.calls())
    @rule(number=st.integers(0, 100), how=st.sampled_from(ANSWERS), leaving=st.booleans(), times=st.integers(1, 3))
    def answered(self, number: int, how: int | bytes, leaving: bool, times: int) -> None:
        """In the same turn of the loop another may leave: a place is free, and who was to have it may be gone."""
        status, body = (how, REFUSALS[how]) if isinstance(how, int) else (200, how)
        for _ in range(times):
            if self.calls():
                live = self.live() if leaving else []
                call = self.pick(number)
                self.do(partial(self.answer, call, status, body), *[partial(left, one) for one in live[-1:]])

    @precondition(lambda self: any(call.outgoing.stream for call in self.calls()))
    @rule(number=st.integers(0, 100), pieces=st.integers(0, 2))
    def streamed(self, number: int, pieces: int) -> None:
        streams = [call for call in self.calls() if call.outgoing.stream]
        call = streams[number % len(streams)]
        self.do(lambda: self.begin(call), *[lambda: self.piece(call)] * pieces)

    @precondition(lambda self: self.calls())
    @rule(number=st.integers(0, 100), kind=st.sampled_from(KINDS), times=st.integers(1, 3))
    def failed(self, number: int, kind: Any, times: int) -> None:
        for _ in range(times):
            if self.calls():
                self.do(partial(self.fail, self.pick(number), kind))

    # Plug-ins, time, configuration

    @rule(where=st.sampled_from(TRIPS), times=st.integers(1, 2))
    def trip(self, where: str, times: int) -> None:
        MOOD.trips, MOOD.times = where, times

    @rule(times=st.integers(0, 2), number=st.integers(0, 100))
    def stages_wait_or_go_on(self, times: int, number: int) -> None:
        MOOD.stage_waits = times
        waiting = list(MOOD.waiting.values())
        if waiting:
            self.do(waiting[number % len(waiting)].set)

    @rule(what=st.sampled_from(PASSES))
    def time_passes_or_a_reload(self, what: str | int) -> None:
        if isinstance(what, int):
            self.do(lambda: self.gateway.reload(CONFIGS[what]))
            self.look_around()
        elif what == "breakers":
            for one in (*self.deployments, *self.endpoints):
                one.breaker.opened_s -= 1000.0
                one.cool_until_s = 0.0
        later_s = {"heartbeats": 6.0, "longest wait": 1000.0}.get(str(what), 0.0)
        self.do(lambda: self.proxy.sweep(monotonic() + later_s))

    @rule(seed=st.integers(0, 2**32 - 1))
    def turmoil(self, seed: int) -> None:
        """A dozen of all that, one after the other: the way to states that single steps seldom reach."""
        dice = Random(seed)
        number = partial(dice.randrange, 100)
        kinds = [
            lambda: self.ask(dice.choice(NAMES), dice.random() < 0.5, dice.choice(ROUTES), dice.choice(PRIORITIES), dice.random() < 0.3, 2),
            lambda: self.calls() and self.answered(number(), b"", dice.random() < 0.2, dice.randint(1, 3)),
            lambda: self.calls() and self.answered(number(), dice.choice(ANSWERS), False, 1),
            lambda: self.calls() and self.failed(number(), dice.choice(KINDS), dice.randint(1, 2)),
            lambda: any(call.outgoing.stream for call in self.calls()) and self.streamed(number(), dice.randint(0, 2)),
            lambda: self.live() and self.leave_or_read_slowly(number(), dice.random() < 0.3),
            lambda: self.stages_wait_or_go_on(dice.randint(0, 1), number()),
            lambda: self.trip(dice.choice(TRIPS), 1),
            lambda: self.time_passes_or_a_reload(dice.choice(PASSES)),
        ]
        for kind in dice.choices(kinds, (5, 3, 2, 2, 3, 2, 1, 2, 1), k=12):
            kind()
            self.counts_are_exact()
            self.nobody_waits_beside_a_free_place()

    # What must hold

    @invariant()
    def counts_are_exact(self) -> None:
        calling: dict[Exchange, None] = {}
        for call in self.calls():
            run = call.run
            if run is not None and not client_of(run.exchange).over:
                calling[run.exchange] = None
        running = [exchange for exchange in self.live() if exchange not in MOOD.waiting]
        assert self.proxy.in_flight == len(running)
        by_deployment = Counter(exchange.deployment for exchange in calling)
        by_endpoint = Counter(exchange.deployment.endpoint for exchange in calling)
        assert {one: one.in_flight for one in self.deployments if one.in_flight} == by_deployment
        assert {one: one.in_flight for one in self.endpoints if one.in_flight} == by_endpoint
        holds = [exchange.owner.ceiling for exchange in calling if isinstance(exchange.owner, Run) and exchange.owner.ceiling]
        for account in {one.account for one in self.deployments if one.account is not None}:
            held = self.gateway.backing.metering.limiter.mine(account)[1] - account.debts.held_tokens
            assert held == sum(hold.tokens for hold in holds if hold.account is account)
        queued = [exchange for exchange in running if exchange not in calling]
        queues = self.proxy.hotel.queues
        assert self.proxy.hotel.size == sum(queue.size for queue in queues.values()) == len(queued)
        guests = [guest for queue in queues.values() for guest in queue.everybody()]
        assert {id(guest) for guest in guests} == {id(exchange.owner) for exchange in queued}, (
            "who is not called waits, and nobody else does"
        )
        assert all(0 < queue.size <= self.proxy.hotel.most for queue in queues.values())
        assert {run.exchange for run in self.proxy.waiting} <= set(running)
        for endpoint in self.endpoints:
            assert endpoint.in_flight or not endpoint.pending_s
        runs = [exchange.owner for exchange in calling]
        for position, ones in enumerate((self.deployments, self.endpoints)):
            for one in ones:
                trials = [run for run in runs if isinstance(run, Run) and run.trials[position] == one.breaker.trial != 0]
                at = [run for run in trials if run.deployment is one or run.deployment and run.deployment.endpoint is one]
                assert len(at) == (1 if one.breaker.trial else 0), "a trial is under way, and only one"
                assert (one.breaker.state == "half-open") == bool(one.breaker.trial)

    @invariant()
    def nobody_waits_beside_a_free_place(self) -> None:
        """Whose turn it is would find no place now, in the fleet as it is configured now."""
        if MOOD.times:
            return
        for name, queue in self.proxy.hotel.queues.items():
            guest, target = queue.first(), self.gateway.registry.find(name)
            assert isinstance(guest, Run)
            # One that asked for a pause may be ready at any moment of the real clock.
            if target is not None and not any(one.cool_until_s for one in target.deployments):
                assert self.proxy.router.choose(self.proxy.ask_of(guest.exchange, target), monotonic()) is None

    @invariant()
    def nobody_is_told_twice(self) -> None:
        assert all(self.watcher.ended.get(exchange.id, 0) == client_of(exchange).over for exchange in self.everything)

    def teardown(self) -> None:
        MOOD.times = 0
        for event in list(MOOD.waiting.values()):
            self.do(event.set)
        for _ in range(1000):
            calls = self.calls()
            if not calls:
                break
            self.do(lambda call=calls[0]: self.answer(call))  # type: ignore[misc]
            self.counts_are_exact()
        self.do(lambda: self.proxy.sweep(monotonic() + 1000.0))
        self.counts_are_exact()
        self.nobody_is_told_twice()
        assert not self.live() and not self.proxy.in_flight and not self.proxy.hotel.size and not self.proxy.waiting
        assert not self.proxy.hotel.queues
        assert all(exchange.owner is None for exchange in self.everything)
        for one in (*self.deployments, *self.endpoints):
            assert not one.in_flight and not one.breaker.trial
        self.loop.close()


def client_of(exchange: Exchange) -> Client:
    """The client's side of it."""
    assert isinstance(exchange.client, Client)
    return exchange.client


def left(exchange: Exchange) -> None:
    """As the door does: the owner is told, once."""
    client = client_of(exchange)
    if not client.over:
        owner = exchange.owner
        assert owner is not None
        client.left = True
        owner.client_gone()


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every reload the search through all installed packages for plug-ins of that name."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())


TestWaysOut = WaysOut.TestCase
TestWaysOut.settings = settings(max_examples=100, stateful_step_count=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.fixture
def still() -> Iterator[WaysOut]:
    """The same gateway, for a story told in full."""
    machine = WaysOut()
    yield machine
    machine.teardown()


def test_whoever_waits_is_answered_though_the_picker_raises_for_good(still: WaysOut, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody may be stuck at the head of a queue, with all others behind."""
    still.ask("wide", False, CHAT, b"normal", False, 8)  # four go there, two to the name that stands in
    assert still.proxy.hotel.size == 2
    MOOD.trips, MOOD.times = "pick", 1000
    first, second = (endpoint.pool.under_way()[0] for endpoint in list(still.endpoints)[:2])
    still.do(lambda: still.answer(first), lambda: still.answer(second))  # two places: a choice is to be made
    assert Counter(client_of(exchange).status for exchange in still.everything) == {200: 2, 500: 2, 0: 4}
    assert still.proxy.hotel.size == 0
    refused = next(exchange for exchange in still.everything if client_of(exchange).status == 500)
    assert json.loads(client_of(refused).body)["error"]["code"] == "internal_error" and refused.id in caplog.text
    still.counts_are_exact()


def test_whoever_waits_goes_to_the_servers_of_the_latest_reload(still: WaysOut) -> None:
    still.ask("lone", False, CHAT, b"normal", False, 3)
    before = still.calls()
    assert still.proxy.hotel.size == 1 and len(before) == 2
    still.time_passes_or_a_reload(1)  # the server has another address now
    assert still.proxy.hotel.size == 0, "there is a place at the new one, though the old one is still busy"
    (third,) = [call for call in still.calls() if call not in before]
    assert third.endpoint.address.port == 4
    still.counts_are_exact()
    still.do(lambda: still.answer(before[0]), lambda: still.answer(before[1]), lambda: still.answer(third))
    assert all(client_of(exchange).status == 200 for exchange in still.everything)


def test_who_tries_again_goes_to_the_servers_of_the_latest_reload(still: WaysOut) -> None:
    still.ask("wide", False, CHAT, b"normal", False, 1)
    (call,) = still.calls()
    still.do(lambda: still.gateway.reload(CONFIGS[2]))  # two stays, one is gone, three joins
    still.look_around()
    still.do(lambda: still.fail(call, errors.CONNECTION_RESET))
    (again,) = still.calls()
    assert again.endpoint is not call.endpoint and again.endpoint.name in ("two", "three")
    still.do(lambda: still.fail(again, errors.CONNECTION_RESET))
    if call.endpoint.name == "one":
        (last,) = still.calls()
        assert {again.endpoint.name, last.endpoint.name} == {"two", "three"}
    still.counts_are_exact()


def test_a_refusal_by_the_provider_tells_nothing_of_a_server_that_was_not_asked(still: WaysOut) -> None:
    """Its breaker stays as it was: else whoever asks for what cannot be done would call a dead server back."""
    still.ask("lone", False, CHAT, b"normal", False, 2)
    still.failed(0, errors.BAD_RESPONSE, 1)
    still.failed(0, errors.BAD_RESPONSE, 1)
    (deployment,) = still.gateway.registry.targets["lone"].deployments
    assert deployment.breaker.state == "open"
    MOOD.trips, MOOD.times = "cannot", 1
    still.ask("lone", False, CHAT, b"normal", False, 1)
    assert client_of(still.everything[-1]).status == 400
    assert (deployment.breaker.state, deployment.breaker.trial, deployment.breaker.failures) == ("open", 0, 2)
