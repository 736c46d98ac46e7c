"""What a healthy server can tell of its models and its load beyond its health: asked after each probe, in bounded time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.facts import CAPABILITIES, EngineLoad, ModelFacts
from hx_gateway.health import values
from hx_gateway.health.probes import Fetch, FetchResult, Unreachable

_SHOWN_AT_ONCE = 4
_SHOWN_PER_STUDY = 16  # models asked about after one probe; the rest follow after the next ones
_MOST_DEFAULTS = 32


@dataclass(slots=True)
class Findings:
    """What a study found; None where the server did not tell.

    Args:
        about: Models of which more is known now, by the server's name for them.
        version: The server's version.
        slots: Requests it works on at the same time.
        load: What it is busy with; its time is filled in by the reader.
        sleeping: Whether its model is out of memory until the next request.
        more: Whether models are left to ask about, so that the next study should be soon.
    """

    about: dict[str, ModelFacts] = field(default_factory=dict)
    version: str = ""
    slots: int | None = None
    load: EngineLoad | None = None
    sleeping: bool | None = None
    more: bool = False


Study = Callable[[Fetch, Endpoint, Findings], Awaitable[None]]
"""Asks a healthy server for more and fills the findings as it goes, so that what was found in time is not lost; raises `Unreachable`."""

STUDIES = {
    "ollama": "hx_gateway.health.study:ollama",
    "llamacpp": "hx_gateway.health.study:llamacpp",
    "vllm": "hx_gateway.health.study:vllm",
    "sglang": "hx_gateway.health.study:sglang",
}
"""Built-in studies, by the engine they belong to."""

_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
# vLLM renamed its own in 0.10; llama.cpp had one until 2025.
_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage", "llamacpp:kv_cache_usage_ratio")
_READ = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total")
_HELD = ("sglang:max_total_num_tokens",)
_STARTED = ("process_start_time_seconds",)


def study_for(engine: str) -> Study | None:
    """The study for an engine: built in or installed; None when nothing more can be asked of it."""
    if not engine:
        return None
    try:
        study: Study = find("study", engine, STUDIES)
    except UnknownPlugin:
        return None
    return study


async def ollama(fetch: Fetch, endpoint: Endpoint, findings: Findings) -> None:
    """Ask about models that are new or have another digest than before, those in memory first."""
    facts = endpoint.facts
    open_questions = [model for model in facts.about.values() if not model.studied]
    open_questions.sort(key=lambda model: model.name not in facts.memory)
    findings.more = len(open_questions) > _SHOWN_PER_STUDY
    for start in range(0, min(len(open_questions), _SHOWN_PER_STUDY), _SHOWN_AT_ONCE):
        batch = open_questions[start : min(start + _SHOWN_AT_ONCE, _SHOWN_PER_STUDY)]
        answers = await asyncio.gather(*(_show(fetch, endpoint, model) for model in batch))
        findings.about.update((model.name, model) for model in answers if model is not None)


async def _show(fetch: Fetch, endpoint: Endpoint, model: ModelFacts) -> ModelFacts | None:
    """What ``/api/show`` adds; None when it may do better the next time."""
    try:
        # Old servers call it ``name``.
        answer = await fetch(endpoint, "/api/show", json.dumps({"model": model.name, "name": model.name}).encode())
    except Unreachable:
        return None
    if answer.status >= 500:
        return None
    return shown(model, answer.json() if answer.status == 200 else None)


def shown(model: ModelFacts, document: Any) -> ModelFacts:
    """A model with what Ollama's ``/api/show`` says of it; a document that says nothing adds nothing."""
    info = values.section(document, "model_info")
    family = values.text(info, "general.architecture")
    told = values.section(document, "capabilities")
    able: frozenset[str] = frozenset()
    unable: frozenset[str] = frozenset()
    if isinstance(told, list) and told:
        able = frozenset(name for name in told if isinstance(name, str) and name in CAPABILITIES)
        unable = frozenset(CAPABILITIES) - able
    elif "bert" in family:  # servers from before capabilities were told; this family embeds and nothing else
        able = frozenset(("embedding",))
    return replace(
        model,
        family=model.family or family,
        parameters=values.number(info, "general.parameter_count") or model.parameters,
        trained_context=int(values.number(info, f"{family}.context_length")) or model.trained_context,
        embedding_length=int(values.number(info, f"{family}.embedding_length")) or model.embedding_length,
        able=able,
        unable=unable,
        defaults=_defaults(values.section(document, "parameters")),
        studied=True,
    )


def _defaults(lines: Any) -> dict[str, str]:
    """The parameters a model file sets, from Ollama's table of them; of one that is set several times, the first."""
    found: dict[str, str] = {}
    for line in lines.splitlines()[:_MOST_DEFAULTS] if isinstance(lines, str) else ():
        name, _, value = line.strip().partition(" ")
        if name and value:
            found.setdefault(name, value.strip().strip('"')[:200])
    return found


async def llamacpp(fetch: Fetch, endpoint: Endpoint, findings: Findings) -> None:
    """Ask llama.cpp's server for its slots, what its model takes, and its load; one that sleeps is not woken."""
    props = _object(await fetch(endpoint, "/props"))
    findings.version = values.text(props, "build_info")
    findings.slots = int(values.number(props, "total_slots")) or None
    findings.sleeping = values.truth(props, "is_sleeping")
    context = int(values.number(values.section(props, "default_generation_settings"), "n_ctx"))
    able: set[str] = set()
    unable: set[str] = set()
    sees = values.truth(values.section(props, "modalities"), "vision")
    if sees is not None:
        (able if sees else unable).add("vision")
    if values.truth(values.section(props, "chat_template_caps"), "supports_tool_calls"):
        able.add("tools")  # without it tools may work all the same: the server then has a form of its own
    for model in endpoint.facts.about.values():
        findings.about[model.name] = replace(
            model,
            context_length=context or model.context_length,
            able=frozenset(able),
            unable=frozenset(unable),
            studied=True,
        )
    if findings.sleeping:
        return  # what follows would load the model
    slots = (await fetch(endpoint, "/slots")).json()
    busy: int | None = None
    if isinstance(slots, list) and slots:
        findings.slots = findings.slots or len(slots)
        busy = sum(values.truth(slot, "is_processing") is True for slot in slots)
        context = max(context, *(int(values.number(slot, "n_ctx")) for slot in slots))
    # Each slot keeps the prompt it read last; where they share one cache, answers correct the size.
    await _metrics(fetch, endpoint, findings, busy, float(context * (findings.slots or 0)) or None)


async def vllm(fetch: Fetch, endpoint: Endpoint, findings: Findings) -> None:
    """Ask vLLM for its version and its load."""
    findings.version = values.text(_object(await fetch(endpoint, "/version")), "version")
    await _metrics(fetch, endpoint, findings)


async def sglang(fetch: Fetch, endpoint: Endpoint, findings: Findings) -> None:
    """Ask SGLang for its load."""
    await _metrics(fetch, endpoint, findings)


async def _metrics(
    fetch: Fetch, endpoint: Endpoint, findings: Findings, busy: int | None = None, cache_tokens: float | None = None
) -> None:
    answer = await fetch(endpoint, "/metrics")
    text = answer.body if answer.status == 200 else b""
    found = values.samples(text, _RUNNING + _WAITING + _CACHE + _READ + _HELD + _STARTED)
    running, waiting, cache = _first(found, _RUNNING), _first(found, _WAITING), _first(found, _CACHE)
    read, held, started = _first(found, _READ), _first(found, _HELD), _first(found, _STARTED)
    if cache_tokens is None:
        cache_tokens = sum(held) if held else _vllm_cache(text)
    if found or busy is not None or cache_tokens is not None:
        # One sample for each engine behind the server: requests add up, caches do not.
        findings.load = EngineLoad(
            int(sum(running)) if running else busy,
            int(sum(waiting)) if waiting else None,
            min(max(max(cache), 0.0), 1.0) if cache else None,
            cache_tokens=cache_tokens,
            started_s=started[0] if started else None,
            read_tokens=sum(read) if read else None,
        )


def _vllm_cache(text: bytes) -> float | None:
    """Tokens that the caches of vLLM's engines hold together; 0.0 where they keep no prompts, None where that is not told."""
    engines = values.labels(text, "vllm:cache_config_info")
    if engines and all(labels.get("enable_prefix_caching") == "False" for labels in engines):
        return 0.0
    tokens = 0.0
    for labels in engines:
        # Where layers differ, blocks times their size is not what the cache holds; newer servers tell that itself.
        told, blocks, size = (labels.get(name, "") for name in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size"))
        if told.isdecimal():
            tokens += float(told)
        elif blocks.isdecimal() and size.isdecimal():
            tokens += float(blocks) * float(size)
    return tokens or None


def _first(found: dict[str, list[float]], names: Iterable[str]) -> list[float]:
    return next((found[name] for name in names if name in found), [])


def _object(answer: FetchResult) -> Any:
    return answer.json() if answer.status == 200 else None
