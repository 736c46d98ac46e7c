"""The process that owns the vectors killed and stopped while chats and documents are under way: documents alone suffer, and none is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.faults.conftest import wait_until
from tests.support import required
from tests.support.documents import House, housed
from tests.support.gateway import KEY
from tests.support.offering import Got, offer

CHAT = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).encode()
MOST = 1000  # points one search may answer
PAUSE_S = 0.02  # between documents, so that one search can answer all of them


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    required.vectors()
    with housed(tmp_path) as made:
        yield made


def owner(state: Path) -> psutil.Process:
    """The process that has the vectors of a state directory."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "hx_gateway.stores.vectors.owner" in words and str(state / "vectors") in words:
            return process
    raise AssertionError("nobody owns the vectors")


class Putting:
    """Adds documents one by one until it is told to stop; keeps what was accepted and what was not."""

    def __init__(self, house: House, round: str = "d") -> None:
        self.house = house
        self.round = round
        self.stored: list[str] = []
        self.refused: list[tuple[int, str, str]] = []
        self.slowest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            body = {"documents": [{"id": f"{self.round}{number}", "text": f"wing number {number}"}]}
            began_s = time.monotonic()
            status, answer, _ = self.house.ask("POST", "/v1/rag/upsert", body)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            if status == 200:
                self.stored.append(f"{self.round}{number}")
            else:
                self.refused.append((status, answer["error"]["code"], answer["error"]["message"]))
            time.sleep(PAUSE_S)

    def __enter__(self) -> Putting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def documents(house: House) -> list[str]:
    """The document of every chunk that is there."""
    status, answer, _ = house.ask("POST", "/v1/rag/search", {"query": "wing number", "mode": "sparse", "limit": MOST})
    assert status == 200, answer
    found = [point["payload"]["document"] for point in answer["result"]["points"]]
    assert len(found) < MOST, "more documents than one search answers: the test cannot tell who is missing"
    return found


def unharmed(chats: list[Got]) -> bool:
    return len(chats) > 50 and all(chat.status == 200 for chat in chats)


async def test_the_owner_of_the_vectors_is_killed_again_and_again(house: House) -> None:
    house.put("wing")
    with Putting(house) as putting:
        killed: set[int] = set()

        def kill() -> None:
            """About once a second."""
            if len(killed) < 3 and len(putting.stored) > 3 * (len(killed) + 1):
                process = owner(house.state)
                if process.pid not in killed:
                    killed.add(process.pid)
                    process.kill()

        chats = await offer([house.gateway.port], 60, 8, KEY, CHAT, kill)
        accepted = len(putting.stored)
        wait_until(lambda: len(putting.stored) > accepted + 3, 60)
    assert killed, "nothing was killed"
    assert unharmed(chats)
    assert all((status, code) == (503, "store_unavailable") and "embedded" in words for status, code, words in putting.refused), (
        putting.refused
    )
    there = documents(house)
    assert set(putting.stored) <= set(there), "a document that was accepted is gone"
    assert len(there) == len(set(there)), "a document is there twice"


async def test_the_owner_of_the_vectors_hangs(house: House) -> None:
    house.put("wing")
    process = owner(house.state)
    with Putting(house) as putting:
        wait_until(lambda: len(putting.stored) > 2, 30)
        process.send_signal(signal.SIGSTOP)
        try:
            chats = await offer([house.gateway.port], 60, 5, KEY, CHAT)
            wait_until(lambda: len(putting.refused) > 0, 30)
            status, answer, _ = house.ask("GET", "/healthz/deps")
            assert status == 200 and answer["details"]["vectors"].startswith("embedded, not available")
            status, answer, headers = house.ask("POST", "/v1/rag/search", {"query": "wing"})
            assert (status, answer["error"]["code"]) == (503, "store_unavailable") and "embedded" in answer["error"]["message"]
            assert int(headers["retry-after"]) > 0
        finally:
            process.send_signal(signal.SIGCONT)
        accepted = len(putting.stored)
        wait_until(lambda: len(putting.stored) > accepted, 60)
    assert unharmed(chats)
    assert set(putting.stored) <= set(documents(house))
