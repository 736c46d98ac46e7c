"""Tags: which deployments of a name a request may go to, where it says its tags, and what is said when there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hx_gateway.config.load import load_text
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.dataplane.suiting import settle, suited
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.gateway import build
from hx_gateway.openai.tags import move_tags, tags_of
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.testing.factories import make_exchange


def place(name: str, tags: str = "") -> Deployment:
    return Deployment("m", "m", Endpoint(name, Address("http", name, 1)), tags=frozenset(tags.split()))


PLACES = (place("free", "free"), place("paid", "paid fast"), place("usual", "default"), place("bare"))


def chat(*tags: str) -> Exchange:
    return make_exchange({"model": "m", "messages": [{"role": "user", "content": "hello"}], "metadata": {"tags": list(tags)}})


def kept(tags: str, tagging: str = "any", places: tuple[Deployment, ...] = PLACES) -> str:
    found = suited(chat(*tags.split()), Target("m", "model", places, tagging=tagging)).deployments
    return " ".join(one.endpoint.name for one in found)


# As LiteLLM 1.106.2 answers, but for its errors, which are no deployment here.
@pytest.mark.parametrize(
    ("tags", "match_any", "match_all"),
    [
        ("", "usual", "usual"),
        ("free", "free", "free"),
        ("paid fast", "paid", "paid"),
        ("paid free", "free paid", ""),
        ("nobody", "usual", "usual"),
        ("nobody free", "free", ""),
        ("!default", "", ""),
        ("!free", "usual", "usual"),
        ("paid !fast", "", ""),
        ("&fast", "paid", "paid"),
        ("&fast paid", "paid", "paid"),
        ("&fast free", "", ""),
        ("&nobody", "", ""),
    ],
)
def test_who_is_left(tags: str, match_any: str, match_all: str) -> None:
    assert kept(tags) == match_any
    assert kept(tags, "all") == match_all
    assert kept(tags, "") == "free paid usual bare", "tags mean nothing where they are not filtered"


def test_without_a_default_everybody_takes_what_asks_for_nothing() -> None:
    places = (PLACES[0], PLACES[1])
    assert kept("", places=places) == "free paid"
    assert kept("!free", places=places) == "paid"
    assert kept("nobody", places=places) == ""


@pytest.mark.parametrize(
    ("body", "header", "tags"),
    [
        ({"metadata": {"tags": ["a", "b"]}}, b"", {"a", "b"}),
        ({"tags": ["a"], "metadata": {"x": "y"}}, b"", {"a"}),
        ({}, b" a ,b,, ", {"a", "b"}),
        ({"metadata": {"tags": ["a"]}}, b"b", {"a", "b"}),
        ({"metadata": {"tags": "a"}}, b"", set()),
        ({"metadata": {"tags": ["", "!", "&", 3, None, "x" * 300]}}, b"", set()),
        ({"metadata": ["tags"], "tags": {"tags": 1}}, b"", set()),
        ({"user": '"tags": ["a"]'}, b"", set()),
    ],
)
def test_tags_are_read_from_header_and_body(body: dict[str, Any], header: bytes, tags: set[str]) -> None:
    exchange = make_exchange({"model": "m", "messages": [], **body})
    if header:
        exchange.notes[b"x-hx-tags"] = header
    assert tags_of(exchange) == tags
    if header:
        exchange.notes.clear()
        exchange.forward += [b"accept: */*\r\nx-litellm-tags: ", header, b"\r\nx-other: x-litellm-tags: c\r\n"]
        assert tags_of(exchange) == tags


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ({"metadata": {"tags": ["a", "é,b"], "user": "x"}}, {"metadata": {"user": "x"}}),
        ({"metadata": {"tags": ["a"]}, "tags": ["é,b"]}, {}),
        ({"tags": ["a", "é,b"], "stream": True}, {"stream": True}),
    ],
)
def test_no_model_server_gets_the_tags_of_a_body(body: dict[str, Any], left: dict[str, Any]) -> None:
    rest = {"model": "m", "messages": [{"role": "user", "content": '"tags": ["z"]'}]}
    exchange = make_exchange({**rest, **body})
    shared = exchange.notes
    move_tags(exchange)
    assert json.loads(exchange.body) == {**rest, **left}
    assert tags_of(exchange) == {"a", "é,b"}
    assert not shared, "heads that are alike share their notes"
    move_tags(exchange)
    assert tags_of(exchange) == {"a", "é,b"}


def test_a_body_without_tags_stays_as_it_came() -> None:
    exchange = make_exchange(b'{ "model": "m", "messages": [], "metadata": {"tags": "a"} }')
    move_tags(exchange)
    assert exchange.body == b'{ "model": "m", "messages": [], "metadata": {"tags": "a"} }'


def test_nothing_for_the_tags_is_refused_by_name_and_others_are_explained() -> None:
    target = Target("m", "model", PLACES, tagging="all", policy="round_robin")
    proxy, registry = Proxy(Router(policy), lambda endpoint: endpoint.provider), Registry({"m": target}, {})
    with pytest.raises(Failure) as caught:
        settle(chat("paid", "free"), target, registry, proxy)
    assert caught.value.status == 400
    assert caught.value.param == "metadata.tags"
    assert "has all of the tags 'free', 'paid'" in caught.value.message
    left = settle(chat("paid"), target, registry, proxy)
    why = {one.deployment.endpoint.name: one.removed for one in proxy.router.explain(Ask(left), 0.0).candidates}
    assert why["free"] == "its tags are not those that the request asks for"
    assert not why["paid"]


def test_a_client_cannot_make_more_views_than_there_are_sets_of_deployments() -> None:
    target = Target("m", "model", PLACES, tagging="any")
    assert len({id(suited(chat(f"t{n}", "free"), target)) for n in range(200)}) == 1


CONFIG = """
load_balancer: {tag_filtering: any}
gateway: {hidden: [secret, quiet]}
endpoints: {a: {url: "http://a:1", discover: false}}
models:
  tagged: {endpoint: a, tags: [x], policy: least_tokens}
  plain: {endpoint: a, aliases: [quiet]}
aliases: {secret: tagged}
"""


def test_names_without_tags_are_not_filtered_and_hidden_ones_are_marked() -> None:
    targets = build(load_text(CONFIG, "test", {}).config).registry.targets
    assert {name: target.tagging for name, target in targets.items()} == {"tagged": "any", "plain": "", "quiet": "", "secret": "any"}
    assert [name for name, target in targets.items() if target.hidden] == ["quiet", "secret"]
    assert (targets["tagged"].policy, targets["secret"].policy, targets["plain"].policy) == ("least_tokens", "least_tokens", "least_busy")
