"""`hx-gateway rag` against a real gateway: a folder goes in once, what changes goes in again, and what cannot is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import required
from tests.support.background import scripted
from tests.support.gateway import GatewayProcess

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{emb: {{endpoint: one, upstream_model: "tiny:1b", mode: embedding}}}}
storage: {{state_directory: {state}}}
rag: {{max_document_bytes: 10000}}
keys: {{api_keys: [{{name: reader, key: key-of-the-reader, namespaces: ["books:r"]}}]}}
"""
Rag = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    required.vectors()
    state = tmp_path_factory.mktemp("state")
    with scripted("openai", models=("tiny:1b",)) as backend, GatewayProcess(CONFIG.format(url=backend.url, state=state)) as gateway:
        yield gateway
        assert "Traceback" not in gateway.log, gateway.log


@pytest.fixture
def rag(gateway: GatewayProcess, tmp_path: Path) -> Rag:
    def run(*arguments: str, key: str = gateway.key, url: str = gateway.url) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HX_API_KEY": key, "HX_URL": url, "STATE_DIRECTORY": str(tmp_path / "state")}
        return subprocess.run(
            [sys.executable, "-m", "hx_gateway", "rag", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_folder_goes_in_once_and_changes_go_in_again(rag: Rag, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.md").write_text(f"# Book {number}\n\nOf the wing number {number}.\n")
    done = rag("ingest", "books", "--namespace", "books")
    assert (done.returncode, done.stdout) == (0, "40 documents: 40 stored in 40 chunks, 0 unchanged, 0 stored before, 0 failed\n"), (
        done.stderr
    )
    assert rag("ingest", "books", "-n", "books").stdout.endswith(" 0 stored in 0 chunks, 0 unchanged, 40 stored before, 0 failed\n")
    assert rag("ingest", "books", "-n", "books", "--again").stdout.endswith("chunks, 40 unchanged, 0 stored before, 0 failed\n")
    (folder / "7.md").write_text("# Book 7\n\nOf the keel.\n")
    assert rag("ingest", "books", "-n", "books").stdout.startswith("40 documents: 1 stored in 1 chunks, 0 unchanged, 39 stored before")
    found = rag("search", "keel", "-n", "books", "--mode", "sparse")
    assert found.stdout.startswith("1. books/7.md #0  ") and "(sparse 1)  Book 7\n   # Book 7 Of the keel.\n" in found.stdout
    (hit,) = json.loads(rag("search", "keel", "-n", "books", "--mode", "sparse", "--json").stdout)["points"]
    assert hit["payload"]["metadata"] == {"source": "books/7.md", "headings": ["Book 7"]}
    assert "emb  16 dimensions  books 40\n" in rag("collections").stdout
    assert rag("delete", "books/7.md", "-n", "books").stdout == "1 chunks removed\n"
    assert rag("search", "keel", "-n", "books", "--mode", "sparse").stderr == "nothing found\n"
    assert rag("delete", "--everything", "-n", "books").stdout == "39 chunks removed\n"
    # Nothing is left there, so what earlier runs stored does not count.
    assert rag("ingest", "books", "-n", "books").stdout.startswith("40 documents: 40 stored")


def test_documents_that_cannot_be_stored_are_named_and_the_others_are_stored(rag: Rag, tmp_path: Path) -> None:
    for name, data in {
        "good.txt": b"a good one",
        "bad.txt": b"\xff",
        "large.txt": b"large " * 3000,
        "other.txt": b"another good one",
    }.items():
        (tmp_path / name).write_bytes(data)
    names = ("good.txt", "bad.txt", "large.txt", "other.txt")
    done = rag("ingest", *names, "-n", "mixed")
    assert (done.returncode, done.stdout) == (1, "4 documents: 2 stored in 2 chunks, 0 unchanged, 0 stored before, 2 failed\n"), done.stderr
    assert "bad.txt: is not UTF-8\n" in done.stderr and "large.txt: documents[" in done.stderr and "rag.max_document_bytes" in done.stderr
    (tmp_path / "bad.txt").write_text("mended")
    (tmp_path / "large.txt").write_text("smaller")
    done = rag("ingest", *names, "-n", "mixed")
    assert (done.returncode, done.stdout) == (0, "4 documents: 2 stored in 2 chunks, 0 unchanged, 2 stored before, 0 failed\n"), done.stderr


def test_refusals_are_told_in_words(rag: Rag, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for done, status, words in (
        (rag("ingest", "a.txt", "-n", "books", key="key-of-the-reader"), 1, "may only read the namespace 'books'"),
        (rag("ingest", "nowhere"), 1, "nowhere: no such file or folder"),
        (rag("search", "x", key="no-such-key"), 1, "hx-gateway: "),
        (rag("search", "x", "--url", "ftp://there"), 2, "no http or https address"),
        (rag("search", "x", "--key", "the-key-itself"), 2, "say env:NAME or file:PATH"),
        (rag("search", "x", key=""), 2, "the environment has no HX_API_KEY"),
        (rag("search", "x", "--url", "http://127.0.0.1:1"), 1, "no answer from 127.0.0.1:1"),
    ):
        assert done.returncode == status and words in " ".join(done.stderr.split()), done.stderr
        assert "Traceback" not in done.stderr
