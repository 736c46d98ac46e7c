"""A hook of mkdocs: links of the pages to files of the repository outside of `docs`, which a site cannot follow, become their names."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.site")  # warnings end a strict build


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page as the site has it."""
    folder = (DOCS / page.file.src_uri).parent

    def told(found: re.Match[str]) -> str:
        path = (folder / found[2]).resolve()
        if path.is_relative_to(DOCS):
            return found[0]
        if not path.exists():
            _log.warning("%s: %s leads nowhere", page.file.src_uri, found[2])
        name = path.relative_to(DOCS.parent).as_posix()
        return f"{found[1]} (`{name}`)" if found[1].strip("`") not in name else f"`{name}`"

    return _LINK.sub(told, markdown)
