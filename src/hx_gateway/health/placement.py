"""Keeps models in memory where the operator's plan wants them: empty calls after start and recovery, never at another's cost."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

from hx_gateway.core.clock import Clock
from hx_gateway.fleet.checks import embeds
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.facts import same_model
from hx_gateway.fleet.registry import Kept
from hx_gateway.health.probes import Fetch, Unreachable

_FIRST_PAUSE_S = 60.0  # until a model that has gone again is loaded once more; each time twice as long
_LONGEST_PAUSE_S = 3600.0
_log = logging.getLogger(__name__)


class _Place:
    """One model at one server, as far as keeping it there goes."""

    __slots__ = ("due_s", "pause_s", "said")

    def __init__(self) -> None:
        self.due_s = 0.0
        self.pause_s = _FIRST_PAUSE_S
        self.said = ""


class Placement:
    """Loads the models of the plan that a server does not have in memory, by calls that generate nothing.

    A model is loaded only where there is room: as ``memory_gb`` and ``max_loaded_models`` of the endpoint tell or, where no
    memory is configured, beside models of the plan only. What others have loaded is never pushed out. A model that
    keeps going is loaded less and less often.

    Args:
        fetch: How to ask.
        clock: Source of time.
        loaded: Told of an endpoint after a model was loaded there.
    """

    def __init__(self, fetch: Fetch, clock: Clock, loaded: Callable[[Endpoint], None] = lambda _: None) -> None:
        self._fetch = fetch
        self._clock = clock
        self._loaded = loaded
        self._places: dict[tuple[Endpoint, str], _Place] = {}
        self._tasks: dict[Endpoint, asyncio.Task[None]] = {}

    def recovered(self, endpoint: Endpoint) -> None:
        """The endpoint is back: whatever was in its memory is gone, and may be loaded at once."""
        endpoint.facts.away = True
        for (where, _), place in self._places.items():
            if where is endpoint:
                place.due_s, place.pause_s = 0.0, _FIRST_PAUSE_S

    def look(self, endpoint: Endpoint, plan: Iterable[Kept]) -> None:
        """After a good probe of an endpoint: begin to load what the plan wants there and is missing, one after the other."""
        kept = [one for one in plan if one.deployment.endpoint is endpoint]
        if not kept or endpoint in self._tasks or endpoint.facts.engine != "ollama" or endpoint.drained:
            return
        if any(self._due(one) for one in kept):
            task = asyncio.get_running_loop().create_task(self.load(endpoint, kept), name="placement")
            self._tasks[endpoint] = task
            task.add_done_callback(lambda done: self._done(endpoint, done))

    async def stop(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, endpoint: Endpoint, task: asyncio.Task[None]) -> None:
        self._tasks.pop(endpoint, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("placement on endpoint %s broke off", endpoint.name, exc_info=task.exception())

    def _place(self, deployment: Deployment) -> _Place:
        return self._places.setdefault((deployment.endpoint, deployment.upstream_model), _Place())

    def _due(self, kept: Kept) -> bool:
        deployment = kept.deployment
        if deployment.endpoint.facts.in_memory(deployment.upstream_model) is not None:
            return False
        return self._place(deployment).due_s <= self._clock.monotonic()

    async def load(self, endpoint: Endpoint, kept: list[Kept]) -> None:
        """Load what is missing of the models to be kept at an endpoint, as long as there is room.

        Args:
            endpoint: The server.
            kept: All that shall be kept there.
        """
        added: list[Deployment] = []
        for one in kept:
            if not self._due(one):
                continue
            deployment, place = one.deployment, self._place(one.deployment)
            hindrance = self._hindrance(deployment, kept, added)
            if hindrance:
                self._say(place, deployment, hindrance)
                continue
            place.due_s = self._clock.monotonic() + place.pause_s
            place.pause_s = min(place.pause_s * 2.0, _LONGEST_PAUSE_S)
            if await self._warm(one, place):
                added.append(deployment)
        if added:
            self._loaded(endpoint)

    def _hindrance(self, deployment: Deployment, kept: list[Kept], added: list[Deployment]) -> str:
        """Why there is no room for a model; empty if there is."""
        endpoint = deployment.endpoint
        held = endpoint.facts.memory
        memory, most = endpoint.residency.memory, endpoint.residency.most
        used = sum(one.size for one in held.values()) + sum(one.size for one in added)
        if most and len(held) + len(added) >= most:
            return f"it has max_loaded_models ({most}) in memory"
        if memory:
            fits = used + deployment.size <= memory
            return (
                ""
                if fits
                else f"of memory_gb ({memory / 1e9:g}) it has {used / 1e9:.1f} in use and the model needs {deployment.size / 1e9:.1f}"
            )
        strangers = [name for name in held if not any(same_model(name, one.deployment.upstream_model) for one in kept)]
        return f"{', '.join(sorted(strangers))} might have to go for it; set the endpoint's memory_gb" if strangers else ""

    async def _warm(self, kept: Kept, place: _Place) -> bool:
        deployment = kept.deployment
        endpoint = deployment.endpoint
        path, body = empty_call(kept)
        began_s = self._clock.monotonic()
        try:
            answer = await self._fetch(endpoint, path, json.dumps(body).encode(), timeout_s=endpoint.deadlines.load_s or 600.0)
        except Unreachable as error:
            self._say(place, deployment, str(error))
            return False
        if answer.status != 200:
            self._say(place, deployment, f"POST {path} answered {answer.status}")
            return False
        now_s = self._clock.monotonic()
        place.said = ""
        _log.info("model %s is kept in memory on endpoint %s", deployment.model, endpoint.name)
        endpoint.residency.answered(deployment, now_s)
        if endpoint.facts.loaded is not None and deployment.pace.load_s == deployment.load_prior_s and now_s > began_s:
            deployment.pace.load_s = now_s - began_s  # it was not in memory, and nothing but loading was asked for
        return True

    def _say(self, place: _Place, deployment: Deployment, why: str) -> None:
        if why != place.said:
            place.said = why
            _log.warning("model %s cannot be kept in memory on endpoint %s: %s", deployment.model, deployment.endpoint.name, why)


def empty_call(kept: Kept) -> tuple[str, dict[str, Any]]:
    """Path and body of the call that loads a model on an Ollama server and generates nothing."""
    deployment = kept.deployment
    body: dict[str, Any] = {"model": deployment.upstream_model, "keep_alive": kept.keep_alive}
    if deployment.options.num_ctx:
        body["options"] = {"num_ctx": deployment.options.num_ctx}  # as in every request, which would load it again otherwise
    if not embeds(deployment):
        return "/api/generate", {**body, "prompt": "", "stream": False}
    if deployment.endpoint.facts.legacy_embeddings:
        return "/api/embeddings", {**body, "prompt": ""}
    return "/api/embed", {**body, "input": []}
