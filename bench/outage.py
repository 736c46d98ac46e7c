"""`python -m bench.outage`: what clients notice of a store that is away, and whether every answer is on record afterwards, once.

Two workers are asked for chats at a steady rate, in periods of the same length: all is well, the store is away, all is well ... The
load generator reckons each answer from the moment its request was due. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import asyncpg
from tests.support.engines import Engine, Postgres, Valkey
from tests.support.gateway import free_port

from bench.__main__ import UPSTREAM_PORTS, built, started, up
from bench.peers import KEY

_CONFIG = """
service: {{port: {port}, workers: 2}}
keys:
  api_keys: [{{name: bench, key: "env:BENCH_KEY", limits: {{requests_per_second: 100000, tokens_per_minute: 10000000000}}}}]
models:
  mock: {{endpoints: ["http://127.0.0.1:{first}", "http://127.0.0.1:{second}"], provider: openai}}
storage: {{{storage}}}
"""
_FULL = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON usage FOR EACH STATEMENT EXECUTE FUNCTION full_disk();
"""
_ROOM = "DROP TRIGGER full_disk ON usage; DROP FUNCTION full_disk()"
_SUMS = "SELECT count(*), count(DISTINCT id) FROM usage"
_PATIENCE_S = 120.0  # for the store to catch up
_ALL_CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))


def _fill(engine: Engine, words: str = _FULL) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(_address(engine))
        await connection.execute(words)
        await connection.close()

    asyncio.run(run())


_STOPPED = (lambda engine: engine.stop(), lambda engine: engine.start())
_HUNG = (lambda engine: engine.hang(), lambda engine: engine.resume())
CASES: dict[str, tuple[type[Engine], Callable[[Any], None], Callable[[Any], None]]] = {
    "postgres-stopped": (Postgres, *_STOPPED),
    "postgres-hung": (Postgres, *_HUNG),
    "postgres-full": (Postgres, _fill, lambda engine: _fill(engine, _ROOM)),
    "redis-stopped": (Valkey, *_STOPPED),
    "redis-hung": (Valkey, *_HUNG),
}
"""What is tried: the engine, how it goes away, and how it comes back. A full disk is what Postgres would say of one."""


def _address(engine: Engine) -> str:
    return engine.url() if isinstance(engine, Postgres) else ""


def _rows(engine: Engine, file: Path) -> tuple[int, int]:
    """Rows in the store, and how many of them differ; of a store that cannot be asked, none."""

    async def asked() -> tuple[int, int]:
        connection = await asyncpg.connect(_address(engine), timeout=5)
        try:
            return tuple(await connection.fetchrow(_SUMS))
        finally:
            await connection.close()

    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, sqlite3.Error):
        if isinstance(engine, Postgres):
            return asyncio.run(asked())
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            found: tuple[int, int] = connection.execute(_SUMS).fetchone()
            return found
    return 0, 0


def _caught_up(engine: Engine, file: Path, expected: int) -> tuple[int, int, float]:
    """Rows, those that differ, and the seconds until all were there."""
    began_s = time.monotonic()
    rows, distinct = _rows(engine, file)
    while rows < expected and time.monotonic() < began_s + _PATIENCE_S:
        time.sleep(0.5)
        rows, distinct = _rows(engine, file)
    return rows, distinct, time.monotonic() - began_s


@contextlib.contextmanager
def _gateway(engine: Engine, folder: Path, home: Path, ports: tuple[str, str]) -> Iterator[int]:
    """Two workers with the engine and the scripted upstream; gives their port."""
    port = free_port()
    storage = f'database_url: "{engine.url()}"' if isinstance(engine, Postgres) else ""
    storage = storage or f'database_url: "sqlite:///{home}/usage.db", redis_url: "{engine.url}"'  # type: ignore[attr-defined]
    settings = home / "gateway.yaml"
    settings.write_text(_CONFIG.format(port=port, first=ports[0], second=ports[1], storage=storage))
    with patch.dict(os.environ, {"XDG_STATE_HOME": str(home)}):
        command = [sys.executable, "-m", "hx_gateway", "serve", str(settings)]
        with started(command, _ALL_CORES, folder / "outage.log"):
            if not up(port):
                sys.exit(f"the gateway did not come up, see {folder}/outage.log")
            yield port


def _period(folder: Path, port: int, rate: int, seconds: float) -> subprocess.Popen[str]:
    words = ["-p", str(port), "-r", str(rate), "-c", "64", "-d", str(seconds), "-k", KEY]
    return subprocess.Popen([str(folder / "loadgen"), *words], stdout=subprocess.PIPE, text=True)


def _figures(load: subprocess.Popen[str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(load.communicate()[0])
    figures["failed"] = figures["bad"] + figures["non200"] + figures["connerr"] + figures["dropped"]
    return figures


def _said(name: str, figures: dict[str, Any]) -> str:
    times = ", ".join(f"{key} {figures[key] / 1000:.2f}" for key in ("p50", "p99", "p999", "max"))
    return f"{name:8} {figures['rps']:6.1f}/s  {times} ms  failed {figures['failed']}"


def outage(folder: Path, case: str, rate: int, seconds: float, rounds: int, ports: tuple[str, str]) -> None:
    """Try one case and print its figures."""
    kind, away, back = CASES[case]
    normal, without = [], []
    print(f"\n{case}, {rounds} x {seconds:g} s, {rate} requests/s, two workers", flush=True)
    with kind() as engine, tempfile.TemporaryDirectory() as home, _gateway(engine, folder, Path(home), ports) as port:
        file = Path(home) / "usage.db"
        warm = _figures(_period(folder, port, rate, 3.0))
        answered = warm["answered"] + 1  # and the one that showed it is up
        for _ in range(rounds):
            normal.append(_figures(_period(folder, port, rate, seconds)))
            print("  " + _said("normal", normal[-1]), flush=True)
            with _period(folder, port, rate, seconds) as load:
                away(engine)
                without.append(_figures(load))
            back(engine)
            answered += normal[-1]["answered"] + without[-1]["answered"]
            print("  " + _said("outage", without[-1]), flush=True)
            rows, distinct, took_s = _caught_up(engine, file, answered)
            print(f"  answered {answered}, rows {rows}, double {rows - distinct}, all there after {took_s:.1f} s", flush=True)
    added = [(median(one[key] for one in without) - median(one[key] for one in normal)) / 1000 for key in ("p50", "p99")]
    failed = sum(one["failed"] for one in without)
    print(
        f"  {case}: added p50 {added[0]:+.2f} ms, added p99 {added[1]:+.2f} ms, failed {failed} of {sum(one['answered'] for one in without)}"
    )


def main() -> None:
    """Read the command line, measure and print."""
    asked = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    asked.add_argument("--cases", default=",".join(CASES))
    asked.add_argument("--seconds", type=float, default=60.0, help="of each period")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--rate", type=int, default=300, help="requests a second")
    asked.add_argument("--upstream", default=",".join(UPSTREAM_PORTS), help="two ports for the scripted upstream")
    asked.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hx-bench", help="for programs and logs")
    options = asked.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    built(options.folder)
    first, second = options.upstream.split(",")
    with started([str(options.folder / "mock"), first, second], _ALL_CORES, options.folder / "mock.log"):
        time.sleep(0.3)
        for case in options.cases.split(","):
            outage(options.folder, case, options.rate, options.seconds, options.rounds, (first, second))


if __name__ == "__main__":
    main()
