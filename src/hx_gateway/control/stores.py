"""The stores as the control plane sees them: what may be told of each, and answers to requests that need one."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from hx_gateway.backing import Backing
from hx_gateway.config.storage import database_url
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure, Unavailable
from hx_gateway.housekeeping import read_state

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

REACH_S = 2.0
"""Seconds that a request waits until the store answers at all."""
_LONGEST_S = 8.0  # from then on
_AGAIN_S = 5.0


def named(backing: Backing) -> str:
    """What the SQL store is called in sentences."""
    url = backing.config.storage.database_url
    return "Postgres" if url is not None and url.reveal().startswith("postgres") else "the SQLite file"


async def _reached(backing: Backing) -> Store:
    store = await backing.store()
    await store.ping()
    return store


@contextlib.asynccontextmanager
async def answering(backing: Backing) -> AsyncIterator[Store]:
    """The SQL store, for a request that cannot be answered without it; for administrators only, since they are told what is wrong.

    Raises:
        Failure: ``store_unavailable``: it cannot be used, or does not answer in time.
    """
    name = named(backing)
    # The first time this takes long, which is nothing the store can do about.
    await asyncio.to_thread(lambda: [importlib.import_module(f"hx_gateway.stores.sql.{part}") for part in ("upgrade", "keys")])
    # What hangs on a dead server cannot even be cancelled quickly: it is left to itself.
    reaching = asyncio.create_task(_reached(backing))
    reaching.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait((reaching,), timeout=REACH_S)
        if not reaching.done():
            reaching.cancel()
            raise TimeoutError
        store = reaching.result()
        async with asyncio.timeout(_LONGEST_S):
            yield store
    except TimeoutError:
        raise Failure(errors.STORE_UNAVAILABLE, f"{name} does not answer; try again when it does", retry_after_s=_AGAIN_S) from None
    except Unavailable as error:
        raise Failure(errors.STORE_UNAVAILABLE, f"{name} cannot be used: {error}", retry_after_s=_AGAIN_S) from None


def sql_state(backing: Backing, admin: bool) -> tuple[bool | None, str]:
    """The SQL store, as the housekeeper last saw it.

    Args:
        backing: The worker's.
        admin: Whether who asks may see paths, addresses and errors.

    Returns:
        Whether Postgres is reachable, None where SQLite is used; and a sentence.
    """
    storage, folder = backing.config.storage, backing.folder
    url = database_url(storage, folder) if folder is not None else storage.database_url.reveal() if storage.database_url is not None else ""
    sqlite = not url.startswith("postgres")
    place = (f"SQLite file {url.removeprefix('sqlite:///')}" if admin and url else "SQLite file") if sqlite else "Postgres"
    state = read_state(folder)
    if state is None:
        why = "the housekeeper has not told its state" if folder is not None else "the state directory cannot be written"
        return None if sqlite else False, f"{place}, state not known: {why}"
    store = state["store"]
    if store["ok"] is None:
        said = "not needed so far" if sqlite else "not looked at yet"
    elif store["ok"]:
        said = f"ok, schema {store['schema']}"
    else:
        said = f"not reachable{': ' + store['error'] if admin else ''}; requests are served without it"
    return None if sqlite else store["ok"] is True, f"{place}, {said}"


def redis_state(backing: Backing, admin: bool) -> tuple[bool | None, str]:
    """Redis, as this worker last saw it; as `sql_state`."""
    redis, shared = backing.redis, backing.metering.shared
    if backing.config.storage.redis_url is None:
        return None, "not configured"
    if redis is None or shared is None:
        return False, backing.redis_missing or "not started"
    many = f"{shared.gateways} gateway{'s' if shared.gateways > 1 else ''}"
    if redis.available:
        return True, f"ok{f' at {redis.address}' if admin else ''}; {many} share the limits"
    return False, f"away{f' ({redis.address}: {redis.reason})' if admin else ''}; limits are kept here, divided by {many}"
