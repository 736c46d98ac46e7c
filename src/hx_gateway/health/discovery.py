"""Which model servers run on this machine, at the ports they usually take, and which models they have."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.health.detect import SERVICE_MARK, ask
from hx_gateway.health.probes import Fetch, FetchResult, Unreachable, probe_for

USUAL_PORTS: Mapping[int, str] = {11434: "ollama", 8000: "vllm", 8080: "llamacpp", 1234: "lmstudio"}
"""Ports and the server that usually listens there; the name becomes the endpoint's."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model server that was found.

    Args:
        name: A name for the endpoint, from the port's usual owner.
        address: Where it listens.
        provider: The dialect it speaks.
        version: Its version, where it tells.
        models: Names it knows its models by.
    """

    name: str
    address: Address
    provider: str
    version: str
    models: tuple[str, ...]


async def discover(fetch: Fetch, own_port: int = 0, *, ports: Mapping[int, str] = USUAL_PORTS, host: str = "127.0.0.1") -> list[Found]:
    """Ask all ports at once; what does not answer, is a gateway itself or offers no model is left out.

    Args:
        fetch: How to ask; its own time limit bounds the whole search.
        own_port: The port this gateway listens on, which is not asked.
        ports: Ports to ask, with a name for what is found there.
        host: Where to ask.
    """
    searches = [_search(fetch, name, Address("http", host, port)) for port, name in ports.items() if port != own_port]
    return [found for found in await asyncio.gather(*searches) if found is not None]


async def _search(fetch: Fetch, name: str, address: Address) -> Found | None:
    endpoint = Endpoint(name, address)
    provider, answer = await ask(fetch, endpoint)
    if provider is None or answer is None or is_gateway(answer):
        return None
    try:
        result = await probe_for(provider)(fetch, endpoint)
    except Unreachable:
        return None
    if not result.healthy or not result.models:
        return None
    return Found(name, address, provider, result.version, result.models)


def is_gateway(answer: FetchResult) -> bool:
    """Whether an answer came from an HX Gateway, this one or another."""
    return SERVICE_MARK in answer.headers
