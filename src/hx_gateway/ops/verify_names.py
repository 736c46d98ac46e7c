"""The checks of one name that clients use: availability, deterministic chat, stream, embeddings, and spread over equal deployments."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hx_gateway.ops.verify_client import SAY, Answer, Client, Said, likeness, streamed, vectors, whole
from hx_gateway.ops.verify_report import Fault, Report, Skipped

EVEN = ("round_robin", "weighted", "least_busy", "power_of_two")
"""Policies that give equal deployments equal parts of equal requests; others have reasons not to."""
_FOR_EACH = 8  # requests of the spread for each deployment
_MOST = 48
_AT_ONCE = 4
_SETTLED_S = 25.0  # after which one that just recovered has its full part again
_ALIKE = 0.999  # of two vectors of one text


def chat_body(text: str = f"Return exactly the text: {SAY}", most: int = 10, **more: Any) -> dict[str, Any]:
    """A chat that a deterministic model answers the same each time."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": most, "temperature": 0, **more}


def twice(ask: Callable[[], Said], exact: bool) -> str:
    """Ask the same twice.

    Args:
        ask: Asks once.
        exact: Whether the answer must be the text and nothing else.

    Raises:
        Fault: The answers differ, or are not what was asked for.
    """
    one, other = ask(), ask()
    if one.content != other.content and (one.served, one.endpoint) == (other.served, other.endpoint):
        raise Fault(f"not deterministic: the same request at temperature 0 gave {one.content!r}, then {other.content!r}")
    for said in (one, other):
        if (said.content.strip() != SAY) if exact else (SAY not in said.content):
            raise Fault(f"answered {said.content!r} where {SAY!r} was asked for{f' (by {said.served})' if said.served else ''}")
    return f"{one.content!r}, twice"


def embedded(ask: Callable[..., Answer], length: int | None) -> str:
    """Ask for embeddings: length, order, and that one text has one vector.

    Args:
        ask: Asks with fields of the body.
        length: What the length must be; None for anything.

    Raises:
        Fault: They are not as they should be.
    """
    (alone,) = vectors(ask(input=SAY), 1)
    if length is not None and len(alone) != length:
        raise Fault(f"vectors have {len(alone)} dimensions instead of {length}")
    first, second = vectors(ask(input=["another text", SAY]), 2)
    if len(first) != len(alone):
        raise Fault(f"one text alone gave {len(alone)} dimensions, in a batch {len(first)}")
    if likeness(alone, second) < _ALIKE:
        raise Fault(f"not deterministic: the same text gave vectors with a similarity of {likeness(alone, second):.3f}")
    if likeness(first, second) > 1 - 1e-9:
        raise Fault("different texts gave the same vector")
    return f"{len(alone)} dimensions"


@dataclass(frozen=True, slots=True)
class Name:
    """One public name of a gateway, as `/v1/models` and `/models/status` show it.

    Args:
        client: Who asks.
        report: Where results go.
        entry: Its entry in the list.
        status: Its status; None where it could not be had.
        length: Of its vectors, where it is known what that must be.
        members: Models that must serve it; None for any.
        exact: Whether a chat must say the text and nothing else.
        resting: Endpoints that get nothing now, by their names.
    """

    client: Client
    report: Report
    entry: dict[str, Any]
    status: dict[str, Any] | None = None
    length: int | None = None
    members: frozenset[str] | None = None
    exact: bool = False
    resting: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """The name."""
        return str(self.entry["id"])

    def check(self) -> None:
        """Make all checks that fit it."""
        about = self.entry["hx"]
        if not self.report.check("available", self.id, self._available):
            return
        if self._embeds():
            self.report.check("embeddings", self.id, lambda: embedded(self._embed, self.length))
        elif about["capabilities"]["chat"] is False:
            self.report.check("chat", self.id, _cannot)
        else:
            if self.report.check("chat", self.id, lambda: twice(self._chat, self.exact)) and about["kind"] != "alias":
                self.report.check("stream", self.id, self._stream)
            if about["kind"] == "group":
                self.report.check("group header", self.id, self._by_header)
        if about["kind"] != "alias" and about["deployments"] > 1:
            self.report.check("spread", self.id, self._spread)

    def _available(self) -> str:
        about = self.entry["hx"]
        if not about["available"]:
            found = (self.status or {}).get("deployments") or [{}]
            why = {str(one.get("error") or one.get("reason") or "no reason is known") for one in found}
            raise Fault(f"nothing can serve it now: {'; '.join(sorted(why))}")
        if self.members is not None and self.members != frozenset(about["models"]):
            raise Fault(f"served by {', '.join(sorted(about['models']))} instead of {', '.join(sorted(self.members))}")
        for one in (self.status or {}).get("deployments", ()):
            if one["excluded"]:
                raise Fault(f"{one['model']} on {one['endpoint']} is left out: {one['excluded']}")
        tier, count = f" ({about['tier']})" if about["tier"] else "", about["deployments"]
        return f"{about['kind']}{tier}, {count} deployment{'s' if count > 1 else ''}"

    def _embeds(self) -> bool:
        """Whether it is for embeddings; where nobody told, it is tried."""
        mode, able = self.entry["hx"]["mode"], self.entry["hx"]["capabilities"]
        if mode or self.length is not None or able["embeddings"] is False:
            return mode == "embedding" or self.length is not None
        if able["chat"] is not None:
            return not able["chat"] and bool(able["embeddings"])
        try:
            return self._ask("chat/completions", chat_body(most=1)).status != 200 and self._embed(input=SAY).status == 200
        except Fault:
            return False

    def _ask(self, route: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
        try:
            # An answer from the cache would prove nothing.
            answer = self.client.ask("POST", f"/v1/{route}", {"model": self.id, **body}, {"x-hx-cache": "off", **(headers or {})})
        except Fault:
            self.report.counted(self.id, well=False)
            raise
        self.report.counted(self.id, answer.status == 200)
        return answer

    def _embed(self, **body: Any) -> Answer:
        return self._ask("embeddings", body)

    def _say(self, **more: Any) -> dict[str, Any]:
        if self.entry["hx"]["capabilities"]["thinking"]:
            return chat_body(most=512, reasoning_effort="none", **more)  # what it thinks aloud counts as well
        return chat_body(**more)

    def _served(self, said: Said) -> Said:
        if said.model != self.id:
            raise Fault(f"the answer says it is from the model {said.model!r}")
        if said.served and said.served not in self.entry["hx"]["models"]:
            raise Fault(f"answered by {said.served}, which is none of {', '.join(self.entry['hx']['models'])}")
        return said

    def _chat(self) -> Said:
        said = self._served(whole(self._ask("chat/completions", self._say())))
        said.counted()
        return said

    def _stream(self) -> str:
        said = self._served(streamed(self._ask("chat/completions", self._say(stream=True, stream_options={"include_usage": True}))))
        if SAY not in said.content:
            raise Fault(f"streamed {said.content!r} where {SAY!r} was asked for")
        return f"{said.content!r} in order, {said.counted()}"

    def _by_header(self) -> str:
        answer = self._ask("chat/completions", {**self._say(), "model": None}, {"x-hx-model-group": self.id})
        said = whole(answer)
        if answer.headers.get("x-hx-model-group") != self.id:
            raise Fault(f"answered by {said.served or said.model}, and not by the group that X-HX-Model-Group names")
        return f"answered by {said.served}"

    def _spread(self) -> str:
        able = [one for one in (self.status or {}).get("deployments", ()) if one["available"] and one["weight"] > 0]
        able = [one for one in able if one["endpoint"] not in self.resting]
        if len(able) < 2:
            raise Skipped("fewer than two of its deployments can be used now")
        count = min(_MOST, _FOR_EACH * len(able))
        embeds = self._embeds()

        def one(number: int) -> tuple[str, str]:
            # Each another text: equal ones rightly go where the beginning is cached.
            text = f"Return exactly the text: {number}"
            answer = self._embed(input=text) if embeds else self._ask("chat/completions", chat_body(text, most=1))
            headers = answer.wanted().headers
            if headers.get("x-hx-reason", "").startswith("learned: "):
                raise Skipped("it sends each prompt to the model that it learned is worth it, not to all alike")
            return headers.get("x-hx-model", ""), headers.get("x-hx-endpoint", "")

        most, policy = max(one["weight"] for one in able), (self.status or {}).get("policy")
        equal = {(one["model"], one["endpoint"]) for one in able if one["weight"] == most}
        parts: Counter[tuple[str, str]] = Counter()
        give_up_s = time.monotonic() + _SETTLED_S
        while True:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                parts.update(threads.map(one, range(count)))
            if any(not endpoint for _, endpoint in parts):
                raise Skipped("the key is not told which endpoint answers")
            without = [f"{model} on {endpoint}" for model, endpoint in sorted(equal - parts.keys())]
            if not without or policy not in EVEN or time.monotonic() > give_up_s:
                break
            time.sleep(1.0)
        told = ", ".join(f"{model} on {endpoint} {number}" for (model, endpoint), number in sorted(parts.items()))
        if without and policy in EVEN:
            raise Fault(f"of {parts.total()} requests by {policy}, none went to {', '.join(without)}; is it drained? {told}")
        return f"{told} ({policy})"


def _cannot() -> str:
    raise Skipped("its servers say that it cannot chat, and nobody says that it embeds")
