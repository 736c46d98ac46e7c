"""The length of embeddings: the configured one is the server's promise, the one asked for is the client's wish."""

from __future__ import annotations

import base64
import json
import struct

import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.openai.answers import checked_embeddings
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

VECTOR = [3.0, 4.0, 12.0]


def checked(vector: list[float], expected: int = 0, wanted: int = 0, may_cut: bool = False, as_base64: bool = False) -> list[float]:
    exchange = make_exchange({"model": "m", "input": "a"}, EMBEDDINGS)
    body = json.dumps({"object": "list", "model": "m", "data": [{"index": 0, "embedding": vector}]}).encode()
    (item,) = json.loads(checked_embeddings(exchange, body, expected, as_base64, wanted, may_cut))["data"]
    if as_base64:
        raw = base64.b64decode(item["embedding"])
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return list(item["embedding"])


def test_the_right_length_passes() -> None:
    assert checked(VECTOR) == checked(VECTOR, expected=3) == checked(VECTOR, wanted=3) == checked(VECTOR, expected=1024, wanted=3) == VECTOR


@pytest.mark.parametrize("as_base64", [False, True])
def test_a_longer_vector_is_cut_and_normalised_where_that_is_allowed(as_base64: bool) -> None:
    assert checked(VECTOR, wanted=2, may_cut=True, as_base64=as_base64) == pytest.approx([0.6, 0.8])
    assert checked(VECTOR, expected=3, wanted=2, may_cut=True, as_base64=as_base64) == pytest.approx([0.6, 0.8])


def test_a_server_that_does_not_keep_its_promise_is_to_blame() -> None:
    for wanted in (0, 2):
        with pytest.raises(Failure) as caught:
            checked(VECTOR, expected=4, wanted=wanted)
        assert caught.value.kind is errors.BAD_RESPONSE


@pytest.mark.parametrize(("wanted", "may_cut"), [(2, False), (4, False), (4, True)])
def test_a_wish_that_cannot_be_met_is_the_clients_matter(wanted: int, may_cut: bool) -> None:
    with pytest.raises(Failure) as caught:
        checked(VECTOR, expected=3, wanted=wanted, may_cut=may_cut)
    assert (caught.value.kind, caught.value.param) == (errors.UNSUPPORTED_PARAMETER, "dimensions")
    assert not caught.value.kind.breaks


def test_more_than_the_model_has_is_refused_before_the_server_is_asked() -> None:
    exchange = make_exchange({"model": "m", "input": "a", "dimensions": 4}, EMBEDDINGS)
    with pytest.raises(Failure) as caught:
        OpenAIProvider().prepare(exchange, make_deployment(dimensions=3))
    assert (caught.value.kind, caught.value.param) == (errors.INVALID_VALUE, "dimensions")
