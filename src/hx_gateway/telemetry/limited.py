"""What is reported of limits: refusals by kind, and the store that gateways share them through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


def limited(backing: Any) -> Iterator[Metric]:
    """The families.

    Args:
        backing: What a worker has: ``metering``, and ``redis`` or None.
    """
    refused = CounterMetricFamily(
        "hx_gateway_limited", "Requests refused by a limit: of a key, or of the gateway itself.", labels=["scope", "limit"]
    )
    for labels, count in backing.metering.limiter.refused.items():
        refused.add_metric(labels, count)
    yield refused
    redis, shared = backing.redis, backing.metering.shared
    up = GaugeMetricFamily("hx_gateway_redis_up", "1 while Redis answers in time, else 0; absent where none is configured.")
    losses = CounterMetricFamily("hx_gateway_redis_losses", "How often Redis was lost: late, gone, or not understood.")
    gateways = GaugeMetricFamily("hx_gateway_limits_gateways", "Gateways that share the limits of keys through Redis, when last asked.")
    if redis is not None:
        up.add_metric([], float(redis.available))
        losses.add_metric([], redis.losses)
    if shared is not None:
        gateways.add_metric([], shared.gateways)
    yield from (up, losses, gateways)
