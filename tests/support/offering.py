"""Offers requests at a rate of its own to gateways, whether they keep up or not, and notes what became of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Got:
    """One answer: when the gateway received its request (seconds of its own clock, from its id), status, and seconds it took."""

    at_s: float
    status: int
    took_s: float
    code: str = ""


class Lane:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> Got:
        sent_s = time.monotonic()
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await self.reader.readexactly(int(lines["content-length"]))
        status = int(head[9:12])
        millisecond = 0
        for digit in lines["x-request-id"].upper()[:10]:
            millisecond = millisecond * 32 + _ALPHABET.index(digit)
        code = json.loads(body)["error"]["code"] if status >= 400 else ""
        return Got(millisecond / 1000, status, time.monotonic() - sent_s, code)


async def offer(
    ports: Sequence[int], rate: float, seconds: float, key: str, body: bytes, within: Callable[[], None] = lambda: None
) -> list[Got]:
    """Send ``rate`` requests a second for so long, to each port in turn; ``within`` is called ten times a second.

    Connections that break, and answers that do not come within 20 s, are failures of the test.
    """
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )
    free: dict[int, list[Lane]] = {port: [] for port in ports}
    tasks: list[asyncio.Task[Got]] = []

    async def one(port: int) -> Got:
        lanes = free[port]
        lane = lanes.pop() if lanes else Lane(*await asyncio.open_connection("127.0.0.1", port))
        got = await asyncio.wait_for(lane.ask(request), 20)
        lanes.append(lane)
        return got

    start_s = time.monotonic()
    sent = looked = 0
    while (passed_s := time.monotonic() - start_s) < seconds:
        while sent < passed_s * rate:
            tasks.append(asyncio.create_task(one(ports[sent % len(ports)])))
            sent += 1
        if passed_s * 10 > looked:
            looked += 1
            within()
        await asyncio.sleep(0.002)
    found = await asyncio.gather(*tasks)
    for lanes in free.values():
        for lane in lanes:
            lane.writer.close()
    return found


def missed(asked: Sequence[float], rate: float, burst: float) -> float:
    """How many more a limit would have let pass, had nobody stood still: what became due while all was full and no one asked."""
    return sum(max(0.0, (later - earlier) * rate - burst) for earlier, later in pairwise(sorted(asked)))


def most_in(times: Sequence[float], window_s: float = 1.0) -> int:
    """The most of ``times`` that fall into any window of that length."""
    ordered, first, most = sorted(times), 0, 0
    for number, at_s in enumerate(ordered):
        while at_s - ordered[first] >= window_s:
            first += 1
        most = max(most, number - first + 1)
    return most
