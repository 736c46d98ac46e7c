"""Model servers that take the time the simulator's take: its servers, on the wall clock and behind HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from hx_gateway.core.errors import ErrorKind
from hx_gateway.simulation.events import Events
from hx_gateway.simulation.plan import FleetPlan, ServerPlan
from hx_gateway.simulation.server import Job, Server
from hx_gateway.simulation.trace import Arrival, chained
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.script import Model

TOKEN = 4
"""Bytes that stand for a token, as the gateway estimates."""

_CHATS = ("/v1/chat/completions", "/api/chat")
_CONTEXT = 1_000_000
_LENGTH = " Tokens to answer with: "


def prompt_of(arrival: Arrival, own: str, block_tokens: int) -> str:
    """Text of a request of a trace: as long, with equal text where blocks are equal, and at its end the length of the answer.

    Args:
        arrival: The request.
        own: What makes the text differ where the trace names no blocks.
        block_tokens: Tokens of a block.
    """
    length = arrival.prompt_tokens * TOKEN
    end = f"{_LENGTH}{arrival.output_tokens}"
    count = -(-length // (block_tokens * TOKEN))
    names = [str(block) for block in arrival.blocks[:count]]
    names += [f"{own}/{number}" for number in range(len(names), count)]
    text = "".join((hashlib.sha256(name.encode()).hexdigest() * (block_tokens * TOKEN // 64 + 1))[: block_tokens * TOKEN] for name in names)
    return text[: max(length - len(end), 0)] + end


def understood(prompt: str, block_tokens: int, at_s: float, model: str) -> Arrival:
    """What a server makes of a prompt; the inverse of `prompt_of`, and what the simulator is given, too."""
    size = block_tokens * TOKEN
    blocks = chained(hash(prompt[start : start + size]) for start in range(0, len(prompt) - size + 1, size))
    return Arrival(at_s, max(len(prompt) // TOKEN, 1), int(prompt.rpartition(" ")[2]), model, blocks)


class WallClock(Events):
    """Events on the running loop. An action that comes late counts from when it was due, so that lateness does not add up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due_s: float | None = None

    @property
    def now_s(self) -> float:  # type: ignore[override]
        """The loop's time, or when the action under way was due."""
        return self._loop.time() if self._due_s is None else self._due_s

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        self._loop.call_at(time_s, self._act, time_s, action)

    def _act(self, due_s: float, action: Callable[[], None]) -> None:
        self._due_s = due_s
        try:
            action()
        finally:
            self._due_s = None


class _Caller:
    """Lets a coroutine wait for what becomes of its job."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.last: asyncio.Future[None] = loop.create_future()

    def began(self, cached_tokens: int) -> None:
        self.first.set_result(cached_tokens)

    def ended(self, load_s: float, line_s: float) -> None:
        self.last.set_result(None)

    def broke(self, kind: ErrorKind) -> None:
        raise AssertionError(f"these servers do not fail, but: {kind.code}")


class Replica(Backend):
    """One server of a fleet file, on a port.

    Streams two pieces: one when the prompt was read, one when the answer is complete. What it holds in memory it tells
    as Ollama does where its plan says that it loads models on demand.

    Args:
        name: What it is called.
        plan: What it can do.
        sizes: Its models, with their memory in GB.
        block_tokens: Tokens in a block of its prefix cache.
        port: TCP port; 0 for a free one.
    """

    def __init__(self, name: str, plan: ServerPlan, sizes: dict[str, float], block_tokens: int, port: int = 0) -> None:
        models = [Model(model, context_length=_CONTEXT, size=int(gb * 1e9)) for model, gb in sizes.items()]
        super().__init__("ollama" if plan.managed else "openai", models, port=port, keep=1)
        self.name = name
        self.taken = 0
        self.server = Server(plan, sizes, block_tokens, WallClock(), random.random)
        self._block_tokens = block_tokens

    async def _serve(self, received: Received, answer: Answer) -> None:
        if received.method != "POST" or received.path not in _CHATS:
            self.loaded = set(self.server.loaded)
            await super()._serve(received, answer)
            return
        body = received.json()
        assert body["stream"], "these servers answer in streams only"
        self.taken += 1
        caller = _Caller()
        arrival = understood(body["messages"][-1]["content"], self._block_tokens, received.at_s, body["model"])
        job = Job(arrival, body["model"], caller)
        self.server.send(job)
        cached = await caller.first
        native = received.path == "/api/chat"
        await answer.begin(200, "application/x-ndjson" if native else "text/event-stream")
        pieces = _native(job) if native else _events(job, cached if self.server.plan.reports_cached else None)
        await answer.piece(next(pieces))
        await caller.last
        await answer.piece(next(pieces))
        await answer.end()


def _events(job: Job, cached: int | None) -> Iterator[bytes]:
    head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": job.model}
    arrival = job.arrival

    def event(delta: dict[str, str], finish: str | None) -> bytes:
        return _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield event({"role": "assistant", "content": "a"}, None)
    prompt, output = arrival.prompt_tokens, arrival.output_tokens
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    yield event({"content": "b"}, "stop") + _event({**head, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _native(job: Job) -> Iterator[bytes]:
    head = {"model": job.model, "created_at": "2026-01-02T03:04:05Z"}
    message = {"role": "assistant", "content": "a"}
    began_s = time.monotonic()
    yield json.dumps({**head, "message": message, "done": False}).encode() + b"\n"
    now_s = time.monotonic()
    reading_s = began_s - job.came_s - job.load_s - job.line_s
    spans = {"load_duration": job.load_s, "prompt_eval_duration": reading_s, "eval_duration": now_s - began_s}
    counts = {"prompt_eval_count": job.arrival.prompt_tokens, "eval_count": job.arrival.output_tokens}
    counts |= {name: max(int(seconds * 1e9), 1) for name, seconds in spans.items()}
    yield json.dumps({**head, "message": message, "done": True, "done_reason": "stop", **counts}).encode() + b"\n"


@asynccontextmanager
async def fleet(plan: FleetPlan, first_port: int = 0) -> Any:
    """All servers of a fleet file, as ``async with fleet(plan) as replicas``.

    Args:
        plan: The fleet.
        first_port: Port of the first, the others follow; 0 for free ones.
    """
    async with AsyncExitStack() as stack:
        replicas: list[Replica] = []
        for kind, described in plan.servers.items():
            sizes = {model: plan.models[model].gb for model in described.models or plan.models}
            for number in range(described.count):
                port = first_port + len(replicas) if first_port else 0
                replica = Replica(f"{kind}-{number + 1}", described, sizes, plan.block_tokens, port)
                replicas.append(await stack.enter_async_context(replica))
        yield replicas


class Outcome:
    """What a client saw of one request: seconds from when it was due to the first and to the last piece; None if it failed."""

    __slots__ = ("error", "first_s", "last_s")

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.error = ""


async def replay(port: int, arrivals: Sequence[Arrival], prompts: Sequence[str], key: str) -> list[Outcome]:
    """Send a trace to what listens at a port, each request at its time whatever became of those before it."""
    loop = asyncio.get_running_loop()
    began_s = loop.time() + 0.2
    outcomes = [Outcome() for _ in arrivals]
    tasks = []
    for arrival, prompt, outcome in zip(arrivals, prompts, outcomes, strict=True):
        data = request_of(port, arrival.model, prompt, key)
        due_s = began_s + arrival.at_s
        await asyncio.sleep(due_s - loop.time())
        tasks.append(asyncio.create_task(_ask(port, data, due_s, outcome)))
    await asyncio.gather(*tasks)
    return outcomes


def request_of(port: int, model: str, prompt: str, key: str) -> bytes:
    """The bytes of one streamed chat."""
    chat = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "messages": [{"role": "user", "content": prompt}]}
    body = json.dumps(chat).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{port}", f"authorization: Bearer {key}", "connection: close")
    head = "\r\n".join((*lines, "content-type: application/json", f"content-length: {len(body)}", "", "")).encode()
    return head + body


async def _ask(port: int, data: bytes, due_s: float, outcome: Outcome) -> None:
    now = asyncio.get_running_loop().time
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        try:
            writer.write(data)
            seen = b""
            while piece := await reader.read(65536):
                seen += piece
                if outcome.first_s is None and b"data: {" in seen:
                    outcome.first_s = now() - due_s
            if b"data: [DONE]" in seen and seen.startswith(b"HTTP/1.1 200"):
                outcome.last_s = now() - due_s
            else:
                outcome.error = seen[:300].decode("latin-1") or "no answer"
        finally:
            writer.close()
    except OSError as error:
        outcome.error = str(error)
