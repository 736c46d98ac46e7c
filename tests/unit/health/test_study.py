"""What engines tell beyond their health: read from answers as the real ones give them, and never at the cost of a token."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.health.canned import Canned, models

from hx_gateway.fleet.facts import EngineLoad, ModelFacts
from hx_gateway.health import values
from hx_gateway.health.probes import ProbeResult, Unreachable, ollama, openai
from hx_gateway.health.study import Findings, llamacpp, shown, study_for, vllm
from hx_gateway.health.study import ollama as study_ollama
from hx_gateway.upstream.fetch import fetch

DIGEST = "a" * 64
TAGS = {
    "models": [
        {
            "name": "llama3.2:3b",
            "model": "llama3.2:3b",
            "size": 2_019_393_189,
            "digest": DIGEST,
            "details": {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
        },
        {"name": "phi3:latest", "size": 10, "digest": f"sha256:{'B' * 64}", "details": None},
    ]
}
PS = {
    "models": [
        {
            "name": "llama3.2:3b",
            "size": 4_000_000_000,
            "size_vram": 3_000_000_000,
            "expires_at": "2026-01-02T03:04:05.678901234+01:00",
            "context_length": 8192,
        }
    ]
}
SHOW = {
    "capabilities": ["completion", "tools", "some-new-one"],
    "model_info": {"general.architecture": "llama", "llama.context_length": 131072, "llama.embedding_length": 3072, "general.parameter_count": 3_212_749_888},
    "parameters": 'num_ctx                        4096\nstop                           "<|eot_id|>"\nstop                           "<|end|>"',
}  # fmt: skip
OLLAMA: dict[str, Any] = {
    "/api/version": (200, {"version": "0.13.5"}),
    "/api/tags": (200, TAGS),
    "/api/ps": (200, PS),
    "/api/show": (200, SHOW),
}


def heed(endpoint: Any, result: ProbeResult) -> None:
    """What the monitor writes down of a probe."""
    endpoint.facts.about, endpoint.facts.memory = result.about or {}, result.memory or {}


async def test_ollama_tells_digests_sizes_and_what_is_in_memory() -> None:
    async with Canned(OLLAMA) as server:
        result = await ollama(fetch, server.endpoint())
    assert result.engine == "ollama" and result.about is not None and result.memory is not None
    llama = result.about["llama3.2:3b"]
    assert (llama.digest, llama.size, llama.family, llama.quantization, llama.parameters) == (
        DIGEST,
        2_019_393_189,
        "llama",
        "Q4_K_M",
        3.2e9,
    )
    assert result.about["phi3:latest"].digest == "b" * 64 and not llama.studied
    held = result.memory["llama3.2:3b"]
    assert (held.size, held.spilled, held.context_length, held.expires_s) == (4e9, 0.25, 8192, 1767319445.678901)
    assert result.loaded == {"llama3.2:3b"}


async def test_names_in_memory_are_known_with_and_without_latest() -> None:
    ps = {"models": [{"name": "phi3:latest", "size": 5}]}
    async with Canned({**OLLAMA, "/api/ps": (200, ps)}) as server:
        result = await ollama(fetch, server.endpoint())
    assert result.loaded == {"phi3", "phi3:latest"}
    assert result.memory is not None and result.memory["phi3:latest"].spilled == 0.0  # not told is not spilled


async def test_a_model_is_asked_about_once_for_each_digest() -> None:
    async with Canned(OLLAMA) as server:
        endpoint = server.endpoint()
        heed(endpoint, await ollama(fetch, endpoint))
        findings = Findings()
        await study_ollama(fetch, endpoint, findings)
        assert [path for path, _ in server.posted] == ["/api/show"] * 2 and not findings.more
        assert server.posted[0][1] == {"model": "llama3.2:3b", "name": "llama3.2:3b"}  # what is in memory comes first
        endpoint.facts.about = findings.about
        llama = (await ollama(fetch, endpoint)).about["llama3.2:3b"]  # type: ignore[index]
        assert (llama.trained_context, llama.embedding_length, llama.parameters) == (131072, 3072, 3_212_749_888)
        assert llama.able == {"completion", "tools"} and llama.unable == {"embedding", "vision", "thinking", "insert"}
        assert llama.defaults == {"num_ctx": "4096", "stop": "<|eot_id|>"} and llama.studied
        heed(endpoint, await ollama(fetch, endpoint))
        await study_ollama(fetch, endpoint, Findings())
        assert len(server.posted) == 2
        changed = [{**TAGS["models"][0], "digest": "c" * 64}, TAGS["models"][1]]
        server.answers = {**OLLAMA, "/api/tags": (200, {"models": changed})}
        heed(endpoint, await ollama(fetch, endpoint))
        assert not endpoint.facts.about["llama3.2:3b"].able
        await study_ollama(fetch, endpoint, Findings())
        assert [body["model"] for _, body in server.posted[2:]] == ["llama3.2:3b"]


async def test_a_study_asks_about_a_bounded_number_of_models_and_says_that_more_are_left() -> None:
    tags = {"models": [{"name": f"m{number}", "size": 1, "digest": f"{number:064x}"} for number in range(20)]}
    async with Canned({**OLLAMA, "/api/tags": (200, tags)}) as server:
        endpoint = server.endpoint()
        heed(endpoint, await ollama(fetch, endpoint))
        findings = Findings()
        await study_ollama(fetch, endpoint, findings)
        assert len(server.posted) == len(findings.about) == 16 and findings.more
        endpoint.facts.about = {**endpoint.facts.about, **findings.about}
        rest = Findings()
        await study_ollama(fetch, endpoint, rest)
        assert len(server.posted) == 20 and not rest.more


@pytest.mark.parametrize(("status", "asked_again"), [(404, False), (400, False), (500, True), (503, True)])
async def test_a_server_that_does_not_show_models_is_not_asked_for_ever(status: int, asked_again: bool) -> None:
    async with Canned({**OLLAMA, "/api/show": (status, {"error": "no"})}) as server:
        endpoint = server.endpoint()
        heed(endpoint, await ollama(fetch, endpoint))
        findings = Findings()
        await study_ollama(fetch, endpoint, findings)
    assert all(model.studied and not model.able and not model.unable for model in findings.about.values())
    assert (findings.about == {}) is asked_again


@pytest.mark.parametrize("document", [None, [], {}, {"capabilities": "x", "model_info": 3, "parameters": [1]}, {"capabilities": []}])
def test_what_is_missing_or_odd_is_no_error(document: Any) -> None:
    model = shown(ModelFacts("m", "d", 5.0), document)
    assert (model.studied, model.able, model.unable, model.defaults, model.trained_context) == (True, frozenset(), frozenset(), {}, 0)


def test_an_old_server_shows_an_embedding_model_by_its_architecture() -> None:
    assert shown(ModelFacts("m"), {"model_info": {"general.architecture": "nomic-bert"}}).able == {"embedding"}


PROPS = {
    "default_generation_settings": {"n_ctx": 1024},
    "total_slots": 3,
    "modalities": {"vision": False, "audio": False},
    "chat_template_caps": {"supports_tool_calls": True},
    "build_info": "b6999-abc",
    "is_sleeping": False,
}
META = {"n_ctx": 2048, "n_ctx_train": 4096, "n_embd": 128, "n_params": 526208, "size": 1054208, "ftype": "F16"}
LLAMA: dict[str, Any] = {
    "/v1/models": (200, {"data": [{"id": "tiny", "owned_by": "llamacpp", "meta": META}]}),
    "/health": (200, {"status": "ok"}),
    "/props": (200, PROPS),
    "/slots": (200, [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]),
    "/metrics": (200, b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n"),
}


async def test_llamacpp_tells_slots_context_and_load() -> None:
    async with Canned(LLAMA) as server:
        endpoint = server.endpoint()
        result = await openai(fetch, endpoint)
        assert result.engine == "llamacpp" and result.about is not None
        model = result.about["tiny"]
        assert (model.size, model.parameters, model.context_length, model.trained_context, model.embedding_length) == (
            1054208,
            526208,
            2048,
            4096,
            128,
        )
        heed(endpoint, result)
        findings = Findings()
        await llamacpp(fetch, endpoint, findings)
        assert (findings.slots, findings.version, findings.sleeping) == (3, "b6999-abc", False)
        assert findings.load == EngineLoad(2, 5, None, cache_tokens=3 * 1024.0)
        assert findings.about["tiny"].context_length == 1024  # of a slot, which is what a request gets
        assert findings.about["tiny"].able == {"tools"} and findings.about["tiny"].unable == {"vision"}
        endpoint.facts.about = findings.about
        again = await openai(fetch, endpoint)
        assert again.about is not None and again.about["tiny"].unable == {"vision"}


async def test_a_llamacpp_server_with_all_closed_tells_nothing_and_that_is_no_error() -> None:
    answers = {path: answer for path, answer in LLAMA.items() if path in ("/v1/models", "/health")}
    async with Canned({**answers, "/metrics": (501, {}), "/slots": (501, {})}) as server:
        endpoint = server.endpoint()
        heed(endpoint, await openai(fetch, endpoint))
        findings = Findings()
        await llamacpp(fetch, endpoint, findings)
    assert (findings.slots, findings.load, findings.sleeping, findings.version) == (None, None, None, "")
    assert findings.about["tiny"].context_length == 2048 and findings.about["tiny"].unable == frozenset()


async def test_slots_stand_in_for_metrics() -> None:
    async with Canned({**LLAMA, "/metrics": (501, {}), "/props": (404, {})}) as server:
        endpoint = server.endpoint()
        findings = Findings()
        await llamacpp(fetch, endpoint, findings)
    assert (findings.slots, findings.load) == (2, EngineLoad(1, None, None))


async def test_a_server_that_sleeps_is_not_woken() -> None:
    async with Canned({**LLAMA, "/props": (200, {**PROPS, "is_sleeping": True})}) as server:
        findings = Findings()
        await llamacpp(fetch, server.endpoint(), findings)
        assert findings.sleeping is True and server.asked == ["/props"]


@pytest.mark.parametrize("name", ["gpu_cache_usage_perc", "kv_cache_usage_perc"])
async def test_vllm_tells_its_load_under_the_old_name_and_the_new(name: str) -> None:
    text = (
        f'# HELP vllm:{name} x\nvllm:{name}{{engine="0",model_name="m"}} 0.25\nvllm:{name}{{engine="1",model_name="m"}} 0.5\n'
        'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n'
        'vllm:num_requests_waiting{engine="0"} 1.0\nvllm:num_requests_waiting_total 99\nother:num_requests_running 7\n'
    )
    answers = {"/v1/models": (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 32768}]}), "/health": (200, b"")}
    async with Canned({**answers, "/version": (200, {"version": "0.11.0"}), "/metrics": (200, text.encode())}) as server:
        endpoint = server.endpoint()
        result = await openai(fetch, endpoint)
        assert result.engine == "vllm" and result.about is not None and result.about["m"].context_length == 32768
        findings = Findings()
        await vllm(fetch, endpoint, findings)
    assert findings.version == "0.11.0" and findings.load == EngineLoad(7, 1, 0.5)


CONFIG = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",num_gpu_blocks="%s"%s} 1.0\n'


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (CONFIG % ("1000", ""), 16_000.0),
        (CONFIG % ("1000", "") + CONFIG.replace('"0"', '"1"') % ("500", ""), 24_000.0),  # one for each engine behind the server
        (CONFIG % ("1000", ',kv_cache_size_tokens="12345"'), 12_345.0),
        (CONFIG % ("None", ""), None),  # servers that had not counted them yet when they wrote it down
        (CONFIG.replace("True", "False") % ("1000", ""), 0.0),
        ("vllm:num_requests_running 1\n", None),
    ],
)
async def test_vllm_tells_how_much_its_cache_holds_and_since_when(text: str, tokens: float | None) -> None:
    text += 'process_start_time_seconds 1.7e+09\nvllm:prompt_tokens_total{engine="0"} 500\nvllm:prompt_tokens_total{engine="1"} 7\n'
    async with Canned({"/version": (200, {"version": "0.11.0"}), "/metrics": (200, text.encode())}) as server:
        findings = Findings()
        await vllm(fetch, server.endpoint(), findings)
    assert findings.load is not None
    assert (findings.load.cache_tokens, findings.load.started_s, findings.load.read_tokens) == (tokens, 1.7e9, 507.0)


async def test_of_an_unknown_server_nothing_more_is_asked() -> None:
    async with Canned({"/v1/models": (200, models("m", owner="library"))}) as server:
        result = await openai(fetch, server.endpoint())
        assert result.engine == "" and result.about is not None and list(result.about) == ["m"]
    assert study_for("") is None and study_for("litellm") is None and study_for("ollama") is study_ollama


async def test_a_broken_connection_keeps_what_was_found_before_it() -> None:
    async with Canned(OLLAMA) as server:
        endpoint = server.endpoint()
        heed(endpoint, await ollama(fetch, endpoint))
        findings = Findings()

        async def failing(endpoint: Any, path: str, body: bytes | None = None, *, timeout_s: float = 3.0) -> Any:
            if b"phi3" in (body or b""):
                raise Unreachable("gone")
            return await fetch(endpoint, path, body)

        await study_ollama(failing, endpoint, findings)
    assert list(findings.about) == ["llama3.2:3b"]


@pytest.mark.parametrize(
    ("words", "count"),
    [("8.0B", 8e9), ("137M", 137e6), ("1.5b", 1.5e9), ("950K", 950e3), ("", 0.0), ("many", 0.0), ("1.2.3B", 0.0), ("7", 7.0)],
)
def test_parameter_counts(words: str, count: float) -> None:
    assert values.parameter_count(words) == count


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("1970-01-01T00:01:00Z", 60.0), ("0001-01-01T00:00:00Z", 0.0), ("soon", 0.0), ("", 0.0), ("2318-01-01T00:00:00Z", 10981785600.0)],
)
def test_moments(words: str, seconds: float) -> None:
    assert values.moment(words) == seconds


@pytest.mark.parametrize("value", [None, True, -1, "5", float("nan"), float("inf"), 1e300, []])
def test_a_number_that_cannot_be_meant_is_none(value: Any) -> None:
    assert values.number({"x": value}, "x") == 0.0


def test_samples_leave_out_what_is_no_number() -> None:
    text = b'a NaN\na 1\nb{x="}"} 2 1700000000\nab 3\na words\n'
    assert values.samples(text, ("a", "b")) == {"a": [1.0], "b": [2.0]}
