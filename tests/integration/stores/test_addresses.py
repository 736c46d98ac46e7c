"""Every way to reach a store that its address can name: passwords, users, sockets and TLS; and no password is ever told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from sqlalchemy import text
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.support.background import scripted
from tests.support.engines import Databases, Postgres, Valkey
from tests.support.gateway import GatewayProcess
from tests.support.tunnel import Authority, tunnel

from hx_gateway.core.errors import Unavailable
from hx_gateway.stores.redis import Redis
from hx_gateway.stores.sql.engine import Store, StoreError

SECRET = "p@ss:w/rd#1 é"  # everything that an address must write in another way
HIDDEN = quote(SECRET, safe="")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """One that wants a password, with a user of its own, and listens on a socket, too."""
    server = Valkey(requirepass=SECRET)
    server.socket = server.folder / "valkey.sock"  # type: ignore[attr-defined]
    server._words += ["--unixsocket", str(server.socket)]  # type: ignore[attr-defined]
    with server:
        with redis.Redis(port=server.port, password=SECRET) as client:
            client.execute_command("ACL", "SETUSER", "gate:way", "on", f">{SECRET}", "~hx:*", "+@all")
        yield server


async def reached(url: str) -> str:
    """Why Redis cannot be used; empty where it can."""
    store = Redis(url, 1.0)
    await store.start()
    try:
        for _ in range(100):  # a busy machine takes longer than the half second in which it is known at once
            if store.available or not any(words in store.reason for words in ("within half a second", "it is slow", "not connected yet")):
                break
            await asyncio.sleep(0.05)
        if not store.available:
            assert not any(secret in said for secret in (SECRET, HIDDEN) for said in (store.reason, repr(store), str(store.address)))
            return store.reason
        await store.call("SET", "hx:here", "1")
        return ""
    except Unavailable as error:
        return str(error)
    finally:
        await store.stop()


async def test_redis_by_password_user_and_socket(valkey: Valkey) -> None:
    socket = valkey.socket  # type: ignore[attr-defined]
    for url in (
        f"redis://:{HIDDEN}@127.0.0.1:{valkey.port}/0",
        f"redis://default:{HIDDEN}@127.0.0.1:{valkey.port}/2",
        f"redis://gate%3Away:{HIDDEN}@127.0.0.1:{valkey.port}",
        f"unix://:{HIDDEN}@{socket}?db=3",
        f"unix://gate%3Away:{HIDDEN}@{socket}",
    ):
        assert await reached(url) == "", url
    assert "NOAUTH" in await reached(valkey.url)
    for url in (f"redis://:{HIDDEN}x@127.0.0.1:{valkey.port}/0", f"redis://nobody:{HIDDEN}@127.0.0.1:{valkey.port}"):
        assert "WRONGPASS" in await reached(url)
    assert "No such file" in await reached("unix:///nowhere/valkey.sock")


def test_addresses_that_are_none_say_so_without_their_words() -> None:
    for url in (
        "redis://:se/cret@127.0.0.1/0",
        "redis://:secret@127.0.0.1:99999/0",
        "redis://host:port/0",
        "rediss://host/?ssl_ca_certs=/nowhere.pem",
    ):
        with pytest.raises(ValueError) as told:
            Redis(url)
        assert "cret" not in str(told.value) and ("malformed" in str(told.value) or "ssl_ca_certs" in str(told.value))


async def test_redis_by_tls(valkey: Valkey, authority: Authority) -> None:
    with tunnel(valkey.port, authority) as secure:
        place = f"rediss://:{HIDDEN}@127.0.0.1:{secure.port}/0"
        assert await reached(f"{place}?ssl_ca_certs={authority.file}") == ""
        assert await reached(f"{place}?ssl_cert_reqs=none") == "" and secure.secured >= 2
        assert "certificate is not good" in await reached(place), "an authority that nobody trusts"
        assert await reached(f"redis://:{HIDDEN}@127.0.0.1:{secure.port}/0"), "no TLS where it is needed"
    assert await reached(f"rediss://:{HIDDEN}@127.0.0.1:{valkey.port}/0?ssl_cert_reqs=none"), "TLS where there is none"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One with a user for each kind of password."""
    with Postgres() as server:
        made = Databases(server.url())
        quoted = SECRET.replace("'", "''")
        for kind in ("md5", "scram-sha-256"):
            name = kind.partition("-")[0]
            made.execute(
                f"ALTER SYSTEM SET password_encryption = '{kind}'",
                "SELECT pg_reload_conf()",
            )
            wait_until(lambda kind=kind: encryption(made) == kind)
            made.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{quoted}'", f"GRANT ALL ON SCHEMA public TO {name}")
        rules = server._data / "pg_hba.conf"
        asked = "".join(f"{where} all {name} {place} {kind}\n" for name, kind in (("md5", "md5"), ("scram", "scram-sha-256"))
                        for where, place in (("local", ""), ("host", "127.0.0.1/32")))  # fmt: skip
        rules.write_text(asked + rules.read_text())
        made.execute("SELECT pg_reload_conf()")
        wait_until(lambda: refuses(server))
        yield server


def encryption(made: Databases) -> str:
    """How Postgres would keep a new password."""
    import asyncpg

    async def ask() -> str:
        connection = await asyncpg.connect(made.url)
        try:
            return str(await connection.fetchval("SHOW password_encryption"))
        finally:
            await connection.close()

    with asyncio.Runner() as runner:
        return str(runner.run(ask()))


def refuses(server: Postgres) -> bool:
    """Whether it wants passwords by now."""
    with asyncio.Runner() as runner:
        return "password" in str(runner.run(opened(f"postgresql://scram@127.0.0.1:{server.port}/postgres")))


async def opened(url: str) -> str:
    """Why Postgres cannot be used; empty where it can."""
    store = Store(url)
    try:
        await store.ping()
        async with store.reading() as connection:
            return "" if await connection.scalar(text("SELECT current_user")) else "nobody"
    except StoreError as error:
        assert SECRET not in str(error) and HIDDEN not in str(error)
        return str(error)
    finally:
        await store.close()


async def test_postgres_by_password_and_socket(postgres: Postgres) -> None:
    folder = postgres._data
    for user in ("md5", "scram"):
        assert await opened(f"postgresql://{user}:{HIDDEN}@127.0.0.1:{postgres.port}/postgres") == ""
        assert await opened(f"postgresql://{user}:{HIDDEN}@/postgres?host={folder}&port={postgres.port}") == ""
        assert await opened(f"postgresql:///postgres?host={folder}&port={postgres.port}&user={user}&password={HIDDEN}") == ""
        assert "password authentication failed" in await opened(f"postgresql://{user}:{HIDDEN}x@127.0.0.1:{postgres.port}/postgres")


async def test_postgres_by_tls(postgres: Postgres, authority: Authority, tmp_path: Path) -> None:
    with tunnel(postgres.port, authority, postgres=True) as secure:
        place = f"postgresql://scram:{HIDDEN}@localhost:{secure.port}/postgres"
        for mode in ("require", "verify-ca", "verify-full"):
            assert await opened(f"{place}?sslmode={mode}&sslrootcert={authority.file}") == "", mode
        assert secure.secured >= 3
        other = Authority(tmp_path)
        assert "certificate verify failed" in await opened(f"{place}?sslmode=verify-full&sslrootcert={other.file}")
        assert "No such file" in await opened(f"{place}?sslmode=verify-full&sslrootcert=/nowhere/none.pem")
        assert await opened(f"{place}?sslmode=disable")
    assert "SSL" in await opened(f"postgresql://scram:{HIDDEN}@127.0.0.1:{postgres.port}/postgres?sslmode=require")
    assert await opened(f"postgresql://scram:{HIDDEN}@127.0.0.1:{postgres.port}/postgres?sslmode=prefer") == ""


def test_no_password_is_told_by_anyone(postgres: Postgres, valkey: Valkey, tmp_path: Path) -> None:
    config = 'models: {{tiny: {{endpoint: "{url}", provider: openai}}}}\nstorage: {{state_directory: {state}}}\n'
    for extra, expected in (("", True), ("x", False)):
        given = {
            "DATABASE_URL": f"postgresql://scram:{HIDDEN}{extra}@127.0.0.1:{postgres.port}/postgres",
            "REDIS_URL": f"redis://gate%3Away:{HIDDEN}{extra}@127.0.0.1:{valkey.port}",
        }
        with (
            scripted("openai", models=("tiny",)) as backend,
            GatewayProcess(config.format(url=backend.url, state=tmp_path / f"state{extra}"), given) as gateway,
        ):
            told: list[str] = []

            def known(gateway: GatewayProcess = gateway, expected: bool = expected, told: list[str] = told) -> bool:
                answer = one(gateway.port, request(b"", method="GET", path="/healthz/deps", length=False))
                told[:] = [answer.body.decode(), one(gateway.port, request(b"", method="GET", path="/metrics", length=False)).body.decode()]
                told.append(one(gateway.port, request(b"", method="GET", path="/admin/keys", length=False)).body.decode())
                found = json.loads(answer.body)
                return bool(
                    found["redis"] is expected
                    and found["postgres"] is expected
                    and "not known" not in told[0]
                    and "not looked" not in told[0]
                )

            wait_until(known, 30)
            environment = {**gateway._environment, "PYTHONWARNINGS": "ignore"}
            for words, ends in ((["db", "status"], 0 if expected else 1), (["check"], 0)):
                done = subprocess.run(
                    [sys.executable, "-m", "hx_gateway", *words, str(gateway.path)], capture_output=True, text=True, timeout=60,
                    check=False, env=environment,
                )  # fmt: skip
                assert done.returncode == ends, done.stderr
                told += [done.stdout, done.stderr]
        told += [gateway.log, *(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))]
        for secret in (SECRET, HIDDEN, SECRET.encode().decode("latin-1")):
            assert not [text for text in told if secret in text]
        assert ("password authentication failed" in told[0]) != expected, told[0]
