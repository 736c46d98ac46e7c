"""Bodies looked into and rewritten: the splice is what a full decode and encode would give, or it is not done."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.openai.requests import look, rewritten, with_field, with_model
from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

_scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
_tricky = st.sampled_from(['"model":"x"', "model", "\\", 'a"b', "stream", '{"model":"x"}', "\x7f", "é😀", "\u2028", "x\ny"])
_json = st.recursive(
    _scalars | _tricky,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "stream", "a", "messages", "é"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_names = st.sampled_from(["tiny", "", "a/b:c", 'quo"te', "back\\slash", "é", "x" * 100]) | st.text(max_size=10)
_more = st.dictionaries(st.sampled_from(["temperature", "tools", "user_data", "n", "metadata", "stop", "Model", "é"]), _json, max_size=4)


def dumped(whole: dict[str, Any], style: int) -> bytes:
    """JSON in one of the ways clients write it."""
    if style == 0:
        return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if style == 1:
        return json.dumps(whole).encode()
    return (" \r\n\t" + json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def only_model(body: bytes) -> list[Any]:
    """Every value that stands under the key ``model`` at the top."""
    found: list[list[Any]] = []

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append([value for name, value in pairs if name == "model"])
        return dict(pairs)

    json.loads(body, object_pairs_hook=hook)
    return found[-1]


@settings(max_examples=400)
@given(_more, st.none() | _names, st.booleans(), _names, st.integers(0, 2), st.integers(0, 3))
def test_another_models_name(more: dict[str, Any], given_name: str | None, null: bool, new: str, style: int, position: int) -> None:
    items = list({**more, "messages": [{"role": "user", "content": "x"}]}.items())
    if given_name is not None or null:
        items.insert(position, ("model", given_name))
    body = dumped(dict(items), style)
    facts = look(CHAT, body)
    assert facts.model == given_name
    changed = with_model(body, facts, new)
    assert json.loads(changed) == {**dict(items), "model": new}
    assert only_model(changed) == [new], "another reader may see another name"


@given(_names, _names, _names, st.integers(0, 1))
def test_a_key_given_twice_is_given_once(first: str, second: str, new: str, escaped: int) -> None:
    key = '"mod\\u0065l"' if escaped else '"model"'
    body = f'{{"model": {json.dumps(first)}, "messages": [], {key}: {json.dumps(second)}, "stream": false, "stream": true}}'.encode()
    facts = look(CHAT, body)
    assert (facts.model, facts.stream) == (second, True)
    changed = with_model(body, facts, new)
    assert only_model(changed) == [new]
    assert changed.count(b'"stream"') >= 1 and json.loads(changed)["stream"] is True
    if not escaped:
        assert not facts.plain


@pytest.mark.parametrize(
    ("more", "plain"),
    [
        ("", True),
        (', "x": "a\\nb"', True),
        (', "x": "\\"model\\" \\"stream\\""', True),
        (', "x": "\\u00e9"', False),
        (', "x": {"model": 1}', False),
        (', "stream": true', False),
        (', "encoding_format": "float"', True),
        (', "encoding_format": "float", "x": "encoding_format"', False),
    ],
)
def test_a_body_is_plain_where_no_key_read_here_may_be_there_twice(more: str, plain: bool) -> None:
    body = f'{{"model": "m", "stream": false, "messages": [], "input": "x"{more}}}'.encode()
    assert look(CHAT, body).plain is plain and look(EMBEDDINGS, body).plain is plain


@pytest.mark.parametrize(
    "body",
    [
        '{"mod\\u0065l": "tiny", "messages": []}',
        '{"\\u006dodel": "tiny", "model": "other", "messages": []}',
        '{"model": "other", "\\u006d\\u006fdel": "tiny", "messages": []}',
        '{"messages": [{"model": "nested"}]}',
        '{"messages": [], "metadata": {"model": "nested"}, "x": "model"}',
        '{"messages": ["\\"model\\":\\"x\\""], "model": "tiny"}',
        '{"model":\n"ti\\/ny","messages":[]}',
    ],
)
def test_names_in_odd_places(body: str) -> None:
    facts = look(CHAT, body.encode())
    changed = with_model(body.encode(), facts, "new")
    assert json.loads(changed) == {**json.loads(body), "model": "new"}
    assert only_model(changed) == ["new"]


@given(_more, st.integers(0, 2))
def test_a_field_in_front(more: dict[str, Any], style: int) -> None:
    body = dumped(more, style)
    assert json.loads(with_field(body, b'"front":[1]')) == {"front": [1], **more}


@settings(max_examples=200)
@given(
    _more, st.sampled_from([None, {}, {"include_usage": True}, {"include_usage": False}, {"other": 1}]), st.booleans(), st.integers(0, 2)
)
def test_usage_is_always_asked_for_in_streams(more: dict[str, Any], options: Any, given_options: bool, style: int) -> None:
    whole = {"model": "tiny:1b", "stream": True, "messages": [], **more, **({"stream_options": options} if given_options else {})}
    exchange = make_exchange(dumped(whole, style))
    outgoing = OpenAIProvider().prepare(exchange, make_deployment(upstream_model="tiny:1b"))
    assert not isinstance(outgoing, list)
    sent = json.loads(outgoing.body)
    assert sent.pop("stream_options")["include_usage"] is True
    whole.pop("stream_options", None)
    assert sent == whole
    assert outgoing.stream


def test_nothing_is_rewritten_where_nothing_is_due() -> None:
    body = b' {"model" :"tiny:1b", "messages":[ {"content":"x","role":"user"}],"odd" : 1.0e5,"big":123456789012345678901234567890 }'
    outgoing = OpenAIProvider().prepare(make_exchange(body), make_deployment(upstream_model="tiny:1b"))
    assert not isinstance(outgoing, list) and outgoing.body == body


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"{", b'{"model": }', b'{"model": "x"}}', b'{"model": "x"} x', b"\xff{}", b'{"model": "\xff"}', b'{"messages": ["\xc3"]}', b"{'model': 'x'}",
        b'\xef\xbb\xbf{"model":"x"}', b'{"messages": ' + b"[" * 100_000, b'{"model": "x",}', b'{"model": NaN}', b'{"a":"\x00"' ,
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes, route: Any) -> None:
    with pytest.raises(Failure) as failure:
        look(route, body)
    assert failure.value.status == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": 5, "messages": []}', "model"), (b'{"messages": {}}', "messages"), (b'{"messages": "x"}', "messages"), (b"{}", "messages"),
        (b'{"messages": [], "stream": "yes"}', "stream"), (b'{"messages": [], "stream_options": 1}', "stream_options"),
        (b'{"messages": [], "stream_options": {"include_usage": 1}}', "stream_options.include_usage"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_named(body: bytes, param: str) -> None:
    with pytest.raises(Failure) as failure:
        look(CHAT, body)
    assert (failure.value.status, failure.value.param) == (400, param)
    assert param in failure.value.message


ODD = [
    ('{"model": "tiny", "messages": [], "seed": 123456789012345678901234567890, "x": "\\u0041"}', "a number beyond 64 bits"),
    ('{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "half a character"),
    ('{"model": "tiny", "messages": [], "x": "\\udc00\\ud800 \\u0041"}', "two halves in the wrong order"),
    ('{"model": "tiny", "messages": [], "x": "\\q \\u0041"}', "an escape that does not exist"),
    ('{"model": "tiny", "messages": [], "x": "\\u00g1"}', "an escape of no hexadecimal digits"),
    ('{"model": "tiny", "messages": [], "x": 1e400, "y": "\\u0041"}', "a number beyond all floats"),
    ('{"model": "tiny", "messages": [], "x": 01, "y": "\\u0041"}', "a number with a leading zero"),
    ('{"model": "tiny", "messages": [], "x": "a\tb", "y": "\\u0041"}', "a control character in a string"),
    ('{"model": "tiny", "messages": [], "deep": ' + "[" * 900 + "]" * 900 + ', "y": "\\u0041"}', "a deep value"),
    ('{"model": "tiny", "messages": [], "x": {"a": tru}, "y": "\\u0041"}', "a word that is none"),
]


@pytest.mark.parametrize(("body", "what"), ODD, ids=[what for _, what in ODD])
@pytest.mark.parametrize("upstream_model", ["tiny:1b", "tiny"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_that_must_be_rewritten_and_cannot_be_is_the_clients_fault(body: str, what: str, stream: bool, upstream_model: str) -> None:
    """It is passed on as it means, or refused with 400; never a fault of ours."""
    raw = body.encode()
    if stream:
        raw = raw.replace(b"{", b'{"stream": true, "stream_options": {"x": 1}, ', 1)
    try:
        exchange = make_exchange(raw)
        outgoing = OpenAIProvider().prepare(exchange, make_deployment(upstream_model=upstream_model))
    except Failure as failure:
        assert failure.status == 400, what
    else:
        assert not isinstance(outgoing, list)
        if upstream_model == "tiny" and not stream:
            assert outgoing.body == raw or not exchange.facts.plain
            return
        assert only_model(outgoing.body) == [upstream_model]
        sent = json.loads(outgoing.body)
        assert {name: sent[name] for name in ("seed", "x", "y") if name in sent} == {
            name: value for name, value in json.loads(raw, strict=False).items() if name in ("seed", "x", "y")
        }


@pytest.mark.parametrize(("body", "what"), ODD, ids=[what for _, what in ODD])
def test_ollama_is_not_asked_what_cannot_be_read(body: str, what: str) -> None:
    try:
        exchange = make_exchange(body.encode())
        outgoing = OllamaProvider().prepare(exchange, make_deployment(upstream_model="tiny:1b"))
    except Failure as failure:
        assert failure.status == 400, what
    else:
        assert not isinstance(outgoing, list)
        assert json.loads(outgoing.body)["model"] == "tiny:1b"


EMBED = [
    (b'{"input": "a"}', None), (b'{"input": ["a", "b"]}', None), (b'{"input": [1, 2]}', None), (b'{"input": [[1], [2]]}', None), (b'{"prompt": "a"}', None),
    (b'{"input": ""}', "input"), (b'{"input": []}', "input"), (b'{"input": [ ]}', "input"), (b'{"input": null}', "input"), (b"{}", "input"), (b'{"input": 5}', "input"),
    (b'{"input": {"a": 1}}', "input"), (b'{"input": "a", "encoding_format": "hex"}', "encoding_format"), (b'{"input": "a", "dimensions": 0}', "dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), EMBED)
def test_embeddings(body: bytes, param: str | None) -> None:
    if param is None:
        assert look(EMBEDDINGS, body).model is None
        return
    with pytest.raises(Failure) as failure:
        look(EMBEDDINGS, body)
    assert failure.value.param == param


@given(st.sampled_from(["float", "base64", None, "absent"]), _json, st.integers(0, 2))
def test_embeddings_are_asked_for_as_floats_and_never_with_null(encoding: str | None, other: Any, style: int) -> None:
    whole = {
        "model": "tiny",
        "input": ["a", '"encoding_format":"base64"'],
        "other": other,
        **({"encoding_format": encoding} if encoding != "absent" else {}),
    }
    exchange = make_exchange(dumped(whole, style), route=EMBEDDINGS)
    outgoing = OpenAIProvider().prepare(exchange, make_deployment(upstream_model="theirs"))
    assert not isinstance(outgoing, list)
    sent = json.loads(outgoing.body)
    assert sent.pop("encoding_format", "float") == "float"
    whole.pop("encoding_format", None)
    assert sent == {**whole, "model": "theirs"}


@given(_more)
def test_rewritten(more: dict[str, Any]) -> None:
    assert json.loads(rewritten(dumped(more, 1), {"x": 1}, drop=("n",))) == {
        **{name: value for name, value in more.items() if name != "n"},
        "x": 1,
    }
