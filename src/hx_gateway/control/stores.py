"""What may be told of the stores: whether each is reachable, and to administrators where it is and what went wrong."""

from __future__ import annotations

from hx_gateway.backing import Backing
from hx_gateway.config.storage import database_url
from hx_gateway.housekeeping import read_state


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
        return True, f"ok{f' at {redis.address}' if admin else ''}; {many} share the limits of keys"
    return False, f"away{f' ({redis.address}: {redis.reason})' if admin else ''}; limits of keys are kept here, divided by {many}"
