"""Workers that ask each other: all that answer in time are heard, whatever the others do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hx_gateway.control.siblings import FOLDER, Siblings


@pytest.fixture
async def siblings(tmp_path: Path) -> AsyncIterator[Siblings]:
    found = Siblings({"name": lambda about: f"here{about}", "large": lambda _: "x" * 3_000_000})
    await found.start(tmp_path)
    yield found
    await found.stop()


async def another(folder: Path, answer: bytes | None, name: str = "1") -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if answer is None:
            await asyncio.sleep(3600)
        writer.write(answer or b"")
        writer.close()

    return await asyncio.start_unix_server(serve, str(folder / FOLDER / name))


async def test_all_that_answer_are_heard_and_the_own_comes_first(siblings: Siblings, tmp_path: Path) -> None:
    async with await another(tmp_path, b'"there"'):
        assert await siblings.ask("name", "!") == ["here!", "there"]


@pytest.mark.parametrize("answer", [None, b"", b"{", b"null"], ids=["hangs", "nothing", "torn", "null"])
async def test_one_that_does_not_answer_is_left_out(siblings: Siblings, tmp_path: Path, answer: bytes | None) -> None:
    server = await another(tmp_path, answer)
    assert await siblings.ask("name") == ["here"]
    server.close()


async def test_the_socket_of_a_dead_worker_is_taken_away_and_not_of_one_that_begins(siblings: Siblings, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, begun = tmp_path / FOLDER / str(ended.pid), tmp_path / FOLDER / str(os.getppid())
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as new:
        dead.bind(str(left))
        new.bind(str(begun))
        dead.close()
        assert await siblings.ask("name") == ["here"]
        assert not left.exists() and begun.exists()
        new.listen()
        assert await siblings.ask("name") == ["here"] and begun.exists()


async def test_it_answers_others_also_at_length_and_nothing_to_nonsense(siblings: Siblings, tmp_path: Path) -> None:
    async def asked(question: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / FOLDER / str(os.getpid())))
        writer.write(question)
        found = await reader.read()
        writer.close()
        return found

    assert await asked(b'["name", "?"]\n') == b'"here?"'
    assert len(await asked(b'["large", ""]\n')) == 3_000_002
    for nonsense in (b'["what", ""]\n', b"{\n", b'["name"]\n', b"\n"):
        assert await asked(nonsense) == b""


async def test_without_a_state_directory_it_knows_itself() -> None:
    alone = Siblings({"name": lambda _: "alone"})
    await alone.start(None)
    assert await alone.ask("name") == ["alone"]
    await alone.stop()


async def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    found = Siblings({"name": lambda _: "deep"})
    await found.start(deep)
    assert (deep / FOLDER / str(os.getpid())).is_socket()
    await found.stop()
    assert list((deep / FOLDER).iterdir()) == []
