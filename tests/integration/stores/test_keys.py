"""Keys in the store, on SQLite and Postgres: changes, their versions, the audit log, and the snapshot that follows them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from hx_gateway.access.keys import KeyRing, digest_of
from hx_gateway.access.snapshot import FILE, StoredKey, read, write
from hx_gateway.control.key_bodies import KeyChange, KeyDraft, revoked, rotated
from hx_gateway.stores.known_keys import KnownKeys, renew
from hx_gateway.stores.sql import keys
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.keys import By, KeyEnded, KeyMissing, KeyTaken
from hx_gateway.stores.sql.schema import AUDIT, KEYS

BY = By("tester", "192.0.2.7")
LIMITS = {"requests_per_second": 5.0, "day_tokens": 1000}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = Store(url)
    try:
        yield store
    finally:
        await store.close()


async def made(store: Store, name: str, **fields: Any) -> tuple[StoredKey, str]:
    key, secret = KeyDraft(name=name, **fields).made()
    await keys.create(store, key, BY)
    return key, secret


async def everything(store: Store) -> str:
    """All that is kept of keys, as text."""
    async with store.reading() as connection:
        rows = [*(await connection.execute(select(KEYS))).all(), *(await connection.execute(select(AUDIT))).all()]
    return repr(rows)


async def test_a_key_is_kept_as_it_was_asked_for_and_never_itself(database_url: str) -> None:
    async with opened(database_url) as store:
        key, secret = await made(
            store, "app", owner="Ada", team="red", tags=["x"], models=["m", "n"], namespaces=[], limits=LIMITS, expires="90d"
        )
        assert await keys.get(store, "app") == await keys.get(store, key.id) == key
        assert (key.hash, key.hint, key.namespaces) == (digest_of(secret), secret[:8], ())
        assert key.limits.day_tokens == 1000 and key.expires_ms == pytest.approx(key.created_ms + 90 * 86_400_000, abs=2000)
        found = await everything(store)
        assert secret not in found and secret[3:] not in found


async def test_every_change_raises_the_version_and_is_in_the_log(database_url: str) -> None:
    async with opened(database_url) as store:
        assert await keys.version(store) == 0
        key, secret = await made(store, "app", limits=LIMITS)
        assert await keys.version(store) == 1
        change = KeyChange(limits={"requests_per_second": 0.0, "burst": 3}, team="blue")
        after = await keys.change(store, "app", BY, "key.change", change.changes)
        assert (after.limits.requests_per_second, after.limits.burst, after.limits.day_tokens, after.team) == (0.0, 3, 1000, "blue")
        after = await keys.change(store, key.id, BY, "key.rotate", lambda key: rotated(key, "hx-second-of-this-long-name", "1h"))
        assert (after.old_hash, after.hash, after.hint) == (digest_of(secret), digest_of("hx-second-of-this-long-name"), "hx-secon")
        after = await keys.change(store, "app", BY, "key.revoke", revoked)
        assert after.revoked_ms and after == await keys.get(store, "app")
        assert await keys.version(store) == 4
        assert await keys.change(store, "app", BY, "key.revoke", revoked) == after, "revoking twice is no fault"
        log = await keys.audit(store, 10)
        assert [row["action"] for row in log] == ["key.revoke", "key.rotate", "key.change", "key.create"]
        assert {(row["actor"], row["address"], row["subject"]) for row in log} == {("tester", "192.0.2.7", "app")}
        assert log[2]["detail"] == {
            "id": key.id,
            "team": "blue",
            "limits": {**log[3]["detail"]["limits"], "requests_per_second": 0.0, "burst": 3},
        }
        assert log[3]["detail"]["hint"] == key.hint
        told = json.dumps(log) + await everything(store)
        assert secret[8:] not in told and "hx-second-of" not in told and digest_of(secret).hex() not in json.dumps(log)


async def test_pages(database_url: str) -> None:
    async with opened(database_url) as store:
        names = [f"key-{number}" for number in range(7)]
        for name in names:
            await made(store, name)
            await asyncio.sleep(0.002)  # ids of one millisecond have no order
        found: list[str] = []
        after = ""
        while page := await keys.page(store, 3, after):
            assert len(page) <= 3
            found += [key.name for key in page]
            after = page[-1].id
        assert found == names
        assert [key.name for key in (await keys.snapshot(store, "here")).keys] == names
        first = await keys.audit(store, 4)
        rest = await keys.audit(store, 4, before=first[-1]["id"])
        assert [row["subject"] for row in first + rest] == names[::-1]
        assert [row["subject"] for row in await keys.audit(store, 9, subject="key-3")] == ["key-3"]


async def test_what_cannot_be_changes_nothing(database_url: str) -> None:
    async with opened(database_url) as store:
        await made(store, "app")
        await keys.change(store, "app", BY, "key.revoke", revoked)
        before = await keys.version(store), await everything(store)
        with pytest.raises(KeyTaken, match=r"'app' already \(it is revoked"):
            await made(store, "app")
        with pytest.raises(KeyEnded, match="for good"):
            await keys.change(store, "app", BY, "key.rotate", lambda key: rotated(key, "hx-x", "0"))
        with pytest.raises(KeyMissing, match="'nobody'"):
            await keys.change(store, "nobody", BY, "key.revoke", revoked)
        with pytest.raises(KeyMissing):
            await keys.get(store, "' OR 1=1 --")
        assert (await keys.version(store), await everything(store)) == before


async def test_changes_at_once_come_one_after_the_other(database_url: str) -> None:
    async with opened(database_url) as store:
        done = await asyncio.gather(*(made(store, f"key-{number % 5}") for number in range(10)), return_exceptions=True)
        assert sum(isinstance(one, KeyTaken) for one in done) == 5 and not any(isinstance(one, StoreError) for one in done)
        await asyncio.gather(
            *(keys.change(store, "key-0", BY, "key.change", KeyChange(limits={"burst": n}).changes) for n in range(1, 6)),
            *(keys.change(store, "key-0", BY, "key.change", KeyChange(limits={"day_tokens": n}).changes) for n in range(1, 6)),
        )
        key = await keys.get(store, "key-0")
        assert key.limits.burst and key.limits.day_tokens, "none has overwritten what another changed"
        assert await keys.version(store) == 15


async def test_the_snapshot_follows_the_store(database_url: str, tmp_path: Path) -> None:
    duty = KnownKeys(tmp_path, database_url)
    ring = KeyRing([])
    async with opened(database_url) as store:
        assert duty.pending()
        assert await duty.run(store) == {"keys": 0, "version": 0}
        assert read(tmp_path / FILE).keys == ()
        assert await duty.run(store) is None
        key, secret = await made(store, "app")
        assert duty.pending() and await duty.run(store) == {"keys": 1, "version": 1}
        ring.take(read(tmp_path / FILE).keys)
        assert ring.identify(secret.encode()) == key.identity()
        await keys.change(store, "app", BY, "key.revoke", revoked)
        await duty.run(store)
        ring.take(read(tmp_path / FILE).keys)
        assert ring.identify(secret.encode()) is None and "revoked" in ring.refusal(secret.encode()).message
        # Damage and loss of the file are mended from the store.
        (tmp_path / FILE).write_bytes(b"{")
        assert duty.pending() and (await duty.run(store) or {})["version"] == 2
        (tmp_path / FILE).unlink()
        assert duty.pending() and (await duty.run(store) or {})["version"] == 2
        assert [one.name for one in read(tmp_path / FILE).keys] == ["app"]


async def test_a_store_that_was_restored_is_believed_again_but_for_what_was_revoked(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url) as store:
        for name in ("kept", "revoked", "lost"):
            await made(store, name)
        await keys.change(store, "revoked", BY, "key.revoke", revoked)
        before = await renew(store, tmp_path)
        async with store.writing() as connection:  # as it was before
            await connection.execute(text("DELETE FROM keys WHERE name = 'lost'"))
            await connection.execute(text("UPDATE keys SET revoked_ms = NULL"))
            await connection.execute(text("UPDATE versions SET value = 2"))
        # Two gateways notice at once.
        (tmp_path / "other").mkdir()
        write(tmp_path / "other", before)
        await asyncio.gather(renew(store, tmp_path), renew(store, tmp_path / "other"))
        found = read(tmp_path / FILE)
        assert found == read(tmp_path / "other" / FILE) and found.version == await keys.version(store) == 5
        assert [(key.name, key.revoked_ms is None) for key in found.keys] == [("kept", True), ("revoked", False)]
        (last, *_) = await keys.audit(store, 1)
        assert (last["actor"], last["action"], last["subject"]) == ("hx-gateway", "key.revoke", "revoked")
        await keys.change(store, "kept", BY, "key.revoke", revoked)
        assert (await renew(store, tmp_path)).keys[0].revoked_ms is not None


async def test_a_replica_that_is_behind_is_not(postgres_url: str, tmp_path: Path) -> None:
    async with opened(postgres_url) as store:
        await made(store, "app")
        await keys.change(store, "app", BY, "key.revoke", revoked)
        await renew(store, tmp_path)
        async with store.writing() as connection:
            await connection.execute(text("UPDATE keys SET revoked_ms = NULL"))
            await connection.execute(text("UPDATE versions SET value = 1"))
            await connection.execute(text("ALTER DATABASE " + postgres_url.rpartition("/")[2] + " SET default_transaction_read_only = on"))
    async with opened(postgres_url) as replica:
        with pytest.raises(StoreError, match="read-only"):
            await renew(replica, tmp_path)
    assert read(tmp_path / FILE).keys[0].revoked_ms is not None


async def test_a_quiet_sqlite_file_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hx-gateway.db'}"
    duty = KnownKeys(tmp_path, url)
    assert not duty.pending(), "no file is made for the sake of keys"
    from hx_gateway.stores.sql.upgrade import upgrade

    await upgrade(url)
    async with opened(url) as store:
        await duty.run(store)
        give_up = asyncio.get_running_loop().time() + 30
        while duty.pending():
            await duty.run(store)
            assert asyncio.get_running_loop().time() < give_up
            await asyncio.sleep(0.1)
        await made(store, "app")
        assert duty.pending()
