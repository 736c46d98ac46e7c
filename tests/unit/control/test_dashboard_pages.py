"""What pages of the dashboard make of data: settings without secrets, entries of the audit log in words, lines of a plot."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.config.load import load_text
from hx_gateway.control.dashboard.config import shown, values
from hx_gateway.control.dashboard.keys import told
from hx_gateway.control.dashboard.usage import lines

SECRET = "secret-of-somebody-1234567890"
CONFIG = f"""
endpoints: {{one: {{url: "http://192.0.2.1:1", api_key: {SECRET}, headers: {{x-team: {SECRET}}}}}}}
models: {{"phi-3.5": {{endpoint: one, weight: 2}}}}
keys: {{api_keys: [{{name: a, key: "env:KEY_OF_A", tags: [x, y]}}]}}
"""


def test_settings_are_flat_and_secrets_do_not_show_themselves() -> None:
    config = load_text(CONFIG, "file", {"KEY_OF_A": f"{SECRET}2"}).config
    found = dict(values(config))
    assert found['models."phi-3.5".weight'] == (2.0, False)
    assert found['models."phi-3.5".max_concurrent'][1], "what is left out is a default"
    assert found["service.port"][1]
    text = {path: shown(value) for path, (value, _) in found.items()}
    assert text["keys.api_keys[0].key"] == "env:KEY_OF_A"
    assert text["keys.api_keys[0].tags"] == "x, y"
    assert text["endpoints.one.api_key"] == "********"
    assert not [path for path, words in text.items() if SECRET in words]


def test_another_secret_is_another_value_though_it_looks_the_same() -> None:
    one, two = (dict(values(load_text(CONFIG, "file", {"KEY_OF_A": key}).config)) for key in ("hx-one-1234567890", "hx-two-1234567890"))
    assert [path for path in one if one[path] != two[path]] == ["keys.api_keys[0].key"]


def test_an_entry_of_the_audit_log_in_words() -> None:
    detail: dict[str, Any] = {
        "id": "01", "hint": "hx-abcde", "team": "build", "admin": True, "models": ["a", "b"], "tags": [], "expires_ms": 1_700_000_000_000,
        "limits": {"requests_per_second": 2.5, "day_tokens": 1_000_000, "burst": 0},
    }  # fmt: skip
    assert told([{"action": "key.create", "detail": detail}])[0]["said"] == (
        "team build; admin; models: a, b; expires 2023-11-14 22:13:20 UTC; requests per second 2.5; day tokens 1000000"
    )


@pytest.mark.parametrize(("groups", "by", "titles"), [(1, "key", 1), (3, "key", 3), (9, "key", 6), (9, "", 1)])
def test_lines_of_a_plot_add_up_to_the_whole(groups: int, by: str, titles: int) -> None:
    names = [f"key-{number}" for number in range(groups)]
    times = [0, 3600, 7200]
    row = {"at": "1970-01-01T01:00:00Z", "prompt_tokens": 1, "completion_tokens": 2}
    later = {**row, "at": "1970-01-01T03:00:00Z"}  # began after the page was asked for
    plot = lines([{**row, "key": name} for name in names] + [{**later, "key": "key-0"}], times, by, "tokens", names)
    assert sum(map(sum, plot["columns"])) == 3 * groups == sum(column[1] for column in plot["columns"])
    assert plot["names"] == (["all"] if not by else [*names[:5], "others"] if groups == 9 else names)
    assert len(plot["names"]) == titles


def test_who_has_no_team_is_a_line_of_its_own() -> None:
    plot = lines([{"at": "1970-01-01T00:00:00Z", "team": "", "cost": 2.5}], [0, 86_400], "team", "cost", ["", "build"])
    assert (plot["names"], plot["columns"]) == (["no team", "build"], [[2.5, 0.0], [0.0, 0.0]])
