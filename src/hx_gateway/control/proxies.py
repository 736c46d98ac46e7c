"""Who really asks, where a reverse proxy stands in front: what it says in ``X-Forwarded-For`` and ``X-Forwarded-Proto``, if it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Network = IPv4Network | IPv6Network


class Proxies:
    """Wraps an app: of what a trusted proxy passes on, ``client`` and ``scheme`` of the scope are those of the browser.

    Everything that asks for an address or for https reads these two, so that one rule holds for all of it; nothing else reads the headers.

    Args:
        app: What is wrapped.
        trusted: The setting ``http.trusted_proxies`` as it is now.
    """

    def __init__(self, app: ASGIApp, *, trusted: Callable[[], tuple[str, ...]]) -> None:
        self._app = app
        self._trusted = trusted
        self._seen: tuple[str, ...] = ()
        self._networks: list[Network] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trusted = self._trusted()
        if trusted != self._seen:
            self._seen, self._networks = trusted, [ip_network(text, strict=False) for text in trusted]
        if trusted and scope["type"] == "http" and scope.get("client"):
            scope = {**scope, **_told(scope, self._networks)}
        await self._app(scope, receive, send)


def _told(scope: Scope, networks: Sequence[Network]) -> dict[str, object]:
    """What is different from the connection's own; nothing where its other end is no trusted proxy."""
    here = address_in(scope["client"][0])
    if here is None or not _within(here, networks):
        return {}
    found: dict[str, object] = {}
    hops = [address_in(text) for text in _values(scope, b"x-forwarded-for")]
    while hops and _within(here, networks) and (hop := hops.pop()) is not None:
        here = hop  # the nearest that no trusted proxy stands for: what is further left anybody may have written
        found["client"] = (str(here), 0)
    scheme = next(iter(_values(scope, b"x-forwarded-proto")), "").lower()  # the first proxy's, which the browser spoke to
    if scheme in ("http", "https"):
        found["scheme"] = scheme
    return found


def _values(scope: Scope, name: bytes) -> list[str]:
    lines: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [part.strip() for key, value in lines if key == name for part in value.decode("latin-1").split(",")]


def _within(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def address_in(text: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a text is, with or without brackets and port; IPv4 inside IPv6 is IPv4. None for anything else."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
