"""An answer can match a remembered head only where one is remembered."""

from __future__ import annotations

from hx_gateway.core.heads import NEVER, around_length


def test_nothing_short_matches_where_no_head_is_remembered() -> None:
    for data in (b"\0", b"\x003\0", b"\0\0", b"\x00\x004\0"):
        last = data.find(b"\r", len(NEVER), len(NEVER) + 11)
        assert not (data.startswith(NEVER) and data.startswith(NEVER, last) and data[len(NEVER) : last].isdigit())


def test_a_head_is_split_around_its_length_only_where_the_body_is_that_long() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\n"
    assert around_length(head + b"ok") == (b"HTTP/1.1 200 OK\r\ncontent-length: ", b"\r\nx: y\r\n\r\n")
    assert around_length(head + b"o") is None
    assert around_length(head + b"ok?") is None
    assert around_length(b"HTTP/1.1 200 OK\r\n\r\n") is None
