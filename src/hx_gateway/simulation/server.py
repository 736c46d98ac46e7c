"""A simulated model server: slots, one line of prompts to read, answers written side by side, and models in its memory."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Protocol

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.simulation.cache import BlockCache
from hx_gateway.simulation.events import Events
from hx_gateway.simulation.plan import ServerPlan
from hx_gateway.simulation.trace import Arrival

_REFUSED_S = 0.02  # how long a server takes to answer with an error


class Caller(Protocol):
    """Who sent a request, and hears what comes of it."""

    def began(self, cached_tokens: int) -> None:
        """The prompt was read; the first token is out."""

    def ended(self, load_s: float, line_s: float) -> None:
        """The last token is out; ``load_s`` went into loading the model for it, ``line_s`` into waiting for a slot."""

    def broke(self, kind: ErrorKind) -> None:
        """It failed."""


class Job:
    """One request at a server."""

    __slots__ = ("arrival", "begun", "caller", "came_s", "line_s", "load_s", "model")

    def __init__(self, arrival: Arrival, model: str, caller: Caller) -> None:
        self.arrival = arrival
        self.model = model
        self.caller = caller
        self.begun = False
        self.came_s = 0.0
        self.line_s = 0.0
        self.load_s = 0.0


class _Model:
    """One model of a server: whether it is in memory, and who waits for a slot."""

    __slots__ = ("cache", "leaving", "line", "loaded", "running", "size_gb", "used_s")

    def __init__(self, size_gb: float, blocks: int, loaded: bool) -> None:
        self.size_gb = size_gb
        self.loaded = loaded
        self.leaving = False  # something else waits for its place: it finishes what it has, and takes nothing new
        self.running = 0
        self.used_s = 0.0
        self.line: deque[Job] = deque()
        self.cache = BlockCache(blocks)


class Server:
    """One model server.

    A request takes a slot of its model, waits until the prompts before it are read, is read as far as its prefix is not
    cached, and written at a rate that falls with the number written at the same time. Where memory is bounded, a model
    that is not loaded is loaded first, one at a time; the idle model that was used longest ago makes room. Is none
    idle, the load waits until the one used longest ago has finished what it has.

    Args:
        plan: What it can do.
        sizes: Its models, with their memory in GB.
        block_tokens: Tokens in a block of the prefix cache.
        events: The clock.
        chance: Random numbers from 0 to 1.
    """

    def __init__(
        self, plan: ServerPlan, sizes: Mapping[str, float], block_tokens: int, events: Events, chance: Callable[[], float]
    ) -> None:
        self.plan = plan
        self.up = True
        self.read_s = 0.0
        self.written_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.loads = 0
        self._block_tokens = block_tokens
        self._events = events
        self._chance = chance
        self._models = {name: _Model(size, plan.cache_tokens // block_tokens, not plan.managed) for name, size in sizes.items()}
        self._jobs: dict[Job, None] = {}  # in the order they came
        self._reading: deque[Job] = deque()  # its first is being read
        self._loads: deque[str] = deque()  # its first is being loaded, or waits for room
        self._load_under_way = False
        self._life = 0  # what was planned in an earlier life no longer happens
        self._written = 0.0  # tokens that a request written since the beginning would have
        self._written_at_s = 0.0
        self._writing: list[tuple[float, int, Job]] = []
        self._order = count()
        self._plan_of_writing = 0

    @property
    def busy_s(self) -> float:
        """Seconds of work done: reading, and writing at the rate of a full batch."""
        batch = self.plan.slots * (self.plan.models_that_fit or 1)
        return self.read_s + self.written_tokens / (batch * self.plan.writes_per_second(batch))

    @property
    def loaded(self) -> dict[str, float]:
        """The models in memory, with their sizes in bytes, as a probe would see them."""
        return {name: model.size_gb * 1e9 for name, model in self._models.items() if model.loaded}

    def send(self, job: Job) -> None:
        """A request arrives."""
        if not self.up:
            job.caller.broke(errors.CONNECT_FAILED)
            return
        if self.plan.errors and self._chance() < self.plan.errors:
            self._later(_REFUSED_S, partial(job.caller.broke, errors.UPSTREAM_ERROR))
            return
        self._jobs[job] = None
        job.came_s = self._events.now_s
        self._models[job.model].line.append(job)
        self._admit(job.model)

    def stop(self) -> None:
        """It dies: what is under way breaks, what it held in memory is gone."""
        self.up = False
        self._life += 1
        jobs, self._jobs = self._jobs, {}
        self._reading.clear()
        self._loads.clear()
        self._load_under_way = False
        self._writing.clear()
        for model in self._models.values():
            model.line.clear()
            model.running = 0
            model.leaving = False
            model.loaded = not self.plan.managed
            model.cache = BlockCache(self.plan.cache_tokens // self._block_tokens)
        for job in jobs:
            job.caller.broke(errors.STREAM_BROKEN if job.begun else errors.CONNECTION_RESET)

    def start(self) -> None:
        """It is back, with nothing in memory."""
        self.up = True

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        life = self._life

        def if_alive() -> None:
            if self._life == life:
                action()

        self._events.after(seconds, if_alive)

    # Slots and models

    def _admit(self, name: str) -> None:
        """Give free slots to those who wait for a model, or see that it is loaded."""
        model = self._models[name]
        if not model.loaded:
            if model.line and name not in self._loads:
                self._loads.append(name)
                self._load_next()
            return
        while model.line and model.running < self.plan.slots and not model.leaving:
            model.running += 1
            model.used_s = self._events.now_s
            job = model.line.popleft()
            job.line_s = self._events.now_s - job.came_s - job.load_s
            self._reading.append(job)
            if len(self._reading) == 1:
                self._read_next()

    def _load_next(self) -> None:
        if self._load_under_way or not self._loads:
            return
        name = self._loads[0]
        model = self._models[name]
        if not self._room(model.size_gb):
            return
        self._load_under_way = True
        self.loads += 1
        self._later(model.size_gb / self.plan.load_gb_per_second, partial(self._loaded, name))
        for spared, held in self._models.items():
            if held.leaving:
                held.leaving = False
                self._admit(spared)

    def _room(self, size_gb: float) -> bool:
        """Make room for a model; False while what must go is in use."""
        plan = self.plan
        while True:
            held = [model for model in self._models.values() if model.loaded]
            used_gb = sum(model.size_gb for model in held)
            if not (plan.models_that_fit and len(held) >= plan.models_that_fit) and not (
                plan.memory_gb and used_gb + size_gb > plan.memory_gb
            ):
                return True
            held.sort(key=lambda model: model.used_s)
            idle = next((model for model in held if not model.running), None)
            if idle is None:
                held[0].leaving = True
                return False
            idle.loaded = idle.leaving = False
            idle.cache = BlockCache(plan.cache_tokens // self._block_tokens)
            name = next(name for name, model in self._models.items() if model is idle)
            if idle.line and name not in self._loads:
                self._loads.append(name)

    def _loaded(self, name: str) -> None:
        self._load_under_way = False
        self._loads.popleft()
        model = self._models[name]
        model.loaded = True
        model.used_s = now_s = self._events.now_s
        for job in model.line:
            job.load_s = now_s - job.came_s
        self._admit(name)
        self._load_next()

    # Reading

    def _read_next(self) -> None:
        job = self._reading[0]
        arrival = job.arrival
        cached = min(self._models[job.model].cache.leading(arrival.blocks) * self._block_tokens, arrival.prompt_tokens - 1)
        seconds = (arrival.prompt_tokens - cached) / (self.plan.prefill_tokens_per_second * self.plan.speed)
        self.read_s += seconds
        self.prompt_tokens += arrival.prompt_tokens
        self.cached_tokens += cached
        self._later(seconds, partial(self._read, job, cached))

    def _read(self, job: Job, cached: int) -> None:
        self._reading.popleft()
        self._models[job.model].cache.keep(job.arrival.blocks)
        job.begun = True
        job.caller.began(cached)
        self._advance()
        heapq.heappush(self._writing, (self._written + job.arrival.output_tokens, next(self._order), job))
        self._expect()
        if self._reading:
            self._read_next()

    # Writing: all that are written advance alike, so one running count of tokens says when each is done

    def _advance(self) -> None:
        now_s = self._events.now_s
        if self._writing:
            self._written += (now_s - self._written_at_s) * self.plan.writes_per_second(len(self._writing))
        self._written_at_s = now_s

    def _expect(self) -> None:
        """Plan the next end; an earlier plan no longer holds."""
        self._plan_of_writing += 1
        if self._writing:
            left = self._writing[0][0] - self._written
            self._later(left / self.plan.writes_per_second(len(self._writing)), partial(self._wrote, self._plan_of_writing))

    def _wrote(self, plan: int) -> None:
        if plan != self._plan_of_writing:
            return
        self._advance()
        _, _, job = heapq.heappop(self._writing)
        self.written_tokens += job.arrival.output_tokens
        self._expect()
        del self._jobs[job]
        model = self._models[job.model]
        model.running -= 1
        model.used_s = self._events.now_s
        job.caller.ended(job.load_s, job.line_s)
        self._admit(job.model)
        self._load_next()
