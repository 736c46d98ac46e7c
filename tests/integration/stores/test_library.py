"""A gateway in a program of one's own, without a server and its housekeeper: keys of the store are let in, usage reaches the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import text

from hx_gateway.access.keys import digest_of, hint_of, new_key
from hx_gateway.access.snapshot import StoredKey
from hx_gateway.config.load import load_text
from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.core.identifiers import new_id
from hx_gateway.gateway import build
from hx_gateway.stores.sql import keys
from hx_gateway.stores.sql.engine import Store
from hx_gateway.testing.factories import DeafClient

CONFIG = """
endpoints: {{e: {{url: "http://127.0.0.1:9", discover: false}}}}
models: {{m: {{endpoint: e}}}}
storage: {{state_directory: {state}, database_url: env:URL}}
"""


async def until(true: Callable[[], bool]) -> None:
    """Wait for what takes seconds at most, and on a busy machine longer."""
    give_up_s = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.05)


async def test_keys_are_known_and_usage_is_kept(database_url: str, tmp_path: Path) -> None:
    store, token = Store(database_url), new_key()
    key = StoredKey(id=new_id(time.time()), name="app", hash=digest_of(token), hint=hint_of(token))
    await keys.create(store, key, keys.By("the test", ""))
    gateway = build(load_text(CONFIG.format(state=tmp_path / "state"), "f.yaml", {"URL": database_url}).config)
    try:
        await gateway.start()
        await until(lambda: gateway.keys.identify(token.encode()) is not None)
        body = b'{"model":"nothing","messages":[]}'
        exchange = Exchange(
            gateway.ids(), CHAT, b"POST", b"/", {b"authorization": b"Bearer " + token.encode()}, [], body, DeafClient(), time.monotonic()
        )
        gateway.dispatch(exchange)
        assert exchange.status == 404
        await gateway.stop()
        async with store.reading() as connection:
            rows = (await connection.execute(text("SELECT id, key_name FROM usage"))).all()
        assert [tuple(row) for row in rows] == [(exchange.id, "app")]
    finally:
        await store.close()
