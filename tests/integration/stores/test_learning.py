"""Two gateways that learn on one store: one does each step, both take it over, and what was shipped twice counts once."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.identifiers import new_id
from hx_gateway.ledger.feedback import Feedback, note
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.routing.learned.choice import Learned
from hx_gateway.routing.learned.features import extract
from hx_gateway.stores.learned_files import Standing, place_of
from hx_gateway.stores.learning import Learning
from hx_gateway.stores.sql import learning, usage
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.routed import decisions, unjudged
from hx_gateway.stores.sql.upgrade import upgrade

GROUP = {"models": ["weak", "strong"], "learned": {"quality": 0.9}}
CONFIG = GatewayConfig.model_validate(
    {"models": {name: {"endpoint": "http://127.0.0.1:9"} for name in ("weak", "strong")}, "groups": {"g": GROUP}}
)


def record(number: int) -> UsageRecord:
    """A request of the group."""
    assert CONFIG.groups["g"].learned is not None
    choice = Learned("g", ("weak", "strong"), CONFIG.groups["g"].learned).choose(extract(f"prompt {number}"), (0.0, 1.0))
    now_ms = int(time.time() * 1000)
    made = UsageRecord(
        1, new_id(now_ms / 1000), now_ms, 5.0, None, 0.0, 0.0, "chat", "", "alice", "", "", "g", "weak", "g", "e", 1, None, 200, "ok", False,
        "", 3, 4, None, False, 0.5, 1.0, None, list(choice.record()),
    )  # fmt: skip
    return msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=UsageRecord)


def standing_in(folder: Path) -> Standing:
    """What the files of a machine say."""
    return msgspec.msgpack.decode((place_of(folder, "g") / "standing").read_bytes(), type=Standing)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'one.db'}" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


async def test_two_gateways_learn_together(url: str, tmp_path: Path) -> None:
    await upgrade(url)
    store = Store(url)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (Learning(CONFIG, folder) for folder in folders)
    try:
        rows = [record(number) for number in range(12)]
        await usage.keep(store, "a segment", 0, 8, rows)
        await usage.keep(store, "the same again", 0, 8, rows)
        for number, row in enumerate(rows[:10]):
            note(folders[number % 2], Feedback(row.id, number, 1.0, "alice", False))
        note(folders[0], Feedback(rows[0].id, 50, 0.0, "root", True))  # what was said first stays
        note(folders[0], Feedback(rows[10].id, 50, 0.0, "mallory", False))
        first = await one.run(store)
        assert first is not None and first["groups"]["g"]["judged"] == 5 and (first["feedback"], first["refused"]) == (5, 1)
        second = await two.run(store)
        assert second is not None and second["groups"]["g"]["judged"] == 10
        again = await one.run(store)
        assert again is not None and again["groups"]["g"]["judged"] == 10
        assert standing_in(folders[0]) == standing_in(folders[1])
        revision, standing = await learning.standing(store, "g")
        with pytest.raises(learning.Overtaken):
            await learning.write(store, "g", revision - 1, standing)
        found = await decisions(store, "g", 0, int(time.time() * 1000) + 1000, 100)
        assert len(found) == 12 and found[0]["detail"]["rule"] == "order" and found[0]["cost"] == 0.5
        assert await unjudged(store, "g", 0, 10) == []  # no bodies are kept
        assert await learning.keep_artifact(store, "g", "ab", b"\0") and not await learning.keep_artifact(store, "g", "ab", b"\0")
        assert (await learning.artifacts(store, "g", ["ab"]))["ab"][1] == b"\0"
        assert await learning.prune(store, int(time.time() * 1000) + 1000) == 12
        fresh = Learning(CONFIG, tmp_path / "three")
        told = await fresh.run(store)
        assert told is not None and told["groups"]["g"]["judged"] == 10
        assert standing_in(tmp_path / "three") == standing
    finally:
        await store.close()
