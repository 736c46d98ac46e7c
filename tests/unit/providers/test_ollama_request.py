"""What is sent to Ollama for each kind of OpenAI request."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, FORWARD
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.providers.ollama import OllamaProvider, unsupported
from hx_gateway.testing.factories import make_deployment, make_exchange

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}},
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
PIXEL = base64.b64encode(b"\x89PNG\r\n").decode()


def prepared(body, route=CHAT, deployment=None):
    return OllamaProvider().prepare(make_exchange(body, route), deployment or make_deployment())


def sent(body, route=CHAT, **options):
    outgoing = prepared(body, route, make_deployment(**options))
    assert isinstance(outgoing, Outgoing)
    return json.loads(outgoing.body)


def chat(**fields):
    return {"model": "shown-name", "messages": HELLO, **fields}


def refused(body, route=CHAT, **options):
    with pytest.raises(Failure) as caught:
        prepared(body, route, make_deployment(**options))
    assert caught.value.status == 400
    return caught.value


def test_plain_chat_sets_nothing_that_was_not_asked():
    outgoing = prepared(chat())
    assert outgoing.path == b"/api/chat"
    assert not outgoing.stream
    assert json.loads(outgoing.body) == {"model": "tiny:1b", "stream": False, "messages": HELLO}


def test_stream_is_sent_explicitly_and_the_base_path_kept():
    outgoing = prepared(chat(stream=True), deployment=make_deployment("http://127.0.0.1:1/ollama/v1"))
    assert outgoing.path == b"/ollama/api/chat"
    assert outgoing.stream and json.loads(outgoing.body)["stream"] is True


def test_sampling_fields_become_options():
    request = sent(
        chat(
            temperature=0, top_p=0.5, seed=7, stop="END", presence_penalty=1, frequency_penalty=-1, max_tokens=5, top_k=3, min_p=0.1,
            repeat_penalty=1.2, options={"mirostat": 1, "top_k": 9, "num_gpu": 99},
        )
    )  # fmt: skip
    assert request["options"] == {
        "temperature": 0, "top_p": 0.5, "seed": 7, "stop": ["END"], "presence_penalty": 1, "frequency_penalty": -1, "num_predict": 5,
        "top_k": 3, "min_p": 0.1, "repeat_penalty": 1.2, "mirostat": 1,
    }  # fmt: skip


def test_the_newer_limit_wins_and_null_means_absent():
    assert sent(chat(max_tokens=5, max_completion_tokens=9))["options"] == {"num_predict": 9}
    assert sent(chat(max_tokens=5, max_completion_tokens=None))["options"] == {"num_predict": 5}
    assert "options" not in sent(chat(temperature=None, stop=None, top_k=None))


def test_deployment_pins_context_and_keep_alive_and_gives_defaults():
    request = sent(
        chat(num_ctx=99, keep_alive=0, temperature=0.3),
        num_ctx=4096,
        keep_alive="30m",
        extra={"temperature": 0.9, "top_k": 5, "think": False},
    )
    assert request["options"] == {"num_ctx": 4096, "temperature": 0.3, "top_k": 5}
    assert request["keep_alive"] == "30m"
    assert request["think"] is False
    open_request = sent(chat(num_ctx=99, keep_alive=-1))
    assert open_request["options"] == {"num_ctx": 99} and open_request["keep_alive"] == -1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"options": []}, "options"),
        ({"options": {"top_k": -1}}, "options.top_k"),
        ({"n": 0}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": []}, "keep_alive"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"reasoning_effort": "vast"}, "reasoning_effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"think": "very"}, "think"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields, param):
    failure = refused(chat(**fields))
    assert failure.param == param
    assert param in failure.message


@pytest.mark.parametrize(
    "url", ["https://pictures.example/cat.png", "data:image/png,abc", "data:image/png;base64,$$$", "data:;base64,", None]
)
def test_an_image_must_be_in_the_request_itself(url):
    body = chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert refused(body).param == "messages[0].content[0].image_url.url"


def test_parts_are_joined_and_images_become_raw_base64():
    parts = [
        {"type": "text", "text": "what"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
        {"type": "image_url", "image_url": f"data:;base64,{PIXEL}"},
        {"type": "text", "text": "is this?"},
    ]
    assert sent(chat(messages=[{"role": "user", "content": parts}]))["messages"] == [
        {"role": "user", "content": "what\nis this?", "images": [PIXEL, PIXEL]}
    ]


def test_tool_conversation_keeps_ids_names_and_parses_arguments():
    history = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "look it up",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Köln"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "function", "name": "clock", "content": "noon"},
    ]
    assert sent(chat(messages=history, tools=[WEATHER]))["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "look it up",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"town": "Köln"}, "index": 0}}],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "tool_name": "weather"},
        {"role": "tool", "content": "noon", "tool_name": "clock"},
    ]


@pytest.mark.parametrize("arguments", ["{oops", "[1]", "3", 7, ["a"]])
def test_arguments_that_are_no_object_are_refused(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    body = chat(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert refused(body).param == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["weather", "clock"]),
        ("auto", ["weather", "clock"]),
        ("required", ["weather", "clock"]),
        ("none", None),
        ({"type": "function", "function": {"name": "clock"}}, ["clock"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}}, ["clock"]),
    ],
)
def test_tool_choice_decides_what_is_offered(choice, names):
    request = sent(chat(tools=[WEATHER, CLOCK], tool_choice=choice))
    assert [tool["function"]["name"] for tool in request["tools"]] == names if names else "tools" not in request


def test_old_functions_are_tools():
    old = {"functions": [WEATHER["function"], CLOCK["function"]]}
    assert sent(chat(**old))["tools"] == [WEATHER, CLOCK]
    assert sent(chat(**old, function_call={"name": "clock"}))["tools"] == [CLOCK]
    assert "tools" not in sent(chat(**old, function_call="none"))
    history = [{"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}}]
    assert sent(chat(**old, messages=history))["messages"][0]["tool_calls"] == [{"function": {"name": "clock", "arguments": {}}}]


def test_response_format_becomes_format():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert sent(chat(response_format={"type": "json_object"}))["format"] == "json"
    assert sent(chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}))["format"] == schema
    assert "format" not in sent(chat(response_format={"type": "text"}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "medium"}, "medium"),
        ({"reasoning_effort": "max"}, "max"),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"think": True, "reasoning_effort": "none"}, True),
    ],
)
def test_reasoning_effort_becomes_think(fields, expected):
    assert sent(chat(**fields))["think"] == expected
    without = sent(chat(**fields), extra={"capabilities": ["completion"]})
    assert without.get("think") == (False if expected is False else None)


def test_logprobs():
    request = sent(chat(logprobs=True, top_logprobs=3))
    assert (request["logprobs"], request["top_logprobs"]) == (True, 3)


def test_several_choices_are_several_calls_with_seeds_of_their_own():
    calls = prepared(chat(n=3, seed=5))
    assert [json.loads(call.body)["options"]["seed"] for call in calls] == [5, 6, 7]
    assert all(not call.stream for call in calls)


def test_completions_are_raw_unless_there_is_a_suffix():
    plain = prepared({"model": "m", "prompt": "Once", "max_tokens": 3, "logprobs": 2}, COMPLETIONS)
    assert plain.path == b"/api/generate"
    assert json.loads(plain.body) == {
        "model": "tiny:1b", "stream": False, "prompt": "Once", "raw": True, "options": {"num_predict": 3}, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    infill = sent({"model": "m", "prompt": "def f(", "suffix": "return 1"}, COMPLETIONS)
    assert infill["suffix"] == "return 1" and "raw" not in infill


def test_several_prompts_and_choices_are_several_calls():
    calls = prepared({"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 1}, COMPLETIONS)
    assert [(json.loads(c.body)["prompt"], json.loads(c.body)["options"]["seed"]) for c in calls] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1, 2]}, {"prompt": [[1], [2]]}, {"prompt": ""}, {"prompt": []}, {"prompt": None}, {"prompt": ["a", None]},
        {"prompt": ["a", "b"], "stream": True}, {"prompt": ["a"] * 257},
    ],
)  # fmt: skip
def test_prompts_that_ollama_cannot_take(fields):
    assert (refused({"model": "m", **fields}, COMPLETIONS).param or "").partition("[")[0] == "prompt"


def test_prompts_times_choices_are_bounded():
    assert refused({"model": "m", "prompt": ["a"] * 9, "n": 30}, COMPLETIONS).param == "n"


def test_token_ids_are_refused_with_the_reason():
    assert "token ids" in refused({"model": "m", "prompt": [1]}, COMPLETIONS).message
    failure = refused({"model": "m", "input": [[1, 2]]}, EMBEDDINGS)
    assert failure.kind is errors.UNSUPPORTED_PARAMETER and "token ids" in failure.message


def test_embeddings_ask_for_plain_numbers_and_no_cutting():
    outgoing = prepared({"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}, EMBEDDINGS)
    assert outgoing.path == b"/api/embed"
    assert json.loads(outgoing.body) == {"model": "tiny:1b", "input": ["a", "b"], "dimensions": 4, "truncate": False}
    pinned = sent({"model": "m", "input": "a"}, EMBEDDINGS, num_ctx=512, keep_alive=-1, extra={"truncate": True})
    assert pinned == {"model": "tiny:1b", "input": ["a"], "options": {"num_ctx": 512}, "keep_alive": -1, "truncate": True}


@pytest.mark.parametrize("deployment", [make_deployment(legacy_embeddings=True), make_deployment(embedding_field="prompt")])
def test_an_old_server_gets_one_prompt_a_call(deployment):
    calls = prepared({"model": "m", "input": ["a", "b"]}, EMBEDDINGS, deployment)
    assert [(call.path, json.loads(call.body)) for call in calls] == [
        (b"/api/embeddings", {"model": "tiny:1b", "prompt": "a"}),
        (b"/api/embeddings", {"model": "tiny:1b", "prompt": "b"}),
    ]
    assert isinstance(prepared({"model": "m", "input": "a"}, EMBEDDINGS, deployment), Outgoing)


@pytest.mark.parametrize(
    ("fields", "options", "param"),
    [
        ({"input": ["a", ""]}, {}, "input[1]"),
        ({"input": ["a", {}]}, {}, "input[1]"),
        ({"input": ["a"] * 2049}, {}, "input"),
        ({"input": "a", "dimensions": 99}, {"dimensions": 8}, "dimensions"),
        ({"input": "a", "dimensions": 4}, {"dimensions": 8, "embedding_field": "prompt"}, "dimensions"),
    ],
)
def test_inputs_that_cannot_be_embedded(fields, options, param):
    assert refused({"model": "m", **fields}, EMBEDDINGS, **options).param == param


def test_other_routes_are_not_for_ollama():
    exchange = make_exchange(chat())
    exchange.route = FORWARD
    with pytest.raises(Failure) as caught:
        OllamaProvider().prepare(exchange, make_deployment())
    assert caught.value.kind is errors.NOT_FOUND


def test_what_is_left_out_is_named():
    body = chat(
        logit_bias={"1": 2}, user="me", tool_choice="required", parallel_tool_calls=False, best_of=3, verbosity=None, guided_json={},
        options={"num_gpu": 1, "top_k": 2}, temperature=1,
    )  # fmt: skip
    assert sorted(unsupported(json.dumps(body).encode())) == [
        "best_of", "guided_json", "logit_bias", "options.num_gpu", "parallel_tool_calls", "tool_choice",
    ]  # fmt: skip
    assert unsupported(json.dumps(chat(tool_choice="auto", parallel_tool_calls=True, best_of=1)).encode()) == []
    assert unsupported(b"[]") == unsupported(b"{") == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "function", "name", "role", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = (
    "temperature", "top_p", "seed", "stop", "max_tokens", "n", "logprobs", "top_logprobs", "tools", "tool_choice", "functions", "function_call",
    "response_format", "reasoning_effort", "reasoning", "think", "options", "keep_alive", "truncate", "modalities", "suffix", "echo",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4), json_values)
def test_any_json_is_either_sent_or_refused_by_name(fields, content):
    provider, deployment = OllamaProvider(), make_deployment()
    for route, body in (
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": content}, {"role": "assistant", "tool_calls": content}], **fields}),
        (COMPLETIONS, {"model": "m", "prompt": content, **fields}),
        (EMBEDDINGS, {"model": "m", "input": content, **fields}),
    ):
        try:
            calls = provider.prepare(make_exchange(body, route), deployment)
        except Failure as failure:
            assert failure.status == 400 and failure.param
        else:
            for call in calls if isinstance(calls, list) else [calls]:
                assert json.loads(call.body)["model"] == "tiny:1b"
        assert isinstance(unsupported(json.dumps(body).encode()), list)
