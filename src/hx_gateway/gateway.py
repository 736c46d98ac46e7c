"""The composition root: builds everything from a configuration, starts it, keeps it in time, stops it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from hx_gateway.access.keys import KeyRing
from hx_gateway.assembly import Assembly, local_models
from hx_gateway.backing import Backing
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core import errors
from hx_gateway.core.clock import SystemClock
from hx_gateway.core.context import FORWARD, NOBODY, Exchange, Identity, Route
from hx_gateway.core.errors import Failure
from hx_gateway.core.identifiers import RequestIds
from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.dataplane.census import Census
from hx_gateway.dataplane.explain import remembered, told
from hx_gateway.dataplane.forward import Forward
from hx_gateway.dataplane.learned import learning_ask
from hx_gateway.dataplane.learned import told as what_was_learned
from hx_gateway.dataplane.pipeline import STAGES, Pipeline
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.ghosts import lay
from hx_gateway.fleet.registry import Registry
from hx_gateway.health.discovery import discover
from hx_gateway.health.monitor import Monitor
from hx_gateway.housekeeping import Within
from hx_gateway.providers import BUILT_IN as PROVIDERS
from hx_gateway.routing.policies import Policy, policy
from hx_gateway.routing.router import Router
from hx_gateway.stores.learned_files import Learners
from hx_gateway.telemetry.desk import Desk
from hx_gateway.upstream.fetch import fetch

if TYPE_CHECKING:
    from hx_gateway.core.interfaces import Observer, Provider, Stage
    from hx_gateway.local.supervisor import LocalModel
    from hx_gateway.telemetry.book import Book

SWEEP_S = 0.25  # resolution of every deadline
_FIRST_LOOK_S = 1.0  # at most this long is start-up held up by endpoints that do not answer
_SEARCH_AGAIN_S = 10.0
_OLLAMA_PORT = 11434
_log = logging.getLogger(__name__)


class Gateway:
    """A gateway in one process.

    Args:
        config: The configuration.
        workers: How many processes serve the port.
        local: Model servers started elsewhere for models given as files: model name to pairs of URL and key. None
            starts them here.
        memory: File descriptor of `access.sharing.shared_memory` for limits where nothing can be kept on disk; -1 for none.
        book: Where counts are kept; None for memory of this process.
        kept: Whether another process keeps house for it; else a thread of this one ships the journal and reads the store's keys.
    """

    def __init__(
        self, config: GatewayConfig, workers: int = 1, local: Mapping[str, list[tuple[str, str]]] | None = None, memory: int = -1,
        book: Book | None = None, kept: bool = False,
    ) -> None:  # fmt: skip
        self.config = config
        self.workers = workers
        self.clock = SystemClock()
        self.ids = RequestIds(self.clock.wall)
        self.telemetry = Desk(config.monitoring, self.clock, book, config.service.name)
        self.backing = Backing(config, memory)
        self.census = Census(self.backing.metering.limiter)
        self.started_wall_s = self.clock.wall()
        self.ready = False
        self.draining = False
        self.reloading: Any = None  # server.reloading.Reloading, where the configuration can be loaded again
        self.local_models: list[LocalModel] = []
        self._local_elsewhere = local
        self._kept = kept
        self._house: Within | None = None
        self._providers: dict[str, Provider] = {}
        self._retired: list[Endpoint] = []  # no longer configured, with answers under way
        self._tasks: list[asyncio.Task[None]] = []
        self._known: object = None
        self._guests: list[Observer] = []
        self.learners = Learners()
        self.router = Router(self._policy_of(config))
        self.proxy = Proxy(
            self.router,
            self._guess,
            find=lambda name: self.registry.find(name),
            alarm=lambda endpoint, within_s: self.monitor.soon(endpoint, within_s),
            ceilings=self.backing.metering.ceilings,
        )
        self.monitor = Monitor(
            lambda: self.registry, config.load_balancer.health_check_interval, self.clock, fetch=fetch, provider_named=self.provider_named
        )
        self._adopt(config, Assembly(config, self.provider_named))

    def _policy_of(self, config: GatewayConfig) -> Callable[[str], Policy]:
        return lambda name: policy(name, config.policies, config.load_balancer.seconds_per_cost_unit)

    def _adopt(self, config: GatewayConfig, assembly: Assembly) -> None:
        """Take a configuration into use: all that can fail comes first, then everything is swapped in one step."""
        registry = assembly.registry()
        policy_of = self._policy_of(config)
        for name in {target.policy for target in registry.targets.values()}:
            policy_of(name)  # an unknown one is refused here, not at the first request
        keys = KeyRing.from_config(config)
        plan = _Plan(self, config, keys)
        stages = [(name, find("stage", name, STAGES)(plan)) for name in config.pipeline.stages]
        run = [stage for _, stage in stages if stage is not None]
        named = [find("observer", name, {})(plan) for name in config.monitoring.observers]
        reading = ("inspect", "resolve", "cache")  # what looks into the body
        unread = [stage for name, stage in stages if stage is not None and name not in reading]

        self.backing.adopt(config, keys, assembly.endpoints.values())
        proxy, balancer, performance = self.proxy, config.load_balancer, config.performance
        bodies = [self.backing.ledger.bodies] if config.ledger.bodies.enabled else []
        proxy.observers = (*self.telemetry.observers, self.backing.ledger, self.backing.metering, *bodies, *named, *self._guests)
        self.config, self.keys, self.assembly, self.registry = config, keys, assembly, registry
        self._reading = [stage for name, stage in stages if stage is not None and name in ("inspect", "resolve")]
        self.pipeline = Pipeline([*self.telemetry.stages, *bodies, *run], proxy.start, proxy.answer, proxy.refuse)
        self.passage = Pipeline([*self.telemetry.stages, *unread], self._forward, proxy.answer, proxy.refuse)
        inside = [stage for name, stage in stages if stage is not None and name in reading]
        self._inside = Pipeline(inside, proxy.start, proxy.answer, proxy.refuse)
        self.router.replace(policy_of)
        proxy.plain = {}
        proxy.learned = self.learners.adopt(config)
        proxy.max_attempts = balancer.max_attempts
        proxy.total_s = performance.total_timeout_seconds
        proxy.heartbeat_s = config.http.heartbeat_seconds
        proxy.hotel.most = config.queue.max_waiting
        proxy.hotel.longest_s = config.queue.max_wait_seconds
        self.monitor.interval_s = balancer.health_check_interval

    def reload(self, config: GatewayConfig) -> None:
        """Go on with another configuration; what is under way is not disturbed, live state of what stays survives.

        Raises:
            UnknownPlugin, ReloadRefused: The configuration cannot be taken into use; the old one stays.
        """
        files = {name: model.path for name, model in self.config.models.items() if model.path}
        if files != {name: model.path for name, model in config.models.items() if model.path}:
            raise ReloadRefused("models with a path are started with the gateway: restart it to change them")
        before = self.assembly
        assembly = Assembly(config, self.provider_named, before)
        self._adopt(config, assembly)
        assembly.settled()
        stay = set(assembly.endpoints.values())
        self._retired += [endpoint for endpoint in before.endpoints.values() if endpoint not in stay]
        self._known = None

    def observe(self, observer: Observer) -> None:
        """Have another observer told of attempts and ends, after all others; it stays when the configuration is reloaded."""
        self._guests.append(observer)
        self.proxy.observers += (observer,)

    def __repr__(self) -> str:
        return f"<Gateway {self.config.service.name} names={len(self.registry.targets)} endpoints={len(self.registry.endpoints)}>"

    # The data plane

    def dispatch(self, exchange: Exchange) -> None:
        """Take an exchange through the pipeline; the answer goes to its client side."""
        if exchange.route is FORWARD:
            self.passage.run(exchange)
        else:
            self.pipeline.run(exchange)

    def serve(self, exchange: Exchange, work: Stage) -> None:
        """Take an exchange that no model server answers through the stages that ask who calls and how much; ``work`` answers it."""
        Pipeline((*self.passage.stages, work), self.proxy.start, self.proxy.answer, self.proxy.refuse).run(exchange)

    def finished(self, exchange: Exchange) -> None:
        """Record an exchange that ``work`` answered piece by piece."""
        self.proxy.finished(exchange)

    def inside(self, exchange: Exchange, endpoint: Endpoint | None = None) -> None:
        """Send an exchange that is part of one that was served: who calls is known, and limits hold for the whole.

        Args:
            exchange: With its identity.
            endpoint: Where to, as it is; None to choose as for any other.
        """
        if endpoint is None:
            self._inside.run(exchange)
        else:
            Forward(self.proxy, exchange, endpoint).start()

    def _forward(self, exchange: Exchange) -> None:
        endpoint = self.registry.forward_to
        if endpoint is None:
            raise Failure(errors.NOT_FOUND, f"no route {exchange.target.decode('latin-1')}, and no default upstream is configured")
        identity = exchange.identity
        if identity is not None and identity.models is not None:
            # What is forwarded is not read, so it cannot be held to a list of models.
            raise Failure(errors.MODEL_NOT_ALLOWED, "the API key is limited to certain models, and this route is passed on unread")
        Forward(self.proxy, exchange, endpoint).start()

    def explain(self, route: Route, body: bytes, notes: dict[bytes, bytes], identity: Identity | None) -> dict[str, Any]:
        """Where a request would go and why; nothing is sent.

        Raises:
            Failure: The request would be refused.
        """
        # An exchange without a client: the stages that read it are run, nothing answers it.
        exchange = Exchange(self.ids(), route, b"POST", b"", notes, [], body, NOBODY, self.clock.monotonic())
        exchange.identity = identity
        for stage in self._reading:
            stage(exchange)
        learned = self.proxy.learned.get(exchange.candidates.group)
        affine = self.router.policy(exchange.candidates.policy).affine
        ask = learning_ask(learned, exchange, affine, lasting=False) if learned else self.proxy.ask_of(exchange, exchange.candidates)
        decision = self.router.explain(ask, self.clock.monotonic())
        found = told(exchange, ask, decision, identity is None or identity.show_endpoints)
        return {**found, "learned": what_was_learned(learned, exchange, ask) if learned is not None else None}

    def under_way(self, deployment: Deployment) -> int:
        """Requests under way at a deployment, of all workers: of this one as they are, of the others as of a moment ago."""
        return self.census.of(deployment) if self.workers > 1 else deployment.in_flight

    def decisions(self, limit: int = 0, id: str = "") -> list[dict[str, Any]]:
        """The latest routing decisions of this worker, newest first; all that are remembered for a ``limit`` of 0.

        With an ``id`` those of that request alone, with everything that was weighed where it was kept.
        """
        latest = [one for one in reversed(self.proxy.decisions) if not id or one[0] == id]
        return remembered(latest[:limit] if limit else latest, bool(id))

    def provider_named(self, name: str) -> Provider:
        """The provider of that name, one instance each.

        Raises:
            UnknownPlugin: There is none.
        """
        provider = self._providers.get(name)
        if provider is None:
            provider = self._providers[name] = find("provider", name, PROVIDERS)()
        return provider

    def _guess(self, endpoint: Endpoint) -> Provider:
        return self.provider_named("ollama" if endpoint.address.port == _OLLAMA_PORT else "openai")

    # Life

    async def start(self) -> None:
        """Start model servers of our own, look at the fleet, and begin to watch it.

        Raises:
            LocalModelError: A model file cannot be served.
        """
        await self.backing.start(self.assembly.endpoints.values())
        await self._start_local()
        if not self._kept and self.backing.folder is not None:
            self._house = Within(self.config)
        if not self.config.models and not self.config.endpoints:
            await self._search()
        self.registry = self.assembly.registry()
        look = asyncio.create_task(self.monitor.check_all(), name="first look")
        await asyncio.wait({look}, timeout=_FIRST_LOOK_S)
        self._renew()
        self.monitor.start()
        self._tasks = [look, asyncio.create_task(self._keep_time(), name="sweep"), asyncio.create_task(self._keep_up(), name="registry")]
        self.ready = True

    async def stop(self) -> None:
        """Stop everything that `start` started."""
        self.ready = False
        await self.monitor.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in (*self.assembly.endpoints.values(), *self._retired):
            endpoint.pool.close()
        await asyncio.gather(*(model.stop() for model in self.local_models))
        self.telemetry.stop(self)  # before what it reports on is closed: what is gone has counted nothing
        await self.backing.stop()
        house, self._house = self._house, None
        if house is not None:
            await asyncio.to_thread(house.close)

    async def _start_local(self) -> None:
        if self._local_elsewhere is not None:
            for name, places in self._local_elsewhere.items():
                for url, key in places:
                    self.assembly.local(name, url, key)
            return
        models = local_models(self.config)
        self.local_models = [model for _, model in models]
        try:
            await asyncio.gather(*(model.start() for model in self.local_models))
        except BaseException:
            await asyncio.gather(*(model.stop() for model in self.local_models))
            raise
        for name, model in models:
            self.assembly.local(name, model.url, model.api_key)

    async def _search(self) -> None:
        """Serve what listens on this machine, where nothing is configured."""
        for found in await discover(fetch, self.config.service.port):
            endpoint = self.assembly.found(found.name, found.address, found.provider)
            endpoint.facts.models = found.models
            endpoint.facts.version = found.version

    def _renew(self) -> None:
        """Swap the registry when endpoints offer other models than before."""
        known = self.assembly.known()
        if known != self._known:
            self._known = known
            self.registry = self.assembly.registry()
            self.proxy.plain = {}

    async def _keep_up(self) -> None:
        """Follow what probes find out about the fleet."""
        searched_s = self.clock.monotonic()
        while True:
            await asyncio.sleep(1.0)
            try:
                now_s = self.clock.monotonic()
                if not self.config.models and not self.config.endpoints and now_s - searched_s >= _SEARCH_AGAIN_S:
                    searched_s = now_s
                    await self._search()
                self._renew()
                await self.learners.look(self.backing.folder)
                await self.backing.note(self.registry)
            except Exception:  # blame: the gateway's own; the fleet must go on being watched
                _log.exception("the registry could not be renewed")

    async def _keep_time(self) -> None:
        """End every phase of every upstream connection whose deadline has passed."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self.clock.monotonic()
            for endpoint in [*self.assembly.endpoints.values(), *self._retired]:
                try:
                    endpoint.pool.sweep(now_s)
                    lay(endpoint, now_s)
                except Exception:  # blame: the gateway's own; deadlines must go on being kept
                    _log.exception("sweeping the connections to %s failed", endpoint.name)
            # Who waits for a place may still be meant for one of them.
            for endpoint in [endpoint for endpoint in self._retired if not endpoint.in_flight and not self.proxy.hotel.size]:
                self._retired.remove(endpoint)
                endpoint.cool_until_s = inf
                endpoint.pool.close()
            try:
                if self.workers > 1:
                    self.census.tell({one for target in self.registry.targets.values() for one in target.deployments})
                await self.backing.look(self.assembly.endpoints.values())
            except Exception:  # blame: the gateway's own; what is revoked must be heard of
                _log.exception("what other processes share could not be looked at")
            try:
                self.proxy.sweep(now_s)
            except Exception:  # blame: the gateway's own; heartbeats must go on
                _log.exception("sending heartbeats failed")
            try:
                self.telemetry.tick(self)
            except Exception:  # blame: the gateway's own; deadlines must go on being kept
                _log.exception("the metrics could not be brought up to date")


class ReloadRefused(Exception):
    """A configuration cannot be taken into use while the gateway runs; the message says why."""


class _Plan:
    """What a stage or an observer is built from: the configuration to come, and the gateway it will serve."""

    def __init__(self, gateway: Gateway, config: GatewayConfig, keys: KeyRing) -> None:
        self._gateway = gateway
        self.config = config
        self.keys = keys
        self.ids, self.inside = gateway.ids, gateway.inside
        self.metering = gateway.backing.metering
        self.proxy = gateway.proxy
        self.shelf = gateway.backing.shelf

    @property
    def registry(self) -> Registry:
        """The registry at the moment of a request."""
        return self._gateway.registry


def build(config: GatewayConfig, workers: int = 1, **options: Any) -> Gateway:
    """A gateway for a configuration; nothing is started yet.

    Raises:
        UnknownPlugin: The configuration names a stage, policy, provider or observer that does not exist.
    """
    return Gateway(config, workers, **options)


__all__ = ["Gateway", "ReloadRefused", "UnknownPlugin", "build", "local_models"]
