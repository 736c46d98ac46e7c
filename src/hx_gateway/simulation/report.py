"""What came of a simulated trace: waits, hits, cold loads, balance and cost, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hx_gateway.simulation.run import Call
    from hx_gateway.simulation.server import Server

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one policy.

    Args:
        policy: Its name.
        requests: How many arrived.
        failed: How many were not answered in full.
        retried: How many needed more than one attempt.
        first_token_s: Percentiles of the seconds from arrival to the first token, of those answered.
        latency_s: The same to the last token.
        hit_rate: Share of the prompt tokens read by servers that came out of their prefix caches.
        cold_loads: Models that had to be loaded.
        busy_imbalance: The busiest server's seconds of work over the mean.
        request_imbalance: The requests of the server with the most over the mean.
        cost: In the currency of the fleet file.
        choose_us: Mean microseconds of processor time the router took for a choice.
        servers: By name: requests, busy seconds, cold loads, hit rate.
    """

    policy: str
    requests: int
    failed: int
    retried: int
    first_token_s: Mapping[str, float]
    latency_s: Mapping[str, float]
    hit_rate: float
    cold_loads: int
    busy_imbalance: float
    request_imbalance: float
    cost: float
    choose_us: float
    servers: Mapping[str, Mapping[str, float]]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the sorted values lie, between two of them by proportion; 0.0 of none."""
    if not ordered:
        return 0.0
    position = (len(ordered) - 1) * percent / 100.0
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def report_of(policy: str, calls: Sequence[Call], servers: Mapping[str, Server], choose_ns: Sequence[int]) -> Report:
    """Sum up a run."""
    answered = [call for call in calls if call.failed is None]
    taken = dict.fromkeys(servers, 0)
    for call in answered:
        assert call.deployment is not None
        taken[call.deployment.endpoint.name] += 1
    busy = [server.busy_s for server in servers.values()]
    prompts = sum(server.prompt_tokens for server in servers.values())
    return Report(
        policy,
        len(calls),
        len(calls) - len(answered),
        sum(call.attempts > 1 for call in calls),
        _percentiles([call.first_s - call.arrival.at_s for call in answered]),
        _percentiles([call.last_s - call.arrival.at_s for call in answered]),
        sum(server.cached_tokens for server in servers.values()) / prompts if prompts else 0.0,
        sum(server.loads for server in servers.values()),
        _imbalance(busy),
        _imbalance(list(taken.values())),
        sum(call.cost for call in answered),
        sum(choose_ns) / len(choose_ns) / 1000.0 if choose_ns else 0.0,
        {
            name: {
                "requests": taken[name],
                "busy_s": server.busy_s,
                "cold_loads": server.loads,
                "hit_rate": server.cached_tokens / server.prompt_tokens if server.prompt_tokens else 0.0,
            }
            for name, server in servers.items()
        },
    )


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}


def _imbalance(values: Sequence[float]) -> float:
    total = sum(values)
    return max(values) * len(values) / total if total else 1.0
