"""Mutated requests by the thousand: no fault of our own, and nothing reaches the model server but what was plainly asked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.integration.protocol.conftest import PLAIN
from tests.integration.protocol.mutation import SEEDS, case_of, mark, mutant, pieces
from tests.integration.protocol.reference import Incomplete, Unreadable, read
from tests.integration.protocol.wire import PING, one, request
from tests.integration.protocol.witness import HOT, Witness
from tests.support.background import Background
from tests.support.gateway import GatewayProcess

COUNT = int(os.environ.get("HX_FUZZ") or 10_000)
SEED = int(os.environ.get("HX_FUZZ_SEED") or 20)
PARALLEL = 160
_WARM = [SEEDS[0].plain(0).replace(b"x-case: " + mark(0), b"x-case: %b" % value) for value in (b"none", b"no one")]
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z][^\r]*\r\ndate")


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Witness, GatewayProcess]]:
    with Background(Witness) as witness, GatewayProcess(PLAIN.format(url=witness.url)) as gateway:
        yield witness, gateway


class Campaign:
    """Sends mutants over many connections at once and keeps what came back."""

    def __init__(self, port: int, first: int, count: int, seed: int) -> None:
        self.port = port
        self.cases = iter(range(first, first + count))
        self.seed = seed
        self.sent: dict[int, bytes] = {}
        self.statuses: Counter[int] = Counter()
        self.faults: list[bytes] = []

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(PARALLEL)))

    async def _work(self) -> None:
        for case in self.cases:
            dice = random.Random(self.seed * 1_000_003 + case)
            data = mutant(case, dice)
            if dice.random() < 0.25:  # and something right behind it
                data += mutant(case, dice)
            self.sent[case] = data
            await self._send(data, dice)

    async def _send(self, data: bytes, dice: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        said = b""
        try:
            if dice.random() < 0.15:  # on a connection that remembers a good head, and which of its values differ
                for good in _WARM:
                    writer.write(good)
                    assert (await reader.readuntil(b"}]")).startswith(b"HTTP/1.1 200") and await reader.readuntil(b"}}")
            for piece in pieces(data, dice):
                writer.write(piece)
                await asyncio.sleep(0)
            if dice.random() < 0.02:
                return  # a client that leaves at once
            patience_s = 1.0
            while answer := await asyncio.wait_for(reader.read(1 << 16), patience_s):
                said += answer
                patience_s = 0.02 if data.count(b"HTTP/1.") < 2 and said.endswith((b"}", b"\r\n0\r\n\r\n")) else 0.3
        except (TimeoutError, OSError):
            pass
        finally:
            writer.transport.abort()
            for status in map(int, _STATUS.findall(said)):
                self.statuses[status] += 1
                if status >= 500 and len(self.faults) < 20:
                    self.faults.append(data + b"\n->\n" + said[-500:])


def as_parsed(data: bytes) -> set[tuple[bytes, bytes, bytes]]:
    """Every request that the reference reader finds in these bytes, one behind the other."""
    found = set()
    while data:
        try:
            method, target, body, data = read(data)
        except (Unreadable, Incomplete):
            break
        found.add((method, _meant(target), body))
    return found


def _meant(target: bytes) -> bytes:
    """The target as the model server must see it: a hot route by its one name, any other as it came."""
    origin = re.sub(rb"^http://[^/]*", b"", target).partition(b"#")[0]
    path = urllib.parse.unquote_to_bytes(origin.partition(b"?")[0]).rstrip(b"/")
    for name in (path, b"/v1" + path):
        if name in HOT:
            return name
    return origin


def same_body(hot: bool, sent: bytes, arrived: bytes) -> bool:
    """Whether the model server got what the client said, but for the model's name and the request for usage."""
    if sent == arrived:
        return True
    if not hot:
        return False
    try:
        left, right = json.loads(sent, strict=False), json.loads(arrived, strict=False)
    except (ValueError, RecursionError):
        return sent.replace(b'"tiny"', b'"tiny:1b"', 1) == arrived
    for whole in (left, right):
        for name in ("model", "stream_options", "input", "prompt", "encoding_format"):
            whole.pop(name, None)
    return bool(left == right)


def not_as_parsed(campaign: Campaign, witness: Witness) -> list[str]:
    """Requests at the model server that nobody plainly sent; those whose mark was mutated cannot be told."""
    wrong = []
    for seen in witness.seen:
        case = case_of(seen.case)
        data = campaign.sent.get(case) if case is not None else None
        if data is None:
            continue
        for method, target, body in as_parsed(data):
            if method == seen.method and target == seen.target and same_body(target in HOT, body, seen.body):
                break
        else:
            wrong.append(f"{seen.method!r} {seen.target!r} {seen.body!r} came of {data!r}")
    return wrong


def test_mutated_requests(stage: tuple[Witness, GatewayProcess]) -> None:
    witness, gateway = stage
    witness.seen.clear()
    campaign = Campaign(gateway.port, 0, COUNT, SEED)
    began_s = time.monotonic()
    asyncio.run(campaign.run())
    took_s = time.monotonic() - began_s
    sys.stdout.write(f"{COUNT} mutants, seed {SEED}, {took_s:.1f} s; answers {dict(sorted(campaign.statuses.items()))}; {len(witness.seen)} reached the model server\n")  # fmt: skip
    assert not campaign.faults, b"\n\n".join(campaign.faults[:3])
    assert not witness.complaints, "\n".join(witness.complaints[:5])
    wrong = not_as_parsed(campaign, witness)
    assert not wrong, "\n".join(wrong[:5])
    # It was worth it: many were taken, many were refused, and many reached the model server.
    assert campaign.statuses[200] > COUNT / 10 and campaign.statuses[400] > COUNT / 10 and len(witness.seen) > COUNT / 10
    assert gateway.process is not None and gateway.process.poll() is None
    assert "internal error" not in gateway.log and "Traceback" not in gateway.log, gateway.log[-3000:]
    assert one(gateway.port, request(PING)).content == "pong"
