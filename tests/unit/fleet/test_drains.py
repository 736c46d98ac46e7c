"""Which endpoints are out of service: shared through a file, applied to live objects, kept where it cannot be read."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from hx_gateway.fleet.drains import FILE, Drain, Drains
from hx_gateway.fleet.endpoint import Address, Endpoint


def endpoint(name: str) -> Endpoint:
    return Endpoint(name, Address("http", "127.0.0.1", 9))


def followed(folder: Path | None) -> Drains:
    drains = Drains()
    drains.open(folder)
    return drains


def test_what_one_worker_drains_another_hears_of(tmp_path: Path) -> None:
    here, there = followed(tmp_path), followed(tmp_path)
    one, other = endpoint("one"), endpoint("other")
    assert here.change("one", Drain("ops", 1_700_000_000_000))
    there.look([one, other])
    assert (one.cool_until_s, other.cool_until_s) == (inf, 0.0)
    assert there.drained["one"].by == "ops"
    assert there.change("one", None)
    here.look([one, other])
    there.look([one, other])
    assert one.cool_until_s == 0.0


def test_it_is_still_out_of_service_after_a_restart(tmp_path: Path) -> None:
    followed(tmp_path).change("one", Drain("ops", 1))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600 and {path.name for path in tmp_path.iterdir()} == {FILE, "drained.lock"}
    one = endpoint("one")
    followed(tmp_path).look([one])
    assert one.cool_until_s == inf


def test_asking_twice_changes_nothing(tmp_path: Path) -> None:
    drains = followed(tmp_path)
    assert [drains.change("one", Drain("a", 1)), drains.change("one", Drain("b", 2))] == [True, False]
    assert drains.drained["one"].by == "a"
    assert [drains.change("one", None), drains.change("one", None)] == [True, False]


def test_what_two_workers_drain_at_once_is_all_kept(tmp_path: Path) -> None:
    here, there = followed(tmp_path), followed(tmp_path)
    here.change("one", Drain("a", 1))
    there.change("other", Drain("b", 2))
    assert set(followed_names(tmp_path)) == {"one", "other"}


def followed_names(folder: Path) -> list[str]:
    drains = followed(folder)
    drains.look(())
    return list(drains.drained)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"one": {"who": 1}}'])
def test_a_broken_file_changes_nothing(tmp_path: Path, content: str) -> None:
    drains, one = followed(tmp_path), endpoint("one")
    drains.change("one", Drain("a", 1))
    drains.look([one])
    (tmp_path / FILE).write_text(content)
    drains.look([one])
    assert one.cool_until_s == inf


def test_without_a_state_directory_it_holds_for_this_process() -> None:
    drains, one = followed(None), endpoint("one")
    assert not drains.shared
    drains.change("one", Drain("a", 1))
    drains.look([one])
    assert one.cool_until_s == inf
    drains.change("one", None)
    drains.look([one])
    assert one.cool_until_s == 0.0


def test_the_file_is_for_the_gateway_alone(tmp_path: Path) -> None:
    followed(tmp_path).change("one", Drain("a", 1))
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
