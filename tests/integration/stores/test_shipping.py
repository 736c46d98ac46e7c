"""The journal into SQLite and Postgres: each record once, whatever happens on the way, and sums that agree with the rows."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text
from tests.unit.ledger.records import MIB, a_journal, a_record, found

from hx_gateway.ledger.journal import Journal
from hx_gateway.ledger.letters import FOLDER, ROWS, segments
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import START
from hx_gateway.stores.shipping import Shipping
from hx_gateway.stores.sql import usage
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.schema import JOURNAL_POSITIONS, USAGE, USAGE_HOURLY


@pytest.fixture
async def store(database_url: str):
    """A store with the newest schema; once for each engine."""
    opened = Store(database_url)
    yield opened
    await opened.close()


def journal_of(folder: Path, records: list[UsageRecord], stop: bool = True) -> Journal:
    """A journal with records in it."""
    journal = a_journal(folder)
    journal.start()
    for record in records:
        journal.append(record)
    if stop:
        journal.stop()
    return journal


async def rows(store: Store, table: Any = USAGE) -> list[dict[str, Any]]:
    """All rows of a table, in the order of its key."""
    async with store.reading() as connection:
        result = await connection.execute(select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in result.mappings()]


async def agree(store: Store, numbers: list[int]) -> None:
    """Each of the numbers has one row, and the sums by hour are those of the rows."""
    kept = await rows(store)
    assert sorted(row["prompt_tokens"] for row in kept) == sorted(numbers)
    sums = await rows(store, USAGE_HOURLY)
    assert sum(row["requests"] for row in sums) == len(numbers)
    assert sum(row["prompt_tokens"] for row in sums) == sum(numbers)
    assert sum(row["cost"] for row in sums) == pytest.approx(sum(row["cost"] for row in kept))


async def test_every_field_arrives(store: Store, tmp_path: Path) -> None:
    full = a_record(
        7, trail=[("one", "upstream_reset", 1.5)], tags=["a", "ö"], user="anna\0", cached="hit", stream=True, group="g", cached_tokens=3
    )
    journal_of(tmp_path, [full, a_record(8, ttft_ms=None, prompt_tokens=None)])
    assert await Shipping(tmp_path, MIB).run(store) == {"records": 2, "refused": 0, "damaged": 0}
    first, second = await rows(store)
    assert json.loads(first.pop("trail")) == [["one", "upstream_reset", 1.5]] and json.loads(first.pop("tags")) == ["a", "ö"]
    expected = {name: getattr(full, "group" if name == "grp" else name) for name in first}
    assert first == {**expected, "user": "anna"}
    assert second["ttft_ms"] is None and second["prompt_tokens"] is None and second["trail"] is None
    (hour,) = [row for row in await rows(store, USAGE_HOURLY) if not row["grp"]]
    assert (hour["requests"], hour["ttft_count"], hour["prompt_tokens"], hour["completion_tokens"]) == (1, 0, 0, 2)
    assert hour["hour_ms"] <= second["at_ms"] < hour["hour_ms"] + 3_600_000


async def test_segments_of_the_living_and_the_dead_in_batches(store: Store, tmp_path: Path) -> None:
    journal_of(tmp_path, [a_record(number) for number in range(100)])
    alive = journal_of(tmp_path, [a_record(number) for number in range(100, 150)], stop=False)
    shipping = Shipping(tmp_path, MIB, batch=7)
    assert shipping.pending()
    await shipping.run(store)
    assert not shipping.pending()
    await agree(store, list(range(150)))
    assert len(segments(tmp_path)) == 1, "what is finished and shipped is gone, what is being written stays"
    for number in range(150, 160):
        alive.append(a_record(number))
    assert shipping.pending()
    await Shipping(tmp_path, MIB).run(store)  # another that knows nothing goes on from the store's own position
    await agree(store, list(range(160)))
    alive.stop()
    await shipping.run(store)
    assert segments(tmp_path) == [] and await rows(store, JOURNAL_POSITIONS) == []
    await agree(store, list(range(160)))


async def test_a_lost_position_and_a_segment_shipped_twice_count_once(store: Store, tmp_path: Path) -> None:
    journal = journal_of(tmp_path, [a_record(number) for number in range(30)], stop=False)
    await Shipping(tmp_path, MIB, batch=10).run(store)
    async with store.writing() as connection:
        await connection.execute(delete(JOURNAL_POSITIONS))
    for number in range(30, 35):
        journal.append(a_record(number))
    await Shipping(tmp_path, MIB, batch=10).run(store)
    await agree(store, list(range(35)))
    journal.stop()
    (path,) = segments(tmp_path)
    copy = path.read_bytes()
    await Shipping(tmp_path, MIB).run(store)
    path.write_bytes(copy)
    await Shipping(tmp_path, MIB).run(store)
    await agree(store, list(range(35)))


async def test_two_that_ship_at_once_do_it_once(store: Store, tmp_path: Path) -> None:
    journal = journal_of(tmp_path, [a_record(number) for number in range(300)], stop=False)
    both = [Shipping(tmp_path, MIB, batch=20), Shipping(tmp_path, MIB, batch=30)]
    await asyncio.gather(*(shipping.run(store) for shipping in both))
    await agree(store, list(range(300)))
    with pytest.raises(usage.Moved):
        await usage.keep(store, segments(tmp_path)[0].name, START, START + 8, [a_record(999)])
    await agree(store, list(range(300)))
    journal.stop()


async def test_a_run_that_is_cut_off_at_any_point_loses_and_doubles_nothing(store: Store, tmp_path: Path) -> None:
    journal = journal_of(tmp_path, [a_record(number) for number in range(400)], stop=False)
    for steps in range(1, 60, 3):
        task = asyncio.create_task(Shipping(tmp_path, MIB, batch=11).run(store))
        for _ in range(steps):
            await asyncio.sleep(0)
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await Shipping(tmp_path, MIB).run(store)
    await agree(store, list(range(400)))
    journal.stop()


@pytest.mark.parametrize("place", [0, 5, 19])
async def test_a_row_the_store_refuses_goes_alone(store: Store, tmp_path: Path, place: int) -> None:
    """By itself (Postgres: more than the column's 32 bits), or because it cannot even be asked to take it."""
    poison = {"prompt_tokens": (1 << 63) + 5} if place == 5 else {"attempts": 1 << 40}
    if store.kind == "sqlite":
        refusal = "CREATE TRIGGER refusal BEFORE INSERT ON usage WHEN new.attempts > 1000000 BEGIN SELECT RAISE(ABORT, 'no'); END"
        async with store.writing() as connection:
            await connection.execute(text(refusal))
    journal_of(tmp_path, [a_record(number, **(poison if number == place else {})) for number in range(20)])
    shipping = Shipping(tmp_path, MIB)
    await shipping.run(store)
    assert (shipping.shipped, shipping.refused) == (19, 1)
    await agree(store, [number for number in range(20) if number != place])
    (line,) = (tmp_path / FOLDER / ROWS).read_text().splitlines()
    said = json.loads(line)
    assert said["record"]["id"] == a_record(place).id and said["reason"] and segments(tmp_path) == []


async def test_a_store_in_trouble_is_no_reason_to_set_rows_aside(store: Store, tmp_path: Path) -> None:
    journal_of(tmp_path, [a_record(number) for number in range(20)])
    async with store.writing() as connection:
        await connection.execute(text("ALTER TABLE usage_hourly RENAME TO elsewhere"))
    shipping = Shipping(tmp_path, MIB)
    with pytest.raises(StoreError):
        await shipping.run(store)
    assert await rows(store) == [] and not (tmp_path / FOLDER).exists() and len(segments(tmp_path)) == 1
    async with store.writing() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO usage_hourly"))
    await shipping.run(store)
    await agree(store, list(range(20)))


async def test_what_damage_leaves_is_shipped_and_the_segment_set_aside(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal_of(tmp_path, [a_record(number) for number in range(20)])
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[START + 40] ^= 0xFF
    path.write_bytes(data)
    (tmp_path / "00000000000000000000000000.seg").write_bytes(b"no segment at all")
    shipping = Shipping(tmp_path, MIB)
    await shipping.run(store)
    await agree(store, list(range(1, 20)))
    assert len(segments(tmp_path / FOLDER)) == 2 and shipping.damaged == 2 and segments(tmp_path) == []
    assert "1 places in it cannot be read" in caplog.text and "its head cannot be read" in caplog.text
    assert not shipping.pending()


async def test_dead_letters_moved_back_are_shipped_as_if_they_had_never_left(store: Store, tmp_path: Path) -> None:
    journal = a_journal(tmp_path, max_bytes=MIB)
    journal.start()
    number = 0
    while not journal.dead_lettered:
        journal.append(a_record(number))
        number += 1
        if number == 700:
            await Shipping(tmp_path, MIB).run(store)  # a part of it was shipped before
        if journal._waiting:
            await asyncio.sleep(0.005)
            journal.tick(0.0)
    journal.stop()
    await Shipping(tmp_path, MIB).run(store)
    assert len(await rows(store)) < number
    for letter in segments(tmp_path / FOLDER):
        os.rename(letter, tmp_path / letter.name)
    await Shipping(tmp_path, MIB).run(store)
    await agree(store, list(range(number)))
    assert found(tmp_path) == []
