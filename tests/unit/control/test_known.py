"""What is known of models and engines, as operators and clients see it, and the warnings about them."""

from __future__ import annotations

from tests.unit.control.house import KEYS, MASTER, USER, House

from hx_gateway.assembly import Assembly
from hx_gateway.config.load import load_text
from hx_gateway.fleet.checks import judge
from hx_gateway.fleet.facts import EngineLoad, LoadedModel, ModelFacts
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.health.teach import teach

A, B = "a" * 64, "b" * 64


def informed() -> House:
    """The small fleet, with facts."""
    house = House({"keys": KEYS})
    first, second = house.registry.endpoints.values()
    facts = first.facts
    facts.engine, facts.load, first.slots = "ollama", EngineLoad(2, 1, 0.5), 4
    facts.about = {
        "llama3.2:3b": ModelFacts(
            "llama3.2:3b",
            A,
            2e9,
            "llama",
            "Q4_K_M",
            trained_context=131072,
            able=frozenset(("completion", "tools")),
            unable=frozenset(("vision",)),
        ),
        "mxbai-embed-large:latest": ModelFacts("mxbai-embed-large:latest", B, 1e9, able=frozenset(("embedding",)), studied=True),
    }
    facts.memory = {"llama3.2:3b": LoadedModel("llama3.2:3b", 4e9, 3e9, 4096, 1_700_000_060.0)}
    facts.loaded = frozenset(facts.memory)
    second.facts.about = {"phi3": ModelFacts("phi3", "", context_length=4096)}
    for target in house.registry.targets.values():
        for deployment in target.deployments:
            teach(deployment)
    return house


async def test_status_shows_what_is_known() -> None:
    async with informed().client(MASTER) as client:
        body = (await client.get("/models/status")).json()
    status = {entry["name"]: entry["deployments"][0] for entry in body["models"]}
    assert body["warnings"] == []
    assert status["llama3.2:3b"]["facts"] == {
        "digest": A, "size_bytes": 4_000_000_000, "family": "llama", "quantization": "Q4_K_M", "capabilities": ["completion", "tools"],
        "context_length": 8192, "dimensions": None, "loaded": True, "loaded_context": 4096, "accelerator_share": 0.75,
        "expires": "2023-11-14T22:14:20.000Z",
    }  # fmt: skip
    assert status["llama3.2:3b"]["engine"] == {
        "name": "ollama",
        "slots": 4,
        "running": 2,
        "waiting": 1,
        "cache_used": 0.5,
        "sleeping": False,
    }
    embedder = status["emb-premium"]["facts"]
    assert (embedder["loaded"], embedder["digest"], embedder["size_bytes"], embedder["dimensions"]) == (False, B, 1_000_000_000, 1024)
    unknown = status["org/phi:mini"]
    assert unknown["facts"]["loaded"] is None and unknown["facts"]["digest"] is None and unknown["facts"]["context_length"] == 4096
    assert unknown["engine"]["name"] is None and unknown["excluded"] is None


async def test_models_show_what_clients_need() -> None:
    async with informed().client(MASTER) as client:
        about = {entry["id"]: entry["hx"] for entry in (await client.get("/v1/models")).json()["data"]}
    llama = about["llama3.2:3b"]
    assert (llama["digest"], llama["context_length"]) == ("a" * 12, 8192)
    assert llama["capabilities"] == {
        "chat": True,
        "completions": True,
        "embeddings": False,
        "vision": False,
        "tools": True,
        "thinking": None,
    }
    assert about["emb-premium"]["digest"] == "b" * 12
    group = about["hx-chat"]  # of two models: what they have in common, and the least context
    assert (group["digest"], group["context_length"], group["capabilities"]["tools"]) == (None, 4096, None)


def divided() -> House:
    """Three embedding servers of which one has another model; two are named after their addresses."""
    text = "models: {emb: {endpoints: ['http://192.0.2.1:11434', 'http://192.0.2.2:11434', 'http://192.0.2.3:11434'], mode: embedding}}"
    made = Assembly(load_text(text, "f", {}).config, lambda name: None)
    made.registry()
    for endpoint, digest in zip(made.endpoints.values(), (A, B, A), strict=True):
        endpoint.facts.about = {"emb": ModelFacts("emb", digest)}
    return House({"keys": {**KEYS, "api_keys": [{**KEYS["api_keys"][0], "models": ["other"]}]}}, made.registry())


async def test_an_excluded_deployment_is_shown_with_its_reason_and_the_warning() -> None:
    async with divided().client(MASTER) as client:
        body = (await client.get("/models/status")).json()
    (entry,) = body["models"]
    shown = {one["endpoint"]: one for one in entry["deployments"]}
    left_out = shown["192.0.2.2:11434"]
    assert left_out["available"] is False and "never mixed" in left_out["excluded"]
    assert [one["endpoint"] for one in entry["deployments"]] == ["192.0.2.1:11434", "192.0.2.3:11434", "192.0.2.2:11434"]
    (warning,) = body["warnings"]
    assert "digest aaaaaaaaaaaa at 192.0.2.1:11434, 192.0.2.3:11434; digest bbbbbbbbbbbb at 192.0.2.2:11434" in warning


async def test_warnings_name_no_address_to_others_and_no_model_a_key_may_not_use() -> None:
    house = divided()
    async with house.client() as client:
        body = (await client.get("/models/status")).json()
    assert "endpoint-1, endpoint-3; digest bbbbbbbbbbbb at endpoint-2" in body["warnings"][0] and "192.0.2" not in str(body)
    async with house.client(USER) as client:
        assert (await client.get("/models/status")).json()["warnings"] == []


async def test_only_excluded_deployments_are_not_available() -> None:
    house = divided()
    target = house.registry.targets["emb"]
    house.registry = Registry({"emb": Target("emb", "model", (), excluded=target.excluded)}, house.registry.endpoints)
    async with house.client(MASTER) as client:
        (entry,) = (await client.get("/models/status")).json()["models"]
    assert entry["available"] is False and len(entry["deployments"]) == 1
    assert judge("emb", ()).served == ()
