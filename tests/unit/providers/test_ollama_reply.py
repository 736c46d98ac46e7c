"""What the client gets for Ollama's whole answers, good and bad."""

import base64
import json
import math
import struct

import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

PROVIDER = OllamaProvider(wall=lambda: 1_700_000_000.9)
HELLO = [{"role": "user", "content": "hello you"}]


def chat_reply(message, **fields):
    return json.dumps(
        {"model": "tiny:1b", "created_at": "2026-01-02T03:04:05.678Z", "message": {"role": "assistant", **message}, "done": True, **fields}
    ).encode()


def whole(body, *replies, route=CHAT, **options):
    exchange = make_exchange({"model": "shown-name", **body}, route)
    deployment = make_deployment(**options)
    answer = PROVIDER.whole(exchange, deployment, replies[0]) if len(replies) == 1 else PROVIDER.join(exchange, deployment, replies)
    return json.loads(answer), exchange


def broken(body, *replies, route=CHAT, **options):
    with pytest.raises(Failure) as caught:
        whole(body, *replies, route=route, **options)
    return caught.value


def test_chat():
    answer, exchange = whole(
        {"messages": HELLO}, chat_reply({"content": "Hi."}, done_reason="stop", prompt_eval_count=11, eval_count=3, total_duration=5)
    )
    assert answer == {
        "id": "chatcmpl-01TEST",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "shown-name",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi.", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }
    assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.estimated) == (11, 3, False)


@pytest.mark.parametrize(("done_reason", "finish"), [("length", "length"), ("load", "stop"), ("unload", "stop"), (None, "stop")])
def test_finish_reasons(done_reason, finish):
    answer, _ = whole({"messages": HELLO}, chat_reply({"content": ""}, done_reason=done_reason, prompt_eval_count=1))
    assert answer["choices"][0]["finish_reason"] == finish


def test_missing_counts_are_estimated_and_said_to_be():
    answer, exchange = whole({"messages": HELLO}, chat_reply({"content": "twelve chars"}))
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert exchange.estimated
    _, exact = whole({"messages": HELLO}, chat_reply({"content": ""}, prompt_eval_count=4))
    assert (exact.completion_tokens, exact.estimated) == (0, False)


def test_thinking_comes_under_both_names():
    answer, _ = whole({"messages": HELLO}, chat_reply({"content": "4", "thinking": "2+2"}, prompt_eval_count=1, eval_count=2))
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "2+2"
    assert message["content"] == "4"


def test_thinking_tags_are_taken_apart_where_the_deployment_says_so():
    reply = chat_reply({"content": "<think>hm\n</think>\n\nyes, <think> is a tag"}, prompt_eval_count=1, eval_count=2)
    message = whole({"messages": HELLO}, reply, extra={"think_tags": True})[0]["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("hm\n", "yes, <think> is a tag")
    untouched = whole({"messages": HELLO}, reply)[0]["choices"][0]["message"]
    assert untouched["content"].startswith("<think>") and "reasoning" not in untouched


CALLS = [
    {"function": {"name": "weather", "arguments": {"town": "Köln", "days": 2}}},
    {"id": "call_x", "function": {"name": "clock", "arguments": {}}},
    {"id": "call_x", "function": {"name": "clock"}},
]


def test_tool_calls():
    answer, _ = whole(
        {"messages": HELLO, "tools": []}, chat_reply({"content": "", "tool_calls": CALLS}, done_reason="stop", prompt_eval_count=1)
    )
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [(call["type"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("function", "weather", {"town": "Köln", "days": 2}),
        ("function", "clock", {}),
        ("function", "clock", {}),
    ]
    assert calls[1]["id"] == "call_x"
    assert len({call["id"] for call in calls}) == 3


def test_old_functions_get_a_function_call():
    answer, _ = whole({"messages": HELLO, "functions": [{"name": "weather"}]}, chat_reply({"content": "", "tool_calls": CALLS[:1]}))
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"town":"Köln","days":2}'}
    assert "tool_calls" not in choice["message"]


def test_several_choices_are_joined_and_the_prompt_counted_once():
    answer, exchange = whole(
        {"messages": HELLO, "n": 2},
        chat_reply({"content": "a"}, prompt_eval_count=5, eval_count=1),
        chat_reply({"content": "b", "tool_calls": CALLS[:1]}, eval_count=2),
    )
    assert [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]] == [(0, "a"), (1, "b")]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert not exchange.estimated


def test_logprobs():
    entries = [
        {
            "token": "é",
            "logprob": -0.5,
            "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "e", "logprob": -1}],
        }
    ]
    answer, _ = whole({"messages": HELLO, "logprobs": True}, chat_reply({"content": "é"}, logprobs=entries))
    assert answer["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "é",
                "logprob": -0.5,
                "bytes": [195, 169],
                "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "e", "logprob": -1, "bytes": [101]}],
            }
        ],
        "refusal": None,
    }


def generate_reply(text, **fields):
    return json.dumps({"model": "tiny:1b", "response": text, "done": True, **fields}).encode()


def test_text_completion_of_several_prompts():
    answer, _ = whole(
        {"prompt": ["a", "b"], "n": 2, "echo": True},
        generate_reply("1", prompt_eval_count=1, eval_count=1),
        generate_reply("2", prompt_eval_count=1, eval_count=1, done_reason="length"),
        generate_reply("3", prompt_eval_count=2, eval_count=1),
        generate_reply("4", prompt_eval_count=2, eval_count=1),
        route=COMPLETIONS,
    )
    assert answer["object"] == "text_completion" and answer["id"] == "cmpl-01TEST"
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [
        (0, "a1", "stop"), (1, "a2", "length"), (2, "b3", "stop"), (3, "b4", "stop"),
    ]  # fmt: skip
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_text_completion_logprobs():
    entries = [{"token": "ab", "logprob": -1.0, "top_logprobs": [{"token": "x", "logprob": -2.0}]}, {"token": "c", "logprob": -3.0}]
    answer, _ = whole({"prompt": "p", "logprobs": 1}, generate_reply("abc", logprobs=entries), route=COMPLETIONS)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"], "token_logprobs": [-1.0, -3.0], "top_logprobs": [{"x": -2.0}, {}], "text_offset": [0, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"<html>", b"[]", b"null", b'{"done": true}', b'{"message": {"content": "x"}, "done": false}', b'{"message": {"content": "x"}}',
        b'{"message": {"content": 5}, "done": true}', b'{"message": "x", "done": true}', b'{"done": true, "message": {"content": "\xff"}}',
        chat_reply({"content": "a"}) + b"\n" + chat_reply({"content": "b"}),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_the_servers_fault(reply):
    assert broken({"messages": HELLO}, reply).kind is errors.BAD_RESPONSE


def test_an_error_in_the_clothes_of_a_success():
    assert broken({"messages": HELLO}, b'{"error": "out of memory"}').kind is errors.UPSTREAM_ERROR
    assert broken({"input": "a"}, b'{"error": "out of memory"}', route=EMBEDDINGS).kind is errors.BAD_RESPONSE
    assert broken({"prompt": "a"}, b'{"done": true}', route=COMPLETIONS).kind is errors.BAD_RESPONSE


def embed_reply(*vectors, **fields):
    return json.dumps({"model": "tiny:1b", "embeddings": vectors, **fields}).encode()


def test_embeddings_keep_their_order():
    answer, exchange = whole({"input": ["a", "b"]}, embed_reply([0.5, -0.25], [1, 0], prompt_eval_count=7), route=EMBEDDINGS, dimensions=2)
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]},
            {"object": "embedding", "index": 1, "embedding": [1, 0]},
        ],
        "model": "shown-name",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (7, 0)


def test_base64_is_little_endian_float32():
    answer, _ = whole({"input": "a", "encoding_format": "base64"}, embed_reply([0.1, -2.0, 3.5]), route=EMBEDDINGS)
    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert packed == struct.pack("<3f", 0.1, -2.0, 3.5)


def test_old_server_answers_are_joined_and_their_tokens_estimated():
    replies = [json.dumps({"embedding": [float(i), 1.0]}).encode() for i in range(3)]
    answer, exchange = whole({"input": ["a", "bb", "ccccc"]}, *replies, route=EMBEDDINGS, embedding_field="prompt")
    assert [row["embedding"][0] for row in answer["data"]] == [0, 1, 2]
    assert exchange.estimated and exchange.prompt_tokens == 4


def test_vectors_are_cut_only_where_the_model_allows_it():
    answer, _ = whole({"input": "a", "dimensions": 2}, embed_reply([3, 4, 12]), route=EMBEDDINGS, truncate_dimensions=True)
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    assert math.hypot(*answer["data"][0]["embedding"]) == pytest.approx(1)
    refused = broken({"input": "a", "dimensions": 2}, embed_reply([3, 4, 12]), route=EMBEDDINGS)
    assert (refused.kind, refused.param) == (errors.UNSUPPORTED_PARAMETER, "dimensions")


@pytest.mark.parametrize(
    ("reply", "options"),
    [
        (embed_reply(), {}),
        (embed_reply([1]), {}),
        (embed_reply([1], [1], [1]), {}),
        (embed_reply([1], []), {}),
        (embed_reply([], []), {}),
        (embed_reply([1, 2], [1]), {}),
        (embed_reply([1, 2], [3, 4]), {"dimensions": 3}),
        (embed_reply([1, None], [3, 4]), {}),
        (b'{"model": "m"}', {}),
        (b'{"embedding": []}', {}),
        (b"nonsense", {}),
    ],
)
def test_vectors_that_are_not_what_was_asked(reply, options):
    assert broken({"input": ["a", "b"]}, reply, route=EMBEDDINGS, **options).kind is errors.BAD_RESPONSE


def failed(status, body, headers=(), route=CHAT):
    exchange = make_exchange({"model": "m", "messages": HELLO, "prompt": "p", "input": "i"}, route)
    return PROVIDER.failure(exchange, make_deployment(), status, list(headers), body)


def test_a_model_that_is_not_there_is_our_set_up():
    failure = failed(404, b'{"error": "model \'tiny:1b\' not found"}')
    assert failure.kind is errors.UPSTREAM_ERROR and failure.status == 502
    assert "shown-name" in failure.message and "tiny:1b" not in failure.message
    assert "too old" in failed(404, b"404 page not found").message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b'{"error": "server busy, please try again.  maximum pending requests exceeded"}'),
        (500, b'{"error": "unexpected server status: llm busy - no slots available"}'),
        (429, b'{"error": "slow down"}'),
        (429, b""),
    ],
)
def test_full_is_not_sick(status, body):
    failure = failed(status, body)
    assert failure.kind is errors.UPSTREAM_BUSY and failure.status == 429
    assert failure.retry_after_s == 1.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b"0.5", 0.5),
        (b"-3", 0.0),
        (b"9999999", 3600.0),
        (b"Tue, 14 Nov 2023 22:13:35 GMT", 14.1),
        (b"soon", 1.0),
        (b"nan", 1.0),
    ],
)
def test_retry_after_is_read(value, seconds):
    assert failed(429, b"", [(b"retry-after", value)]).retry_after_s == pytest.approx(seconds)


@pytest.mark.parametrize("status", [401, 403])
def test_our_credentials_are_not_the_clients(status):
    failure = failed(status, b'{"error": "unauthorized"}')
    assert failure.kind is errors.UPSTREAM_CREDENTIALS and failure.status == 502


@pytest.mark.parametrize(
    ("route", "param"),
    [(CHAT, "messages"), (COMPLETIONS, "prompt"), (EMBEDDINGS, "input")],
)
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "the input length exceeds the context length"),
        (500, "input length exceeds maximum context length"),
        (400, "prompt too long; exceeded max context length by 12 tokens"),
        (400, "the request exceeds the available context size. try increasing the context size"),
    ],
)
def test_too_long_is_said_in_openais_words(status, message, route, param):
    failure = failed(status, json.dumps({"error": message}).encode(), route=route)
    assert failure.kind is errors.CONTEXT_LENGTH
    assert (failure.status, failure.param) == (400, param)


def test_refusals_pass_in_openais_shape():
    failure = failed(400, b'{"error": "\\"tiny:1b\\" does not support tools"}')
    assert failure.kind is errors.UPSTREAM_REFUSED and failure.param == "tools"
    assert json.loads(failure.body())["error"]["message"] == '"tiny:1b" does not support tools'
    assert failed(500, b'{"error": "think value \\"medium\\" is not supported for this model"}').status == 400
    assert failed(413, b'{"error": {"message": "too big"}}').status == 413


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_errors_keep_status_and_message_but_no_addresses(status):
    failure = failed(
        status, b'{"error": "do request: Post \\"http://127.0.0.1:4711/completion\\": EOF, see /var/log/ollama/x.log\\nand more"}'
    )
    assert failure.kind is errors.UPSTREAM_ERROR and failure.status == status
    assert failure.message == "do request: Post (address): EOF, see (address) and more"


def test_pages_and_floods_do_not_reach_the_client():
    assert "html" not in failed(502, b"<html>Bad gateway</html>").message
    assert len(failed(500, json.dumps({"error": "x" * 10_000}).encode()).message) <= 500
    assert failed(500, b'{"error": ["odd"]}').message
