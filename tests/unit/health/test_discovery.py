"""Discovery on this machine: what counts as found, and what never does."""

from __future__ import annotations

from tests.unit.health.canned import OLLAMA, Canned, models
from tests.unit.health.test_fetch import free_port

from hx_gateway.health.detect import SERVICE_MARK
from hx_gateway.health.discovery import USUAL_PORTS, discover
from hx_gateway.upstream.fetch import fetch


async def test_finds_servers_with_their_models() -> None:
    async with Canned(OLLAMA) as first, Canned({"/v1/models": (200, models("m1", owner="llamacpp")), "/health": (200, {})}) as second:
        found = await discover(fetch, ports={first.port: "ollama", second.port: "llamacpp", free_port(): "vllm"})
    assert [(one.name, one.provider, one.models, one.version) for one in found] == [
        ("ollama", "ollama", ("llama3.2:3b", "phi3:latest"), "0.13.5"),
        ("llamacpp", "openai", ("m1",), ""),
    ]
    assert found[0].address.port == first.port


async def test_leaves_out_what_has_no_models_or_wants_credentials() -> None:
    refusing = {"/v1/models": (401, {})}
    async with Canned({"/v1/models": (200, models())}) as empty, Canned(refusing) as closed, Canned(raw=b"220 mail\r\n") as mail:
        assert await discover(fetch, ports={empty.port: "a", closed.port: "b", mail.port: "c"}) == []


async def test_never_finds_a_gateway() -> None:
    mark = b"%b: %b\r\n" % SERVICE_MARK
    async with Canned({"/v1/models": (200, models("hx-chat"))}, headers=mark) as other:
        assert await discover(fetch, ports={other.port: "vllm"}) == []
    async with Canned({"/v1/models": (200, models("hx-chat"))}) as itself:
        assert await discover(fetch, itself.port, ports={itself.port: "vllm"}) == []
        assert itself.asked == []


def test_usual_ports() -> None:
    assert USUAL_PORTS == {11434: "ollama", 8000: "vllm", 8080: "llamacpp", 1234: "lmstudio"}
