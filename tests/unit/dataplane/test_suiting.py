"""Requests go where they can be answered: by what models are known to lack, and by context; a doubtful prompt is never refused."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, Exchange, Identity, Route
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.dataplane.suiting import SHORT, settle, suited
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.facts import CAPABILITIES, ModelFacts
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.openai.wants import least_tokens, wants
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.testing.factories import make_exchange

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def place(name: str, able: tuple[str, ...] | None = None, context: int = 0) -> Deployment:
    """A deployment of which it is known what its model can do; None for unknown."""
    deployment = Deployment("m", "m", Endpoint(name, Address("http", name, 1)))
    deployment.context_length = context
    if able is not None:
        deployment.unable = frozenset(CAPABILITIES) - set(able)
        deployment.endpoint.facts.about = {"m": ModelFacts("m", able=frozenset(able), unable=deployment.unable)}
    return deployment


def chat(text: str = "hello", parts: list[Any] | None = None, **fields: Any) -> Exchange:
    return make_exchange({"model": "m", "messages": [{"role": "user", "content": parts or text}], **fields})


def kept(exchange: Exchange, *deployments: Deployment, **settings: Any) -> list[str]:
    return [one.endpoint.name for one in suited(exchange, Target("m", "model", deployments, **settings)).deployments]


CAN = ("completion",)


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, {}),
        ({"parts": [{"type": "text", "text": "image_url"}]}, {}),
        ({"parts": [{"type": "text", "text": "look"}, IMAGE]}, {"vision": "messages"}),
        ({"tools": [TOOL]}, {"tools": "tools"}),
        ({"functions": [TOOL["function"]]}, {"tools": "functions"}),
        ({"tools": []}, {}),
        ({"tools": None}, {}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"text": 'say "tools" and "think"'}, {}),
        ({"reasoning_effort": "high"}, {"thinking": "reasoning_effort"}),
        ({"reasoning_effort": "none"}, {}),
        ({"think": True}, {"thinking": "think"}),
        ({"think": False, "reasoning_effort": "high"}, {}),
        ({"reasoning": {"effort": "low"}}, {"thinking": "reasoning"}),
        ({"parts": [IMAGE], "tools": [TOOL], "think": "low"}, {"vision": "messages", "tools": "tools", "thinking": "think"}),
    ],
)
def test_what_a_request_needs_is_seen_only_where_it_is_meant(fields: dict[str, Any], needs: dict[str, str]) -> None:
    exchange = chat(**fields)
    assert wants(CHAT, exchange.facts, exchange.body, frozenset(CAPABILITIES) - {"completion"}) == needs
    assert wants(CHAT, exchange.facts, exchange.body, ()) == {}


def test_only_those_that_can_are_left_and_the_unknown_may_be_able() -> None:
    blind, sees, unknown = place("blind", CAN), place("sees", (*CAN, "vision")), place("unknown")
    assert kept(chat(parts=[IMAGE]), blind, sees, unknown) == ["sees", "unknown"]
    assert kept(chat(), blind, sees, unknown) == ["blind", "sees", "unknown"]
    assert kept(chat(tools=[TOOL]), blind, sees) == []


def test_thinking_is_a_preference() -> None:
    plain, thinks = place("plain", CAN), place("thinks", (*CAN, "thinking"))
    assert kept(chat(reasoning_effort="high"), plain, thinks) == ["thinks"]
    assert kept(chat(reasoning_effort="high"), plain) == ["plain"]


def test_text_is_written_by_those_that_write_and_embedding_is_not_judged() -> None:
    embeds, writes = place("embeds", ("embedding",)), place("writes", CAN)
    assert kept(chat(), embeds, writes) == ["writes"]
    exchange = make_exchange({"model": "m", "input": "hello"}, EMBEDDINGS)
    assert kept(exchange, embeds, writes) == ["embeds", "writes"]  # models that write embed, too
    fills = place("fills", (*CAN, "insert"))
    assert kept(make_exchange({"model": "m", "prompt": "a", "suffix": "b"}, COMPLETIONS), writes, fills) == ["fills"]


def test_where_nothing_is_lacking_the_target_is_the_same_object_and_views_are_made_once() -> None:
    target = Target("m", "model", (place("a"), place("b")))
    assert target.lacking == frozenset() and suited(chat(parts=[IMAGE]), target) is target
    mixed = Target("m", "model", (place("a", CAN), place("b")))
    assert suited(chat(), mixed) is mixed
    view = suited(chat(parts=[IMAGE]), mixed)
    assert view is suited(chat("other", parts=[IMAGE]), mixed) and view is not mixed  # else what is kept of a target would pile up
    assert view.unfit == [(mixed.deployments[0], "its model is known not to take images")] and mixed.unfit == []


WORDS = "The quick brown fox jumps over the lazy dog. "  # 9 words, 10 tokens


def test_a_prompt_that_is_certainly_too_long_goes_where_there_is_room() -> None:
    small, large, unknown = place("small", context=1024), place("large", context=8192), place("unknown")
    assert kept(chat(WORDS * 60), small, large, unknown) == ["small", "large", "unknown"]
    assert kept(chat(WORDS * 120), small, large, unknown) == ["small", "large", "unknown"]  # 1200 tokens, but not beyond doubt
    assert kept(chat(WORDS * 300), small, large, unknown) == ["large", "unknown"]
    assert kept(chat(WORDS * 5000), small, large) == ["large"]  # too long for both: the larger one's word is the truth
    assert kept(chat(WORDS * 5000), small, place("other", context=1024)) == ["small", "other"]
    assert kept(chat(" \n" * 20_000), small, large) == ["small", "large"]  # a run of blanks may be one token
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 60_000}}
    assert kept(chat(parts=[picture]), small, large) == ["small", "large"]


@pytest.mark.parametrize(
    ("route", "fields", "tokens"),
    [
        (COMPLETIONS, {"prompt": "abcde " * 100}, 100),
        (COMPLETIONS, {"prompt": ["abcde " * 100, "x"]}, 100),
        (COMPLETIONS, {"prompt": [1] * 70}, 70),
        (COMPLETIONS, {"prompt": [[1] * 70, [2] * 90]}, 90),
        (COMPLETIONS, {"prompt": None}, 0),
        (EMBEDDINGS, {"input": ["abcde" * 9, "abcde" * 30]}, 30),
        (EMBEDDINGS, {"input": [5, 6, 7]}, 3),
        (CHAT, {"messages": [{"role": "user", "content": "äöüßä" * 10}, {"role": "user", "content": [{"type": "text", "text": "abcde"}, IMAGE]}]}, 21),
        (CHAT, {"messages": [{"role": "user"}, 7, {"role": "user", "content": 3}]}, 0),
    ],
)  # fmt: skip
def test_how_long_a_prompt_is_at_the_least(route: Route, fields: dict[str, Any], tokens: float) -> None:
    exchange = make_exchange({"model": "m", **fields}, route)
    assert least_tokens(route, exchange.facts, exchange.body) == tokens


def fleet(*targets: Target) -> tuple[Registry, Proxy]:
    registry = Registry({target.name: target for target in targets}, {})
    return registry, Proxy(Router(policy), lambda endpoint: None, find=registry.find)  # type: ignore[arg-type,return-value]


def test_what_nobody_of_a_name_can_do_is_refused_with_who_could() -> None:
    blind, sees = Target("m", "model", (place("a", CAN),)), Target("seer", "model", (place("b", (*CAN, "vision", "tools")),))
    secret = Target("secret", "model", sees.deployments)
    registry, proxy = fleet(blind, sees, secret)
    exchange = chat(parts=[IMAGE])
    exchange.identity = Identity("k", models=frozenset(("m", "seer")))
    with pytest.raises(Failure) as caught:
        settle(exchange, blind, registry, proxy)
    assert (caught.value.status, caught.value.kind.type, caught.value.param) == (400, "invalid_request_error", "messages")
    assert caught.value.message == "messages: the model 'm' does not take images; send text only, or use 'seer'"
    with pytest.raises(Failure, match="tools: the model 'm' does not take tools; leave tools out, or use 'seer' or 'secret'"):
        settle(chat(tools=[TOOL]), blind, registry, proxy)
    with pytest.raises(Failure, match="none is known to"):
        settle(make_exchange({"model": "m", "prompt": "a", "suffix": "b"}, COMPLETIONS), blind, registry, proxy)


def test_each_can_do_a_part_and_none_all_of_it() -> None:
    mixed = Target("m", "group", (place("a", (*CAN, "vision")), place("b", (*CAN, "tools"))))
    registry, proxy = fleet(mixed)
    with pytest.raises(Failure, match="does not take images and does not take tools"):
        settle(chat(parts=[IMAGE], tools=[TOOL]), mixed, registry, proxy)


def test_a_name_that_stands_in_for_longer_prompts_takes_them_at_once() -> None:
    small = Target("m", "model", (place("a", context=512),), policy="round_robin", context=("gone", "tiny", "long"))
    tiny, long = (
        Target("tiny", "model", (place("c", context=600),), policy="round_robin"),
        Target("long", "model", (place("b", context=100_000),), policy="round_robin"),
    )
    registry, proxy = fleet(small, tiny, long)
    assert settle(chat(WORDS), small, registry, proxy) is small
    exchange = chat(WORDS * 400)
    chosen = settle(exchange, small, registry, proxy)
    assert (chosen.name, chosen.instead_of, [one.endpoint.name for one in chosen.deployments]) == ("long", "m", ["b"])
    assert b"x-hx-fallback-from: m\r\n" in chosen.head
    exchange.identity = Identity("k", models=frozenset(("m", "tiny")))
    assert settle(exchange, small, registry, proxy).name == "m"  # not for this key: the server's own word is the answer
    exchange.identity = None
    long.deployments[0].weight = 0.0
    assert settle(exchange, small, registry, proxy).overrun


def test_a_body_below_the_bound_is_not_looked_into() -> None:
    exchange = chat("word " * 300)
    assert len(exchange.body) < SHORT
    assert kept(exchange, place("a", context=16), place("b", context=8192)) == ["a", "b"]
