"""A scripted model server: speaks OpenAI's and Ollama's dialects, remembers every request, and fails on demand.

For tests, demonstrations and measurements without a model. As a program::

    python -m hx_gateway.testing.backend --port 11400 --port 11401 --dialect ollama --model tiny:1b
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from hx_gateway.testing import ollama_dialect, openai_dialect
from hx_gateway.testing.faults import HEADER, KINDS, WIRE_FAULTS, Fault
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.script import Model
from hx_gateway.testing.wire import Listener

DIALECTS = ("openai", "ollama")


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A client that left before its answer was complete.

    Args:
        path: What it had asked for.
        pieces: Pieces of a streamed answer it had been sent.
        at_s: When, on the loop's clock.
    """

    path: str
    pieces: int
    at_s: float


class Backend:
    """A model server for tests, as ``async with Backend(...) as backend: backend.url``.

    Args:
        dialect: ``openai`` (``/v1`` as vLLM has it) or ``ollama`` (native, and its own ``/v1``).
        models: What it serves: names or `Model` objects.
        host: Address to listen on.
        port: TCP port; 0 for a free one.
        api_key: Bearer key it insists on; empty for none.
        version: What ``/api/version`` says.
        legacy_embeddings: Whether it is an Ollama so old that it knows ``/api/embeddings`` only.
        slots: Requests worked on at once; 0 for no limit.
        queue: Requests that may wait for a slot before it says that it is busy.
        first_token_s: Seconds before the first token.
        token_s: Seconds before each further token.
        load_s: Seconds to load a model that is not in memory.
        loaded: Whether all models are in memory at the start.
        keep: How many requests and cancellations it remembers.

    Attributes:
        requests: What it received, oldest first.
        cancellations: Clients that left early; `cancelled` is their number.
        in_flight: Requests being answered now, waiting ones included; ``peak`` is the most there were.
    """

    def __init__(
        self,
        dialect: str = "openai",
        models: Iterable[str | Model] = ("tiny:1b",),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = "",
        version: str = "0.13.5",
        legacy_embeddings: bool = False,
        slots: int = 0,
        queue: int = 512,
        first_token_s: float = 0.0,
        token_s: float = 0.0,
        load_s: float = 0.0,
        loaded: bool = True,
        keep: int = 10_000,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, not {dialect!r}")
        self.dialect = dialect
        self.models = {model.name: model for model in (Model(m) if isinstance(m, str) else m for m in models)}
        self.api_key = api_key
        self.version = version
        self.legacy_embeddings = legacy_embeddings
        self.slots = slots
        self.queue = queue
        self.first_token_s = first_token_s
        self.token_s = token_s
        self.load_s = load_s
        self.loaded = set(self.models) if loaded else set()
        self.requests: deque[Received] = deque(maxlen=keep)
        self.cancellations: deque[Cancellation] = deque(maxlen=keep)
        self.cancelled = 0
        self.answered = 0
        self.in_flight = 0
        self.working = 0
        self.peak = 0
        self._fault: Fault | None = None
        self._struck = 0
        self._listener = Listener(self._serve, host, port)
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Backend:
        await self._listener.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._listener.stop()

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._listener.port

    @property
    def url(self) -> str:
        """Its address, without ``/v1``."""
        host = f"[{self._listener.host}]" if ":" in self._listener.host else self._listener.host
        return f"http://{host}:{self._listener.port}"

    @property
    def connections(self) -> int:
        """Connections accepted so far."""
        return self._listener.accepted

    @property
    def fault(self) -> Fault | None:
        """How it misbehaves now; set a `Fault`, a text as `Fault.parse` reads it, or None. Setting takes effect at once."""
        return self._fault

    @fault.setter
    def fault(self, value: Fault | str | None) -> None:
        self._fault = Fault.parse(value) if isinstance(value, str) else value
        self._struck = 0
        if self._fault is not None and self._fault.kind == "refuse":
            self._listener.refuse()
        else:
            self._listener.accept()

    def forget(self) -> None:
        """Empty what it remembers of requests and cancellations."""
        self.requests.clear()
        self.cancellations.clear()
        self.cancelled = self.answered = 0
        self.peak = self.in_flight

    async def until(self, condition: Callable[[Backend], bool], timeout_s: float = 10.0) -> None:
        """Wait until ``condition(backend)`` holds.

        Raises:
            TimeoutError: It did not within ``timeout_s``.
        """
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                await self._change()

    async def load(self, model: str, *, quietly: bool = False) -> float:
        """Bring a model into memory; returns the seconds that took."""
        if model in self.loaded:
            return 0.0
        if not quietly:
            await asyncio.sleep(self.load_s)
        self.loaded.add(model)
        return self.load_s

    async def pause(self, first: bool) -> None:
        """Wait as long as the next token takes."""
        delay_s = self.first_token_s if first else self.token_s
        if delay_s > 0:
            await asyncio.sleep(delay_s)

    async def in_slot(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do ``work`` once a slot is free; False, with nothing done, when the queue for one is full."""
        if self.slots:
            if self.in_flight > self.slots + self.queue:
                return False
            while self.working >= self.slots:
                await self._change()
        self.working += 1
        try:
            await work()
        finally:
            self.working -= 1
        return True

    def _next_fault(self, received: Received) -> Fault | None:
        if HEADER in received.headers:
            return Fault.parse(received.headers[HEADER])
        fault = self._fault
        if fault is not None and fault.times:
            if self._struck >= fault.times:
                return None
            self._struck += 1
        return fault

    async def _serve(self, received: Received, answer: Answer) -> None:
        self.requests.append(received)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._notify()
        try:
            fault = self._next_fault(received) if received.method == "POST" or self._strikes_probes() else None
            answer.fault = fault
            if fault is not None and fault.kind == "hang":
                await answer.wait_for_client()
            speak = ollama_dialect.answer if self.dialect == "ollama" else openai_dialect.answer
            await speak(self, received, answer, fault)
            self.answered += 1
        except asyncio.CancelledError:
            if not answer.complete:
                self.cancelled += 1
                self.cancellations.append(Cancellation(received.path, answer.pieces, asyncio.get_running_loop().time()))
            raise
        finally:
            self.in_flight -= 1
            self._notify()

    def _strikes_probes(self) -> bool:
        """Faults that count their requests, or concern answers only, leave GET and HEAD alone."""
        fault = self._fault
        return fault is not None and not fault.times and (fault.kind in WIRE_FAULTS or fault.kind == "status")

    async def _change(self) -> None:
        """Wait until something happened."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def authorised(self, received: Received) -> bool:
        """Whether the request carries the key, if one is wanted."""
        return not self.api_key or received.headers.get("authorization") == f"Bearer {self.api_key}"

    def find(self, name: Any) -> Model | None:
        """The model of that name, with Ollama's implied ``:latest``."""
        if not isinstance(name, str):
            return None
        return self.models.get(name) or (self.models.get(f"{name}:latest") if self.dialect == "ollama" else None)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(prog="python -m hx_gateway.testing.backend", description="Scripted model servers for tests and demos.")
    parser.add_argument("--port", type=int, action="append", help="TCP port; give several for several servers (default: a free one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--dialect", choices=DIALECTS, default="openai", help="what it speaks")
    parser.add_argument("--model", action="append", help="name of a model it serves; give several for several")
    parser.add_argument("--dimensions", type=int, default=16, help="length of its embeddings")
    parser.add_argument("--api-key", default="", help="bearer key it insists on")
    parser.add_argument("--slots", type=int, default=0, help="requests worked on at once; 0 for no limit")
    parser.add_argument("--queue", type=int, default=512, help="requests that may wait for a slot")
    parser.add_argument("--first-token-s", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--token-s", type=float, default=0.0, help="seconds before each further token")
    parser.add_argument("--load-s", type=float, default=0.0, help="seconds to load a model that is not in memory")
    parser.add_argument("--cold", action="store_true", help="start with no model in memory")
    parser.add_argument("--fault", default=None, metavar="KIND [NAME=VALUE ...]", help=f"how it misbehaves: {', '.join(KINDS)}")
    return parser.parse_args(argv)


async def serve(options: argparse.Namespace) -> None:
    """Run one server per port until SIGINT or SIGTERM; writes their addresses to standard output, one a line."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    models = [Model(name, dimensions=options.dimensions) for name in options.model or ("tiny:1b",)]
    backends = [
        Backend(
            options.dialect, models, host=options.host, port=port, api_key=options.api_key, slots=options.slots, queue=options.queue,
            first_token_s=options.first_token_s, token_s=options.token_s, load_s=options.load_s, loaded=not options.cold, keep=1000,
        )
        for port in options.port or (0,)
    ]  # fmt: skip
    try:
        for backend in backends:
            await backend.__aenter__()
            backend.fault = Fault.parse(options.fault) if options.fault else None
            sys.stdout.write(backend.url + "\n")
        sys.stdout.flush()
        await ended.wait()
    finally:
        for backend in backends:
            await backend.__aexit__(None, None, None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the program."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    try:
        if options.fault:
            Fault.parse(options.fault)
        asyncio.run(serve(options))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
