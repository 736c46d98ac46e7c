"""Documents out of files: what is read of each kind, and what is said of a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hx_gateway.rag.sources import files, read


def test_folders_are_walked_for_known_kinds_and_ids_do_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.md", "a.txt", "sub/c.rst", "sub/photo.png", ".git/d.txt", "e.HTML"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    ids = ["docs/a.txt", "docs/b.md", "docs/e.HTML", "docs/sub/c.rst"]
    assert [id for _, id in files([tmp_path / "docs"])] == ids
    monkeypatch.chdir(tmp_path / "docs")
    assert [id for _, id in files([Path(".")])] == ids
    assert [id for _, id in files([Path("a.txt"), Path("../docs/a.txt"), Path("sub/photo.png")])] == ["a.txt", "photo.png"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        files([Path("nowhere")])


def test_a_page_becomes_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<html><head><title>A &amp; B</title><style>p {}</style></head><body><script>var x = '<p>no';</script><h1>One\n two</h1>"
        "<p>First <b>bold</b>\n text.<ul><li>this<li>that</ul><pre>a\n  b</pre><h3>Three</h3>end</body>"
    )
    (source,) = read(page, "page.html")
    assert source.text == "# One two\n\nFirst bold text.\n\n- this\n- that\n\n```\na\n  b\n```\n\n### Three\n\nend"
    assert (source.format, source.metadata) == ("markdown", {"source": "page.html", "title": "A & B"})


def test_json_lines_are_documents_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text('{"_id": "7", "title": "T", "text": "body", "year": 1960}\n\n{"content": "other"}\n{"year": 1}\n[1]\n{broken\n')
    first, second, *bad = read(file, "many.jsonl")
    assert (first.id, first.text, first.metadata) == ("7", "T\n\nbody", {"source": "many.jsonl", "title": "T", "year": 1960})
    assert (second.id, second.text) == ("many.jsonl:3", "other")
    assert [(one.place.rpartition(":")[2], one.error) for one in bad] == [
        ("4", "has no text in text, contents, content, body"),
        ("5", "is no JSON object"),
        ("6", "is no JSON object"),
    ]
    assert [one.text for one in read(file, "many.jsonl", "content") if not one.error] == ["T", "other"]


@pytest.mark.parametrize(
    ("data", "why"), [(b"\xff\xfe", "is not UTF-8"), (b"a\0b", "holds NUL bytes: it is no text"), (b" \n", "holds no text")]
)
def test_what_cannot_be_read_is_said(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    (source,) = read(file, "a.txt")
    assert (source.text, source.error) == ("", why)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    (source,) = read(tmp_path / "gone.txt", "gone.txt")
    assert source.error == "No such file or directory"
