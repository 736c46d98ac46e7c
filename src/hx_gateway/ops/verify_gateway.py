"""The checks of a gateway as a whole: who is refused, limits, stores, endpoints, documents, counters and overhead."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from hx_gateway.ops.scrape import Scrape
from hx_gateway.ops.verify_client import Client, vectors
from hx_gateway.ops.verify_names import chat_body
from hx_gateway.ops.verify_report import Fault, Report, Skipped

OVERHEAD_S = 0.1
"""Mean overhead that a gateway may have."""
_HEARD_S = 5.0  # until counters and revoked keys are known everywhere
_STORE_S = 10.0  # that a store may be busy
_GUARDED: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/v1/models", None),
    ("POST", "/v1/chat/completions", chat_body("ping", 1)),
    ("POST", "/v1/embeddings", {"input": "ping"}),
    ("POST", "/v1/rag/search", {"query": "ping"}),
    ("GET", "/admin/endpoints", None),
)


def auth(client: Client, key: str, name: str, anyone: bool) -> str:
    """Nobody is let in without a key, or with a wrong one.

    Args:
        client: Who asks.
        key: The right key; empty where there is none.
        name: A name to ask for.
        anyone: Whether it is meant that no key is needed.
    """
    let_in, wrong = [], "hx-" + secrets.token_urlsafe(24)
    for method, path, body in _GUARDED:
        for words, given in (("no key", ""), ("a wrong key", wrong)):
            answer = client.ask(method, path, {**body, "model": name} if body and "query" not in body else body, key=given)
            if answer.status != 401:
                let_in.append(f"{method} {path} with {words} ({answer.status})")
    if let_in and anyone:
        raise Skipped("it is meant to be open: no key is needed")
    if let_in:
        raise Fault(f"open to anyone: {', '.join(let_in)}; configure keys.master_key")
    return f"{2 * len(_GUARDED)} requests without the right key were refused with 401"


def refusals(client: Client) -> str:
    """What cannot be understood, or is not there, is refused as clients expect."""
    cases = (
        (client.ask("POST", "/v1/chat/completions", raw=b'{"model": '), 400, "invalid_json"),
        (client.ask("POST", "/v1/chat/completions", {"model": "verify-no-such-model", **chat_body("ping", 1)}), 404, "model_not_found"),
    )
    for answer, status, code in cases:
        if (answer.wanted(status).json().get("error") or {}).get("code") != code:
            raise Fault(f"status {status} with the error {answer.error!r} instead of {code}")
    return "malformed JSON is a 400, an unknown model a 404"


def endpoints(client: Client, report: Report, status: dict[str, Any] | None) -> frozenset[str]:
    """Each model server by itself: one that is dead is found also where others stand in for it. Returns those that get nothing now."""
    answer = client.ask("GET", "/admin/endpoints")
    if answer.status == 200:
        servers = {
            one["name"]: (one["state"], one["error"] or f"its breaker is {one['breaker']['state']}") for one in answer.json()["data"]
        }
    else:
        found = [one for target in (status or {}).get("models", ()) for one in target["deployments"]]
        servers = {one["endpoint"]: (one.get("reason") or "up", one["error"] or "not available") for one in found if not one["excluded"]}

    def well(state: str, error: str) -> str:
        if state in ("draining", "drained"):
            raise Skipped("taken out of service by an administrator")
        if state in ("down", "resting", "partly"):
            raise Fault(f"{state}: {error}")
        return state

    for name, (state, error) in servers.items():
        report.check("endpoint", name, lambda state=state, error=error: well(state, error))  # type: ignore[misc]
    return frozenset(name for name, (state, _) in servers.items() if state not in ("up", "unknown"))


def limits(client: Client, name: str, embeds: bool) -> str:
    """A limited key, made for this and revoked after it: its answers tell the limit, what is over it is refused."""
    if not client.keyed:
        raise Skipped("no key is used, so none can be made that would not shut others out")
    route, body = ("embeddings", {"input": "ping"}) if embeds else ("chat/completions", chat_body("ping", 1))
    draft = {"name": f"verify-{secrets.token_hex(6)}", "expires": "10m", "limits": {"requests_per_second": 0.01, "burst": 1}}
    give_up_s = time.monotonic() + _STORE_S
    while (made := client.ask("POST", "/admin/keys", draft)).status == 503 and time.monotonic() < give_up_s:
        time.sleep(0.5)
    if made.status in (401, 403, 404, 503):
        raise Skipped(f"no limited key could be made to try it with: {made.error}")
    known = made.wanted(201).json()
    try:
        first, second = (client.ask("POST", f"/v1/{route}", {"model": name, **body}, key=known["key"]) for _ in range(2))
        first.wanted()
        if "x-ratelimit-limit-requests" not in first.headers:
            raise Fault("answers to a limited key have no x-ratelimit-limit-requests; is the stage `limits` in pipeline.stages?")
        if second.status != 429:
            raise Fault(f"limits are off: the second request of a key with a burst of 1 is answered {second.status} instead of 429")
        if "retry-after" not in second.headers:
            raise Fault("a request over the limit is refused without retry-after")
    finally:
        client.ask("DELETE", f"/admin/keys/{known['id']}")
    give_up_s = time.monotonic() + _HEARD_S
    while client.ask("GET", "/v1/models", key=known["key"]).status != 401:
        if time.monotonic() > give_up_s:
            raise Fault(f"a revoked key is still let in after {_HEARD_S:g} s")
        time.sleep(0.1)
    return f"x-ratelimit headers, 429 with retry-after: {second.headers['retry-after']}; the key is revoked and refused"


def stores(client: Client, report: Report, expected: Iterable[str]) -> None:
    """Databases: those that are configured must be there."""
    try:
        found = client.ask("GET", "/healthz/deps").wanted().json()
        names = {name: name for name in ("postgres", "redis", "qdrant") if name in found}
    except Fault as fault:
        said = str(fault)
        report.check("store", "", lambda: _raise(said))
        return

    details: dict[str, str] = {name: str(found.get("details", {}).get(name, "")) for name in names}
    if details.get("postgres", "").startswith("SQLite") and "postgres" not in expected:
        names["postgres"] = "sqlite"  # the field is called so whatever the SQL store is

    def well(name: str) -> str:
        detail = details[name]
        if found[name] is False or ", not reachable" in detail:
            raise Fault(f"configured, but down: {detail}")
        if found[name] is None and name in expected:
            raise Fault(f"the configuration names it, but the gateway runs without: {detail}")
        return detail or ("reachable" if found[name] else "not configured")

    for name, shown in names.items():
        report.check("store", shown, lambda name=name: well(name))  # type: ignore[misc]


def _raise(said: str) -> str:
    raise Fault(said)


def documents(client: Client) -> str:
    """Documents there and back, in a collection and a namespace of their own, which are removed afterwards."""
    model = client.ask("GET", "/healthz/deps").wanted().json().get("embedding_model")
    if model is None:
        raise Skipped("no model embeds the gateway's own texts (embeddings.model)")
    tried = client.ask("POST", "/v1/embeddings", {"model": model, "input": "ping"})
    if tried.status == 403:
        raise Skipped(f"the key may not use the model that embeds: {tried.error}")
    vectors(tried, 1)
    # A collection keeps to the model of its first document for ever: that must not be decided here for the gateway's own.
    collection = space = f"verify-{secrets.token_hex(6)}"
    texts = {"kettle": "A kettle boils water for tea.", "harbour": "Ships lie at anchor in the harbour at night."}
    where = {"namespace": space, "collection": collection}
    own = client.ask("POST", "/v1/rag/search", {"namespace": space, "query": "ping"})
    if own.status == 403:
        raise Skipped(f"the key may not use a namespace of its own: {own.error}")
    if not own.error.startswith("namespace_not_found"):  # what it is where others have documents
        own.wanted()
    try:
        documents = [{"id": name, "text": text} for name, text in texts.items()]
        client.ask("POST", "/v1/rag/upsert", {**where, "documents": documents}).wanted()
        hits = _found(client, where, texts["harbour"])
        if not hits or hits[0] != "harbour":
            raise Fault(f"a search for a stored text found {hits or 'nothing'} instead of it")
        client.ask("POST", "/v1/rag/delete", {**where, "everything": True}).wanted()
        if left := _found(client, where, texts["harbour"]):
            raise Fault(f"after everything was removed, a search still finds {left}")
    except BaseException:
        with suppress(Fault):  # what went wrong first is told
            _removed(client, where)
        raise
    _removed(client, where)
    return "stored, found first, removed, found no more"


def _removed(client: Client, where: dict[str, str]) -> None:
    """Leave nothing behind: neither documents nor the collection."""
    client.ask("POST", "/v1/rag/delete", {**where, "everything": True}).wanted()
    client.ask("DELETE", f"/v1/rag/collections/{where['collection']}").wanted()


def _found(client: Client, where: dict[str, str], text: str) -> list[str]:
    result = client.ask("POST", "/v1/rag/search", {**where, "query": text, "limit": 2}).wanted().json()["result"]
    return [str(hit["payload"]["document"]) for hit in result["points"]]


def scraped(client: Client) -> Scrape:
    """The metrics of this moment."""
    return Scrape(client.ask("GET", "/metrics").wanted().body.decode())


def counters(client: Client, report: Report, before: Scrape) -> str:
    """What was sent to each name stands in the metrics."""
    give_up_s, family = time.monotonic() + _HEARD_S, "hx_gateway_requests_total"
    while True:
        now = scraped(client)
        seen = {name: now.sum(family, target=name) - before.sum(family, target=name) for name in report.counters}
        short = [name for name, (sent, _) in report.counters.items() if seen[name] < sent]
        if not short:
            return ", ".join(f"{name} {well}/{sent}" for name, (sent, well) in report.counters.items())
        if time.monotonic() > give_up_s:
            raise Fault(", ".join(f"{name}: {report.counters[name][0]} sent, {seen[name]:g} counted" for name in short))
        time.sleep(0.2)


def ledger(client: Client) -> str:
    """No record of usage was lost, and the database takes them."""
    now = scraped(client)
    if lost := now.sum("hx_gateway_journal_lost_total"):
        raise Fault(f"{lost:g} usage records could not be written since the start: is the disk full?")
    if now.labels("hx_gateway_store_up") and not now.sum("hx_gateway_store_up"):
        raise Fault("the database cannot be used now (hx_gateway_store_up is 0); records wait in the journal")
    return f"{now.sum('hx_gateway_journal_records_total'):g} records, none lost"


def overhead(client: Client, before: Scrape) -> str:
    """What the gateway itself added to the answers of these checks, on average."""
    now = scraped(client)
    total_s, count = (now.sum(name) - before.sum(name) for name in ("hx_gateway_overhead_seconds_sum", "hx_gateway_overhead_seconds_count"))
    if count < 1:
        raise Skipped("no whole answer was measured")
    if (mean_s := total_s / count) > OVERHEAD_S:
        raise Fault(f"{mean_s * 1000:.1f} ms a request on average, over {OVERHEAD_S * 1000:g} ms")
    return f"{mean_s * 1000:.2f} ms a request on average, of {count:g}"
