"""What is said when a database cannot be used: the remedy, in one line, and never the password."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from hx_gateway.stores.sql.engine import Store, StoreError, plain

SECRET = "tell/nobody"
URL = f"postgresql://hx:{SECRET.replace('/', '%2F')}@sql.invalid/hx?sslmode=require"


@pytest.mark.parametrize(
    "said",
    [
        f'invalid literal for int(): "{SECRET}"',
        f"cannot parse {URL}",
        "rejected tell%2Fnobody\nand more lines",
    ],
)
def test_the_password_is_taken_out_of_errors(said: str) -> None:
    told = plain(ValueError(said), URL)
    assert "nobody" not in told and "********" in told and "\n" not in told


def test_a_password_among_the_options_is_one_too() -> None:
    told = plain(ValueError("no tell-nobody"), "postgresql:///hx?user=hx&password=tell-nobody")
    assert told == "no ********"


def test_an_error_without_words_has_a_name() -> None:
    assert plain(TimeoutError()) == "no answer in time"
    assert plain(ConnectionResetError()) == "ConnectionResetError"


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(StoreError, match=r"pip install 'hx-gateway\[postgres\]'"):
        Store(URL)


def test_a_store_does_not_show_its_address() -> None:
    assert repr(Store(URL)) == "<Store postgresql>"


async def test_sqlite_is_set_up_for_many_readers_and_one_writer(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    async with store.writing() as writer:
        await writer.execute(text("CREATE TABLE t (n INTEGER)"))
    async with store.writing() as writer:
        await writer.execute(text("INSERT INTO t VALUES (1)"))
        async with store.reading() as reader:  # not held up by the writer, and sees nothing of it yet
            assert (await reader.execute(text("SELECT count(*) FROM t"))).scalar() == 0
            settings = [
                (await reader.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert settings == ["wal", 1, 1]
    with pytest.raises(StoreError, match="no such table: nowhere"):
        async with store.reading() as reader:
            await reader.execute(text("SELECT * FROM nowhere"))
    await store.ping()
    await store.close()


async def test_what_goes_wrong_in_the_block_itself_is_not_the_databases_fault(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(KeyError):
        async with store.writing() as writer:
            await writer.execute(text("CREATE TABLE t (n INTEGER)"))
            raise KeyError("mine")
    async with store.reading() as reader:
        assert (await reader.exec_driver_sql("SELECT count(*) FROM sqlite_master")).scalar() == 0
    await store.close()
