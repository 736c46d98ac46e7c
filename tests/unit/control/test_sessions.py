"""Sessions of the dashboard: random, shared, ended, and few wrong keys a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hx_gateway.control.dashboard import sessions as module
from hx_gateway.control.dashboard.sessions import FOLDER, Sessions, TooManyAttempts

KEY = "ab" * 32


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "file" else None


def test_a_session_is_found_by_its_token_and_by_nothing_else(folder: Path | None) -> None:
    sessions = Sessions(folder)
    token, kept = sessions.open(KEY)
    assert sessions.find(token) == kept
    assert kept.key == KEY
    assert sessions.find(token[:-1]) is None
    assert sessions.find("") is None
    assert sessions.find("../attempts") is None


def test_every_worker_knows_it_and_its_end(tmp_path: Path) -> None:
    here, there = Sessions(tmp_path), Sessions(tmp_path)
    token, _ = here.open(KEY)
    assert there.find(token) is not None
    there.close(token)
    assert here.find(token) is None


def test_what_is_kept_is_for_the_gateway_alone_and_tells_no_token(tmp_path: Path) -> None:
    token, _ = Sessions(tmp_path).open(KEY)
    files = list((tmp_path / FOLDER).iterdir())
    assert [file.stat().st_mode & 0o077 for file in [*files, tmp_path / FOLDER]] == [0] * (len(files) + 1)
    assert not any(token in file.name + file.read_text() for file in files)


def test_it_ends_by_itself(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LASTS_S", -1)
    sessions = Sessions(folder)
    token, _ = sessions.open(KEY)
    assert sessions.find(token) is None


def test_there_are_never_more_than_so_many(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    sessions = Sessions(folder)
    tokens = [sessions.open(KEY)[0] for _ in range(5)]
    assert [sessions.find(token) is not None for token in tokens] == [False, False, True, True, True]


def test_a_damaged_one_is_none(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    token, kept = sessions.open(KEY)
    file = next((tmp_path / FOLDER).glob("s-*"))
    file.write_text(json.dumps({"key": kept.key}))
    assert sessions.find(token) is None


def test_wrong_keys_are_few_for_an_address_whichever_worker_hears_them(tmp_path: Path) -> None:
    here, there = Sessions(tmp_path), Sessions(tmp_path)
    for number in range(10):
        sessions = (here, there)[number % 2]
        sessions.attempt("192.0.2.1")
        sessions.failed("192.0.2.1")
    with pytest.raises(TooManyAttempts) as refused:
        there.attempt("192.0.2.1")
    assert 0 < refused.value.wait_s <= 60
    here.attempt("192.0.2.2")  # others may


def test_addresses_of_one_household_are_one(folder: Path | None) -> None:
    sessions = Sessions(folder)
    for number in range(10):
        sessions.failed(f"2001:db8:0:1::{number}")
    with pytest.raises(TooManyAttempts):
        sessions.attempt("2001:db8:0:1:ffff::1")
    sessions.attempt("2001:db8:0:2::1")
    for _ in range(10):
        sessions.failed("::ffff:192.0.2.7")
    with pytest.raises(TooManyAttempts):
        sessions.attempt("192.0.2.7")


def test_many_guessers_slow_each_other_down_and_lock_nobody_out(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 400)
    monkeypatch.setattr(module, "_EACH_S", 0.01)
    sessions = Sessions(folder)
    delays_s = [sessions.failed(f"192.0.2.{number % 250}") for number in range(600)]
    assert delays_s[:100] == [0.0] * 100
    assert 0.0 < delays_s[120] < delays_s[190] <= max(delays_s) <= 2.0
    sessions.attempt("198.51.100.1")
    assert sessions._read("attempts").count(b"\n") <= 400, "what is remembered is bounded"


def test_what_is_remembered_of_wrong_keys_may_be_damaged(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    sessions.failed("192.0.2.1")
    (tmp_path / FOLDER / "attempts").write_bytes(b"\xff no line\n")
    for _ in range(10):
        sessions.attempt("192.0.2.1")
        sessions.failed("192.0.2.1")
    with pytest.raises(TooManyAttempts):
        sessions.attempt("192.0.2.1")


def test_wrong_keys_are_forgotten_after_a_minute(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(folder)
    for _ in range(10):
        sessions.failed("192.0.2.1")
    monkeypatch.setattr(module, "_FAILURES_S", 0.0)
    sessions.attempt("192.0.2.1")
    sessions.failed("192.0.2.1")
    assert sessions._read("attempts").count(b"\n") == 1
