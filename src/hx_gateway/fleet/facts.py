"""What is known of a model server and its models without asking clients: plain facts, as probes found them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CAPABILITIES = ("completion", "embedding", "vision", "tools", "thinking", "insert")
"""What a model can be known to do, or not to do, in Ollama's words."""

CANNOT = {
    "completion": "write text",
    "vision": "take images",
    "tools": "take tools",
    "insert": "fill in what comes before a suffix",
    "thinking": "think",
}
"""What it means to a request when a model lacks one; embedding is left out, since models that write text often embed all the same."""

_LATEST = ":latest"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server told about one of its models; empty, 0 or None where it did not.

    Args:
        name: The name the server uses.
        digest: Digest of the model's content, in lower-case hex without ``sha256:``.
        size: Bytes of the model's file.
        family: Architecture, e.g. ``llama``.
        quantization: E.g. ``Q4_K_M``.
        parameters: Number of weights.
        context_length: Most tokens of context a request gets there.
        trained_context: Tokens of context the model was trained for.
        embedding_length: Width of the model; the length of its embeddings, unless it projects them.
        able: What it can do, of `CAPABILITIES`.
        unable: What it is known not to do.
        defaults: Parameters its file sets (``num_ctx``, ``temperature`` …), as text.
        studied: Whether everything that the server can tell of it has been asked for.
    """

    name: str
    digest: str = ""
    size: float = 0.0
    family: str = ""
    quantization: str = ""
    parameters: float = 0.0
    context_length: int = 0
    trained_context: int = 0
    embedding_length: int = 0
    able: frozenset[str] = frozenset()
    unable: frozenset[str] = frozenset()
    defaults: Mapping[str, str] = field(default_factory=dict)
    studied: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in a server's memory.

    Args:
        name: The name the server uses.
        size: Bytes it takes in all.
        vram: Bytes of them on the accelerator.
        context_length: Tokens of context it was loaded with; 0 where the server does not tell.
        expires_s: Unix time at which it goes unless used; 0.0 where the server does not tell.
    """

    name: str
    size: float = 0.0
    vram: float = 0.0
    context_length: int = 0
    expires_s: float = 0.0

    @property
    def spilled(self) -> float:
        """Share of it that is not on the accelerator, from 0 to 1."""
        if self.size <= 0.0:
            return 0.0
        return min(max(1.0 - self.vram / self.size, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says it is busy with; None where it does not tell.

    Args:
        running: Requests it works on.
        waiting: Requests in its own queue.
        cache_used: Share of its KV cache in use, from 0 to 1.
        cache_tokens: Tokens that its cache of prompts holds; 0.0 when it keeps none.
        started_s: Unix time at which its process began.
        read_tokens: Tokens of prompts that it has read since then.
    """

    running: int | None = None
    waiting: int | None = None
    cache_used: float | None = None
    cache_tokens: float | None = None
    started_s: float | None = None
    read_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What is known of the cache in which a server keeps prompts it has read; replaced whole when something changes.

    Args:
        life: Counts the times it was lost, because the server was started anew.
        tokens: Tokens it holds; 0.0 when there is none, None where the server does not tell.
    """

    life: int = 0
    tokens: float | None = None


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model to Ollama, where ``:latest`` is implied."""
    return one == other or one.removesuffix(_LATEST) == other.removesuffix(_LATEST)


def either_name(names: Iterable[str]) -> frozenset[str]:
    """The names, each with and without Ollama's implied ``:latest``, so that a plain look-up finds either."""
    names = tuple(names)
    return frozenset(names) | {name.removesuffix(_LATEST) for name in names}


@dataclass(slots=True)
class EndpointFacts:
    """What probes learned about a server; filled by health/, read by providers, routing and reports.

    Args:
        version: The server's version.
        engine: What it is, where it can be told: ``ollama``, ``llamacpp``, ``vllm``, ``sglang``; else empty.
        legacy_embeddings: True: only Ollama's old /api/embeddings with ``prompt``.
        models: Names it offers.
        loaded: Models in memory, where the server tells, with and without ``:latest``; None where it does not.
        about: What is known of each model, by the server's name for it.
        memory: Each model in memory, where the server tells.
        slots: Requests it says it works on at the same time; 0 where it does not.
        load: What it says it is busy with.
        sleeping: Whether it has put its model out of memory until the next request.
        healthy: By the last probe; None before the first.
        checked_s: Monotonic time of the last probe; 0.0 before the first.
        error: What is wrong, in plain words.
        cache: Its cache of prompts.
        away: Whether it was out of reach since its cache was last looked after.
        process: Version, start and count of tokens read by which its process was last known; empty, 0.0 and 0.0 for unknown.
    """

    version: str = ""
    engine: str = ""
    legacy_embeddings: bool | None = None
    models: tuple[str, ...] = ()
    loaded: frozenset[str] | None = None
    about: Mapping[str, ModelFacts] = field(default_factory=dict)
    memory: Mapping[str, LoadedModel] = field(default_factory=dict)
    slots: int = 0
    load: EngineLoad | None = None
    sleeping: bool = False
    healthy: bool | None = None
    checked_s: float = 0.0
    error: str = ""
    cache: PromptCache = PromptCache()
    away: bool = False
    process: tuple[str, float, float] = ("", 0.0, 0.0)

    def of(self, model: str) -> ModelFacts | None:
        """What is known of a model, under any of the names the server answers to."""
        found = self.about.get(model)
        if found is None and self.about:
            found = next((facts for name, facts in self.about.items() if same_model(name, model)), None)
            if found is None and self.engine == "llamacpp" and len(self.about) == 1:
                found = next(iter(self.about.values()))  # it answers with its one model, whatever it is asked for
        return found

    def in_memory(self, model: str) -> LoadedModel | None:
        """A model in the server's memory; None when it is not there, or the server does not tell."""
        found = self.memory.get(model)
        if found is None and self.memory:
            found = next((held for name, held in self.memory.items() if same_model(name, model)), None)
        return found
