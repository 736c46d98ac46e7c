"""What is reported of the response cache: what became of requests that it looks after, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hx_gateway.dataplane.shelf import Shelf


def cached(shelf: Shelf) -> Iterator[Metric]:
    """The families.

    Args:
        shelf: Of the worker.
    """
    requests = CounterMetricFamily(
        "hx_gateway_cache_requests",
        "Requests that may be answered from the cache: hit in memory, hit_redis, miss, or shared with another under way.",
        labels=["route", "result"],
    )
    for labels, count in shelf.counts.items():
        requests.add_metric(labels, count)
    yield requests
    yield GaugeMetricFamily("hx_gateway_cache_bytes", "Memory that cached answers take.", value=shelf.bytes)
    yield GaugeMetricFamily("hx_gateway_cache_entries", "Cached answers and vectors in memory.", value=len(shelf))
    yield CounterMetricFamily(
        "hx_gateway_cache_evictions", "Cached answers and vectors that had to go for newer ones.", value=shelf.evicted
    )
