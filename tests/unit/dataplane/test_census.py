"""What several processes have under way at a deployment, as each of them tells it."""

from __future__ import annotations

from pathlib import Path

from hx_gateway.access.limiter import Limiter
from hx_gateway.access.table import SLOTS
from hx_gateway.dataplane.census import Census
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint


def worker(folder: Path | None) -> tuple[Limiter, Census, Deployment, Deployment]:
    limiter = Limiter()
    limiter.open(folder)
    endpoint = Endpoint("one", Address("http", "one", 1))
    return limiter, Census(limiter), Deployment("chat", "chat:7b", endpoint), Deployment("embed", "embed", endpoint)


def test_each_sees_its_own_at_once_and_the_others_when_they_told(tmp_path: Path) -> None:
    mine, here, chat, embed = worker(tmp_path)
    theirs, there, their_chat, their_embed = worker(tmp_path)
    chat.in_flight, their_chat.in_flight = 3, 4
    assert here.of(chat) == 3
    there.tell((their_chat, their_embed))
    assert (here.of(chat), here.of(embed), there.of(their_chat)) == (7, 0, 7)
    chat.in_flight, their_chat.in_flight = 1, 0
    there.tell((their_chat, their_embed))
    assert here.of(chat) == 1
    theirs.close()
    mine.close()


def test_what_a_process_had_under_way_ends_with_it(tmp_path: Path) -> None:
    mine, here, chat, _ = worker(tmp_path)
    theirs, there, their_chat, _ = worker(tmp_path)
    their_chat.in_flight = 4
    there.tell((their_chat,))
    assert here.of(chat) == 4
    theirs.close()
    assert here.of(chat) == 0
    mine.close()


def test_without_room_in_the_table_each_counts_for_itself(tmp_path: Path) -> None:
    mine, here, chat, _ = worker(tmp_path)
    day = mine.today()[0]
    for number in range(SLOTS):
        mine.table.find(number.to_bytes(8, "little") * 2, day)
    chat.in_flight = 2
    here.tell((chat,))
    assert here.of(chat) == 2
    mine.close()
