"""Sends the same deterministic requests to two gateways and says where their answers differ."""

from __future__ import annotations

import json
import ssl
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hx_gateway.config.addresses import url_fault

PROMPTS = (
    "Return exactly the text: HX-OK",
    "What is two plus two? Answer with one digit.",
    "Name the capital of France in one word.",
    "Repeat after me: alpha beta gamma",
)
LIMIT_S = 180.0  # a model may have to be loaded
_MOST_BYTES = 64 << 20
_MOST_NAMED = 12
_VARYING = frozenset(("date", "content-length", "connection", "transfer-encoding", "keep-alive"))


@dataclass(slots=True)
class Reply:
    """One answer.

    Args:
        status: HTTP status; 0 when there was no answer.
        headers: Names in lower case.
        body: The whole body.
        first_s: Seconds to the first byte of the body.
        whole_s: Seconds to its end.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    first_s: float
    whole_s: float


@dataclass(slots=True)
class Case:
    """One request sent to both sides.

    Args:
        name: What was asked.
        differences: Status, content type or answer that differ; none means both said the same.
        notes: Fields and headers that only one of them has.
        seconds: Whole duration at a and at b.
    """

    name: str
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)


class Side:
    """A gateway to ask.

    Args:
        url: Its address; a final ``/v1`` is dropped.
        key: Bearer key; empty for none.

    Raises:
        ValueError: The address is none; the message says why.
    """

    def __init__(self, url: str, key: str = "") -> None:
        if fault := url_fault(url) or ("" if "://" in url else "should start with http:// or https://"):
            raise ValueError(fault)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        # Not through a proxy of this shell: both are asked directly, so that times can be compared.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl.create_default_context())
        )

    def ask(self, path: str, body: Any = None, key: str | None = None) -> Reply:
        """One request; an answer of any status, or status 0 with the reason as the body."""
        headers = {"content-type": "application/json", "user-agent": "hx-gateway compare"}
        if given := self._key if key is None else key:
            headers["authorization"] = f"Bearer {given}"
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), headers)  # noqa: S310 # http(s) only: `Side`
        began_s = time.perf_counter()
        try:
            with self._opener.open(request, timeout=LIMIT_S) as answer:
                return self._read(answer, began_s)
        except urllib.error.HTTPError as error:
            with error:
                return self._read(error, began_s)
        except (OSError, ValueError) as error:
            return Reply(0, {}, str(getattr(error, "reason", error)).encode(), 0.0, time.perf_counter() - began_s)

    @staticmethod
    def _read(answer: Any, began_s: float) -> Reply:
        first = answer.read(1)
        first_s = time.perf_counter() - began_s
        body = first + answer.read(_MOST_BYTES)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Reply(answer.status, headers, body, first_s, time.perf_counter() - began_s)

    def models(self) -> list[str]:
        """The names it offers.

        Raises:
            OSError: It does not answer, or refuses the key.
        """
        reply = self.ask("/v1/models")
        try:
            return [str(model["id"]) for model in json.loads(reply.body)["data"]]
        except (ValueError, KeyError, TypeError):
            why = reply.body[:200].decode("utf-8", "replace") if not reply.status else f"GET /v1/models was answered with {reply.status}"
            raise OSError(f"{self.url}: {why}") from None


def compare(a: Side, b: Side, models: Sequence[str], embedders: Sequence[str], max_tokens: int, repeat: int) -> Iterator[Case]:
    """Ask both sides the same, one request after the other.

    Args:
        a: One gateway.
        b: The other.
        models: Names to chat with.
        embedders: Names to embed with.
        max_tokens: Most tokens of each answer.
        repeat: How often each request is sent; the first answer is compared, the median of the times counts.
    """
    named_a, named_b = a.models(), b.models()
    listed = Case("models")
    for here, there, one in ((named_a, named_b, "a"), (named_b, named_a, "b")):
        if only := sorted(set(here) - set(there)):
            listed.notes.append(f"only {one} lists {_some(only)}")
    yield listed
    for model in models:
        for prompt in PROMPTS:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "seed": 7,
            }
            yield _case(a, b, f"{model}: {prompt}", "/v1/chat/completions", body, repeat)
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        yield _case(a, b, f"{model}: the last, streamed", "/v1/chat/completions", streamed, repeat)
    for model in embedders:
        yield _case(a, b, f"{model}: an embedding", "/v1/embeddings", {"model": model, "input": PROMPTS[0]}, repeat)
    unknown = {"model": "hx-compare-no-such-model", "messages": [{"role": "user", "content": "ping"}]}
    yield _case(a, b, "a model that does not exist", "/v1/chat/completions", unknown, 1)
    yield _case(a, b, "a wrong key", "/v1/chat/completions", {**unknown, "model": models[0] if models else "m"}, 1, "sk-a-wrong-key")


def _case(a: Side, b: Side, name: str, path: str, body: Any, repeat: int, key: str | None = None) -> Case:
    case = Case(name)
    pairs = []
    for turn in range(repeat):
        # Each goes first half of the time: the second finds the prompt in the model server's cache.
        first, second = (a, b) if turn % 2 else (b, a)
        replies = first.ask(path, body, key), second.ask(path, body, key)
        pairs.append(replies if first is a else replies[::-1])
    one, two = pairs[0]
    case.seconds = (statistics.median(pair[0].whole_s for pair in pairs), statistics.median(pair[1].whole_s for pair in pairs))
    if one.status != two.status:
        case.differences.append(f"status: {one.status or 'none'} and {two.status or 'none'}")
    kinds = [reply.headers.get("content-type", "").partition(";")[0] for reply in (one, two)]
    if kinds[0] != kinds[1]:
        case.differences.append(f"content type: {kinds[0] or 'none'} and {kinds[1] or 'none'}")
    seen = [_seen(reply) for reply in (one, two)]
    for what in ("answer", "finish_reason", "embedding", "usage", "ending"):
        left, right = (found.get(what) for found in seen)
        if what == "embedding" and left is not None and right is not None:
            if (likeness := _likeness(left, right)) < 0.9999:
                case.differences.append(f"embedding: lengths {len(left)} and {len(right)}, cosine {likeness:.4f}")
        elif left != right and one.status == two.status:
            (case.notes if what == "usage" else case.differences).append(f"{what}: {_short(left)} and {_short(right)}")
    _only(case, "field", *(found["fields"] for found in seen))
    _only(case, "header", *({header for header in reply.headers if header not in _VARYING} for reply in (one, two)))
    return case


def _only(case: Case, what: str, one: set[str], two: set[str]) -> None:
    for side, only in (("a", one - two), ("b", two - one)):
        if only:
            case.notes.append(f"{what}s only of {side}: {_some(sorted(only))}")


def _seen(reply: Reply) -> dict[str, Any]:
    """What of an answer is compared: text, finish reason, usage, embedding, how a stream ended, and the names of all fields."""
    stream = reply.headers.get("content-type", "").startswith("text/event-stream")
    pieces = [line[5:].strip() for line in reply.body.split(b"\n") if line.startswith(b"data:")] if stream else [reply.body]
    seen: dict[str, Any] = {"fields": set()}
    texts: list[str] = []
    for piece in pieces:
        try:
            whole = json.loads(piece)
        except ValueError:
            continue
        seen["fields"] |= set(_fields(whole))
        if not isinstance(whole, dict):
            continue
        usage = whole.get("usage")
        if isinstance(usage, dict):
            seen["usage"] = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        for choice in whole.get("choices") or ():
            texts.append(str((choice.get("message") or choice.get("delta") or {}).get("content") or choice.get("text") or ""))
            seen["finish_reason"] = choice.get("finish_reason") or seen.get("finish_reason")
        data = whole.get("data")
        if isinstance(data, list) and data and isinstance(data[0], dict) and isinstance(data[0].get("embedding"), list):
            seen["embedding"] = data[0]["embedding"]
    if texts:
        seen["answer"] = "".join(texts)
    if stream:
        seen["ending"] = pieces[-1].decode("utf-8", "replace")[:80] if pieces else ""
    return seen


def _fields(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _fields(inside, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _fields(value[0], f"{path}[]")
    elif path and value is not None:
        yield path


def _likeness(one: Sequence[float], two: Sequence[float]) -> float:
    """The cosine of two vectors; 0 where their lengths differ."""
    if len(one) != len(two):
        return 0.0
    lengths = sum(x * x for x in one) ** 0.5 * sum(y * y for y in two) ** 0.5
    return float(sum(x * y for x, y in zip(one, two, strict=True)) / lengths) if lengths else 0.0


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
