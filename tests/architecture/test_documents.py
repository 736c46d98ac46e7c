"""The documents: links resolve, errors are described, the changelog keeps its form."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT, shown, tracked

from hx_gateway.cli.main import COMMANDS
from hx_gateway.config.load import load_text
from hx_gateway.core import errors

DOCUMENTS = [path for path in tracked() if path.suffix == ".md" and (path.parent == ROOT or ROOT / "docs" in path.parents)]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
VERSION = re.compile(r"^## \[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d{2}-\d{2}))?$")
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """The fragment of every heading, as the usual renderers make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_relative_links_resolve(path: Path) -> None:
    for groups in LINK.findall(prose(path)):
        target = next(part for part in groups if part)
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{shown(path)}: {target} leads nowhere"
        assert place.is_relative_to(ROOT), f"{shown(path)}: {target} leads out of the repository"
        if fragment and place.suffix == ".md":
            assert fragment in anchors(place), f"{shown(path)}: {target}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_a_test_that_a_page_names_is_there(path: Path) -> None:
    for name, file in re.findall(r"\[(test_\w+)\]\(([^)]+\.py)\)", path.read_text(encoding="utf-8")):
        tests = (path.parent / file).read_text(encoding="utf-8")
        assert re.search(rf"def {name}\(", tests), f"{shown(path)}: {file} has no {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_a_document_opens_with_its_title(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# "), f"{shown(path)} has no title"


def yaml_examples() -> list[tuple[str, str]]:
    pages = ((path, path.read_text(encoding="utf-8")) for path in DOCUMENTS if "reference" not in path.parts)
    return [
        (shown(path), block) for path, content in pages for block in re.findall(r"^```yaml\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "example"), yaml_examples())
def test_every_example_of_a_configuration_loads(page: str, example: str) -> None:
    loaded = load_text(example, page, {name: f"hx-{secrets.token_urlsafe(24)}" for name in ("MASTER_KEY", "JUDGE_KEY")})
    assert (loaded.blockers, loaded.unused) == ((), ())


def test_there_are_examples() -> None:
    assert len(yaml_examples()) >= 2


def test_every_command_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = {name for name, _, _ in COMMANDS}
    for path in DOCUMENTS:
        content = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", content, re.MULTILINE):
            assert target in targets, f"{shown(path)}: there is no make {target}"
        for command in re.findall(r"(?:^|[`/])hx-gateway ([a-z]+(?:-[a-z]+)*)", content, re.MULTILINE):
            assert command in commands, f"{shown(path)}: there is no hx-gateway {command}"


def test_every_page_of_the_documentation_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        targets = (next(part for part in groups if part).partition("#")[0] for groups in LINK.findall(prose(page)))
        waiting += [(page.parent / target).resolve() for target in targets if target and ":" not in target]
    assert sorted(shown(path) for path in DOCUMENTS if path not in reached) == []


def test_every_error_is_described() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    assert [kind.code for kind in errors.CATALOGUE if f"`{kind.code}`" not in page] == [], "run `make docs`"


def test_the_changelog_keeps_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    assert any("Keep a Changelog" in line for line in lines[:8])
    versions = []
    for number, line in enumerate(lines, 1):
        if line.startswith("## "):
            match = VERSION.match(line)
            assert match, f"CHANGELOG.md:{number}: {line!r} is not `## [1.2.3] - 2026-01-31` or `## [Unreleased]`"
            assert (match[1] == "Unreleased") == (match[2] is None), f"CHANGELOG.md:{number}: a version has a date, Unreleased has none"
            versions.append(match)
        elif line.startswith("### "):
            assert line[4:] in CHANGES, f"CHANGELOG.md:{number}: {line[4:]!r} is none of {sorted(CHANGES)}"
    assert versions, "no version at all"
    assert versions[0][1] == "Unreleased"
    dates = [match[2] for match in versions[1:]]
    assert dates == sorted(dates, reverse=True), "newest first"
    numbers = [tuple(map(int, match[1].split("."))) for match in versions[1:]]
    assert numbers == sorted(set(numbers), reverse=True), "newest first, each once"


def test_every_decision_page_has_the_same_parts() -> None:
    pages = sorted((ROOT / "docs" / "explanation" / "decisions").glob("[0-9]*.md"))
    assert pages
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1)), "numbered without gaps"
    for page in pages:
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Question", "Decision", "Why", "What it costs", "When to look again"], shown(page)
