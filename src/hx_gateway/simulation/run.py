"""Runs a trace through the real router: leases, retries and lessons as in the data plane, on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from math import exp
from time import perf_counter_ns

from hx_gateway.access.account import Account, Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint, Prices
from hx_gateway.fleet.pace import LESSON_S
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.ceilings import Ceilings, limits_of
from hx_gateway.routing.policies import policy as policy_named
from hx_gateway.routing.router import Router
from hx_gateway.simulation.events import Events
from hx_gateway.simulation.plan import FleetPlan
from hx_gateway.simulation.report import Report, report_of
from hx_gateway.simulation.server import Job, Server
from hx_gateway.simulation.trace import Arrival, TraceError

_ENDPOINT_FAILURES = 2  # failed connections in a row that open an endpoint's breaker, as in the gateway
_ON_ENDPOINT = (errors.CONNECT_FAILED, errors.CONNECTION_RESET)
_SHORTEST_LOAD_S = 0.5  # expected of the smallest model, as by the gateway's probes
_TROUBLE_S = 2.0  # probes come this fast at first while something is wrong


def simulate(plan: FleetPlan, arrivals: Sequence[Arrival], policy: str, seed: int = 0) -> Report:
    """Run a trace with one policy.

    The same plan, trace, policy and seed give the same report, but for the processor time of choices.

    Args:
        plan: The fleet.
        arrivals: The trace, by time.
        policy: Name of the policy: built in, or one of the plan's own.
        seed: Of all random numbers.

    Raises:
        UnknownPlugin: There is no such policy.
        TraceError: It asks for a model that the fleet does not serve.
    """
    state = random.getstate()
    random.seed(seed)  # pickers break ties with the shared source of random numbers
    try:
        run = Simulation(plan, policy, seed)
        run.play(arrivals)
        return report_of(policy, run.calls, run.servers, run.choose_ns)
    finally:
        random.setstate(state)


class Call:
    """One request of the trace on its way through attempts to its end; counts its lease exactly once."""

    __slots__ = (
        "ahead_s",
        "alone",
        "arrival",
        "ask",
        "attempts",
        "cached_tokens",
        "deployment",
        "failed",
        "first_s",
        "hold",
        "last_s",
        "model",
        "sent_s",
        "simulation",
        "trials",
        "tried",
    )  # fmt: skip

    def __init__(self, simulation: Simulation, arrival: Arrival, model: str, ask: Ask) -> None:
        self.simulation = simulation
        self.arrival = arrival
        self.model = model
        self.ask = ask
        self.attempts = 0
        self.tried: list[Deployment] = []
        self.deployment: Deployment | None = None
        self.sent_s = self.first_s = self.last_s = 0.0
        self.ahead_s = 0.0
        self.hold: Hold | None = None
        self.alone = False
        self.trials = (0, 0)  # its numbers as a trial of the deployment's breaker, of the endpoint's; 0 for none
        self.cached_tokens = 0
        self.failed: ErrorKind | None = None

    @property
    def cost(self) -> float:
        """What it cost; nothing if it failed."""
        if self.failed is not None or self.deployment is None:
            return 0.0
        prices = self.deployment.prices
        arrival = self.arrival
        return prices.per_request + arrival.prompt_tokens * prices.per_prompt_token + arrival.output_tokens * prices.per_completion_token

    def attempt(self) -> None:
        """Send it to the next deployment."""
        simulation = self.simulation
        now_s = simulation.events.now_s
        began_ns = perf_counter_ns()
        deployment = simulation.router.choose(self.ask, now_s)
        if deployment is not None and deployment.limits is not None:
            deployment, self.hold = simulation.ceilings.within(simulation.router, self.ask, deployment, now_s, self._needed)
        simulation.choose_ns.append(perf_counter_ns() - began_ns)
        if deployment is None:
            self._fail(self.failed or errors.NO_DEPLOYMENT)
            return
        self.deployment = deployment
        endpoint = deployment.endpoint
        self.alone = endpoint.in_flight == 0
        deployment.in_flight += 1
        endpoint.in_flight += 1
        self.trials = deployment.breaker.start(), endpoint.breaker.start()
        self.ahead_s = simulation.router.sent(self.ask, deployment, now_s)
        self.attempts += 1
        self.sent_s = now_s
        server = simulation.server_of[endpoint]
        job = Job(self.arrival, deployment.upstream_model, _Wire(self, server, simulation.events))
        simulation.events.after(server.plan.network_seconds, partial(server.send, job))

    def _needed(self, account: Account) -> int:
        return int(self.ask.prompt_tokens + account.completion) + 1

    def began(self, cached_tokens: int) -> None:
        """The first byte is here."""
        deployment = self.deployment
        assert deployment is not None
        self.first_s = self.simulation.events.now_s
        self.cached_tokens = cached_tokens
        self._read(deployment.endpoint)

    def ended(self, load_s: float, line_s: float, cached_known: bool) -> None:
        """The answer is complete."""
        simulation = self.simulation
        deployment = self._release(self.arrival.prompt_tokens, self.arrival.output_tokens)
        now_s = self.last_s = simulation.events.now_s
        for breaker in (deployment.breaker, deployment.endpoint.breaker):
            if breaker.failures or breaker.state != "closed":
                breaker.succeeded(now_s)
        pace = deployment.pace
        pace.tokens += self.arrival.prompt_tokens + self.arrival.output_tokens
        if now_s >= pace.learn_at_s:
            pace.learn_at_s = now_s + LESSON_S
            if cached_known:
                simulation.router.verified(self.ask, self.arrival.prompt_tokens, self.cached_tokens)
            read = self.arrival.prompt_tokens - (self.cached_tokens if cached_known else self.ask.believed_tokens)
            first_s, written, among = self.first_s - self.sent_s, self.arrival.output_tokens, self.ask.among
            pace.answered(now_s - self.sent_s, first_s, read, written, self.alone, load_s, line_s, among)
            deployment.inform(self.ask.target.deployments)
        deployment.endpoint.residency.answered(deployment, now_s)
        self.failed = None
        simulation.finished(self)

    def broke(self, kind: ErrorKind) -> None:
        """The attempt failed: blame, and go elsewhere if nothing was passed on."""
        simulation = self.simulation
        deployment = self._release()
        mine, servers = deployment.breaker, deployment.endpoint.breaker
        now_s = simulation.events.now_s
        if kind.breaks:
            deployment.pace.failed()
        my_trial, servers_trial = self.trials
        if kind in _ON_ENDPOINT:
            servers.failed(now_s, servers_trial)
            mine.abandoned(my_trial)
        elif kind.breaks:
            mine.failed(now_s, my_trial)
            servers.abandoned(servers_trial)
        if kind.elsewhere and self.attempts < simulation.plan.gateway.attempts:
            self.tried.append(deployment)
            self.failed = kind
            self.ask.tried = self.tried
            self.attempt()
            return
        self._fail(kind)

    def _fail(self, kind: ErrorKind) -> None:
        self.failed = kind
        self.last_s = self.simulation.events.now_s
        self.simulation.finished(self)

    def _release(self, prompt_tokens: int = 0, output_tokens: int = -1) -> Deployment:
        deployment = self.deployment
        assert deployment is not None
        if self.hold is not None:
            hold, self.hold = self.hold, None
            self.simulation.ceilings.settle(deployment, hold, prompt_tokens, output_tokens, self.simulation.events.now_s - self.sent_s)
        deployment.in_flight -= 1
        deployment.endpoint.in_flight -= 1
        self._read(deployment.endpoint)
        return deployment

    def _read(self, endpoint: Endpoint) -> None:
        if self.ahead_s:
            self.simulation.router.read(endpoint, self.ahead_s)
            self.ahead_s = 0.0


class _Wire:
    """Carries what a server says back to the gateway, which takes time."""

    __slots__ = ("_call", "_events", "_server")

    def __init__(self, call: Call, server: Server, events: Events) -> None:
        self._call = call
        self._server = server
        self._events = events

    def began(self, cached_tokens: int) -> None:
        self._events.after(self._server.plan.network_seconds, partial(self._call.began, cached_tokens))

    def ended(self, load_s: float, line_s: float) -> None:
        plan = self._server.plan
        told_s = line_s if plan.managed else -1.0  # Ollama tells what it worked on an answer; the rest was waiting
        self._events.after(plan.network_seconds, partial(self._call.ended, load_s, told_s, plan.reports_cached))

    def broke(self, kind: ErrorKind) -> None:
        self._events.after(self._server.plan.network_seconds, partial(self._call.broke, kind))


class Simulation:
    """A fleet, the gateway in front of it, and the clock of both.

    Args:
        plan: The fleet.
        policy: Name of the balancing policy.
        seed: Of all random numbers.
    """

    def __init__(self, plan: FleetPlan, policy: str, seed: int = 0) -> None:
        self.plan = plan
        self.events = Events()
        self.calls: list[Call] = []
        self.choose_ns: list[int] = []
        self.servers: dict[str, Server] = {}
        self.server_of: dict[Endpoint, Server] = {}
        self._random = random.Random(seed)
        settings = plan.gateway
        self.router = Router(
            lambda name: policy_named(name, plan.policies, settings.seconds_per_cost_unit), chance=random.Random(seed + 1).random
        )
        self.ceilings = Ceilings(Limiter(clock=lambda: self.events.now_s))
        self._policy = self.router.policy(policy)
        self._troubles: dict[Endpoint, int] = {}
        self._deployments: dict[str, list[Deployment]] = {name: [] for name in plan.models}
        self._build()
        self._targets = {name: Target(name, "model", tuple(places), policy=policy) for name, places in self._deployments.items() if places}
        self._left = 0

    def _build(self) -> None:
        plan, settings = self.plan, self.plan.gateway
        for kind, described in plan.servers.items():
            names = described.models or list(plan.models)
            for number in range(1, described.count + 1):
                name = f"{kind}-{number}" if described.count > 1 else kind
                sizes = {model: plan.models[model].gb for model in names}
                server = self.servers[name] = Server(described, sizes, plan.block_tokens, self.events, self._random.random)
                endpoint = Endpoint(
                    name,
                    Address("http", "simulated", 1),
                    breaker=Breaker(min(_ENDPOINT_FAILURES, settings.breaker_threshold), settings.breaker_seconds),
                    slots=described.slots if settings.knows_slots else 0,
                    memory_bytes=described.memory_gb * 1e9 if settings.knows_memory else 0.0,
                )
                if settings.knows_memory:
                    endpoint.residency.most = described.models_that_fit
                self.server_of[endpoint] = server
                self._troubles[endpoint] = 0
                for model in names:
                    priced = plan.models[model]
                    prices = Prices(priced.cost_per_request, priced.cost_per_prompt_token, priced.cost_per_completion_token)
                    deployment = Deployment(
                        model,
                        model,
                        endpoint,
                        limits=limits_of(described.requests_per_minute, described.tokens_per_minute),
                        prices=prices,
                        breaker=Breaker(settings.breaker_threshold, settings.breaker_seconds),
                    )
                    if described.managed and priced.gb:
                        deployment.size = priced.gb * 1e9  # as a list of models tells it, and what a probe expects of it
                        deployment.pace.load_s = max(deployment.size / endpoint.disk_rate, _SHORTEST_LOAD_S)
                    self._deployments[model].append(deployment)
                for outage in described.outages:
                    self.events.at(outage.start, server.stop)
                    self.events.at(outage.end, server.start)

    def play(self, arrivals: Sequence[Arrival]) -> None:
        """Let every request of a trace arrive, and go on until the last has ended."""
        first = next(iter(self._targets), "")
        self._left = len(arrivals)
        for number, arrival in enumerate(arrivals, 1):
            model = arrival.model or first
            target = self._targets.get(model)
            if target is None:
                raise TraceError(f"request {number} of the trace asks for {model!r}, which no server of the fleet file serves")
            self.events.at(arrival.at_s, partial(self._arrive, arrival, model, target))
        for endpoint in self.server_of:
            self._probe(endpoint)
        while self._left and self.events.step():
            pass

    def _arrive(self, arrival: Arrival, model: str, target: Target) -> None:
        spread = self.plan.gateway.prompt_estimate_error
        guess = arrival.prompt_tokens * (exp(self._random.gauss(0.0, spread)) if spread else 1.0)
        blocks = arrival.blocks if self._policy.affine else ()
        call = Call(self, arrival, model, Ask(target, guess, 0.0, blocks, self.plan.block_tokens))
        self.calls.append(call)
        call.attempt()

    def finished(self, call: Call) -> None:
        """A request is over."""
        self._left -= 1

    # Probes, as the gateway's monitor makes them

    def _probe(self, endpoint: Endpoint) -> None:
        server = self.server_of[endpoint]
        now_s = self.events.now_s
        trouble = not server.up
        if server.up:
            if server.plan.managed:
                endpoint.residency.told(server.loaded, now_s)
            if endpoint.breaker.state == "open":
                trouble = True
                endpoint.breaker.succeeded(now_s)
            for deployments in self._deployments.values():
                for deployment in deployments:
                    if deployment.endpoint is endpoint and deployment.breaker.state == "open":
                        trouble = True
                        deployment.breaker.opened_s = min(deployment.breaker.opened_s, now_s - deployment.breaker.timeout_s)
        self._troubles[endpoint] = self._troubles[endpoint] + 1 if trouble else 0
        pause_s = self.plan.gateway.probe_seconds
        if trouble:
            pause_s = min(pause_s, _TROUBLE_S * 2.0 ** min(self._troubles[endpoint] - 1, 20))
        self.events.after(pause_s, partial(self._probe, endpoint))
