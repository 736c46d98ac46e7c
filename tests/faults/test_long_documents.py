"""Long documents cut while chats are under way: the chats are answered meanwhile, not afterwards."""

from __future__ import annotations

import threading
from typing import Any

from tests.faults.test_documents import house  # noqa: F401
from tests.support.documents import House

SIZE = 1_900_000  # characters; to cut so many takes a good half second
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
FEW = 30  # chats; between three documents that held everybody up there would be time for one or two


def test_chats_are_answered_while_documents_of_two_megabytes_are_cut(house: House) -> None:  # noqa: F811
    """No sentence and no line ends in them: every way of cutting looks at the whole. What is wrong with them is found only after they were cut."""
    documents = [{"id": str(number), "text": "wing flow heat jet " * (SIZE // 19), "metadata": {"n": "x" * 70_000}} for number in range(3)]
    told: list[tuple[int, Any]] = []
    ingest = threading.Thread(target=lambda: told.append(house.ask("POST", "/v1/rag/upsert", {"documents": documents})[:2]))
    ingest.start()
    chats = []
    while ingest.is_alive():
        chats.append(house.ask("POST", "/v1/chat/completions", CHAT)[0])
    ingest.join()
    ((status, answer),) = told
    assert (status, answer["error"]["param"]) == (400, "documents[0].metadata"), answer
    assert set(chats) == {200} and len(chats) > FEW, f"{len(chats)} chats were answered meanwhile"
