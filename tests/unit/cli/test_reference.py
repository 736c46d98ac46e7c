"""The generated pages: complete, well-formed, and fresh."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.cli.reference import configuration_page, errors_page, pages, stale
from hx_gateway.config.environment import NAMES
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.shape import dotted, settings
from hx_gateway.core.errors import CATALOGUE

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_pages_in_the_repository_are_fresh() -> None:
    assert stale(DOCS) == [], "run `make docs`"


def test_every_setting_is_on_the_page_with_its_sentence() -> None:
    page = configuration_page()
    for path, declared, _ in settings():
        if len(path) > 1:
            assert f"| `{dotted(path)}` | " in page
        assert declared.description is not None
        assert declared.description in page
    assert all(f"## {section}\n" in page for section in GatewayConfig.model_fields)
    assert all(f"`{variable}`" in page for variable, _ in NAMES)


def test_types_ranges_and_defaults_are_on_the_page() -> None:
    lines = configuration_page().splitlines()

    def row(setting: str) -> list[str]:
        (line,) = [line for line in lines if line.startswith(f"| `{setting}` |")]
        return [cell.strip() for cell in line.strip("|").split("|")]

    assert row("service.port")[1:4] == ["whole number (at least 0, at most 65535)", "`8000`", "`API_GATEWAY_PORT`, `HX__SERVICE__PORT`"]
    assert row("performance.memory_limit_gb")[1:3] == ["number (more than 0)", "none"]
    assert row("keys.master_key")[1:4] == ["secret", "none", "`LITELLM_MASTER_KEY`, `MASTER_KEY`, `HX__KEYS__MASTER_KEY`"]
    assert row("models.<name>.endpoint")[3] == "`<MODEL>_ENDPOINT`, `HX__MODELS__<NAME>__ENDPOINT`"
    assert row("endpoints.<name>.url")[2] == "*needed*"
    assert row("monitoring.log_format")[1] == "`console`, `json`"
    assert "not used by this release" in row("embeddings.gateway_base")[4]


def test_tables_are_well_formed() -> None:
    for page in pages().values():
        width = 0
        for line in page.splitlines():
            cells = line.replace("\\|", "").count("|") if line.startswith("|") else 0
            assert not cells or not width or cells == width, line
            width = cells


def test_every_error_is_on_its_page() -> None:
    page = errors_page()
    for kind in CATALOGUE:
        assert f"| `{kind.code}` | {kind.status} | `{kind.type}` | {kind.blame.value} | " in page
        assert kind.about in page


def test_writing_and_checking(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(application(), ["docs", "--directory", str(tmp_path), *words])
        return done.exit_code, done.output

    code, output = run("--check")
    assert code == 1
    assert "configuration.md: out of date" in output
    assert run("--write")[0] == 0
    assert run("--check") == (0, "")
    (tmp_path / "reference" / "errors.md").write_text("old")
    assert run()[0] == 1
    assert stale(tmp_path) == ["reference/errors.md"]
    assert run("--directory", str(tmp_path / "nowhere"))[0] == 2


def test_the_schema_for_editors() -> None:
    done = CliRunner().invoke(application(), ["schema"])
    assert done.exit_code == 0
    schema = json.loads(done.stdout)
    assert set(schema["properties"]) == set(GatewayConfig.model_fields)
    assert schema["additionalProperties"] is False
    port = schema["$defs"]["ServiceSettings"]["properties"]["port"]
    assert (port["default"], port["maximum"], port["type"]) == (8000, 65535, "integer")
    assert all("description" in field for section in schema["$defs"].values() for field in section["properties"].values())
