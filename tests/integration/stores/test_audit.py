"""The audit log: what administrators did, with whom, from where and how it ended, also while the store is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faults.conftest import wait_until
from tests.support.engines import Postgres
from tests.support.keyed import KEY, Keyed, keyed

from hx_gateway.ledger import audit
from hx_gateway.stores.audit import ShippingDeeds
from hx_gateway.stores.sql import keys
from hx_gateway.stores.sql.engine import Store


def deeds(gateway: Keyed, key: str = KEY, **filters: Any) -> list[dict[str, Any]]:
    """What was done, newest first."""
    query = "&".join(f"{name}={value}" for name, value in {"limit": 1000, **filters}.items())
    status, found = gateway.ask("GET", f"/admin/audit?{query}", key=key)
    assert status == 200, found
    data: list[dict[str, Any]] = found["data"]
    return data


def test_every_kind_of_deed_is_written_down(tmp_path: Path) -> None:
    with keyed(tmp_path / "state") as gateway:
        _, boss = gateway.ask("POST", "/admin/keys", {"name": "boss", "admin": True})
        wait_until(lambda: gateway.ask("GET", "/admin/keys", key=boss["key"])[0] == 200)
        assert gateway.ask("POST", "/admin/keys", {"name": "app"}, key=boss["key"])[0] == 201
        assert gateway.ask("POST", "/admin/endpoints/one/drain", key=boss["key"])[0] == 200
        assert gateway.ask("POST", "/admin/endpoints/one/drain", key=boss["key"])[0] == 200
        assert gateway.ask("POST", "/admin/endpoints/one/undrain")[0] == 200
        assert gateway.ask("POST", "/admin/reload")[0] == 200
        assert gateway.ask("PUT", "/admin/log-level", {"level": "warning"})[0] == 200
        good = gateway.process.path.read_text()
        gateway.process.path.write_text(good + "\nnonsense: {}\n")
        assert gateway.ask("POST", "/admin/reload", key=boss["key"])[0] == 409
        wait_until(lambda: len(deeds(gateway)) >= 7, 30)
        found = {(one["action"], one["subject"], one["actor"], one["result"]): one for one in deeds(gateway)}
        assert {
            ("key.create", "boss", "master", "ok"),
            ("key.create", "app", "boss", "ok"),
            ("endpoint.drain", "one", "boss", "ok"),
            ("endpoint.undrain", "one", "master", "ok"),
            ("reload", "", "master", "ok"),
            ("log.level", "WARNING", "master", "ok"),
            ("reload", "", "boss", "refused"),
        } <= set(found)
        refused = found["reload", "", "boss", "refused"]
        assert refused["key_id"] == boss["id"] and refused["address"] == "127.0.0.1" and "nonsense" in refused["detail"]["problems"][0]
        assert found["key.create", "app", "boss", "ok"]["key_id"] == boss["id"]
        assert found["reload", "", "master", "ok"]["key_id"] is None
        assert len(deeds(gateway, action="endpoint.drain")) == 1, "what was so already is no deed"
        assert {one["action"] for one in deeds(gateway, action="key.")} == {"key.create"}
        assert {one["actor"] for one in deeds(gateway, actor="boss")} == {"boss"} and deeds(gateway, subject="nobody") == []
        first = gateway.ask("GET", "/admin/audit?limit=2")[1]
        rest = gateway.ask("GET", f"/admin/audit?limit=1000&before={first['next']}")[1]
        assert [one["id"] for one in first["data"] + rest["data"]] == [one["id"] for one in deeds(gateway)]
        assert boss["key"] not in str(deeds(gateway))


def test_a_file_that_changed_is_one_deed_of_all_workers(tmp_path: Path) -> None:
    with keyed(tmp_path / "state", workers=2) as gateway:
        gateway.process.path.write_text(gateway.process.path.read_text() + "\nnonsense: {}\n")
        wait_until(lambda: gateway.log.count("is refused and the old one stays") >= 2, 30)
        wait_until(lambda: deeds(gateway, action="reload") != [], 30)
        found = deeds(gateway, action="reload")
        assert len(found) in (1, 2), "two where a minute ended between the workers"
        assert found[0]["result"] == "refused" and found[0]["actor"] == "the file or a signal"


def test_what_is_done_while_the_store_is_away_is_there_when_it_is_back(own_postgres: Postgres, tmp_path: Path) -> None:
    with keyed(tmp_path / "state", own_postgres.url()) as gateway:
        wait_until(lambda: gateway.ask("GET", "/admin/audit")[0] == 200, 30)
        own_postgres.stop()
        assert gateway.ask("POST", "/admin/reload")[0] == 200
        assert gateway.ask("POST", "/admin/endpoints/one/drain")[0] == 200
        own_postgres.start()
        wait_until(lambda: gateway.ask("GET", "/admin/audit")[0] == 200, 30)
        wait_until(lambda: {one["action"] for one in deeds(gateway)} >= {"reload", "endpoint.drain"}, 30)
        wait_until(lambda: audit.waiting(tmp_path / "state") == [], 30)  # a file goes once its row is safe


async def test_each_deed_is_kept_once_and_a_broken_one_holds_up_nobody(database_url: str, tmp_path: Path) -> None:
    audit.note(None, "boss", "nothing")
    for number in range(3):
        audit.note(tmp_path, "boss", "thing.done", f"number {number}", "127.0.0.1", why="it was time")
    audit.note(tmp_path, "boss", "reload", once="the same")
    again = {path: path.read_bytes() for path in audit.waiting(tmp_path)}
    (tmp_path / audit.FOLDER / "0.json").write_bytes(b"no deed")
    refused = audit.Deed("1", 1 << 63, "boss", "no moment of 64 bits", "", {}, "")
    (tmp_path / audit.FOLDER / "1.json").write_bytes(msgspec.json.encode(refused))
    store = Store(database_url)
    duty = ShippingDeeds(tmp_path)
    try:
        assert duty.pending() and await duty.run(store) == {"deeds": 6} and not duty.pending()
        for path, data in again.items():  # as if the housekeeper had been killed just before it deleted them
            path.write_bytes(data)
        await duty.run(store)
        found = await keys.audit(store, 100)
        assert len(found) == 4 and found[0]["detail"]["result"] == "ok"
        assert {one["subject"] for one in await keys.audit(store, 100, action="thing.")} == {f"number {number}" for number in range(3)}
    finally:
        await store.close()


def test_a_full_folder_is_said_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(audit, "_MOST", 1)
    audit.note(tmp_path, "boss", "one")
    audit.note(tmp_path, "boss", "two")
    assert len(audit.waiting(tmp_path)) == 1 and "the audit log cannot be written" in caplog.text
