"""What other rooms know of themselves, written into the book a few times a second: their counts, and the fleet as this worker sees it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.health.summary import deployment_usable
from hx_gateway.routing.ask import Ask
from hx_gateway.telemetry.book import Book, Cells

if TYPE_CHECKING:
    from hx_gateway.fleet.registry import Registry
    from hx_gateway.routing.ceilings import Ceilings
    from hx_gateway.telemetry.exposition import Observed

_BREAKER_STATES = {"closed": 0.0, "half-open": 1.0, "open": 2.0}
_PROMPT_TOKENS = 1000.0  # of the request that routing terms are shown for
_MOST_TERMS = 200  # deployments whose terms are shown
Sample = tuple[str, tuple[str, ...], float]
"""Family, label values, value."""


class Reporter:
    """Writes samples into the book.

    Args:
        book: The worker's.
    """

    __slots__ = ("_before", "_book", "_gauges")

    def __init__(self, book: Book) -> None:
        self._book = book
        self._before: dict[tuple[str, tuple[str, ...]], tuple[Cells, float]] = {}  # with what a predecessor had counted
        self._gauges: dict[tuple[str, tuple[str, ...]], Cells] = {}

    def report(self, observed: Observed) -> None:
        """Write everything down as it is now."""
        before, gauges = self._before, self._gauges
        for name, labels, value in counted(observed):
            found = before.get((name, labels))
            if found is None:
                cells = self._book.cells(name, labels, 1)
                found = before[name, labels] = (cells, cells[0])
            found[0][0] = found[1] + value
        now_s = time.monotonic()
        for name, labels, value in seen(observed, self._book):
            cells = gauges.get((name, labels)) or self._book.cells(name, labels, 2)
            gauges[name, labels] = cells
            cells[0], cells[1] = value, now_s
        self._book.beat(now_s)


def counted(observed: Observed) -> Iterator[Sample]:
    """Counts that other rooms keep, since the start of this process."""
    backing: Any = observed.backing
    for scope, limit in list(backing.metering.limiter.refused):
        yield "hx_gateway_limited", (scope, limit), backing.metering.limiter.refused[scope, limit]
    for labels, count in list(backing.shelf.counts.items()):
        yield "hx_gateway_cache_requests", labels, count
    yield "hx_gateway_cache_evictions", (), backing.shelf.evicted
    proxy: Any = observed.proxy
    for group, learned in proxy.learned.items():
        for (model, rule), count in list(learned.counts.items()):
            yield "hx_gateway_learned_decisions", (group, model, rule), count
        for outcome, count in list(learned.embedded.items()):
            yield "hx_gateway_learned_embeddings", (group, outcome), count
    if backing.redis is not None:
        yield "hx_gateway_redis_losses", (), backing.redis.losses
    ledger = backing.ledger
    journal = ledger.journal
    yield "hx_gateway_journal_records", (), journal.records if journal is not None else 0
    yield "hx_gateway_journal_lost", (), (journal.lost if journal is not None else 0) + ledger.unrecorded
    yield "hx_gateway_journal_dead_lettered", (), journal.dead_lettered if journal is not None else 0
    yield "hx_gateway_journal_discarded", (), journal.discarded if journal is not None else 0
    yield from observed.telemetry.counts()
    times = os.times()
    yield "hx_gateway_worker_cpu_seconds", (str(observed.telemetry.book.number),), times.user + times.system


def seen(observed: Observed, book: Book) -> Iterator[Sample]:
    """The state of things now, as this worker sees it."""
    backing: Any = observed.backing
    proxy: Any = observed.proxy
    yield "hx_gateway_start_time_seconds", (), observed.started_wall_s
    yield "hx_gateway_ready", (), float(observed.ready and not observed.draining)
    yield "hx_gateway_workers", (), 1.0
    yield "hx_gateway_series_full", (), float(book.full)
    last = getattr(observed.reloading, "last", None)
    if last is not None:
        yield "hx_gateway_config_reload_ok", (), float(last.ok)
    try:
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        yield "hx_gateway_worker_memory_bytes", (str(book.number),), resident
    except OSError:
        pass  # no such file on this system
    yield "hx_gateway_in_flight", (), proxy.in_flight
    for name, queue in list(proxy.hotel.queues.items()):
        yield "hx_gateway_queue_waiting", (name,), queue.size
    if backing.redis is not None:
        yield "hx_gateway_redis_up", (), float(backing.redis.available)
    if backing.metering.shared is not None:
        yield "hx_gateway_limits_gateways", (), backing.metering.shared.gateways
    yield "hx_gateway_cache_bytes", (), backing.shelf.bytes
    yield "hx_gateway_cache_entries", (), len(backing.shelf)
    yield "hx_gateway_vectors_open", (), float(backing.vectors_open)
    journal = backing.ledger.journal
    yield "hx_gateway_journal_pending_bytes", (), journal.pending_bytes if journal is not None else 0
    for name in observed.registry.endpoints:
        yield "hx_gateway_endpoint_drained", (name,), float(name in backing.drains.drained)
    yield from _fleet(observed.registry, proxy.ceilings)


def _fleet(registry: Registry, ceilings: Ceilings) -> Iterator[Sample]:
    now_s = time.monotonic()
    for endpoint in registry.endpoints.values():
        labels, facts = (endpoint.name,), endpoint.facts
        if facts.healthy is not None:
            yield "hx_gateway_endpoint_up", labels, float(facts.healthy)
        if facts.checked_s:
            yield "hx_gateway_endpoint_probe_age_seconds", labels, max(0.0, now_s - facts.checked_s)
        yield "hx_gateway_endpoint_in_flight", labels, endpoint.in_flight
        yield "hx_gateway_endpoint_breaker", labels, _BREAKER_STATES[endpoint.breaker.state]
        if endpoint.max_concurrent:
            yield "hx_gateway_endpoint_limit", labels, endpoint.max_concurrent
        load = facts.load
        if load is not None:
            for name, value in (("running", load.running), ("waiting", load.waiting), ("cache_used_ratio", load.cache_used)):
                if value is not None:
                    yield f"hx_gateway_endpoint_{name}", labels, value
    done: set[Deployment] = set()
    for target in registry.targets.values():
        yield "hx_gateway_target_info", (target.name, target.kind, target.policy), 1.0
        if target.deployments:
            serving = [one for one in target.deployments if not one.endpoint.drained]
            yield "hx_gateway_available_ratio", (target.name,), sum(map(deployment_usable, serving)) / max(1, len(serving))
        for one in target.deployments:
            if one not in done:
                done.add(one)
                yield from _deployment(one)
                for unit, left, limit in ceilings.minute(one, now_s):
                    yield "hx_gateway_deployment_minute_limit", (one.model, one.endpoint.name, unit), limit
                    yield "hx_gateway_deployment_minute_left", (one.model, one.endpoint.name, unit), left


def _deployment(one: Deployment) -> Iterator[Sample]:
    key = (one.model, one.endpoint.name)
    yield "hx_gateway_deployment_in_flight", key, one.in_flight
    yield "hx_gateway_deployment_breaker", key, _BREAKER_STATES[one.breaker.state]
    if one.max_concurrent:
        yield "hx_gateway_deployment_limit", key, one.max_concurrent
    facts = one.endpoint.facts
    if facts.loaded is not None:
        yield "hx_gateway_model_loaded", key, float(one.upstream_model in facts.loaded)
        held = facts.in_memory(one.upstream_model)
        if held is not None and held.size:
            yield "hx_gateway_model_memory_bytes", key, held.size


def terms(observed: Observed) -> Iterator[Sample]:
    """What the router of this worker would reckon now, for a fleet of moderate size; changes nothing."""
    router: Any = observed.router
    now_s = time.monotonic()
    shown = 0
    for target in observed.registry.targets.values():
        shown += len(target.deployments)
        if not target.policy or target.kind == "alias" or shown > _MOST_TERMS:
            continue
        policy = router.policy(target.policy)
        ask = Ask(target, _PROMPT_TOKENS)
        for one in target.deployments:
            for term, seconds in policy.seconds(ask, one, 0.0, now_s).items():
                yield (
                    "hx_gateway_routing_term_seconds",
                    (target.name, one.model, one.endpoint.name, term),
                    seconds * policy.weights.get(term, 1.0),
                )


def kept(state: dict[str, Any] | None) -> Iterator[Sample]:
    """What the housekeeper told (`housekeeping.read_state`)."""
    yield "hx_gateway_housekeeper_up", (), float(state is not None)
    if state is None:
        return
    if state["store"]["ok"] is not None:
        yield "hx_gateway_store_up", (), float(state["store"]["ok"])
    for duty, facts in state["duties"].items():
        yield "hx_gateway_duty_failing", (duty,), float(bool(facts["error"]))
        if facts["ok_ms"]:
            yield "hx_gateway_duty_success_timestamp_seconds", (duty,), facts["ok_ms"] / 1000.0
    learning = state["duties"].get("learn", {})
    for result in ("feedback", "refused"):
        if result in learning:
            yield "hx_gateway_feedback", ("kept" if result == "feedback" else result,), learning[result]
    for group, facts in learning.get("groups", {}).items():
        for role in ("champion", "challenger"):
            if facts[role] is not None:
                yield "hx_gateway_learned_artifact_info", (group, role, facts[role]), 1.0
        for name in ("judged", "trial", "lead", "changes"):
            yield f"hx_gateway_learned_{name}", (group,), facts[name]
