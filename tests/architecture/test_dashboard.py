"""The dashboard is documented page by page, and what it brings along of others is what it says."""

from __future__ import annotations

import re
from hashlib import sha256

from tests.architecture.sources import ROOT, SOURCES

from hx_gateway.control.dashboard import PAGES

HERE = SOURCES / "control" / "dashboard"


def test_every_page_is_described() -> None:
    page = (ROOT / "docs" / "how-to" / "dashboard.md").read_text(encoding="utf-8")
    assert [one.title for one in PAGES if f"- **{one.title}**:" not in page] == []


def test_files_of_others_are_unchanged_and_have_their_licence() -> None:
    readme = (HERE / "static" / "vendor" / "README.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    there = {path.name for path in (HERE / "static" / "vendor").iterdir() if path.suffix in (".js", ".css")}
    assert named.keys() == there
    for name, digest in named.items():
        assert sha256((HERE / "static" / "vendor" / name).read_bytes()).hexdigest() == digest, name
        assert (HERE / "static" / "vendor" / f"{name.partition('.')[0]}.LICENSE").is_file()


def test_templates_keep_to_the_policy() -> None:
    for path in (HERE / "templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|hx-on|<script(?![^>]*\ssrc=)|\|\s*safe\b|//(?!\s)[a-z]+\.", text), path.name


def test_scripts_fetch_nothing_from_elsewhere() -> None:
    for path in (HERE / "static").glob("*.*"):
        if path.suffix in (".js", ".css"):
            assert not re.search(r"https?://|eval\(|new Function|@import", path.read_text(encoding="utf-8")), path.name
