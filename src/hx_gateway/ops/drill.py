"""Strikes model servers while requests come, and measures what clients see of it: nothing, if all is well."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from hx_gateway.ops.verify_client import Client
from hx_gateway.ops.verify_report import Fault

_POLL_S = 0.02
_DEADLINE_S = 30.0
"""Longest wait until a blow is noticed, and until the server gets requests again."""
_STREAMED = 4  # every so manieth request is a stream
SAY = "drill"


@dataclass(frozen=True, slots=True)
class Blow:
    """Something that happens to a model server.

    Args:
        name: What, e.g. ``killed``.
        endpoint: To whom, by its name at the gateway.
        strike: Makes it happen.
        heal: Undoes it.
        noticed: Whether the gateway has to take it out of service; one that is only slow need not be.
    """

    name: str
    endpoint: str
    strike: Callable[[], None]
    heal: Callable[[], None]
    noticed: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a blow.

    Args:
        blow, endpoint: What happened to whom.
        requests: Requests that ended meanwhile.
        failed: Those of them that got no good answer.
        broken: Streams that were under way at the server and ended with an error event: what has been said cannot be said again by another.
        share_before, share_during, share_after: Part of the requests that the server answered, from 0 to 1.
        noticed_s: Seconds until it was out of service; None where it never was.
        returned_s: Seconds from healing until it answered again; None where it never did.
        slowest_s: Longest that a request took.
        ok: Whether that is as it should be.
        why: The first failure in words; empty for none.
    """

    blow: str
    endpoint: str
    requests: int
    failed: int
    broken: int
    share_before: float
    share_during: float
    share_after: float
    noticed_s: float | None
    returned_s: float | None
    slowest_s: float
    ok: bool
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class _Record:
    began_s: float
    ended_s: float
    endpoint: str
    verdict: str
    """``ok``, ``broken``, or what is wrong."""


class _Load:
    """Clients that ask one after the other, in threads."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model
        self._over = threading.Event()
        self.records: list[_Record] = []

    @contextmanager
    def of(self, clients: int) -> Any:
        threads = [threading.Thread(target=self._ask_on, args=(number,), name=f"client {number}") for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _ask_on(self, number: int) -> None:
        while not self._over.is_set():
            number += 1
            began_s = time.monotonic()
            endpoint, verdict = self._asked(number % _STREAMED == 0, f"Say: {SAY}")
            self.records.append(_Record(began_s, time.monotonic(), endpoint, verdict))
            if verdict not in ("ok", "broken"):
                time.sleep(_POLL_S)

    def _asked(self, stream: bool, text: str) -> tuple[str, str]:
        body = {"model": self._model, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": stream}
        try:
            answer = self._client.ask("POST", "/v1/chat/completions", body, {"x-hx-cache": "off"})
        except Fault as fault:
            return "", str(fault)
        endpoint = answer.headers.get("x-hx-endpoint", "")
        if answer.status != 200:
            return endpoint, f"status {answer.status}: {answer.error}"
        if not stream:
            try:
                good = bool(answer.json()["choices"][0]["message"]["content"])
            except (Fault, KeyError, IndexError, TypeError):
                good = False
            return endpoint, "ok" if good else "status 200 without an answer"
        events = [line[5:].strip() for line in answer.body.splitlines() if line.startswith(b"data:")]
        if events and events[-1] == b"[DONE]":
            return endpoint, "ok"
        told = bool(events) and isinstance(json.loads(events[-1]), dict) and "error" in json.loads(events[-1])
        return endpoint, "broken" if told else "a stream ended without [DONE] and without an error"


def drill(
    client: Client,
    model: str,
    blows: Iterable[Blow],
    phase_s: float = 2.0,
    clients: int = 8,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Carry out blows, one after the other.

    Args:
        client: Asks the gateway; with an admin key.
        model: The name to ask for.
        blows: What is to happen.
        phase_s: Seconds of load before each blow, at least during it, and after it.
        clients: How many ask at the same time.
        on_outcome: Called with each outcome as it comes.

    Raises:
        Fault: The gateway does not answer to begin with, or the key is not an admin's.
    """
    client.ask("GET", "/admin/endpoints").wanted()
    outcomes = []
    for blow in blows:
        outcomes.append(_carried_out(client, model, blow, phase_s, clients))
        on_outcome(outcomes[-1])
    return outcomes


def _carried_out(client: Client, model: str, blow: Blow, phase_s: float, clients: int) -> Outcome:
    with _Load(client, model).of(clients) as load:
        records: list[_Record] = load.records
        began_s = time.monotonic()
        time.sleep(phase_s)
        struck_s = time.monotonic()
        blow.strike()
        try:
            noticed_s = _until(lambda: _state(client, blow.endpoint) not in ("up", "unknown")) if blow.noticed else None
            time.sleep(phase_s)
        finally:
            healed_s = time.monotonic()
            blow.heal()

        def back() -> bool:
            return any(one.verdict == "ok" and one.endpoint == blow.endpoint and one.began_s > healed_s for one in reversed(records[-200:]))

        returned_s = _until(back)
        time.sleep(phase_s)
    quiet_s = noticed_s if noticed_s is not None else struck_s + phase_s / 2  # what is slow is only avoided after a while
    failures = [one.verdict for one in records if one.verdict not in ("ok", "broken")]
    noticed = noticed_s is not None or not blow.noticed
    return Outcome(
        blow.name,
        blow.endpoint,
        len(records),
        len(failures),
        sum(one.verdict == "broken" for one in records),
        _share(records, blow.endpoint, began_s, struck_s),
        _share(records, blow.endpoint, quiet_s, healed_s),
        _share(records, blow.endpoint, returned_s or healed_s, time.monotonic()),
        noticed_s - struck_s if noticed_s is not None else None,
        returned_s - healed_s if returned_s is not None else None,
        max((one.ended_s - one.began_s for one in records), default=0.0),
        not failures and noticed and returned_s is not None and bool(records),
        failures[0] if failures else "" if noticed else "it was never taken out of service",
    )


def _share(records: list[_Record], endpoint: str, from_s: float, to_s: float) -> float:
    within = [one for one in records if one.verdict == "ok" and from_s <= one.began_s and one.ended_s <= to_s]
    return sum(one.endpoint == endpoint for one in within) / len(within) if within else 0.0


def _state(client: Client, endpoint: str) -> str:
    try:
        servers = client.ask("GET", "/admin/endpoints").wanted().json()["data"]
    except Fault:
        return "unknown"
    return next((str(one["state"]) for one in servers if one["name"] == endpoint), "unknown")


def _until(true: Callable[[], bool]) -> float | None:
    """When it became true; None where it did not in time."""
    give_up_s = time.monotonic() + _DEADLINE_S
    while not true():
        if time.monotonic() > give_up_s:
            return None
        time.sleep(_POLL_S)
    return time.monotonic()
