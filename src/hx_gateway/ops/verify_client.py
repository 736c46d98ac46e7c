"""Asks a gateway or a model server as any client would, and reads what a chat said, whole or streamed."""

from __future__ import annotations

import http.client
import json
import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hx_gateway.ops.verify_report import Fault

SAY = "HX-OK"
_SHOWN = 300  # characters of what a server said


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Fault: It is none.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise Fault(f"status {self.status} with a body that is no JSON: {shown(self.body)}") from None

    def wanted(self, status: int = 200) -> Answer:
        """Itself, where it has the status.

        Raises:
            Fault: It has another.
        """
        if self.status == status:
            return self
        raise Fault(f"status {self.status} instead of {status}: {self.error}")

    @property
    def error(self) -> str:
        """What an error says, with its code."""
        try:
            error = json.loads(self.body)["error"]
            return f"{error.get('code')}: {error['message']}" if isinstance(error, dict) else str(error)
        except (ValueError, KeyError, TypeError):
            return shown(self.body)


class Client:
    """Asks one server; a connection of its own for each request.

    Args:
        url: Its address, without ``/v1``.
        key: API key; empty for none. It is sent, and never shown.
        timeout_s: Longest wait for a byte, in seconds.

    Raises:
        ValueError: The address is none of http or https.
    """

    def __init__(self, url: str, key: str = "", timeout_s: float = 180.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https address")
        self.base = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.hostname if ':' not in parts.hostname else f'[{parts.hostname}]'}"
        self.url += (f":{parts.port}" if parts.port else "") + self.base
        self._where = (parts.hostname, parts.port)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        if self._tls is not None and parts.hostname in ("127.0.0.1", "::1", "localhost"):
            # Nobody is in between, and its certificate is for the name that others call it by.
            self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE
        self._key = key
        self.keyed = bool(key)
        self._timeout_s = timeout_s

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, key: str | None = None, raw: bytes = b""
    ) -> Answer:
        """One request and its whole answer.

        Args:
            method: Of HTTP.
            path: Below the address.
            body: Sent as JSON; None for none.
            headers: Further header lines.
            key: Instead of the client's own; empty for none.
            raw: Instead of ``body``.

        Raises:
            Fault: No whole answer came.
        """
        key = self._key if key is None else key
        lines = {"accept": "*/*", **({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        data = raw or (json.dumps(body).encode() if body is not None else None)
        if data is not None:
            lines["content-type"] = "application/json"
        host, port = self._where
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(str(host), port, timeout=self._timeout_s, context=self._tls)
            if self._tls is not None
            else http.client.HTTPConnection(str(host), port, timeout=self._timeout_s)
        )
        began_s = time.monotonic()
        try:
            connection.request(method, self.base + path, data, {**lines, "connection": "close"})
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except TimeoutError:
            raise Fault(f"{method} {path}: no answer in {time.monotonic() - began_s:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Fault(f"{method} {path}: no whole answer: {error or type(error).__name__}") from None
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Said:
    """What a chat answered: text, tokens of prompt and answer as counted by the server, the model it names, and who served it."""

    content: str
    usage: tuple[int, int] | None
    model: str = ""
    served: str = ""
    endpoint: str = ""

    def counted(self) -> str:
        """The tokens in words.

        Raises:
            Fault: There are none.
        """
        if self.usage is None or min(self.usage) < 1:
            raise Fault(f"usage is missing: {self.usage and dict(zip(('prompt', 'completion'), self.usage, strict=True))}")
        return f"{self.usage[0]} + {self.usage[1]} tokens"


def shown(body: bytes | str) -> str:
    """The beginning of what a server said."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def usage_of(document: Any, prompt: str = "prompt_tokens", answer: str = "completion_tokens") -> tuple[int, int] | None:
    """The tokens that a document counts; None where it does not."""
    try:
        return int(document[prompt]), int(document[answer])
    except (KeyError, TypeError, ValueError):
        return None


def whole(answer: Answer) -> Said:
    """What an OpenAI chat completion says.

    Raises:
        Fault: It is none.
    """
    document = answer.wanted().json()
    try:
        content = document["choices"][0]["message"]["content"] or ""
    except (KeyError, IndexError, TypeError):
        raise Fault(f"status 200 without an answer in it: {shown(answer.body)}") from None
    return Said(
        content,
        usage_of(document.get("usage")),
        str(document.get("model", "")),
        answer.headers.get("x-hx-model", ""),
        answer.headers.get("x-hx-endpoint", ""),
    )


def streamed(answer: Answer) -> Said:
    """What an OpenAI chat stream says; its events must come in the order that clients rely on.

    Raises:
        Fault: They do not.
    """
    answer.wanted()
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise Fault(f"a stream was asked for, and {kind or 'no content type'} came")
    lines = [line[5:].strip() for line in answer.body.splitlines() if line.startswith(b"data:")]
    content, finish, usage, model, began = "", "", None, "", False
    for number, line in enumerate(lines, 1):
        if line == b"[DONE]":
            break
        try:
            event = json.loads(line)
            if "error" in event:
                raise Fault(f"the stream broke after {content!r}: {event['error'].get('message')}")
            choices = event["choices"]
            model = model or str(event.get("model", ""))
            if event.get("usage"):
                usage = usage_of(event["usage"])
                if choices:
                    raise Fault(
                        f"stream order: event {number} has the usage and a choice; the usage comes by itself, after the finish reason"
                    )
                if not finish:
                    raise Fault(f"stream order: event {number} has the usage before any finish reason")
            for choice in choices:
                delta = choice.get("delta") or {}
                if finish and (choice.get("finish_reason") or delta.get("content")):
                    raise Fault(f"stream order: event {number} says more after the finish reason {finish!r}")
                if not began and delta.get("role") != "assistant":
                    raise Fault(f"stream order: the first event has no role: {shown(line)}")
                began = True
                content += delta.get("content") or ""
                finish = choice.get("finish_reason") or finish
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Fault(f"event {number} of the stream is none: {shown(line)}") from None
    else:
        raise Fault(f"the stream ended without [DONE], after {content!r}")
    if number != len(lines):
        raise Fault("stream order: something follows [DONE]")
    if not finish:
        raise Fault(f"the stream ended without a finish reason, after {content!r}")
    return Said(content, usage, model, answer.headers.get("x-hx-model", ""), answer.headers.get("x-hx-endpoint", ""))


def vectors(answer: Answer, count: int) -> list[list[float]]:
    """The vectors of an embeddings answer, in the order of the texts.

    Raises:
        Fault: They are not ``count`` usable vectors of one length.
    """
    document = answer.wanted().json()
    try:
        data = sorted(document["data"], key=lambda one: one["index"])
        found = [[float(number) for number in one["embedding"]] for one in data]
    except (KeyError, TypeError, ValueError):
        raise Fault(f"status 200 without vectors in it: {shown(answer.body)}") from None
    if len(found) != count or len({len(one) for one in found}) != 1 or not found[0]:
        raise Fault(f"{count} texts gave {len(found)} vectors, of the lengths {sorted({len(one) for one in found})}")
    if not all(math.isfinite(number) for one in found for number in one) or not all(any(one) for one in found):
        raise Fault("a vector is all zeros, or has a number that is none")
    return found


def likeness(one: list[float], other: list[float]) -> float:
    """Cosine similarity of two vectors of one length."""
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
