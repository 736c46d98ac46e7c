"""A gateway that listens inside a program of one's own, beside whatever else runs there."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path

import httpx
import pytest

from hx_gateway import FlatConfig, LoadBalancer, Service
from hx_gateway.core.context import Exchange
from hx_gateway.core.interfaces import unheard
from hx_gateway.core.plugins import UnknownPlugin
from hx_gateway.testing.backend import Backend

SAY = {"model": "tiny", "messages": [{"role": "user", "content": "Say: HX-OK"}]}


def settings(backend: Backend, state: Path, port: int = 0) -> FlatConfig:
    return FlatConfig(
        port=port,
        health_check_interval=0.2,
        models={"tiny": {"endpoint": backend.url, "upstream_model": "tiny:1b", "provider": "openai"}},
        storage={"state_directory": str(state)},
        keys={"master_key": "a-key-of-this-test-alone"},
    )


async def test_a_service_answers_and_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    before = gc.get_threshold(), gc.get_freeze_count(), signal.getsignal(signal.SIGTERM)
    async with Backend() as backend, httpx.AsyncClient(headers={"authorization": "Bearer a-key-of-this-test-alone"}) as client:
        async with Service(settings(backend, tmp_path)) as service:
            answer = await client.post(f"{service.url}/v1/chat/completions", json=SAY)
            assert answer.json()["choices"][0]["message"]["content"] == "HX-OK"
            assert service.get_available_models() == ["tiny"] and service.get_health_status()["status"] == "healthy"
            assert (await client.get(f"{service.url}/health")).json()["models"] == ["tiny"]
            url = service.url
            with pytest.raises(OSError, match="cannot be listened on"):
                await Service(settings(backend, tmp_path / "other", int(url.rpartition(":")[2]))).start()
            with pytest.raises(RuntimeError, match="started already"):
                await service.start()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/health")
        await service.stop()
    assert (gc.get_threshold(), gc.get_freeze_count(), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(RuntimeError, match="not started"):
        _ = Service(settings(backend, tmp_path)).url


async def test_a_load_balancer_follows_its_fleet(tmp_path: Path) -> None:
    async with Backend() as backend, LoadBalancer(settings(backend, tmp_path)) as balancer:
        assert balancer.get_available_models() == ["tiny"]
        backend.fault = "refuse"
        async with asyncio.timeout(30):
            while balancer.get_available_models():
                await asyncio.sleep(0.05)
        assert balancer.get_health_status()["status"] == "unhealthy"


async def test_who_observes_hears_of_every_end_and_the_last_counts_are_true(tmp_path: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[int] = []

        attempted = unheard

        def finished(self, exchange: Exchange) -> None:
            self.heard.append(exchange.status)

    listener = Listener()
    async with Backend() as backend, httpx.AsyncClient(headers={"authorization": "Bearer a-key-of-this-test-alone"}) as client:
        async with Service(settings(backend, tmp_path)) as service:
            service.gateway.observe(listener)
            for _ in range(2):
                assert (await client.post(f"{service.url}/v1/chat/completions", json=SAY)).status_code == 200
                service.gateway.reload(settings(backend, tmp_path).config)
            assert (await client.post(f"{service.url}/v1/chat/completions", json=SAY | {"model": "none"})).status_code == 404
        book = service.gateway.telemetry.book
    assert listener.heard == [200, 200, 404]
    assert book.cells("hx_gateway_journal_records", (), 1)[0] == 3, "the journal was closed before its count was told"


EARS = """
class Ear:
    made = []

    def __init__(self, gateway):
        self.heard = []
        self.made.append(self)

    def attempted(self, exchange, failure):
        raise RuntimeError("told at an attempt")

    def finished(self, exchange):
        self.heard.append(exchange.status)
        raise RuntimeError("told at the end")
"""


async def test_observers_that_the_configuration_names_are_made_at_start_and_reload_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_ears.py").write_text(EARS)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with Backend() as backend, httpx.AsyncClient(headers={"authorization": "Bearer a-key-of-this-test-alone"}) as client:
        given = settings(backend, tmp_path)
        heard = given.config.monitoring.model_copy(update={"observers": ("acme_ears:Ear",)})
        async with Service(given.config.model_copy(update={"monitoring": heard})) as service:
            for _ in range(2):
                assert (await client.post(f"{service.url}/v1/chat/completions", json=SAY)).status_code == 200
                service.gateway.reload(service.gateway.config)
            assert (await client.post(f"{service.url}/v1/chat/completions", json=SAY | {"model": "none"})).status_code == 404
            made = sys.modules["acme_ears"].Ear.made
            assert [one.heard for one in made] == [[200], [200], [404]]
            wrong = heard.model_copy(update={"observers": ("acme_ears:Nose",)})
            with pytest.raises(UnknownPlugin, match="cannot load 'acme_ears:Nose'"):
                service.gateway.reload(given.config.model_copy(update={"monitoring": wrong}))
            assert (await client.post(f"{service.url}/v1/chat/completions", json=SAY)).status_code == 200
            assert made[-1].heard == [404, 200], "the old ones stay"
