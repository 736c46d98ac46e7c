"""Reads documents from files and folders: text, Markdown, reStructuredText, HTML, and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

MARKDOWN, HTML, LINES = (".md", ".markdown"), (".html", ".htm"), (".jsonl", ".ndjson")
KNOWN = (".txt", ".text", ".rst", *MARKDOWN, *HTML, *LINES)
"""Endings of the files that are looked for in folders; a file that is named is read as text whatever it is called."""

_TITLES, _TEXTS, _IDS = ("title",), ("text", "contents", "content", "body"), ("id", "_id", "doc_id")
_BLOCKS = frozenset("p div section article header footer main aside ul ol table tr blockquote figure form dl dt dd br hr pre".split())
_SILENT = frozenset("script style template noscript svg head".split())
_BLANK_LINES = re.compile(r"\n[ \t\r\n]*\n")


@dataclass(frozen=True, slots=True)
class Source:
    """One document as it was read.

    Args:
        id: The same for the same document every time: its path below the folder's own name, or its own id in a file of JSON lines.
        place: Where it is, for people.
        text: The whole text; empty where it could not be read.
        format: How it is to be cut.
        metadata: What filters can look at.
        error: Why it could not be read; empty where it could.
    """

    id: str
    place: str
    text: str = ""
    format: Literal["text", "markdown"] = "text"
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Every file to read with its id: those named, and in folders those of a known kind, hidden ones left out.

    Raises:
        FileNotFoundError: There is nothing of that name.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            root = path.resolve()
            for file in sorted(root.rglob("*")):
                inner = file.relative_to(root)
                if file.suffix.lower() in KNOWN and file.is_file() and not any(part.startswith(".") for part in inner.parts):
                    found.setdefault(file, (Path(root.name) / inner).as_posix())
        elif path.exists():
            found.setdefault(path.resolve(), path.name)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return list(found.items())


def read(file: Path, id: str, text_field: str = "") -> Iterator[Source]:
    """The documents of a file; one that cannot be read comes with the reason.

    Args:
        file: The file.
        id: Its id, that of its only document.
        text_field: In JSON lines, which field holds the text; empty tries the usual ones.
    """
    try:
        data = file.read_bytes()
        if b"\0" in data:
            raise ValueError("holds NUL bytes: it is no text")
        whole = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = (
            "is not UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else (error.strerror if isinstance(error, OSError) else None) or str(error)
        )
        yield Source(id, str(file), error=why)
        return
    kind = file.suffix.lower()
    if kind in LINES:
        yield from _lines(file, id, whole, text_field)
        return
    metadata: dict[str, Any] = {"source": id}
    if kind in HTML:
        page = _Page()
        page.feed(whole)
        page.close()
        whole = page.text
        if page.title:
            metadata["title"] = page.title
    if whole.strip():
        yield Source(id, str(file), whole, "markdown" if kind in (*MARKDOWN, *HTML) else "text", metadata)
    else:
        yield Source(id, str(file), error="holds no text")


def _lines(file: Path, id: str, whole: str, text_field: str) -> Iterator[Source]:
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        place, own = f"{file}:{number}", f"{id}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            yield Source(own, place, error="is no JSON object")
            continue
        names = {
            name: next((key for key in keys if value.get(key) not in (None, "")), "") for name, keys in (("id", _IDS), ("title", _TITLES))
        }
        field_name = text_field or next((key for key in _TEXTS if isinstance(value.get(key), str)), "")
        text, title = value.get(field_name), value.get(names["title"])
        own = str(value[names["id"]]) if names["id"] else own
        parts = [part for part in (title, text) if isinstance(part, str) and part.strip()]
        if parts:
            rest = {key: item for key, item in value.items() if key not in (field_name, names["id"])}
            yield Source(own, place, "\n\n".join(parts), "text", {"source": id, **rest})
        else:
            yield Source(own, place, error=f"has no text in {text_field or ', '.join(_TEXTS)}")


class _Page(HTMLParser):
    """The text of a page, its headings and lists as Markdown has them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._parts: list[str] = []
        self._silent: list[str] = []
        self._in_title = False
        self._exact = 0

    @property
    def text(self) -> str:
        return _BLANK_LINES.sub("\n\n", "".join(self._parts)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag in _SILENT:
            self._silent.append(tag)
        elif re.fullmatch(r"h[1-6]", tag):
            self._parts.append(f"\n\n{'#' * int(tag[1])} ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in _BLOCKS:
            self._parts.append("\n\n```\n" if tag == "pre" else "\n" if tag in ("br", "tr") else "\n\n")
            self._exact += tag == "pre"
        elif tag in ("td", "th"):
            self._parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        elif tag in _BLOCKS or re.fullmatch(r"h[1-6]", tag):
            self._parts.append("\n```\n\n" if tag == "pre" else "\n\n")
            self._exact -= tag == "pre" and self._exact > 0

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = " ".join(f"{self.title} {data}".split())
        elif not self._silent:
            self._parts.append(data if self._exact else re.sub(r"\s+", " ", data))
