"""The fleet file of a simulation: which model servers there are and what they can do, with line and column in errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hx_gateway.config.located import Document, Place, parse
from hx_gateway.config.located import Path as SettingPath
from hx_gateway.config.problems import ConfigError, Problem
from hx_gateway.config.routing import PolicySettings
from hx_gateway.config.shape import dotted, nearest
from hx_gateway.simulation.trace import Arrival

_More = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotLess = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelPlan(_Settings):
    """A model: its memory in GB, and prices in any one currency."""

    gb: _NotLess = 0.0
    cost_per_request: _NotLess = 0.0
    cost_per_prompt_token: _NotLess = 0.0
    cost_per_completion_token: _NotLess = 0.0


class Outage(_Settings):
    """A time, in seconds from the start of the trace, in which a server is gone; its memory is lost."""

    start: _NotLess
    end: _More


class ServerPlan(_Settings):
    """Model servers of one kind.

    Args:
        count: How many.
        models: The models they serve; empty for all.
        slots: Requests at once, for each model; the others wait.
        requests_per_minute: Most requests that the gateway sends to each model in a minute; 0 for no limit.
        tokens_per_minute: The same for tokens of prompts and answers.
        prefill_tokens_per_second: Prompts are read one after the other at this rate.
        decode_tokens_per_second: A request that is alone is written at this rate.
        decode_slowdown: By how much each further request slows the writing of all, as a share.
        cache_tokens: What the prefix cache of each model holds; 0 for none.
        speed: Multiplies both rates.
        network_seconds: From the gateway to the server, one way.
        models_that_fit: Models in memory at once; 0 where memory decides, or all fit.
        memory_gb: Memory for models; 0 where all fit.
        load_gb_per_second: How fast a model comes into memory.
        errors: Share of requests answered with a server error.
        outages: When they are gone.
        reports_cached: Whether answers tell how much of a prompt was cached (vLLM and SGLang do when told to, llama.cpp does).
    """

    count: Annotated[int, Field(ge=1, le=1000)] = 1
    models: list[str] = []
    slots: Annotated[int, Field(ge=1)] = 8
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    prefill_tokens_per_second: _More = 5000.0
    decode_tokens_per_second: _More = 40.0
    decode_slowdown: _NotLess = 0.0
    cache_tokens: Annotated[int, Field(ge=0)] = 0
    speed: _More = 1.0
    network_seconds: _NotLess = 0.0005
    models_that_fit: Annotated[int, Field(ge=0)] = 0
    memory_gb: _NotLess = 0.0
    load_gb_per_second: _More = 2.0
    errors: _Share = 0.0
    outages: list[Outage] = []
    reports_cached: bool = False

    @property
    def managed(self) -> bool:
        """Whether it loads models when they are asked for, as Ollama does."""
        return bool(self.models_that_fit or self.memory_gb)

    def writes_per_second(self, batch: float) -> float:
        """Tokens per second of one request when ``batch`` are written at once."""
        return self.decode_tokens_per_second * self.speed / (1.0 + self.decode_slowdown * max(batch - 1.0, 0.0))


class GatewayPlan(_Settings):
    """What the gateway is told, and how it is set.

    Args:
        probe_seconds: Time between two probes of a server.
        knows_slots: Whether the slots of each server are configured.
        knows_memory: Whether the memory of each server is configured.
        prompt_estimate_error: How far its guess of a prompt's length is off, as the sigma of its logarithm.
        attempts: Most attempts of one request.
        breaker_threshold: Failures in a row that open a breaker.
        breaker_seconds: How long it stays open.
        seconds_per_cost_unit: What one unit of money is worth in seconds, for `intelligent`.
    """

    probe_seconds: _More = 10.0
    knows_slots: bool = False
    knows_memory: bool = False
    prompt_estimate_error: _NotLess = 0.0
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    breaker_threshold: Annotated[int, Field(ge=1)] = 5
    breaker_seconds: _NotLess = 60.0
    seconds_per_cost_unit: _NotLess = 0.0


class FleetPlan(_Settings):
    """The whole file."""

    models: Annotated[dict[str, ModelPlan], Field(min_length=1)]
    servers: Annotated[dict[str, ServerPlan], Field(min_length=1)]
    block_tokens: Annotated[int, Field(ge=1)] = 512
    gateway: GatewayPlan = GatewayPlan()
    policies: dict[str, PolicySettings] = {}

    def load_of(self, arrivals: Sequence[Arrival]) -> float:
        """The load of a trace: its work, were nothing ever cached, as a share of what the fleet can do in its time.

        Reading and writing are counted apart, and the larger share is the load.
        """
        span_s = arrivals[-1].at_s - arrivals[0].at_s
        reads = writes = 0.0
        for server in self.servers.values():
            reads += server.count * server.prefill_tokens_per_second * server.speed
            batch = server.slots * (server.models_that_fit or 1)
            writes += server.count * batch * server.writes_per_second(batch)
        if span_s <= 0.0:
            return 0.0
        prompts, outputs = sum(one.prompt_tokens for one in arrivals), sum(one.output_tokens for one in arrivals)
        return max(prompts / reads, outputs / writes) / span_s


def load_plan(path: Path) -> FleetPlan:
    """Read a fleet file.

    Raises:
        ConfigError: It cannot be read or used; lists every reason with its line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror or 'not a usable path'}", str(path))]) from error
    except UnicodeDecodeError:
        raise ConfigError([Problem("", "is not UTF-8 text; save it as UTF-8", str(path))]) from None
    return read_plan(text, str(path))


def read_plan(text: str, name: str) -> FleetPlan:
    """Read the text of a fleet file; ``name`` is what messages call it.

    Raises:
        ConfigError: It cannot be used; lists every reason with its line and column.
    """
    document = parse(text)
    problems = [Problem(dotted(fault.path), fault.message, name, fault.place.line, fault.place.column) for fault in document.faults]
    if problems:
        raise ConfigError(problems)
    try:
        plan = FleetPlan.model_validate(document.data if document.data is not None else {})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise ConfigError([_problem(document, name, detail["loc"], detail["type"], detail["msg"]) for detail in details]) from None
    problems = [
        _problem(document, name, path, "", message)
        for kind, server in plan.servers.items()
        for path, message in _mistakes(kind, server, plan)
    ]
    if problems:
        raise ConfigError(problems)
    return plan


def _mistakes(kind: str, server: ServerPlan, plan: FleetPlan) -> list[tuple[SettingPath, str]]:
    here: SettingPath = ("servers", kind)
    found: list[tuple[SettingPath, str]] = []
    for position, model in enumerate(server.models):
        if model not in plan.models:
            found.append(((*here, "models", position), "names no model" + (nearest(model, plan.models) or "; list it under models")))
    for position, outage in enumerate(server.outages):
        if outage.end <= outage.start:
            found.append(((*here, "outages", position, "end"), "should be after start"))
    if server.memory_gb:
        for model in server.models or plan.models:
            size = plan.models[model].gb if model in plan.models else 0.0
            if size > server.memory_gb:
                found.append(((*here, "memory_gb"), f"is too small for {model}, which takes {size:g} GB"))
    return found


def _problem(document: Document, name: str, location: SettingPath, kind: str, message: str) -> Problem:
    path = tuple(location)
    tables = (document.keys, document.values) if kind in ("extra_forbidden", "missing") else (document.values, document.keys)
    for length in range(len(path), -1, -1):
        place = next((table[path[:length]] for table in tables if path[:length] in table), None)
        if place is not None:
            break
    else:
        place = Place(1, 1)
    if kind == "extra_forbidden":
        message = "unknown setting" + nearest(str(path[-1]), _known(path))
    elif kind == "missing":
        message = "is missing, and needed"
    else:
        message = message.removeprefix("Input ").replace("Value error, ", "")
    return Problem(dotted(path), message, name, place.line, place.column)


def _known(path: SettingPath) -> list[str]:
    sections: dict[Any, type[BaseModel]] = {"models": ModelPlan, "servers": ServerPlan, "gateway": GatewayPlan, "policies": PolicySettings}
    section = FleetPlan if len(path) == 1 else Outage if "outages" in path[:-1] else sections.get(path[0], FleetPlan)
    return list(section.model_fields)
