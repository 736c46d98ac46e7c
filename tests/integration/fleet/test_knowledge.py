"""A running gateway and what it knows of its machines: scripted Ollama and vLLM servers, real llama.cpp, real requests."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from tests.support.background import Scripted, llamacpp
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.script import Model

CHAT_ONLY = ("completion",)
EMBED_ONLY = ("embedding",)
GENERATING = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/embeddings")


@dataclass(frozen=True, slots=True)
class Repulled(Model):
    """A model whose content is not what its name says elsewhere."""

    version: str = "2"

    @property
    def digest(self) -> str:
        return (self.version * 64)[:64]


def strike(server: Scripted, fault: str | None) -> None:
    """Set how a server misbehaves, on its own loop."""

    async def work() -> None:
        assert server.backend is not None
        server.backend.fault = fault  # type: ignore[assignment]

    server.run(work)


def status(gateway: GatewayProcess) -> dict[str, Any]:
    request = urllib.request.Request(f"{gateway.url}/models/status", headers={"authorization": f"Bearer {gateway.key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def deployments(gateway: GatewayProcess, name: str) -> dict[str, dict[str, Any]]:
    (entry,) = [entry for entry in status(gateway)["models"] if entry["name"] == name]
    return {one["endpoint"]: one for one in entry["deployments"]}


def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to that"
        time.sleep(0.05)


@contextlib.contextmanager
def sdk(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
        yield client


def asked(backend: Backend, *paths: str) -> list[dict[str, Any]]:
    return [received.json() for received in backend.requests if received.path in (paths or GENERATING)]


def test_probes_learn_everything_and_cost_no_token() -> None:
    model = Model("chat:8b", CHAT_ONLY, context_length=32768, size=5_000_000_000)
    with (
        Scripted("ollama", models=[model, Model("emb:latest", EMBED_ONLY)]) as ollama,
        Scripted("openai", models=[Model("big", context_length=16384)]) as vllm,
        llamacpp(tiny.path(), "--slots", "3", "--alias", "tiny") as llama,
    ):
        config = f"""
load_balancer: {{health_check_interval: 0.2}}
endpoints:
  ollama: {{url: "{ollama.url}", disk_gb_per_second: 2}}
  vllm: {{url: "{vllm.url}"}}
  llama: {{url: "{llama}"}}
"""
        with GatewayProcess(config) as gateway:
            until(lambda: "emb:latest" in {entry["name"] for entry in status(gateway)["models"]})
            until(lambda: deployments(gateway, "tiny")["llama"]["engine"]["running"] is not None)
            chat = deployments(gateway, "chat:8b")["ollama"]
            assert chat["facts"]["digest"] == model.digest and chat["facts"]["capabilities"] == ["completion"]
            assert (chat["facts"]["loaded"], chat["facts"]["loaded_context"], chat["facts"]["context_length"]) == (True, 4096, 4096)
            assert chat["facts"]["accelerator_share"] == 1.0 and chat["facts"]["expires"].startswith("2318-01-01")
            assert chat["facts"]["size_bytes"] == model.size and chat["engine"]["name"] == "ollama" and chat["version"] == "0.13.5"
            assert deployments(gateway, "big")["vllm"]["facts"]["context_length"] == 16384
            mine = deployments(gateway, "tiny")["llama"]
            assert (mine["engine"]["name"], mine["engine"]["slots"], mine["engine"]["waiting"]) == ("llamacpp", 3, 0)
            assert mine["facts"]["context_length"] == 1024 and mine["facts"]["size_bytes"] == 1_054_208
            with sdk(gateway) as client:
                listed = {entry.id: entry.model_extra["hx"] for entry in client.models.list()}  # type: ignore[index]
            assert listed["emb:latest"]["capabilities"]["embeddings"] is True and listed["emb:latest"]["capabilities"]["chat"] is False
            assert listed["chat:8b"]["digest"] == model.digest[:12] and listed["tiny"]["capabilities"]["vision"] is False
        assert asked(ollama) == asked(vllm) == []
        shows = asked(ollama, "/api/show")
        assert [one["model"] for one in shows] == ["chat:8b", "emb:latest"]  # once each, however many probes there were


def test_embeddings_of_another_model_are_never_served_and_that_is_said() -> None:
    good, other = Model("emb", EMBED_ONLY, dimensions=24), Repulled("emb", EMBED_ONLY, dimensions=24)
    servers = [Scripted("ollama", models=[model]) for model in (other, good, good)]
    with servers[0] as first, servers[1] as second, servers[2] as third:
        config = f"""
load_balancer: {{algorithm: round_robin, health_check_interval: 0.2}}
endpoints:
  first: {{url: "{first.url}", provider: ollama, discover: false}}
  second: {{url: "{second.url}", provider: ollama, discover: false}}
  third: {{url: "{third.url}", provider: ollama, discover: false}}
models:
  emb: {{endpoints: [first, second, third]}}
groups:
  hx-embed: {{models: [emb]}}
"""
        with GatewayProcess(config) as gateway, sdk(gateway) as client:
            until(lambda: deployments(gateway, "emb")["first"]["excluded"] is not None)
            for name in ("emb", "hx-embed"):
                for _ in range(6):
                    assert len(client.embeddings.create(model=name, input="a").data[0].embedding) == 24
            assert asked(first) == [] and len(asked(second)) == len(asked(third)) == 6
            (warning,) = status(gateway)["warnings"]
            assert "at second, third; digest 222222222222 at first" in warning
            assert gateway.log.count("is not the same model everywhere") == 1
            for server in servers[1:]:
                strike(server, "refuse")
            with pytest.raises(openai.APIStatusError):
                client.embeddings.create(model="emb", input="a")
            assert asked(first) == []  # another model's vectors are no substitute


def test_embeddings_of_another_length_never_reach_a_client_once_one_is_known() -> None:
    with (
        Scripted("openai", models=[Model("emb", dimensions=24)]) as first,
        Scripted("openai", models=[Model("emb", dimensions=16)]) as second,
    ):
        config = f"""
load_balancer: {{algorithm: weighted}}
models:
  emb: {{endpoints: ["{first.url}", "{second.url}"], mode: embedding, dimensions: 24}}
"""
        with GatewayProcess(config) as gateway, sdk(gateway) as client:
            lengths = {len(client.embeddings.create(model="emb", input="a").data[0].embedding) for _ in range(20)}
            assert lengths == {24}


def test_a_chat_model_pulled_at_another_time_is_a_warning() -> None:
    with Scripted("ollama", models=[Model("chat:8b")]) as first, Scripted("ollama", models=[Repulled("chat:8b")]) as second:
        config = f"""
load_balancer: {{algorithm: round_robin}}
endpoints: {{first: {{url: "{first.url}"}}, second: {{url: "{second.url}"}}}}
"""
        with GatewayProcess(config) as gateway, sdk(gateway) as client:
            until(lambda: len(status(gateway)["warnings"]) == 1)
            for _ in range(4):
                client.chat.completions.create(model="chat:8b", messages=[{"role": "user", "content": "ping"}])
            assert len(asked(first)) == len(asked(second)) == 2
        with GatewayProcess(config.replace("round_robin", "round_robin, digest_policy: exclude")) as gateway, sdk(gateway) as client:
            until(lambda: len(status(gateway)["warnings"]) == 1)
            for _ in range(4):
                client.chat.completions.create(model="chat:8b", messages=[{"role": "user", "content": "ping"}])
            assert len(asked(first)) == 6 and len(asked(second)) == 2


def test_what_a_model_cannot_do_is_refused_at_once_and_no_client_makes_it_load_again() -> None:
    with Scripted("ollama", models=[Model("chat", CHAT_ONLY)]) as ollama:
        config = f'models: {{chat: {{endpoint: "{ollama.url}", provider: ollama}}}}'
        with GatewayProcess(config) as gateway, sdk(gateway) as client:
            until(lambda: deployments(gateway, "chat")[ollama.url.removeprefix("http://")]["facts"]["capabilities"] is not None)
            hello: list[Any] = [{"role": "user", "content": "ping"}]
            tool: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
            with pytest.raises(openai.BadRequestError, match="does not take tools"):
                client.chat.completions.create(model="chat", messages=hello, tools=[tool])
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
            with pytest.raises(openai.BadRequestError, match="does not take images"):
                client.chat.completions.create(model="chat", messages=[{"role": "user", "content": [image]}])  # type: ignore[list-item,misc]
            assert asked(ollama) == []
            answer = client.chat.completions.with_raw_response.create(
                model="chat", messages=hello, reasoning_effort="high", extra_body={"num_ctx": 8192}
            )
            assert answer.headers["x-hx-params-dropped"] == "num_ctx, reasoning_effort"
            (sent,) = asked(ollama)
            assert "options" not in sent and "think" not in sent


def test_models_are_kept_in_memory_by_plan_after_start_and_after_recovery() -> None:
    models = [Model("chat:8b", CHAT_ONLY), Model("emb:latest", EMBED_ONLY), Model("rare:70b", CHAT_ONLY)]
    server = Scripted("ollama", models=models, loaded=False)
    with server as one, Scripted("ollama", models=models, loaded=False) as two:
        config = f"""
load_balancer: {{health_check_interval: 0.2}}
endpoints:
  one: {{url: "{one.url}", provider: ollama}}
  two: {{url: "{two.url}", provider: ollama}}
models:
  chat: {{endpoints: [one, two], upstream_model: "chat:8b", num_ctx: 4096}}
  emb: {{endpoint: one, mode: embedding}}
placement:
  chat: {{keep: [one], keep_alive: 2h}}
  emb: {{}}
"""
        with GatewayProcess(config) as gateway, sdk(gateway) as client:
            until(lambda: one.loaded == {"chat:8b", "emb:latest"})
            plain = {"prompt": "", "stream": False, "options": {"num_ctx": 4096}}
            assert asked(one, "/api/generate") == [{"model": "chat:8b", "keep_alive": "2h", **plain}]
            assert asked(one, "/api/embed") == [{"model": "emb", "keep_alive": -1, "input": []}]
            until(lambda: deployments(gateway, "chat")["one"]["facts"]["loaded"] is True)
            assert deployments(gateway, "chat")["two"]["facts"]["loaded"] is False and two.loaded == set()
            client.embeddings.create(model="emb", input="a")
            assert asked(one, "/api/embed")[-1]["keep_alive"] == -1  # a request must not shorten what the plan says
            strike(server, "refuse")
            until(lambda: deployments(gateway, "chat")["one"]["healthy"] is False)
            one.loaded.clear()
            strike(server, None)
            until(lambda: one.loaded == {"chat:8b", "emb:latest"})
            assert asked(two) == []


def test_without_a_plan_nothing_is_loaded() -> None:
    with Scripted("ollama", models=["chat:8b"], loaded=False) as ollama:
        config = f'load_balancer: {{health_check_interval: 0.1}}\nendpoints: {{one: {{url: "{ollama.url}"}}}}'
        with GatewayProcess(config) as gateway:
            until(lambda: sum(received.path == "/api/ps" for received in ollama.requests) >= 3)
            assert deployments(gateway, "chat:8b")["one"]["facts"]["loaded"] is False
        assert ollama.loaded == set() and asked(ollama) == []


def test_lengths_seen_in_answers_decide_where_nothing_else_is_known() -> None:
    with (
        Scripted("openai", models=[Model("emb", dimensions=24)]) as first,
        Scripted("openai", models=[Model("emb", dimensions=16)]) as second,
        Scripted("openai", models=[Model("emb", dimensions=16)]) as third,
    ):
        config = f"""
load_balancer: {{algorithm: round_robin}}
models:
  emb: {{endpoints: ["{first.url}", "{second.url}", "{third.url}"], mode: embedding}}
"""
        with GatewayProcess(config) as gateway, sdk(gateway) as client:

            def lengths() -> set[int]:
                return {len(client.embeddings.create(model="emb", input="a").data[0].embedding) for _ in range(6)}

            until(lambda: bool(lengths()) and len(status(gateway)["warnings"]) == 1)
            first.forget()
            assert lengths() == {16} and asked(first) == []
            assert "16 dimensions" in status(gateway)["warnings"][0] and "24 dimensions" in status(gateway)["warnings"][0]


def test_a_model_that_is_pulled_again_is_noticed_while_running() -> None:
    model = Model("chat:8b")
    server = Scripted("ollama", models=[model])
    with server as first, Scripted("ollama", models=[model]) as second:
        config = f"""
load_balancer: {{health_check_interval: 0.2, digest_policy: exclude}}
endpoints: {{first: {{url: "{first.url}"}}, second: {{url: "{second.url}"}}}}
"""
        with GatewayProcess(config) as gateway:
            until(lambda: len(deployments(gateway, "chat:8b")) == 2)
            assert status(gateway)["warnings"] == []
            first.models = {"chat:8b": Repulled("chat:8b", CHAT_ONLY)}
            until(lambda: deployments(gateway, "chat:8b")["second"]["excluded"] is not None)
            second.models = first.models
            until(lambda: status(gateway)["warnings"] == [] and deployments(gateway, "chat:8b")["second"]["excluded"] is None)
