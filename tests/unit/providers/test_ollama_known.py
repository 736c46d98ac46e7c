"""What is known of a model at Ollama decides: what is refused at once, what is left out and reported, and what never loads it again."""

import base64
import json

import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()}}


def chat(**fields):
    return {"model": "shown-name", "messages": HELLO, **fields}


def prepared(body, route=CHAT, loaded_context=0, **options):
    deployment = make_deployment(**options)
    deployment.loaded_context = loaded_context
    return OllamaProvider().prepare(make_exchange(body, route), deployment)


def context(outgoing):
    return json.loads(outgoing.body).get("options", {}).get("num_ctx")


@pytest.mark.parametrize(
    ("configured", "loaded", "asked", "sent", "dropped"),
    [
        (None, 0, {}, None, []),
        (None, 4096, {}, None, []),  # what is not configured is not sent: the model stays as it is loaded
        (None, 0, {"num_ctx": 8192}, 8192, []),  # it has to be loaded anyway
        (None, 4096, {"num_ctx": 8192}, None, ["num_ctx"]),
        (None, 4096, {"num_ctx": 4096}, 4096, []),
        (None, 4096, {"options": {"num_ctx": 8192}}, None, ["options.num_ctx"]),
        (None, 4096, {"num_ctx": None}, None, []),
        (16384, 4096, {}, 16384, []),
        (16384, 4096, {"num_ctx": 4096}, 16384, ["num_ctx"]),
        (16384, 0, {"num_ctx": 8192, "options": {"num_ctx": 1}}, 16384, ["num_ctx", "options.num_ctx"]),
        (16384, 16384, {"num_ctx": 16384}, 16384, []),
    ],
)
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, EMBEDDINGS])
def test_no_client_makes_a_model_be_loaded_again(route, configured, loaded, asked, sent, dropped):
    bodies = {CHAT: chat(), COMPLETIONS: {"model": "m", "prompt": "a"}, EMBEDDINGS: {"model": "m", "input": "a"}}
    outgoing = prepared({**bodies[route], **asked}, route, loaded, num_ctx=configured)
    assert (context(outgoing), outgoing.dropped) == (sent, dropped)


def test_other_options_stay_when_the_context_goes():
    outgoing = prepared(chat(num_ctx=9, temperature=0.5, logit_bias={"1": 2}), loaded_context=4096)
    assert json.loads(outgoing.body)["options"] == {"temperature": 0.5}
    assert outgoing.dropped == ["logit_bias", "num_ctx"]


def test_a_wrong_context_is_refused_all_the_same():
    with pytest.raises(Failure) as caught:
        prepared(chat(num_ctx=0), loaded_context=4096)
    assert caught.value.param == "num_ctx"


@pytest.mark.parametrize(
    ("fields", "capabilities", "param"),
    [
        ({"tools": [TOOL]}, ["completion"], "tools"),
        ({"functions": [TOOL["function"]]}, ["completion", "vision"], "functions"),
        ({"messages": [*HELLO, {"role": "user", "content": [IMAGE]}]}, ["completion", "tools"], "messages[1].content"),
    ],
)
def test_what_the_model_cannot_take_is_refused_before_the_server_is_asked(fields, capabilities, param):
    with pytest.raises(Failure) as caught:
        prepared(chat(**fields), extra={"capabilities": capabilities})
    assert (caught.value.kind, caught.value.param) == (errors.UNSUPPORTED_PARAMETER, param)
    assert "shown-name" in caught.value.message and "capability" in caught.value.message
    for able in ({}, {"capabilities": ["completion", "tools", "vision"]}):  # nothing known: the server decides
        prepared(chat(**fields), extra=able)


def test_tools_that_are_not_to_be_used_are_no_reason_to_refuse():
    body = json.loads(prepared(chat(tools=[TOOL], tool_choice="none"), extra={"capabilities": ["completion"]}).body)
    assert "tools" not in body


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"reasoning_effort": "high"}, ["reasoning_effort"]),
        ({"think": True, "reasoning_effort": "high"}, ["think"]),
        ({"reasoning": {"effort": "low"}}, ["reasoning"]),
        ({"reasoning_effort": "none"}, []),
        ({"think": False}, []),
        ({}, []),
    ],
)
def test_thinking_a_model_cannot_do_is_left_out_and_reported(fields, dropped):
    outgoing = prepared(chat(**fields), extra={"capabilities": ["completion"], "think": True})
    assert not json.loads(outgoing.body).get("think")
    assert outgoing.dropped == dropped
    assert prepared(chat(**fields), extra={"capabilities": ["completion", "thinking"]}).dropped == []
    assert prepared(chat(**fields)).dropped == []


def test_fields_about_thinking_mean_nothing_to_embeddings():
    outgoing = prepared({"model": "m", "input": "a", "reasoning": "odd"}, EMBEDDINGS, extra={"capabilities": ["embedding"]})
    assert outgoing.dropped == []


def answers(provider, deployment, vector, **fields):
    exchange = make_exchange({"model": "m", "input": "a", **fields}, EMBEDDINGS)
    if provider is OllamaProvider:
        body = {"embeddings": [vector], "prompt_eval_count": 1}
    else:
        body = {"object": "list", "data": [{"index": 0, "embedding": vector}], "model": "m"}
    return provider().whole(exchange, deployment, json.dumps(body).encode())


@pytest.mark.parametrize("provider", [OllamaProvider, OpenAIProvider])
class TestLength:
    def test_the_first_answer_tells_it(self, provider):
        deployment = make_deployment()
        answers(provider, deployment, [0.5] * 300)
        assert deployment.dimensions == 300

    def test_an_answer_cut_on_demand_does_not(self, provider):
        deployment = make_deployment(truncate_dimensions=True)
        answers(provider, deployment, [0.5, 0.5], dimensions=2)
        assert deployment.dimensions == 0

    def test_an_answer_of_another_length_than_the_siblings_never_reaches_a_client(self, provider):
        deployment = make_deployment()
        deployment.expected_dimensions = 4
        for _ in range(2):
            with pytest.raises(Failure) as caught:
                answers(provider, deployment, [0.5] * 3)
            assert caught.value.kind is errors.BAD_RESPONSE
        assert deployment.dimensions == 3

    def test_an_answer_as_expected_does(self, provider):
        deployment = make_deployment()
        deployment.expected_dimensions = 4
        answers(provider, deployment, [0.5] * 4)
        assert deployment.dimensions == 4


@pytest.mark.parametrize("vector", [[], [[0.5, 0.5]], "no base64!", 5, None, {}])
def test_an_answer_that_is_none_tells_nothing(vector):
    deployment = make_deployment()
    with pytest.raises(Failure):
        answers(OpenAIProvider, deployment, vector)
    assert deployment.dimensions == 0


def test_a_vector_in_base64_tells_its_length():
    deployment = make_deployment()
    packed = base64.b64encode(b"\x00\x00\x80\x3f" * 5).decode()
    answers(OpenAIProvider, deployment, packed, encoding_format="base64")
    assert deployment.dimensions == 5
