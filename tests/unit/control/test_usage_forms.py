"""Parameters of reports read strictly, places in the log there and back, and cells that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.control.usage_forms import _moment, csv_writer, cursor_of, own, place_of
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.core.identifiers import RequestIds, new_id, time_of
from hx_gateway.ledger.reports import Filter, Place


@given(st.integers(0, (1 << 62) - 1), st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
def test_a_cursor_is_the_place_it_was_made_of(at_ms: int, id: str) -> None:
    cursor = cursor_of(Place(at_ms, id))
    assert cursor is not None and place_of(cursor) == Place(at_ms, id)


@given(st.text())
def test_any_other_cursor_is_refused_or_a_place(cursor: str) -> None:
    try:
        place = place_of(cursor)
    except Failure as failure:
        assert failure.param == "cursor" and failure.kind is errors.INVALID_VALUE
    else:
        assert place is None or 0 <= place.at_ms < 1 << 62
    assert cursor_of(None) is None


def test_moments() -> None:
    assert _moment("", "from") is None
    assert _moment("1700000000", "from") == 1_700_000_000_000 == _moment("1700000000000", "from")
    assert _moment("2023-11-14T22:13:20Z", "to") == _moment("2023-11-14T22:13:20", "to") == 1_700_000_000_000
    week = _moment("7d", "from")
    assert week is not None and abs(week - (time.time() - 7 * 86400) * 1000) < 60_000
    for text in ("soon", "7 fortnights", "2023-13-01", "-5", "1e9", "9" * 64 + "x"):
        with pytest.raises(Failure, match="from: should be") as refused:
            _moment(text, "from")
        assert refused.value.param == "from"


@given(st.text())
def test_a_cell_never_begins_a_formula(text: str) -> None:
    lines = csv_writer(["a", "b"])([{"a": text, "b": -1.5}])
    _, row = csv.reader(io.StringIO(lines, newline=""))
    assert row[0] in (text, f"'{text}") and row[1] == "-1.5"
    assert not row[0].strip(" \n").startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_key_asks_for_itself_only() -> None:
    anna = Identity("anna", show_endpoints=False)
    assert own(Filter(team="t"), anna) == Filter("anna", "t") == own(Filter("anna", "t"), anna)
    for asked in (Filter("bert"), Filter(endpoint="one")):
        with pytest.raises(Failure) as refused:
            own(asked, anna)
        assert refused.value.kind is errors.ADMIN_ONLY


def test_ids_tell_their_time() -> None:
    assert time_of(new_id(1_700_000_000.5)) == 1_700_000_000_500 == time_of(RequestIds(lambda: 1_700_000_000.5)())
    for text in ("", "x", "0" * 25, "0" * 27, "U" * 26, "Z" * 26, "é" * 26):
        assert time_of(text) == -1
