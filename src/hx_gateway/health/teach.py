"""Carries what probes found out about a server over to its deployments, so that no request has to look it up."""

from __future__ import annotations

from collections.abc import Iterable

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.facts import EndpointFacts, EngineLoad, ModelFacts, PromptCache, same_model

_SHORTEST_LOAD_S = 0.5  # starting the engine's process, for a model of any size
_OFF_ACCELERATOR = 9.0  # a model wholly outside the accelerator's memory is assumed to be this much slower, plus one
_NOTHING = ModelFacts("")


def teach(deployment: Deployment) -> None:
    """Write into a deployment what is known of its model now. What is not known is left as it was, or as configured."""
    endpoint, options = deployment.endpoint, deployment.options
    facts = endpoint.facts
    about = facts.of(deployment.upstream_model) or _NOTHING
    held = facts.in_memory(deployment.upstream_model)
    if about is not _NOTHING:
        _recognise(deployment, about)
        deployment.unable = about.unable
        if facts.engine == "ollama":
            if about.able:
                options.extra["capabilities"] = sorted(about.able)
            else:
                options.extra.pop("capabilities", None)
    deployment.size = (held.size if held is not None else 0.0) or about.size or deployment.size
    deployment.loaded_context = held.context_length if held is not None else 0
    deployment.context_length = _context(deployment, about)
    if about.size:
        _expect_load(deployment, about.size)
    if held is not None:
        _expect_speed(deployment, held.spilled)


def _recognise(deployment: Deployment, about: ModelFacts) -> None:
    """Forget what was seen of another model that had the name before."""
    if not (about.digest or about.parameters or about.size or about.embedding_length):
        return  # a server that tells nothing: what all such have in common tells no model from another
    identity = about.digest or f"{about.parameters:.0f}/{about.size:.0f}/{about.embedding_length}"
    if deployment.identity and deployment.identity != identity:
        deployment.dimensions = 0
    deployment.identity = identity


def _context(deployment: Deployment, about: ModelFacts) -> int:
    """Most tokens of prompt and answer together; 0 for unknown."""
    if deployment.endpoint.facts.engine == "ollama":
        told = about.defaults.get("num_ctx", "")
        pinned = deployment.options.num_ctx or deployment.loaded_context or (int(told) if told.isdecimal() else 0)
        # Ollama loads no model with more context than it was trained for.
        return min(pinned, about.trained_context) if pinned and about.trained_context else pinned or about.trained_context
    return about.context_length or about.trained_context or deployment.options.num_ctx or 0


def _expect_load(deployment: Deployment, size: float) -> None:
    prior_s = max(size / deployment.endpoint.disk_rate, _SHORTEST_LOAD_S)
    if deployment.pace.load_s == deployment.load_prior_s:  # nothing was seen yet
        deployment.pace.load_s = prior_s
        deployment.load_prior_s = prior_s


def _expect_speed(deployment: Deployment, spilled: float) -> None:
    """Correct the speeds for the share of the model outside the accelerator; answers correct them further."""
    before, pace = deployment.spilled, deployment.pace
    deployment.spilled = spilled
    if before == spilled or (before < 0.0 and pace.seen):
        return  # what was learned was learned at this share
    faster = (1.0 + _OFF_ACCELERATOR * max(before, 0.0)) / (1.0 + _OFF_ACCELERATOR * spilled)
    pace.prefill_rate *= faster
    pace.decode_rate *= faster


def teach_residency(endpoint: Endpoint, deployments: Iterable[Deployment], now_s: float) -> None:
    """Tell an endpoint's residency which models are in memory, by the names its deployments use for them, and see to its cache.

    Args:
        endpoint: The server.
        deployments: All that it serves.
        now_s: Monotonic time.
    """
    facts = endpoint.facts
    _look_after_cache(facts)
    if facts.loaded is None:
        endpoint.residency.managed = False  # it does not tell: its models are taken to be always there
        return
    names = {deployment.upstream_model for deployment in deployments}
    sizes: dict[str, float] = {}
    for name, held in facts.memory.items():
        same = [known for known in names if same_model(known, name)] or [name]
        sizes[same[0]] = held.size
        sizes.update((known, 0.0) for known in same[1:])  # two names of one model take its memory once
    endpoint.residency.told(sizes, now_s)


def _look_after_cache(facts: EndpointFacts) -> None:
    """Write down how much the server's cache of prompts holds, and whether it began anew.

    It did if its version or start changed, or its count of tokens fell back; after it was out of reach, unless its
    start or count shows that it is the same process still.
    """
    load = facts.load or EngineLoad()
    version, started_s, read = before = facts.process
    facts.process = now = (facts.version or version, load.started_s or started_s, read if load.read_tokens is None else load.read_tokens)
    told_start = bool(load.started_s and started_s)
    changed = before != ("", 0.0, 0.0) and (version not in ("", now[0]) or (told_start and now[1] != started_s) or now[2] < read)
    same = told_start or bool(read and load.read_tokens)
    tokens = facts.cache.tokens if load.cache_tokens is None else load.cache_tokens
    cache = PromptCache(facts.cache.life + (changed or (facts.away and not same)), tokens)
    facts.away = False
    if cache != facts.cache:
        facts.cache = cache
