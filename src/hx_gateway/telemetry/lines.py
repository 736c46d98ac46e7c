"""One line in the log for each exchange: made when there is room for it, written by a thread, never more than the log can take."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from time import monotonic, time
from typing import Annotated

import msgspec

from hx_gateway.core.context import FORWARD, Exchange
from hx_gateway.core.errors import CATALOGUE, Blame
from hx_gateway.core.interfaces import unheard
from hx_gateway.dataplane.answer import request_id
from hx_gateway.telemetry.beside import Beside
from hx_gateway.telemetry.logs import LogHandler, scrub

EVERY = 100
"""Beyond what is written in full, one line in so many."""
_MOST = 10_000  # lines that wait to be written
_LONGEST = 256  # characters of what a client may choose
_LEVELS = {
    kind.code: logging.INFO
    if kind.blame in (Blame.CLIENT, Blame.NOBODY)
    else logging.ERROR
    if kind.blame is Blame.GATEWAY
    else logging.WARNING
    for kind in CATALOGUE
}
_NAMES = {level: name.lower() for name, level in logging.getLevelNamesMapping().items()}
_encode = msgspec.json.Encoder().encode


def _said(description: str) -> msgspec.Meta:
    return msgspec.Meta(description=description)


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What is said of one exchange; fields without a value are left out."""

    timestamp: Annotated[str, _said("When it ended, UTC, ISO 8601.")] = ""
    level: Annotated[str, _said("`info`; `warning` where a model server or the fleet is to blame, `error` where the gateway is.")] = ""
    logger: Annotated[str, _said("Always `hx_gateway.requests`.")] = ""
    event: Annotated[str, _said("Always `request`.")] = ""
    id: Annotated[str, _said("The request's own id, as in the ledger.")] = ""
    request_id: Annotated[str, _said("The client's `x-request-id`, where it sent one.")] = ""
    trace_id: Annotated[str, _said("Of its trace, where it is traced.")] = ""
    route: Annotated[str, _said("`chat`, `completions`, `embeddings`, `forward` or `rag`.")] = ""
    key: Annotated[str, _said("Name of the key, never the key.")] = ""
    team: Annotated[str, _said("The key's team.")] = ""
    asked: Annotated[str, _said("The name the client used; the path of a forwarded request, without its query.")] = ""
    model: Annotated[str, _said("The model of the last attempt.")] = ""
    endpoint: Annotated[str, _said("The endpoint of the last attempt.")] = ""
    status: Annotated[int, _said("HTTP status the client saw; 499 where it had left.")] = 0
    outcome: Annotated[str, _said("`ok`, or the error's code.")] = ""
    attempts: Annotated[int, _said("Calls to model servers.")] = 0
    failed: Annotated[list[str] | None, _said("Of those that failed: endpoint and error code.")] = None
    stream: Annotated[bool, _said("Whether the answer was streamed.")] = False
    cached: Annotated[str, _said("`hit` or `shared` where the gateway's cache answered.")] = ""
    duration_ms: Annotated[float | None, _said("From the request received to its end.")] = None
    ttft_ms: Annotated[float | None, _said("To the first byte of the model server.")] = None
    queued_ms: Annotated[float | None, _said("Waiting for a place.")] = None
    load_ms: Annotated[float | None, _said("Loading the model, where the server tells.")] = None
    prompt_tokens: Annotated[int, _said("Tokens of the prompt.")] = 0
    completion_tokens: Annotated[int, _said("Tokens of the answer.")] = 0
    cached_tokens: Annotated[int, _said("Tokens of the prompt that the engine had cached.")] = 0
    sampled: Annotated[int, _said("How many requests this line stands for, where that is more than one.")] = 0


class Lines:
    """An observer that has a line written for each exchange.

    In each second the first ``most`` lines are written, and of those about failures that no client is to blame for as
    many again; of all beyond that every hundredth is, and says that it stands for a hundred.

    Args:
        most: Lines a second; 0 for none at all.
    """

    __slots__ = (
        "_left",
        "_queue",
        "_since_s",
        "_skipped",
        "beside",
        "lost",
        "most",
        "sampled",
        "threshold",
        "written",
    )

    def __init__(self, most: int) -> None:
        self.most = most
        self.threshold = logging.INFO
        self.written = 0
        self.sampled = 0  # left out by the rule
        self.lost = 0
        self._since_s = 0.0
        self._left = [0, 0]  # of this second: lines about what went well, and about failures
        self._skipped = 0
        self._queue: deque[tuple[Line, float]] = deque()
        self.beside = Beside("log lines", self._queue, self._work)

    attempted = unheard

    def finished(self, exchange: Exchange, /) -> None:
        """Have a line written, if its turn is now."""
        outcome = exchange.outcome
        level = logging.INFO if outcome is None else _LEVELS.get(outcome.code, logging.WARNING)
        if level < self.threshold or not self.most:
            return
        now_s = exchange.ended_s or monotonic()
        left = self._left
        if now_s - self._since_s >= 1.0:
            self._since_s = now_s
            left[0] = left[1] = self.most
        kind = level > logging.INFO
        sampled = 0
        if left[kind]:
            left[kind] -= 1
        else:
            self._skipped += 1
            if self._skipped % EVERY:
                self.sampled += 1
                return
            sampled = EVERY
        if len(self._queue) >= _MOST:
            self.lost += 1
            return
        self._queue.append((line_of(exchange, now_s, level, sampled), time()))

    def tick(self) -> None:
        """Have what waits written."""
        self.beside.tick()

    def stop(self) -> None:
        """Have what is left written, within a second; a log that is stuck holds nobody up."""
        self.beside.stop(1.0)

    def _work(self) -> None:
        batch = []
        while self._queue:
            batch.append(self._queue.popleft())
        try:
            _write(batch)
            self.written += len(batch)
        except (OSError, ValueError):  # a pipe that nobody reads any more, a stream that was closed
            self.lost += len(batch)


def line_of(exchange: Exchange, now_s: float, level: int, sampled: int = 0) -> Line:
    """What is said of an exchange that has come to its end.

    Args:
        exchange: The exchange.
        now_s: Monotonic time.
        level: The line's.
        sampled: How many requests it stands for.
    """
    deployment, identity, facts, outcome = exchange.deployment, exchange.identity, exchange.facts, exchange.outcome
    first_s, received_s, target = exchange.first_byte_s, exchange.received_s, exchange.candidates
    asked = exchange.asked
    if not asked:
        asked = exchange.target.partition(b"?")[0].decode("latin-1") if exchange.route is FORWARD else getattr(facts, "model", None) or ""
    request = exchange.notes.get(b"x-request-id")
    theirs = scrub(request_id(exchange).decode("latin-1")) if request is not None else ""
    queued_s, load_s, prompt, completion, cached = (
        exchange.queued_s, exchange.load_s, exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens,
    )  # fmt: skip
    return Line(  # by position, which costs half
        "",
        _NAMES[level],
        "hx_gateway.requests",
        "request",
        exchange.id,
        theirs if theirs != exchange.id else "",
        exchange.trace.trace_id if exchange.trace is not None else "",
        exchange.route.name,
        identity.name if identity is not None else "",
        identity.team if identity is not None else "",
        asked if target is not None and asked == target.name else scrub(asked[:_LONGEST]),  # a name that is served is no secret
        deployment.model if deployment is not None else "",
        deployment.endpoint.name if deployment is not None else exchange.upstream,
        exchange.status,
        outcome.code if outcome is not None else "ok",
        exchange.attempts,
        [f"{endpoint} {code}" for endpoint, code, _ in exchange.trail] if exchange.trail else None,
        facts is not None and getattr(facts, "stream", False) is True,
        exchange.cached,
        int((now_s - received_s) * 1e6 + 0.5) / 1e3,
        int((first_s - received_s) * 1e6 + 0.5) / 1e3 if first_s else None,
        int(queued_s * 1e6 + 0.5) / 1e3 if queued_s else None,
        int(load_s * 1e6 + 0.5) / 1e3 if load_s else None,
        prompt if prompt > 0 else 0,
        completion if completion > 0 else 0,
        cached if cached > 0 else 0,
        sampled,
    )


def _write(batch: list[tuple[Line, float]]) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            handler.put("".join(_texts(batch, handler.form)))


def _texts(batch: list[tuple[Line, float]], form: str) -> Iterator[str]:
    second, text = -1, ""
    for line, wall_s in batch:
        whole = int(wall_s)
        if whole != second:
            second, text = whole, datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        line.timestamp = f"{text}.{int((wall_s - whole) * 1e6):06d}Z"
        if form == "json":
            yield _encode(line).decode() + "\n"
        else:
            fields = " ".join(
                f"{name}={value if isinstance(value, int | float) else shown(value)}"
                for name in line.__struct_fields__[4:]
                if (value := getattr(line, name))
            )
            yield f"{line.timestamp} [{line.level:<9}] request                        {fields}\n"


def shown(value: object) -> str:
    """A value as people read it: in quotes where it is not one plain word."""
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else repr(text)
