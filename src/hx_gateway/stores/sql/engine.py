"""A database by its URL: SQLite or Postgres, with limits on how long anything may take and no secrets in what is said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from hx_gateway.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONNECT_S = 5.0
_BUSY_S = 5.0  # how long SQLite waits for another writer
_IDLE_S = 60.0  # a transaction that nobody goes on with is ended by Postgres
_READING = "hx_reading"


class StoreError(Unavailable):
    """The database cannot be used; the message says why and what to do, and holds no secret."""


class Store:
    """One database; connections are made when they are needed.

    Args:
        url: ``sqlite:///path``, ``postgresql://…`` or ``postgres://…``, as `config.storage.database_fault` lets pass.
        statement_s: The longest that one statement may take on Postgres, in seconds.
        connections: How many connections are kept; twice as many may be in use for a while.

    Attributes:
        kind: ``sqlite`` or ``postgresql``.
        path: The file of SQLite; None for Postgres.

    Raises:
        StoreError: The driver for Postgres is not installed.
    """

    def __init__(self, url: str, statement_s: float = 30.0, connections: int = 3) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///")).expanduser() if url.startswith("sqlite:") else None
        self.kind = "sqlite" if self.path is not None else "postgresql"
        options: dict[str, Any] = {
            "hide_parameters": True,
            "pool_size": connections,
            "max_overflow": connections,
            "pool_timeout": 2 * CONNECT_S,
        }
        if self.path is not None:
            address = f"sqlite+aiosqlite:///{self.path}"
            self.engine = create_async_engine(address, connect_args={"timeout": _BUSY_S}, **options)
            event.listen(self.engine.sync_engine, "connect", _prepare)
            event.listen(self.engine.sync_engine, "begin", _begin)
        else:
            # A connection that a restart of the server broke is noticed before it is used, not by the statement.
            options |= {"pool_pre_ping": True, "async_creator": _connector(url, statement_s)}
            self.engine = create_async_engine("postgresql+asyncpg://", **options)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed when the block ends well; on SQLite the only one that writes at its time.

        Raises:
            StoreError: The database cannot be reached, is full, or broke off.
        """
        with self._told():
            async with self.engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One transaction that only reads, and on SQLite hinders no writer.

        Raises:
            StoreError: The database cannot be reached or broke off.
        """
        with self._told():
            async with self.engine.connect() as connection:
                await connection.execution_options(**{_READING: True})
                yield connection

    async def ping(self) -> None:
        """Look whether the database answers, for some seconds at most.

        Raises:
            StoreError: It does not.
        """
        with self._told():
            async with asyncio.timeout(CONNECT_S), self.reading() as connection:
                await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except (DBAPIError, OSError, TimeoutError) as error:
            raise StoreError(plain(error, self.url)) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("asyncpg", "sqlite3", "sqlalchemy"):
                raise
            raise StoreError(plain(error, self.url)) from error

    def __repr__(self) -> str:
        return f"<Store {self.kind}>"


def plain(error: BaseException, url: str = "") -> str:
    """The first line of what went wrong, without the URL and its password."""
    cause = getattr(error, "orig", None) or error
    cause = cause.__cause__ if isinstance(cause.__cause__, Exception) and isinstance(error, DBAPIError) else cause
    lines = str(cause).strip().splitlines()
    said = lines[0] if lines else "no answer in time" if isinstance(cause, TimeoutError) else type(cause).__name__
    said = re.sub(r"^<class '[^']*'>: ", "", said)
    for secret in _secrets(url):
        said = said.replace(secret, "********")
    return said


def _secrets(url: str) -> list[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        password = ""
    given = re.search(r"[?&]password=([^&]*)", url)
    found = {url, password, unquote(password), *([given[1], unquote(given[1])] if given else [])}
    return sorted((secret for secret in found if len(secret) > 3 or secret and secret == password), key=len, reverse=True)


def _connector(url: str, statement_s: float) -> Callable[[], Awaitable[Any]]:
    try:
        import asyncpg
    except ImportError:
        raise StoreError("Postgres needs its driver, which is not installed: pip install 'hx-gateway[postgres]'") from None
    settings = {
        "application_name": "hx-gateway",
        "statement_timeout": str(round(statement_s * 1000)),
        "idle_in_transaction_session_timeout": str(round(_IDLE_S * 1000)),
    }

    async def connect() -> Any:
        # The server ends a statement that takes too long; a server that does not even do that is given up a little later.
        return await asyncpg.connect(url, timeout=CONNECT_S, command_timeout=statement_s + CONNECT_S, server_settings=settings)

    return connect


def _prepare(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={round(_BUSY_S * 1000)}"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin(connection: Any) -> None:
    # A transaction that reads first and writes later fails at once when another wrote in between: writers say so from the start.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get(_READING) else "BEGIN IMMEDIATE")


def touch(path: Path) -> None:
    """Make the file of a database readable for its owner only, before the driver makes it readable for all.

    Raises:
        StoreError: It cannot be made.
    """
    try:
        # One that is there is not opened: closing it would take away the locks of this process's own connections, and another process
        # that is then the last to leave would delete the log that these still write to.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(f"the SQLite file cannot be opened: {error.strerror or error}") from None
