"""Ollama's lines as OpenAI's events, however the network cuts them."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS
from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.providers.ollama_thinking import ThinkTags
from hx_gateway.testing.factories import make_deployment, make_exchange

PROVIDER = OllamaProvider(wall=lambda: 1_700_000_000.0)
ASK = {"model": "shown-name", "messages": [{"role": "user", "content": "hello you"}], "stream": True}
USAGE = {"stream_options": {"include_usage": True}}


def lines(*objects):
    return b"".join(json.dumps({"model": "tiny:1b", **item}, ensure_ascii=False).encode() + b"\n" for item in objects)


def says(**message):
    return {"message": {"role": "assistant", "content": "", **message}, "done": False}


def done(reason="stop", **fields):
    return {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason, **fields}


def start(body=ASK, route=CHAT, **options):
    exchange = make_exchange(body, route)
    return PROVIDER.reader(exchange, make_deployment(**options)), exchange


def read(data, body=ASK, route=CHAT, cuts=(), **options):
    reader, exchange = start(body, route, **options)
    edges = [0, *sorted(cuts), len(data)]
    out = b"".join(reader.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    return out + reader.finish(), reader, exchange


def events(out):
    assert out == b"" or out.endswith(b"\n\n")
    result = []
    for block in out.decode().split("\n\n")[:-1]:
        name, _, data = block.partition(": ")
        assert name == "data" and "\n" not in data
        result.append(data if data == "[DONE]" else json.loads(data))
    return result


def deltas(out):
    return [event["choices"][0]["delta"] for event in events(out)[:-1] if event["choices"]]


STORY = lines(
    says(content="Grüße"),
    says(content=" 🌍"),
    says(content='"\\\n'),
    done(prompt_eval_count=9, eval_count=3, total_duration=1, load_duration=1),
)


def test_a_plain_stream():
    out, reader, exchange = read(STORY)
    common = {
        "id": "chatcmpl-01TEST", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "shown-name",
        "system_fingerprint": "fp_ollama",
    }  # fmt: skip

    def event(delta, reason=None):
        return {**common, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    assert events(out) == [
        event({"role": "assistant", "content": ""}),
        event({"content": "Grüße"}),
        event({"content": " 🌍"}),
        event({"content": '"\\\n'}),
        event({}, "stop"),
        "[DONE]",
    ]
    assert reader.failure is None
    assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.estimated) == (9, 3, False)


def test_usage_comes_only_when_asked_for():
    out, _, _ = read(STORY, {**ASK, **USAGE})
    *before, last, end = events(out)
    assert end == "[DONE]"
    assert last["choices"] == [] and last["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert all(event["usage"] is None for event in before)
    assert b"usage" not in read(STORY)[0]


TOOLS = lines(
    says(thinking="hm "),
    says(thinking="yes"),
    says(tool_calls=[{"function": {"index": 0, "name": "weather", "arguments": {"town": "Köln"}}}]),
    says(
        tool_calls=[
            {"id": "c7", "function": {"index": 0, "name": "clock", "arguments": {}}},
            {"function": {"name": "clock", "arguments": {}}},
        ]
    ),
    done(prompt_eval_count=9, eval_count=3),
)


def test_tool_calls_get_a_stable_index_and_one_id_each():
    out, _, _ = read(TOOLS)
    calls = [call for delta in deltas(out) for call in delta.get("tool_calls", ())]
    assert [(c["index"], c["type"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        (0, "function", "weather", '{"town":"Köln"}'), (1, "function", "clock", "{}"), (2, "function", "clock", "{}"),
    ]  # fmt: skip
    assert calls[1]["id"] == "c7" and len({call["id"] for call in calls}) == 3
    assert events(out)[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}


def test_thinking_comes_under_both_names():
    out, _, _ = read(TOOLS)
    assert deltas(out)[0] == {"role": "assistant", "content": ""}
    assert deltas(out)[1:3] == [{"reasoning_content": part, "reasoning": part} for part in ("hm ", "yes")]


def test_old_functions_get_one_function_call():
    out, _, _ = read(TOOLS, {**ASK, "functions": [{"name": "weather"}]})
    assert [delta["function_call"] for delta in deltas(out) if "function_call" in delta] == [
        {"name": "weather", "arguments": '{"town":"Köln"}'}
    ]
    assert events(out)[-2]["choices"][0]["finish_reason"] == "function_call"
    assert b"tool_calls" not in out


def test_the_last_line_may_carry_content():
    out, _, _ = read(lines({"message": {"content": "all"}, "done": True, "done_reason": "length"}))
    assert deltas(out) == [{"role": "assistant", "content": ""}, {"content": "all"}, {}]
    assert events(out)[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("reason", ["load", "unload", "", "stop"])
def test_an_answer_without_words_still_stops(reason):
    out, reader, _ = read(lines(done(reason)))
    assert deltas(out) == [{"role": "assistant", "content": ""}, {}]
    assert events(out)[-2]["choices"][0]["finish_reason"] == "stop" and reader.failure is None


def test_missing_counts_are_estimated():
    out, _, exchange = read(lines(says(content="twelve chars"), done()), {**ASK, **USAGE})
    assert exchange.estimated
    assert events(out)[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_text_completions_stream_too():
    data = lines(
        {"response": "a", "done": False},
        {"response": "b", "done": False},
        {"response": "", "done": True, "prompt_eval_count": 1, "eval_count": 2},
    )
    out, _, exchange = read(data, {"model": "m", "prompt": "say: ", "stream": True, "echo": True}, COMPLETIONS)
    shown = [event["choices"][0] for event in events(out)[:-1]]
    assert [(choice["text"], choice["finish_reason"]) for choice in shown] == [("say: ", None), ("a", None), ("b", None), ("", "stop")]
    assert events(out)[0]["object"] == "text_completion" and events(out)[0]["id"] == "cmpl-01TEST"
    assert exchange.completion_tokens == 2


def test_logprobs_stream():
    entry = [{"token": "a", "logprob": -1.5}]
    out, _, _ = read(lines({**says(content="a"), "logprobs": entry}, done()))
    assert events(out)[1]["choices"][0]["logprobs"]["content"][0]["bytes"] == [97]
    text, _, _ = read(
        lines({"response": "a", "logprobs": entry}, {"response": "b", "logprobs": entry}, {"done": True}),
        {"model": "m", "prompt": "p", "stream": True}, COMPLETIONS,
    )  # fmt: skip
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in events(text)[:2]] == [[0], [1]]


THINK_TAGS = lines(
    says(content="<th"), says(content="ink>a"), says(content="b</thi"), says(content="nk>\n\nso"), says(content=" <think>"), done()
)


def test_thinking_tags_split_over_lines():
    out, _, _ = read(THINK_TAGS, extra={"think_tags": True})
    assert "".join(delta.get("reasoning", "") for delta in deltas(out)) == "ab"
    assert "".join(delta.get("content", "") for delta in deltas(out)) == "so <think>"


@given(st.text("<>/think ab\n", max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_tags_cut_anywhere_mean_the_same(text, cuts):
    def split(pieces):
        tags = ThinkTags()
        parts = [tags.feed(piece) for piece in pieces] + [tags.finish()]
        return "".join(part[0] for part in parts), "".join(part[1] for part in parts)

    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert split([text[a:b] for a, b in itertools.pairwise(edges)]) == split([text])


SAMPLES = (
    STORY,
    TOOLS,
    THINK_TAGS,
    STORY.replace(b"\n", b"\r\n"),
    STORY[:-1],
    lines(says(content="x")) + b'{"error": "gone"}\n',
    STORY[:70],
)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("options", [{}, {"extra": {"think_tags": True}}])
def test_byte_by_byte_gives_the_same_events(sample, options):
    expected, reader, exchange = read(sample, {**ASK, **USAGE}, **options)
    again, other, counted = read(sample, {**ASK, **USAGE}, cuts=range(1, len(sample)), **options)
    assert again == expected
    assert str(other.failure) == str(reader.failure)
    assert (counted.prompt_tokens, counted.completion_tokens) == (exchange.prompt_tokens, exchange.completion_tokens)


@given(st.sampled_from(SAMPLES), st.lists(st.integers(0, 400), max_size=20))
def test_any_cuts_give_the_same_events(sample, cuts):
    assert read(sample, cuts=[min(cut, len(sample)) for cut in cuts])[0] == read(sample)[0]


def test_every_return_value_holds_whole_events():
    reader, _ = start()
    for index in range(len(TOOLS)):
        piece = reader.feed(TOOLS[index : index + 1])
        assert piece == b"" or (piece.startswith(b"data: ") and piece.endswith(b"\n\n"))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("model 'tiny:1b' not found", errors.UPSTREAM_ERROR),
        ("server busy, please try again.  maximum pending requests exceeded", errors.UPSTREAM_BUSY),
        ("the input length exceeds the context length", errors.CONTEXT_LENGTH),
        ('"m" does not support thinking', errors.UPSTREAM_REFUSED),
        ("llama runner process has terminated", errors.UPSTREAM_ERROR),
    ],
)
def test_an_error_before_any_word_is_an_answer_of_its_own_kind(message, kind):
    out, reader, _ = read(lines(says(), {"error": message}))
    assert out == b"" and reader.failure.kind is kind


def test_an_error_after_words_breaks_the_stream_with_ollamas_message():
    out, reader, exchange = read(lines(says(content="so far"), {"error": "unexpected EOF"}, says(content="more"), done()))
    assert [event["choices"][0]["delta"] for event in events(out)] == [{"role": "assistant", "content": ""}, {"content": "so far"}]
    assert reader.failure.kind is errors.STREAM_BROKEN and "unexpected EOF" in reader.failure.message
    assert b"more" not in out
    assert exchange.completion_tokens == 2 and exchange.estimated


def test_an_end_without_done_is_a_break():
    out, reader, exchange = read(lines(says(content="so far")))
    assert reader.failure.kind is errors.STREAM_BROKEN and b"[DONE]" not in out
    assert exchange.completion_tokens == 2


@pytest.mark.parametrize("data", [b"", b"\n", lines(says()), b"<html>oops</html>\n", b'{"message": 5}\n', b'{"messa'])
def test_nothing_at_all_lets_another_server_try(data):
    out, reader, _ = read(data)
    assert out == b"" and reader.failure.kind is errors.BAD_RESPONSE


def test_an_attempt_that_gave_nothing_leaves_no_counts_behind():
    _, _, exchange = read(lines(says(), {"error": "boom"}))
    assert (exchange.prompt_tokens, exchange.completion_tokens, exchange.estimated) == (-1, -1, False)


def test_counting_looks_at_texts_only():
    parts = [{"type": "text", "text": "eight ch"}, {"type": "image_url", "image_url": "data:;base64,YQ==", "text": 5}]
    _, _, exchange = read(lines(says(content="a"), done()), {**ASK, "messages": [{"role": "user", "content": parts}]})
    assert exchange.prompt_tokens == 2


def test_garbage_after_words_is_a_break():
    out, reader, _ = read(lines(says(content="a")) + b"garbage\n" + STORY)
    assert reader.failure.kind is errors.STREAM_BROKEN
    assert b"[DONE]" not in out and len(re.findall(b"data: ", out)) == 2


def test_what_follows_the_end_is_ignored():
    out, reader, _ = read(STORY + lines(says(content="late"), {"error": "late"}))
    assert out == read(STORY)[0] and reader.failure is None


def test_a_line_without_end_is_not_kept_for_ever():
    reader, _ = start()
    for _ in range(17):
        assert reader.feed(b"x" * 1024 * 1024) == b""
    assert reader.failure.kind is errors.BAD_RESPONSE and "longer" in reader.failure.message
