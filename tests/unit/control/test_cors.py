"""The CORS policy by itself, as the data plane's door uses it."""

from __future__ import annotations

import pytest

from hx_gateway.core.cors import CorsPolicy


def test_any_origin() -> None:
    policy = CorsPolicy()
    assert policy.response_lines(b"https://a.example").startswith(
        b"access-control-allow-origin: *\r\naccess-control-expose-headers: x-request-id"
    )
    status, lines = policy.preflight(b"https://a.example", b"POST", b"X-Anything, authorization")
    assert status == 204
    assert b"access-control-allow-origin: *\r\n" in lines
    assert b"access-control-allow-headers: x-anything, authorization\r\n" in lines
    assert b"access-control-max-age: 600\r\n" in lines


def test_with_credentials_the_origin_is_always_named() -> None:
    policy = CorsPolicy(credentials=True)
    for lines in (policy.response_lines(b"https://a.example"), policy.preflight(b"https://a.example", b"GET")[1]):
        assert b"access-control-allow-origin: https://a.example\r\n" in lines
        assert b"access-control-allow-credentials: true\r\n" in lines
        assert b"vary: Origin" in lines


@pytest.mark.parametrize(
    ("origin", "method", "headers"),
    [
        (b"https://b.example", b"POST", b""),
        (b"https://a.example.evil", b"POST", b""),
        (b"null", b"POST", b""),
        (b"https://a.example", b"DELETE", b""),
        (b"https://a.example", b"POST", b"x-other"),
    ],
)
def test_what_is_not_allowed_is_refused_without_lines_that_allow(origin: bytes, method: bytes, headers: bytes) -> None:
    policy = CorsPolicy(["https://A.example"], ["POST"], ["Authorization"])
    status, lines = policy.preflight(origin, method, headers)
    assert status == 403 and b"access-control" not in lines.replace(b"Access-Control", b"")
    assert policy.preflight(b"https://a.example", b"POST", b"authorization")[0] == 204


def test_nothing_in_an_origin_can_add_a_header() -> None:
    policy = CorsPolicy(credentials=True, methods=["*"])
    evil = b"https://a\r\nset-cookie: x"
    assert b"set-cookie" not in policy.response_lines(evil)
    assert policy.preflight(evil, b"GET")[0] == 403
    assert policy.preflight(b"https://a", b"GET\r\nset-cookie: x")[0] == 403
    assert policy.preflight(b"https://a", b"GET", b"a\nset-cookie: x")[0] == 403


def test_remembers_a_bounded_number_of_origins() -> None:
    policy = CorsPolicy(credentials=True)
    for number in range(1000):
        origin = b"https://%d.example" % number
        assert origin in policy.response_lines(origin)
    assert len(policy._lines) <= 256


def test_every_set_of_lines_is_complete() -> None:
    for policy in (CorsPolicy(), CorsPolicy(["https://a"]), CorsPolicy(credentials=True)):
        for lines in (policy.response_lines(b"https://a"), policy.response_lines(b"https://b"), policy.preflight(b"https://a", b"GET")[1]):
            assert lines.endswith(b"\r\n") and all(b": " in line for line in lines.split(b"\r\n")[:-1])
