"""The cases of llhttp's own test suite, sent to the running gateway over sockets: what its strict mode refuses goes nowhere."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.integration.protocol.conftest import Pair
from tests.integration.protocol.wire import one, request
from tests.support.gateway import KEY

FILE = Path(__file__).parents[4] / "shared" / "data" / "protocol" / "llhttp_request_cases.jsonl.gz"
CASES: list[dict[str, Any]] = [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()] if FILE.exists() else []
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_START = re.compile(rb"^([A-Z-]+) (/[^ ]*)( HTTP/1\.\d\r\n)", re.MULTILINE)

pytestmark = pytest.mark.skipif(not CASES, reason=f"the cases are not part of the repository; looked for {FILE.name} beside it")


@dataclass
class Seen:
    """What came of one case."""

    said: bytes = b""
    closed: bool = False
    statuses: list[int] = field(default_factory=list)


async def play(port: int, raw: bytes, wait_s: float) -> Seen:
    """Send the bytes; a request left without its last line end gets it; then see what comes until the end, or for so long."""
    seen = Seen()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def listen() -> None:
        try:
            while data := await reader.read(65536):
                seen.said += data
        except ConnectionResetError:
            pass
        seen.closed = True

    listener = asyncio.create_task(listen())
    writer.write(raw)
    await asyncio.wait({listener}, timeout=0.3)
    if not seen.closed and not seen.said:
        writer.write(b"\r\n")
    await asyncio.wait({listener}, timeout=wait_s)
    listener.cancel()
    writer.transport.abort()
    seen.statuses = [int(status) for status in _STATUS.findall(seen.said)]
    return seen


def forwarded(raw: bytes, number: int) -> bytes:
    """The same case as one whose every request would be forwarded if it were good: path, key and host are right."""
    host = b"" if b"host:" in raw.lower() else b"host: gateway.test\r\n"
    lines = b"authorization: Bearer %b\r\n%b" % (KEY.encode(), host)
    return _START.sub(lambda found: found[1] + b" /v1/case-%d" % number + found[2] + found[3] + lines, raw)


@pytest.fixture(scope="module")
def played(shared: Pair) -> dict[tuple[int, bool], Seen]:
    """Every case, as it stands and on a forwarded path, all at the same time."""

    async def all_of_them() -> dict[tuple[int, bool], Seen]:
        gate = asyncio.Semaphore(24)

        async def one(number: int, forward: bool) -> tuple[tuple[int, bool], Seen]:
            raw = base64.b64decode(CASES[number]["raw_b64"])
            wait_s = 30.0 if refused_by_llhttp(CASES[number]) else 0.5  # where the gateway has to end it, it may take its time
            async with gate:
                return (number, forward), await play(shared.port, forwarded(raw, number) if forward else raw, wait_s)

        return dict(await asyncio.gather(*(one(number, forward) for number in range(len(CASES)) for forward in (False, True))))

    return asyncio.run(all_of_them())


def refused_by_llhttp(case: dict[str, Any]) -> bool:
    error = case["llhttp_error"]
    return case["parser_mode"] == "request" and error is not None and not error.startswith("Pause on ")


def ids(case: dict[str, Any]) -> str:
    return f"{Path(case['file']).stem}: {case['title']} ({case['parser_mode']})"


@pytest.mark.parametrize("forward", [False, True], ids=["as it stands", "forwarded"])
@pytest.mark.parametrize("number", range(len(CASES)), ids=[ids(case) for case in CASES])
def test_case(number: int, forward: bool, played: dict[tuple[int, bool], Seen], shared: Pair) -> None:
    case, seen = CASES[number], played[number, forward]
    # 501 and 505 would be the protocol's own words; anything from 500 on is not what any of these bytes deserve.
    assert all(status < 500 for status in seen.statuses), seen.said
    if not refused_by_llhttp(case):
        return
    assert seen.closed, f"llhttp says {case['llhttp_error']!r}, the connection is still open: {seen.said!r}"
    if case["messages_complete"] == 0:
        assert seen.statuses == [400], f"llhttp says {case['llhttp_error']!r}: {seen.said!r}"
        assert b'"invalid_http"' in seen.said
        assert not [received.path for received in shared.received() if received.path.startswith(f"/v1/case-{number}/")]
    else:
        assert len(seen.statuses) <= case["messages_complete"] + 1


def test_all_cases_are_there() -> None:
    assert len(CASES) == 166
    assert sum(refused_by_llhttp(case) for case in CASES) > 50


def test_the_gateway_is_alive_after_all_that(played: dict[tuple[int, bool], Seen], shared: Pair) -> None:
    assert one(shared.port, request()).content == "pong"


def test_good_cases_do_reach_the_model_server(played: dict[tuple[int, bool], Seen], shared: Pair) -> None:
    """Else "nothing reached it" would prove nothing."""
    reached = {int(found[1]) for received in shared.received() if (found := re.match(r"/v1/case-(\d+)/", received.path))}
    assert len(reached) > 20
    assert not [number for number in reached if refused_by_llhttp(CASES[number]) and CASES[number]["messages_complete"] == 0]
