"""Whose word on addresses and https is taken: that of trusted proxies, up to the first hop that is none of them."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.control.proxies import Proxies

TRUSTED = ("203.0.113.0/24", "2001:db8::1")


async def seen(client: str, trusted: tuple[str, ...] = TRUSTED, **headers: str) -> tuple[str, str]:
    """The client's address and the scheme that an app behind sees."""
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope)

    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "client": (client, 40000), "scheme": "http", "headers": lines}
    await Proxies(app, trusted=lambda: trusted)(scope, None, None)  # type: ignore[arg-type]
    return found[0]["client"][0], found[0]["scheme"]


@pytest.mark.parametrize(
    ("client", "forwarded", "address"),
    [
        ("203.0.113.1", "192.0.2.1", "192.0.2.1"),
        ("203.0.113.1", "192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "[2001:db8:1::7]:80", "2001:db8:1::7"),
        ("::ffff:203.0.113.1", "2001:db8:1::7", "2001:db8:1::7"),
        ("203.0.113.1", "198.51.100.9, 192.0.2.1, 203.0.113.2", "192.0.2.1"),
        ("203.0.113.1", "198.51.100.9, nonsense", "203.0.113.1"),
        ("203.0.113.1", "203.0.113.3, 203.0.113.2", "203.0.113.3"),
        ("203.0.113.1", "", "203.0.113.1"),
        ("192.0.2.9", "198.51.100.9", "192.0.2.9"),
    ],
)
async def test_the_address_is_the_nearest_that_no_trusted_proxy_stands_for(client: str, forwarded: str, address: str) -> None:
    assert (await seen(client, x_forwarded_for=forwarded))[0] == address


@pytest.mark.parametrize(
    ("client", "proto", "scheme"),
    [
        ("203.0.113.1", "https", "https"),
        ("203.0.113.1", "HTTPS, http", "https"),
        ("203.0.113.1", "gopher", "http"),
        ("192.0.2.9", "https", "http"),
    ],
)
async def test_the_scheme_is_the_browsers(client: str, proto: str, scheme: str) -> None:
    assert (await seen(client, x_forwarded_proto=proto))[1] == scheme


async def test_nobody_is_trusted_unless_named() -> None:
    assert await seen("127.0.0.1", (), x_forwarded_for="192.0.2.1", x_forwarded_proto="https") == ("127.0.0.1", "http")


def test_what_is_no_network_is_no_setting() -> None:
    with pytest.raises(ValueError, match=r"an IP address or a network such as 192\.0\.2\.0/24"):
        GatewayConfig.model_validate({"http": {"trusted_proxies": ["proxy.example"]}})
