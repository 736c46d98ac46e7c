"""How to ask a model server whether it works, which version it is and which models it has, without generating a token."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from hx_gateway.core.interfaces import Headers
from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.fleet.endpoint import Endpoint


class Unreachable(Exception):
    """No HTTP answer came; the message says why, without naming an address."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A whole answer to a GET.

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


Fetch = Callable[[Endpoint, str], Awaitable[FetchResult]]
"""GET a path below an endpoint's base, with the endpoint's own header lines and credentials; raises `Unreachable`."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found.

    Args:
        healthy: Whether requests may be sent there.
        error: What is wrong, in plain words and without addresses; empty when healthy.
        version: The server's version, where it tells.
        models: Names it knows its models by; None when it did not tell.
        legacy_embeddings: Whether only Ollama's old embeddings route exists; None when that cannot be known.
    """

    healthy: bool
    error: str = ""
    version: str = ""
    models: tuple[str, ...] | None = None
    legacy_embeddings: bool | None = None
    loaded: frozenset[str] | None = None


Probe = Callable[[Fetch, Endpoint], Awaitable[ProbeResult]]

PROBES = {
    "ollama": "hx_gateway.health.probes:ollama",
    "openai": "hx_gateway.health.probes:openai",
}
"""Built-in probes, by the name of the provider they belong to."""

_EMBED_SINCE = (0, 3, 0)  # /api/embed came with this version of Ollama
_CREDENTIALS = "the server refuses the gateway's credentials; check the endpoint's api_key"


def probe_for(provider: str) -> Probe:
    """The probe for a provider: built in, installed, or else the one that fits any OpenAI server."""
    try:
        probe: Probe = find("probe", provider, PROBES)
    except UnknownPlugin:
        return openai
    return probe


def _names(items: Any, *keys: str) -> tuple[str, ...]:
    """The names in a list of objects, under the first of ``keys`` that holds text."""
    found = []
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            name = next((item[key] for key in keys if isinstance(item.get(key), str)), "")
            if name:
                found.append(name)
    return tuple(found)


def _section(document: Any, key: str) -> Any:
    return document.get(key) if isinstance(document, dict) else None


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
        return ProbeResult(False, _CREDENTIALS)
    if answer.status != 200:
        return ProbeResult(False, f"GET /api/version answered {answer.status}")
    version = _section(answer.json(), "version")
    if not isinstance(version, str):
        return ProbeResult(False, "GET /api/version did not answer like Ollama; check the endpoint's provider")
    tags = await fetch(endpoint, "/api/tags")
    models = _names(_section(tags.json(), "models"), "name", "model") if tags.status == 200 else None
    running = await fetch(endpoint, "/api/ps")
    loaded = frozenset(_names(_section(running.json(), "models"), "name", "model")) if running.status == 200 else None
    return ProbeResult(True, "", version[:64], models, legacy_embeddings(version), loaded)


async def openai(fetch: Fetch, endpoint: Endpoint) -> ProbeResult:
    """Probe a server with OpenAI's routes: its models with the gateway's own key, and its health where that is free to ask.

    ``/health`` is asked only where the answer so far shows that the server is no LiteLLM: there it would run every model.
    """
    answer = await fetch(endpoint, "/v1/models")
    if _credentials_refused(answer):
        return ProbeResult(False, _CREDENTIALS)
    if answer.status == 200:
        listed = _section(answer.json(), "data")
        if not isinstance(listed, list):
            return ProbeResult(False, "GET /v1/models did not answer with a list of models; check the endpoint's address")
        models = _names(listed, "id")
        owners = {item.get("owned_by") for item in listed if isinstance(item, dict)}
        if owners & {"vllm", "llamacpp", "sglang"}:
            return _by_health(await fetch(endpoint, "/health"), models)
        return ProbeResult(True, models=models)
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


def _by_health(answer: FetchResult, models: tuple[str, ...]) -> ProbeResult:
    if answer.status == 503 and b"oading" in answer.body:
        return ProbeResult(False, "the server is loading its model", models=models)
    if answer.status >= 500:
        return ProbeResult(False, f"GET /health answered {answer.status}", models=models)
    return ProbeResult(True, models=models)
