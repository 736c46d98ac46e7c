"""What is known of the store's keys: sealed in a file, never older than it was, and followed by the key ring."""

from __future__ import annotations

import logging
import os
import string
import time
from pathlib import Path
from typing import Any

import pytest

from hx_gateway.access.keys import KeyRing, digest_of, hint_of, new_key
from hx_gateway.access.moments import moment_ms, span_ms, written
from hx_gateway.access.snapshot import COPY, FILE, Follower, Snapshot, StoredKey, Unreadable, latest, read, write
from hx_gateway.core.context import Identity, KeyLimits

NOW_MS = int(time.time() * 1000)


def stored(name: str, text: str, **fields: Any) -> StoredKey:
    return StoredKey(id=f"01{name}", name=name, hash=digest_of(text), hint=hint_of(text), **fields)


APP = stored(
    "app",
    "hx-app-text",
    models=("tiny",),
    namespaces=("docs",),
    limits=KeyLimits(requests_per_second=5.0),
    owner="Ada",
    team="red",
    tags=("a", "b"),
    admin=True,
    show_endpoints=False,
)


def test_a_new_key_is_long_random_and_fits_everywhere() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("hx-") and len(key) >= 35 and key.isascii()
        assert set(key) <= {*string.ascii_letters, *string.digits, "-", "_"}
        assert hint_of(key) == key[:8]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    snapshot = Snapshot("here", 7, (APP, stored("old", "x", revoked_ms=5, old_hash=digest_of("y"), old_until_ms=9)))
    assert write(tmp_path, snapshot) == snapshot
    assert read(tmp_path / FILE) == read(tmp_path / COPY) == latest(tmp_path) == snapshot
    assert {os.stat(tmp_path / name).st_mode & 0o777 for name in (FILE, COPY)} == {0o600}
    assert b"hx-app-text" not in (tmp_path / FILE).read_bytes()
    assert "hx-app-text" not in repr(snapshot) and digest_of("hx-app-text").hex() not in repr(snapshot)


def test_an_old_one_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    newer = write(tmp_path, Snapshot("here", 7, (APP,)))
    assert write(tmp_path, Snapshot("here", 6, ())) == newer == read(tmp_path / FILE)
    elsewhere = Snapshot("another store", 1, ())
    assert write(tmp_path, elsewhere) == elsewhere == read(tmp_path / FILE)
    follower = Follower()
    follower.take(newer)
    follower.take(Snapshot("here", 6, ()))
    assert follower.snapshot == newer


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "unsealed"])
def test_a_damaged_file_is_refused_and_the_last_good_one_stays(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    ring, follower = KeyRing([]), Follower()
    follower.adopt(ring, expected=True)
    write(tmp_path, Snapshot("here", 7, (APP,)))
    follower.open(tmp_path)
    assert ring.identify(b"hx-app-text") == APP.identity()
    whole = (tmp_path / FILE).read_bytes()
    at = whole.index(b"red")
    broken = {
        "cut": whole[:-20],
        "empty": b"",
        "flipped": whole[:at] + b"rad" + whole[at + 3 :],
        "foreign": b'{"keys": []}',
        "unsealed": b'{"sha256":"","snapshot":{"store":"","version":9}}',
    }[damage]
    (tmp_path / FILE).write_bytes(broken)
    with pytest.raises(Unreadable):
        read(tmp_path / FILE)
    with caplog.at_level(logging.ERROR):
        follower.look()
        follower.look()
    assert caplog.text.count("is refused") == 1 and "the keys known before stay" in caplog.text
    assert ring.identify(b"hx-app-text") == APP.identity()

    # So it is after a restart: the copy says the same.
    again, other = KeyRing([]), Follower()
    other.adopt(again, expected=True)
    other.open(tmp_path)
    assert again.identify(b"hx-app-text") == APP.identity() and not again.unread
    # And the next one written is taken.
    write(tmp_path, Snapshot("here", 8, ()))
    other.look()
    assert again.identify(b"hx-app-text") is None


def test_a_file_that_goes_away_takes_nothing_away(tmp_path: Path) -> None:
    ring, follower = KeyRing([]), Follower()
    follower.adopt(ring, expected=True)
    write(tmp_path, Snapshot("here", 1, (APP,)))
    follower.open(tmp_path)
    (tmp_path / FILE).unlink()
    follower.look()
    assert ring.identify(b"hx-app-text") is not None


def test_a_reload_keeps_what_is_known() -> None:
    follower = Follower()
    follower.adopt(KeyRing([]), expected=True)
    follower.take(Snapshot("here", 1, (APP,)))
    ring = KeyRing([])
    follower.adopt(ring, expected=True)
    assert ring.identify(b"hx-app-text") == APP.identity()


def test_who_a_stored_key_is() -> None:
    ring = KeyRing([])
    ring.take([APP])
    assert ring.identify(b"hx-app-text") == Identity(
        "app",
        True,
        frozenset({"tiny"}),
        False,
        KeyLimits(requests_per_second=5.0),
        "01app",
        "red",
        ("a", "b"),
        "Ada",
        frozenset({"docs"}),
    )
    assert stored("free", "x", limits=KeyLimits(burst=3)).identity().limits is None


def why(ring: KeyRing, token: bytes) -> tuple[str, int, str]:
    failure = ring.refusal(token)
    return failure.kind.code, failure.status, failure.message


def test_ends_of_keys_are_told_with_their_time_and_without_the_key() -> None:
    past, future = NOW_MS - 3_600_000, NOW_MS + 3_600_000
    ring = KeyRing([])
    ring.take(
        [
            stored("gone", "hx-gone", revoked_ms=past, expires_ms=future, old_hash=digest_of("hx-gone-before"), old_until_ms=future),
            stored("late", "hx-late", expires_ms=past),
            stored("soon", "hx-soon", expires_ms=future),
            stored("new", "hx-new", old_hash=digest_of("hx-new-before"), old_until_ms=past),
            stored("both", "hx-both", old_hash=digest_of("hx-both-before"), old_until_ms=future),
        ]
    )
    for token in (b"hx-gone", b"hx-gone-before", b"hx-late", b"hx-new-before"):
        assert ring.identify(token) is None
        code, status, message = why(ring, token)
        assert (code, status) == ("invalid_api_key", 401) and written(past) in message and token.decode() not in message
    assert "revoked" in why(ring, b"hx-gone")[2] and "revoked" in why(ring, b"hx-gone-before")[2]
    assert "expired" in why(ring, b"hx-late")[2] and "replaced" in why(ring, b"hx-new-before")[2]
    for token, name in ((b"hx-soon", "soon"), (b"hx-new", "new"), (b"hx-both", "both"), (b"hx-both-before", "both")):
        identity = ring.identify(token)
        assert identity is not None and identity.name == name


def test_a_key_ends_at_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hx_gateway.access.keys.time", lambda: NOW_MS / 1000)
    ring = KeyRing([])
    ring.take([stored("soon", "hx-soon", expires_ms=NOW_MS + 60_000)])
    assert ring.identify(b"hx-soon") is not None
    monkeypatch.setattr("hx_gateway.access.keys.time", lambda: (NOW_MS + 60_000) / 1000)
    assert ring.identify(b"hx-soon") is None
    assert "expired" in why(ring, b"hx-soon")[2]


def test_the_configuration_wins(caplog: pytest.LogCaptureFixture) -> None:
    own = Identity("app", models=frozenset({"own"}))
    ring = KeyRing([(digest_of("own-text"), own), (digest_of("shared-text"), Identity("first"))])
    assert ring.take([APP, stored("second", "shared-text", revoked_ms=1)]) == ["app"]
    assert ring.identify(b"own-text") is own and ring.identify(b"hx-app-text") is None
    identity = ring.identify(b"shared-text")
    assert identity is not None and identity.name == "first"
    follower = Follower()
    follower.take(Snapshot("here", 1, (APP,)))
    for _ in range(2):
        follower.adopt(ring, expected=False)
    assert caplog.text.count("the configuration has others of the same names: app") == 1


def test_stored_keys_make_keys_needed_and_so_do_those_nobody_has_read() -> None:
    ring = KeyRing([], required=False)
    assert not ring.required
    ring.take([stored("gone", "hx-gone", revoked_ms=1)])
    assert ring.required, "the last key that is revoked does not open the door"
    ring.take([], unread=True)
    assert ring.required and why(ring, b"")[:2] == ("store_unavailable", 503)
    ring.take([])
    assert not ring.required


def test_what_cannot_be_told_is_no_401() -> None:
    ring = KeyRing([(digest_of("own"), Identity("own"))])
    ring.take([], unread=True)
    assert ring.identify(b"own") is not None
    code, status, message = why(ring, b"hx-perhaps-stored")
    assert (code, status) == ("store_unavailable", 503) and "hx-perhaps" not in message
    assert (ring.refusal(b"hx-perhaps-stored").retry_after_s or 0) > 0
    assert why(ring, b"")[:2] == ("invalid_api_key", 401)
    ring.take([])
    assert why(ring, b"hx-perhaps-stored")[:2] == ("invalid_api_key", 401)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90d", 7_776_000_000), ("12h", 43_200_000), ("30m", 1_800_000), ("1.5s", 1500), ("2w", 1_209_600_000), ("7", 7000), ("0", 0)],
)
def test_spans(text: str, ms: int) -> None:
    assert span_ms(text) == ms
    assert moment_ms(text, 1000) == ms + 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2030-01-31", "2030-01-31T00:00:00Z"),
        ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
        ("2030-01-31T12:00:00+02:00", "2030-01-31T10:00:00Z"),
        ("9" * 30 + "d", "9999-12-31T23:59:59Z"),
    ],
)
def test_moments(text: str, said: str) -> None:
    assert written(moment_ms(text, 0)) == said


@pytest.mark.parametrize("text", ["", "soon", "-3d", "3y", "1e9d", "2030-13-01", "d"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        moment_ms(text, 0)
