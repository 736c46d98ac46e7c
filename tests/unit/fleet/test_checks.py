"""Whether deployments behind a name are the same model: what is served, what is left out and why, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.core.errors import Failure
from hx_gateway.fleet.checks import embeds, expect, first_embedding, judge, likeness
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, DeploymentOptions, Endpoint
from hx_gateway.fleet.facts import ModelFacts

A, B, C = "a" * 64, "b" * 64, "c" * 64
EMBEDS = frozenset(("embedding",))


def make(
    where: str, digest: str = "", dimensions: int = 0, width: int = 0, mode: str = "embedding", model: str = "m", **options: Any
) -> Deployment:
    endpoint = Endpoint(where, Address("http", where, 11434))
    if digest or width:
        endpoint.facts.about = {model: ModelFacts(model, digest, embedding_length=width)}
    one = Deployment(model, model, endpoint, mode=mode, options=DeploymentOptions(**options))
    one.dimensions = dimensions
    return one


def places(deployments: Any) -> list[str]:
    return [one.endpoint.name for one in deployments]


@pytest.mark.parametrize(
    ("fleet", "served"),
    [
        ([("x", A), ("y", A), ("z", A)], "xyz"),
        ([("x", A), ("y", B), ("z", B)], "yz"),
        ([("x", A), ("y", B)], "x"),
        ([("x", B), ("y", A), ("z", C)], "x"),
        ([("x", "", 1024), ("y", "", 768), ("z", "", 768)], "yz"),
        ([("x", "", 0, 1024), ("y", "", 0, 768)], "x"),
        ([("x",), ("y",)], "xy"),
        ([("x", A), ("y",), ("z", B), ("w", B)], "yzw"),  # of y nothing is known: it counts to the largest
        ([("x", A, 1024), ("y", "", 1024), ("z", "", 768)], "xy"),  # where a digest is missing, dimensions decide
        ([("x", A, 1024), ("y", B, 1024)], "x"),  # equal length is no proof where digests differ
        ([("x", A, 1024, 1024), ("y", "", 1024, 512)], "xy"),  # dimensions seen say more than the model's width
        ([("x", "", 1024), ("y", A, 1024), ("z", A, 1024), ("w", B, 1024)], "xyz"),
    ],
)
def test_embeddings_are_served_by_the_largest_number_of_equal_ones(fleet: list[tuple[Any, ...]], served: str) -> None:
    deployments = [make(*one) for one in fleet]
    verdict = judge("emb", deployments)
    assert places(verdict.served) == list(served)
    assert places(one for one, _ in verdict.excluded) == [one[0] for one in fleet if one[0] not in served]
    assert bool(verdict.notices) is (len(served) < len(fleet))


def test_whether_a_server_is_well_does_not_change_whose_embeddings_are_served() -> None:
    deployments = [make("x", A), make("y", A), make("z", B)]
    for one in deployments[:2]:
        one.endpoint.facts.healthy = False
        one.breaker.state = "open"
    assert places(judge("emb", deployments).served) == ["x", "y"]


def test_two_models_in_a_group_are_never_mixed() -> None:
    verdict = judge("emb-group", [make("x", A, model="one"), make("y", B, model="two"), make("z", B, model="two")])
    assert places(verdict.served) == ["y", "z"]
    assert (
        "emb-group" in verdict.excluded[0][1]
        and "digest aaaaaaaaaaaa" in verdict.excluded[0][1]
        and "never mixed" in verdict.excluded[0][1]
    )


def test_configured_dimensions_count_where_none_were_seen() -> None:
    one, two = make("x", model="one"), make("y", model="two")
    one.options.dimensions, two.options.dimensions = 1024, 384
    assert places(judge("g", [one, two]).served) == ["x"]


def test_chat_models_of_another_digest_are_reported_and_excluded_only_on_demand() -> None:
    deployments = [make("x", A, mode="chat"), make("y", B, mode="chat"), make("z", A, mode="chat"), make("w", mode="chat")]
    verdict = judge("qwen3:8b", deployments)
    assert places(verdict.served) == ["x", "y", "z", "w"] and verdict.excluded == ()
    (notice,) = verdict.notices
    assert notice.says() == (
        "m is not the same model everywhere: digest aaaaaaaaaaaa at x, z; digest bbbbbbbbbbbb at y. "
        "Pull the same version everywhere, or set load_balancer.digest_policy: exclude to serve it by the first only"
    )
    verdict = judge("qwen3:8b", deployments, exclude=True)
    assert places(verdict.served) == ["x", "z", "w"]  # of w nothing is known
    assert "digest_policy is exclude" in verdict.excluded[0][1]


def test_models_of_a_chat_group_may_differ() -> None:
    verdict = judge("group", [make("x", A, mode="chat", model="one"), make("y", B, mode="chat", model="two")], exclude=True)
    assert len(verdict.served) == 2 and not verdict.notices


def test_endpoints_are_called_what_the_reader_may_know() -> None:
    (notice,) = judge("emb", [make("x", A), make("y", B)]).notices
    assert notice.says(lambda endpoint: f"<{endpoint.name}>").startswith(
        "emb is not the same model everywhere: digest aaaaaaaaaaaa at <x>; digest bbbbbbbbbbbb at <y>. "
    )


@pytest.mark.parametrize(("pinned", "served"), [("b" * 12, "yw"), (A, "xw"), ("c" * 64, "w"), ("", "x")])
def test_a_pinned_digest_decides(pinned: str, served: str) -> None:
    deployments = [make("x", A), make("y", B), make("w")]
    for one in deployments:
        one.options.digest = pinned
    verdict = judge("emb", deployments if pinned else deployments[:2])
    assert places(verdict.served) == list(served)
    if pinned:
        assert all("models.m.digest" in reason for _, reason in verdict.excluded)
        assert "models.m.digest" in verdict.notices[0].says()


@pytest.mark.parametrize(
    ("mode", "able", "expected"),
    [
        ("embedding", (), True),
        ("chat", ("embedding",), False),
        ("", ("embedding",), True),
        ("", ("embedding", "completion"), False),
        ("", (), False),
    ],
)
def test_what_embeds(mode: str, able: tuple[str, ...], expected: bool) -> None:
    one = make("x", mode=mode)
    one.endpoint.facts.about = {"m": ModelFacts("m", able=frozenset(able))}
    assert embeds(one) is expected


@given(st.lists(st.tuples(st.sampled_from(["", A, B, C]), st.sampled_from([0, 384, 768]), st.sampled_from([0, 384, 768])), max_size=8))
def test_whatever_is_known_no_two_served_contradict_each_other(known: list[tuple[str, int, int]]) -> None:
    deployments = [make(f"h{number}", *one) for number, one in enumerate(known)]
    verdict = judge("emb", deployments)
    assert [*verdict.served, *(one for one, _ in verdict.excluded)] != [] or not known
    assert {*verdict.served} | {one for one, _ in verdict.excluded} == set(deployments)
    sure = [likeness(one) for one in verdict.served]
    assert all(one.fits(other) for one in sure for other in sure)
    assert bool(verdict.served) is bool(deployments)


def test_the_first_embedding_must_have_the_length_of_the_siblings() -> None:
    known, unknown = make("x", dimensions=1024), make("y")
    expect([known, unknown])
    assert (known.expected_dimensions, unknown.expected_dimensions) == (0, 1024)
    with pytest.raises(Failure, match="768 dimensions.*1024") as failure:
        first_embedding(unknown, 768)
    assert failure.value.kind.code == "bad_upstream_response" and failure.value.kind.elsewhere
    with pytest.raises(Failure):  # until the registry has left it out
        first_embedding(unknown, 768)
    assert places(judge("emb", [known, unknown]).served) == ["x"]
    fitting = make("z")
    expect([known, fitting])
    first_embedding(fitting, 1024)
    expect([known, fitting])
    assert (fitting.dimensions, fitting.expected_dimensions) == (1024, 0)
