"""The YAML reader: right values, right places, bounded, and never an exception."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hx_gateway.config import located
from hx_gateway.config.located import Place, parse


def message(text: str) -> str:
    faults = parse(text).faults
    assert faults, "no fault found"
    return faults[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8000", 8000),
        ("-3", -3),
        ("33_554_432", 33_554_432),
        ("0x10", 16),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("no", "no"),  # a country, not a truth value
        ("on", "on"),
        ("010", "010"),  # octal to some, ten to others
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("9" * 5000, "9" * 5000),
        ('"8000"', "8000"),
        ("'null'", "null"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
    ],
)
def test_scalars(text: str, value: object) -> None:
    document = parse(f"a: {text}")
    assert document.faults == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(parse("a: .nan").data["a"])


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse("1.5: a\nno: b\nnull: c\n7: d").data == {"1.5": "a", "no": "b", "null": "c", "7": "d"}


def test_places_of_keys_values_and_items() -> None:
    document = parse("a:\n  b: [x, y]\n  c: 1\n")
    assert document.keys[("a",)] == Place(1, 1)
    assert document.keys[("a", "c")] == Place(3, 3)
    assert document.values[("a", "b")] == Place(2, 6)
    assert document.values[("a", "b", 1)] == Place(2, 10)


def test_aliases_are_expanded_and_placed_where_their_anchor_is() -> None:
    document = parse("a: &x {n: 1}\nb: *x\n")
    assert document.data == {"a": {"n": 1}, "b": {"n": 1}}
    assert document.data["a"] is not document.data["b"]
    assert document.keys[("b", "n")].line == 1


def test_merge_keys_give_way_to_what_is_written_out() -> None:
    text = "base: &base {x: 1, y: {z: 2}}\nmore: &more {x: 5, w: 6}\none: {<<: *base, x: 3}\ntwo: {<<: [*base, *more]}\n"
    document = parse(text)
    assert document.faults == []
    assert document.data["one"] == {"x": 3, "y": {"z": 2}}
    assert document.data["two"] == {"x": 1, "y": {"z": 2}, "w": 6}
    assert document.keys[("one", "x")].line == 3
    assert document.keys[("one", "y", "z")].line == 1


def test_a_quoted_merge_key_is_an_ordinary_name() -> None:
    assert parse("'<<': 1").data == {"<<": 1}


def test_every_duplicate_is_reported_with_the_line_of_the_first() -> None:
    document = parse("a: 1\nb: 2\na: 3\nb: 4\n")
    assert [(fault.place.line, fault.path) for fault in document.faults] == [(3, ("a",)), (4, ("b",))]
    assert "line 1" in document.faults[0].message
    assert document.data == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 'x", "YAML syntax"),
        ("a: b: c", "mapping values are not allowed"),
        ("a:\n\tb: 1", "spaces, not tabs"),
        ("a: *nowhere", "no anchor"),
        ("&a [*a]", "inside what it stands for"),
        ("---\na: 1\n---\nb: 1", "second document"),
        ("{[a]: 1}", "plain text"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !thing x", "tag"),
        ("a: !!int x", "tag"),
        ("a: !!map x", "tag"),
        ("a: {<<: 1}", "merge"),
        ("a: \x07", "does not allow"),
        ("a: \ud800", "Unicode"),
        ("[" * 5000, "deep"),
        ("- " * 5000 + "x", "deep"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    assert words in message(text)


def test_alias_bombs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "aliases" in message("\n".join(lines))


def test_merge_bombs_are_refused() -> None:
    wide = ["a0: &a0 {}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    assert "aliases" in message("\n".join(wide))
    deep = ["a0: &a0 {}"] + [f"a{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 3000)]
    assert "deep" in message("\n".join(deep))


def test_the_size_is_bounded() -> None:
    assert "4 MiB" in message("#" * (located.MAX_CHARACTERS + 1))


def test_syntax_errors_do_not_quote_the_text() -> None:
    for text in ("key: *sk-very-secret-value", "key: 'sk-very-secret-value", "key: !sk-very-secret-value x", "a: 1\nsk-very-secret-value"):
        assert "secret" not in message(text)


def test_without_libyaml_it_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {n: 1}\nb: [*x, 'c', 2.5]\nd: {<<: *x}\n"
    expected = parse(text)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    again = parse(text)
    assert (again.data, again.keys) == (expected.data, expected.keys)
    assert "YAML syntax" in message("a: 'sk-very-secret-value")
    assert "secret" not in message("a: *sk-very-secret-value")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=10), inside, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=10), plain, max_size=5))
def test_what_was_written_is_read(data: dict[str, object]) -> None:
    # Every YAML 1.2 reader must read JSON, so this needs no writer of our own; raw control characters are not YAML.
    text = yaml.safe_dump(data, default_flow_style=True, default_style='"', allow_unicode=False)
    document = parse(text)
    assert document.faults == []
    assert document.data == yaml.safe_load(text)


@given(st.text(max_size=200) | st.text(alphabet="abc:{}[]&*<>!|-?'\"%@`#, \n\t01.~", max_size=80))
@example("? : :")
@example("{? a}")
@example("&a *a")
@example("*a : &a b")
@example("a: !!null x")
def test_no_text_makes_it_raise(text: str) -> None:
    document = parse(text)
    assert document.faults or document.data is not None or not text.strip() or document.values == {} or document.values[()]
