"""Keeps what is known of every endpoint fresh: probes them all, again and again, and lets a recovered one back early."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from math import inf
from typing import Any

from hx_gateway.core.clock import Clock, SystemClock
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.registry import Registry
from hx_gateway.health.detect import ask
from hx_gateway.health.placement import Placement
from hx_gateway.health.probes import Fetch, Probe, ProbeResult, Unreachable, probe_for
from hx_gateway.health.study import Findings, Study, study_for
from hx_gateway.health.teach import teach, teach_residency

PROBE_LIMIT_S = 3.0
STUDY_LIMIT_S = 2.0
_FIRST_RETRY_S = 2.0
_JITTER = 0.1  # share of the interval by which probes of different endpoints drift apart
_LOOK_S = 1.0  # how often the schedule is looked at
_APART_S = 1.0  # least seconds between two probes of an endpoint, whatever calls for them
_log = logging.getLogger(__name__)


class _Schedule:
    """When one endpoint is due."""

    __slots__ = ("checked_s", "due_s", "legacy_pinned", "noticed_s", "running", "troubles")

    def __init__(self, endpoint: Endpoint) -> None:
        self.due_s = 0.0
        self.checked_s = -inf
        self.noticed_s = inf  # when a probe is due for what others noticed while one was running
        self.troubles = 0  # probes in a row that failed, or found a breaker open
        self.running = False
        # A value that was there before the first probe is the operator's own and stays.
        self.legacy_pinned = endpoint.facts.checked_s == 0.0 and endpoint.facts.legacy_embeddings is not None


class Monitor:
    """Probes the endpoints of the current registry and writes what it learns into their ``facts``.

    Args:
        registry_source: Returns the current registry; asked at every look, so a reload needs no word.
        interval_s: Seconds between two probes of an endpoint that is well.
        clock: Source of time.
        fetch: How to ask.
        provider_named: Makes the provider of a name; used for endpoints whose dialect had to be found out.
        spread: Returns a number from 0 to 1 for the jitter.
    """

    def __init__(
        self,
        registry_source: Callable[[], Registry],
        interval_s: float,
        clock: Clock | None = None,
        *,
        fetch: Fetch,
        provider_named: Callable[[str], Any],
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.interval_s = interval_s
        self._registry_source = registry_source
        self._clock: Clock = clock or SystemClock()
        self._fetch = fetch
        self._provider_named = provider_named
        self._spread = spread
        self._probes: dict[str, Probe] = {}
        self._schedules: dict[Endpoint, _Schedule] = {}
        self._studies: dict[str, Study | None] = {}
        self._placement = Placement(fetch, self._clock, self.soon)
        self._checks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Begin probing in the running loop; the first probes go out at once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="health monitor")

    async def stop(self) -> None:
        """Stop probing; probes under way are cancelled."""
        tasks = [*self._checks, *([self._task] if self._task is not None else [])]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._placement.stop()

    def soon(self, endpoint: Endpoint, within_s: float = 0.0) -> None:
        """Probe an endpoint before its turn, because something else noticed a change.

        However often it is called, two probes of an endpoint are at least a second apart; and where the last one found
        trouble the next is planned soon already, later and later, and the plan stays.

        Args:
            endpoint: The server.
            within_s: Seconds until the probe, for what it may need to show.
        """
        schedule = self._schedules.get(endpoint)
        if schedule is None or schedule.troubles:
            return
        due_s = max(self._clock.monotonic() + within_s, schedule.checked_s + _APART_S)
        if schedule.running:
            schedule.noticed_s = min(schedule.noticed_s, due_s)
        elif due_s < schedule.due_s:
            schedule.due_s = due_s
            self._wake.set()

    async def check_all(self) -> None:
        """Probe every endpoint once, all at the same time."""
        await asyncio.gather(*(self.check(endpoint) for endpoint in _endpoints(self._registry_source())))

    async def check(self, endpoint: Endpoint) -> None:
        """Probe one endpoint, write down what was found, and plan its next probe. Never raises for the endpoint's faults."""
        schedule = self._schedules.get(endpoint)
        if schedule is None:
            schedule = self._schedules[endpoint] = _Schedule(endpoint)
        schedule.running = True
        more = False
        try:
            result = await self._ask(endpoint)
            self._learn(endpoint, schedule, result)
            trouble = self._reopen(endpoint, self._clock.monotonic()) if result.healthy else True
            if result.healthy:
                more = await self._study(endpoint)
                self._spread_word(endpoint)
        finally:
            schedule.running = False
        schedule.troubles = schedule.troubles + 1 if trouble else 0
        pause_s = self._pause_s(schedule.troubles)
        now_s = schedule.checked_s = self._clock.monotonic()
        schedule.due_s = now_s + (min(pause_s, _FIRST_RETRY_S) if more else pause_s)
        if not trouble:  # what was noticed meanwhile may have happened after the answer
            schedule.due_s = min(schedule.due_s, max(schedule.noticed_s, now_s + _APART_S))
        schedule.noticed_s = inf

    async def _run(self) -> None:
        while True:
            registry = self._registry_source()
            endpoints = _endpoints(registry)
            for gone in self._schedules.keys() - endpoints:
                del self._schedules[gone]
            now_s = self._clock.monotonic()
            for endpoint in endpoints:
                schedule = self._schedules.get(endpoint)
                if schedule is None:
                    schedule = self._schedules[endpoint] = _Schedule(endpoint)
                if not schedule.running and schedule.due_s <= now_s:
                    schedule.running = True
                    task = asyncio.get_running_loop().create_task(self.check(endpoint))
                    self._checks.add(task)
                    task.add_done_callback(self._checked)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_S)

    def _checked(self, task: asyncio.Task[None]) -> None:
        self._checks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a health probe broke off", exc_info=task.exception())

    def _pause_s(self, troubles: int) -> float:
        pause_s = self.interval_s
        if troubles:
            pause_s = min(pause_s, _FIRST_RETRY_S * 2.0 ** min(troubles - 1, 20))
        return pause_s * (1.0 + _JITTER * (self._spread() - 0.5))

    async def _ask(self, endpoint: Endpoint) -> ProbeResult:
        try:
            async with asyncio.timeout(PROBE_LIMIT_S):
                if endpoint.provider is None:
                    name, _ = await ask(self._fetch, endpoint)
                    if name is None:
                        return ProbeResult(False, "nothing answers there")
                    endpoint.provider = self._provider_named(name)
                return await self._probe(endpoint.provider.name)(self._fetch, endpoint)
        except Unreachable as error:
            return ProbeResult(False, str(error))
        except TimeoutError:
            return ProbeResult(False, f"no answer within {PROBE_LIMIT_S:g} s")
        except Exception:  # blame: the probe's own; one broken plug-in must not leave its endpoint without a verdict
            _log.exception("the probe of endpoint %s failed", endpoint.name)
            return ProbeResult(False, "the probe itself failed; the log has the trace")

    def _probe(self, provider: str) -> Probe:
        probe = self._probes.get(provider)
        if probe is None:
            probe = self._probes[provider] = probe_for(provider)
        return probe

    async def _study(self, endpoint: Endpoint) -> bool:
        """Ask a healthy server what else it can tell, and write it down; whether there is more to ask about soon.

        It says nothing about health: a server that is slow to tell still answers requests.
        """
        facts = endpoint.facts
        if facts.engine not in self._studies:
            self._studies[facts.engine] = study_for(facts.engine)
        study = self._studies[facts.engine]
        if study is None:
            return False
        findings = Findings()
        try:
            async with asyncio.timeout(STUDY_LIMIT_S):
                await study(self._fetch, endpoint, findings)
        except (Unreachable, TimeoutError):
            pass  # what was found until then counts
        except Exception:  # blame: the study's own; one broken plug-in must not stop the probes
            _log.exception("the study of endpoint %s failed", endpoint.name)
        if findings.about:
            facts.about = {name: findings.about.get(name, model) for name, model in facts.about.items()}
        if findings.version:
            facts.version = findings.version[:64]
        if findings.slots is not None:
            facts.slots = findings.slots
            endpoint.slots = endpoint.configured_slots or findings.slots
        facts.load = findings.load
        facts.sleeping = findings.sleeping is True
        if facts.sleeping:
            facts.loaded, facts.memory = frozenset(), {}
        return findings.more

    def _spread_word(self, endpoint: Endpoint) -> None:
        """Carry what is known now to the deployments there, and see to the plan of what is to be in memory."""
        registry = self._registry_source()
        deployments = registry.at(endpoint)
        for deployment in deployments:
            teach(deployment)
        teach_residency(endpoint, deployments, self._clock.monotonic())
        self._placement.look(endpoint, registry.placement)

    def _learn(self, endpoint: Endpoint, schedule: _Schedule, result: ProbeResult) -> None:
        facts = endpoint.facts
        if facts.healthy is not result.healthy:
            if result.healthy:
                self._placement.recovered(endpoint)
                _log.info("endpoint %s is healthy", endpoint.name)
            else:
                _log.warning("endpoint %s is not healthy: %s", endpoint.name, result.error)
        facts.healthy = result.healthy
        facts.error = result.error
        facts.checked_s = self._clock.monotonic()
        if result.version:
            facts.version = result.version
        if result.models is not None:
            facts.models = result.models
        if result.healthy and result.engine != facts.engine:
            facts.engine, facts.slots, facts.load, facts.sleeping = result.engine, 0, None, False
        if result.about is not None:
            facts.about = result.about
        if result.memory is not None or result.healthy:
            facts.memory = result.memory or {}
        facts.loaded = result.loaded
        if result.legacy_embeddings is not None and not schedule.legacy_pinned:
            facts.legacy_embeddings = result.legacy_embeddings

    def _reopen(self, endpoint: Endpoint, now_s: float) -> bool:
        """After a good probe: close the endpoint's breaker, let its deployments try at once. Whether any was open.

        A probe shows that the server answers, not that each model does: a deployment's breaker is closed by a request
        only.
        """
        found_open = False
        if endpoint.breaker.state == "open":
            found_open = True
            endpoint.breaker.succeeded(now_s)
        for breaker in {deployment.breaker for deployment in self._registry_source().at(endpoint)}:
            if breaker.state == "open":
                found_open = True
                breaker.opened_s = min(breaker.opened_s, now_s - breaker.timeout_s)
        return found_open


def _endpoints(registry: Registry) -> set[Endpoint]:
    found = set(registry.endpoints.values())
    found.update(deployment.endpoint for target in registry.targets.values() for deployment in target.deployments)
    if registry.forward_to is not None:
        found.add(registry.forward_to)
    return found
