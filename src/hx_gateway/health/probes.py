"""How to ask a model server whether it works, which version it is and which models it has, without generating a token."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hx_gateway.core.interfaces import Headers
from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.facts import LoadedModel, ModelFacts, either_name
from hx_gateway.health import values


class Unreachable(Exception):
    """No HTTP answer came; the message says why, without naming an address."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A whole answer.

    Args:
        status: HTTP status.
        headers: Names in lower case, with their values.
        body: The body bytes.
    """

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        """The body as JSON, or None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def header(self, name: bytes) -> bytes:
        """The first value of a header (lower-case name); empty when absent."""
        return next((value for key, value in self.headers if key == name), b"")


class Fetch(Protocol):
    """GET a path below an endpoint's base, or POST a JSON body there, with the endpoint's own header lines and credentials.

    Raises `Unreachable` when no whole answer came. ``timeout_s`` is for all of it.
    """

    def __call__(
        self, endpoint: Endpoint, path: str, body: bytes | None = None, /, *, timeout_s: float = ...
    ) -> Awaitable[FetchResult]: ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found.

    Args:
        healthy: Whether requests may be sent there.
        error: What is wrong, in plain words and without addresses; empty when healthy.
        version: The server's version, where it tells.
        models: Names it knows its models by; None when it did not tell.
        legacy_embeddings: Whether only Ollama's old embeddings route exists; None when that cannot be known.
        loaded: Models in memory, with and without ``:latest``; None where the server does not tell.
        engine: What the server is, where it can be told.
        about: What it told of its models on the way; None when it did not.
        memory: Each model in memory.
    """

    healthy: bool
    error: str = ""
    version: str = ""
    models: tuple[str, ...] | None = None
    legacy_embeddings: bool | None = None
    loaded: frozenset[str] | None = None
    engine: str = ""
    about: Mapping[str, ModelFacts] | None = None
    memory: Mapping[str, LoadedModel] | None = None


Probe = Callable[[Fetch, Endpoint], Awaitable[ProbeResult]]

PROBES = {
    "ollama": "hx_gateway.health.probes:ollama",
    "openai": "hx_gateway.health.probes:openai",
}
"""Built-in probes, by the name of the provider they belong to."""

_ENGINES = ("vllm", "llamacpp", "sglang")
_EMBED_SINCE = (0, 3, 0)  # /api/embed came with this version of Ollama
CREDENTIALS = "the server refuses the gateway's credentials; check the endpoint's api_key"


def probe_for(provider: str) -> Probe:
    """The probe for a provider: built in, installed, or else the one that fits any OpenAI server."""
    try:
        probe: Probe = find("probe", provider, PROBES)
    except UnknownPlugin:
        return openai
    return probe


def _credentials_refused(result: FetchResult) -> bool:
    # LiteLLM without its database answers any key it does not know with this 400.
    return result.status in (401, 403) or (result.status == 400 and b"No connected db." in result.body)


def legacy_embeddings(version: str) -> bool | None:
    """Whether an Ollama of this version has only the old embeddings route; None when the text is no version."""
    numbers = []
    for part in version.split("-")[0].split("+")[0].split(".")[:3]:
        if not part.isdecimal():
            return None
        numbers.append(int(part))
    if len(numbers) < 2:
        return None
    if not any(numbers):
        return False  # 0.0.0 is a build from source, and those are recent
    return tuple(numbers) < _EMBED_SINCE


async def ollama(fetch: Fetch, endpoint: Endpoint) -> ProbeResult:
    """Probe an Ollama server: its version, the models it has pulled, and those it has in memory."""
    answer = await fetch(endpoint, "/api/version")
    if _credentials_refused(answer):
        return ProbeResult(False, CREDENTIALS)
    if answer.status != 200:
        return ProbeResult(False, f"GET /api/version answered {answer.status}")
    version = values.section(answer.json(), "version")
    if not isinstance(version, str):
        return ProbeResult(False, "GET /api/version did not answer like Ollama; check the endpoint's provider")
    tags = await fetch(endpoint, "/api/tags")
    running = await fetch(endpoint, "/api/ps")
    about = _tagged(tags.json(), endpoint.facts.about) if tags.status == 200 else None
    memory = _held(running.json()) if running.status == 200 else None
    return ProbeResult(
        True,
        "",
        version[:64],
        None if about is None else tuple(about),
        legacy_embeddings(version),
        None if memory is None else either_name(memory),
        "ollama",
        about,
        memory,
    )


def _tagged(document: Any, known: Mapping[str, ModelFacts]) -> dict[str, ModelFacts]:
    """The models of ``/api/tags``; what was found out of one earlier is kept while its digest is the same."""
    found: dict[str, ModelFacts] = {}
    for item in values.items(document, "models"):
        name = values.text(item, "name") or values.text(item, "model")
        if not name:
            continue
        digest = values.text(item, "digest").removeprefix("sha256:").lower()
        size = values.number(item, "size")
        before = known.get(name)
        if before is not None and (before.digest, before.size) == (digest, size):
            found[name] = before
            continue
        details = values.section(item, "details")
        family, quantization = values.text(details, "family"), values.text(details, "quantization_level")
        found[name] = ModelFacts(name, digest, size, family, quantization, values.parameter_count(values.text(details, "parameter_size")))
    return found


def _held(document: Any) -> dict[str, LoadedModel]:
    """The models of ``/api/ps``."""
    found: dict[str, LoadedModel] = {}
    for item in values.items(document, "models"):
        name = values.text(item, "name") or values.text(item, "model")
        if name:
            size = values.number(item, "size")
            vram = values.number(item, "size_vram") if "size_vram" in item else size
            context = int(values.number(item, "context_length"))
            found[name] = LoadedModel(name, size, vram, context, values.moment(values.text(item, "expires_at")))
    return found


async def openai(fetch: Fetch, endpoint: Endpoint) -> ProbeResult:
    """Probe a server with OpenAI's routes: its models with the gateway's own key, and its health where that is free to ask.

    ``/health`` is asked only where the answer so far shows that the server is no LiteLLM: there it would run every model.
    """
    answer = await fetch(endpoint, "/v1/models")
    if _credentials_refused(answer):
        return ProbeResult(False, CREDENTIALS)
    if answer.status == 200:
        document = answer.json()
        if not isinstance(values.section(document, "data"), list):
            return ProbeResult(False, "GET /v1/models did not answer with a list of models; check the endpoint's address")
        listed = values.items(document, "data")
        about = _listed(listed, endpoint.facts.about)
        owners = {values.text(item, "owned_by") for item in listed}
        engine = next((name for name in _ENGINES if name in owners), "")
        found = ProbeResult(True, models=tuple(about), engine=engine, about=about)
        return _by_health(await fetch(endpoint, "/health"), found) if engine else found
    if answer.status == 503 and b"oading" in answer.body:
        return ProbeResult(False, "the server is loading its model")
    if answer.status in (404, 405, 500, 501):
        # Some servers cannot list their models, and work. But first make sure that asking for health costs nothing.
        alive = await fetch(endpoint, "/health/liveliness")
        if alive.status != 200:
            health = await fetch(endpoint, "/health")
            if health.status == 200:
                return ProbeResult(True)
    return ProbeResult(False, f"GET /v1/models answered {answer.status}")


def _by_health(answer: FetchResult, found: ProbeResult) -> ProbeResult:
    if answer.status == 503 and b"oading" in answer.body:
        return replace(found, healthy=False, error="the server is loading its model")
    if answer.status >= 500:
        return replace(found, healthy=False, error=f"GET /health answered {answer.status}")
    return found


def _listed(listed: list[dict[str, Any]], known: Mapping[str, ModelFacts]) -> dict[str, ModelFacts]:
    """The models of ``/v1/models``: vLLM and SGLang say how long a request may be, llama.cpp describes the model itself."""
    found: dict[str, ModelFacts] = {}
    for item in listed:
        name = values.text(item, "id")
        if not name:
            continue
        meta = values.section(item, "meta")
        model = ModelFacts(
            name,
            size=values.number(meta, "size"),
            quantization=values.text(meta, "ftype"),
            parameters=values.number(meta, "n_params"),
            context_length=int(values.number(item, "max_model_len") or values.number(meta, "n_ctx")),
            trained_context=int(values.number(meta, "n_ctx_train")),
            embedding_length=int(values.number(meta, "n_embd")),
        )
        before = known.get(name)
        if before is not None and before.studied:  # what only a further question tells stays until that is asked again
            context = model.context_length or before.context_length
            model = replace(model, context_length=context, able=before.able, unable=before.unable, studied=True)
        found[name] = model
    return found
