"""What is shipped for Prometheus and Grafana: written out whole, and naming nothing that does not exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.cli.monitoring import FILES, SHIPPED
from hx_gateway.telemetry.families import FAMILIES

RUNBOOKS = Path(__file__).parents[3] / "docs" / "how-to" / "runbooks.md"
METRIC = re.compile(r"\b((?:\w+:)?(?:hx_gateway|gen_ai)_[a-z_]+(?::\w+)?)")


def known() -> dict[str, tuple[str, ...]]:
    """Every series that a scrape shows, with its labels."""
    found: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES.values():
        if family.kind == "histogram":
            found |= {f"{family.name}_{end}": family.labels for end in ("count", "sum")}
            found[f"{family.name}_bucket"] = (*family.labels, "le")
        else:
            found[family.name + ("_total" if family.kind == "counter" else "")] = family.labels
    return found


def rules(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load(SHIPPED.joinpath(name).read_text())["groups"][0]["rules"]  # type: ignore[no-any-return]


def expressions() -> list[str]:
    """Every expression that is shipped."""
    board = json.loads(SHIPPED.joinpath("grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    queries += [one["expr"] for one in board["annotations"]["list"]] + [one["query"] for one in board["templating"]["list"]]
    return queries + [rule["expr"] for name in ("recording-rules.yml", "alert-rules.yml") for rule in rules(name)]


def test_every_metric_that_is_asked_for_exists() -> None:
    recorded = {rule["record"] for rule in rules("recording-rules.yml")}
    asked = {name for expression in expressions() for name in METRIC.findall(re.sub(r'"[^"]*"', '""', expression))}
    assert len(asked) > 40
    assert asked - recorded - known().keys() == set()


def test_every_label_that_is_asked_for_exists() -> None:
    labels = known()
    for expression in expressions():
        for name, selected in re.findall(r"\b((?:hx_gateway|gen_ai)_[a-z_]+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selected)):
                assert label in (*labels[name], "instance", "job"), f"{name} has no label {label}: {expression}"


def test_values_of_fixed_labels_exist() -> None:
    for expression in expressions():
        for blames in re.findall(r'blame=~?"([^"]*)"', expression):
            assert set(blames.split("|")) <= {"client", "endpoint", "busy", "fleet", "gateway", "nobody"}


def test_each_alert_has_its_runbook() -> None:
    sections = {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)}
    alerts = rules("alert-rules.yml")
    assert {rule["alert"].lower() for rule in alerts} == sections
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/how-to/runbooks.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_export_writes_everything_and_overwrites_nothing(tmp_path: Path) -> None:
    run = CliRunner()
    folder = tmp_path / "new" / "folder"
    assert run.invoke(application(), ["monitoring", "export", str(folder)]).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    (folder / "alert-rules.yml").write_text("mine")
    again = run.invoke(application(), ["monitoring", "export", str(folder)])
    assert again.exit_code == 1 and "alert-rules.yml: differs" in again.output
    assert (folder / "alert-rules.yml").read_text() == "mine"
    assert run.invoke(application(), ["monitoring", "export", str(folder), "--force"]).exit_code == 0
    assert (folder / "alert-rules.yml").read_text() != "mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(application(), ["monitoring", "export", str(tmp_path / place)])
    assert result.exit_code == 1 and "hx-gateway: " in result.output and "Traceback" not in result.output
