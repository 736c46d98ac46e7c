"""The fleet as several workers see it, also while some of them are of another version."""

from __future__ import annotations

import copy

from tests.unit.control.house import House

from hx_gateway.control.fleet import together, told


def test_a_sibling_of_another_version_is_counted_with_what_it_tells() -> None:
    own = told(House())  # type: ignore[arg-type]
    name = next(iter(own["endpoints"]))
    other = copy.deepcopy(own)
    seen = other["endpoints"][name]
    seen |= {"checked_ms": 1_800_000_000_000, "healthy": False, "in_flight": 2, "of_a_later_version": 1}
    del seen["sleeping"], seen["breaker"]["retry_after_s"]
    seen["breaker"]["state"] = "open"
    seen["models"][0] = {"model": seen["models"][0]["model"], "in_flight": 2}
    oldest = {"endpoints": {name: {"in_flight": 3}}}
    found = together([own, other, oldest, {}])
    one, mine = found["endpoints"][name], own["endpoints"][name]
    assert set(one) == {*mine, "workers", "state"} and (one["state"], one["workers"], one["in_flight"]) == ("down", 3, 5)
    assert one["sleeping"] == mine["sleeping"] and one["breaker"] == {**mine["breaker"], "state": "open", "in_workers": 1}
    assert one["models"][0]["in_flight"] == 2 and one["models"][0]["breaker"] == {**mine["models"][0]["breaker"], "in_workers": 1}
    assert found["waiting"] == {}
