"""The sections of the configuration that describe routing: policies of one's own, fallbacks, the queue."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hx_gateway.config.sections import Count, Names, Seconds, Settings


class PolicySettings(Settings):
    """A balancing policy of one's own: terms with weights, or a picker."""

    terms: dict[str, float] = Field(
        default={}, description="Terms that count, each with its weight: wait, load, prefill, decode, price, risk, first_byte, busy."
    )
    picker: str | None = Field(
        default=None, min_length=1, description="Instead of terms: round_robin, weighted, least_busy, power_of_two, or a plug-in's name."
    )


class FallbackSettings(Settings):
    """Where requests for a name go when it cannot serve them, by cause; in order."""

    down: Names = Field(default=(), description="When every deployment is down, failing or full.")
    context: Names = Field(default=(), description="When the prompt is longer than the model's context.")


class QueueSettings(Settings):
    """Waiting for a place when every deployment of a name is full."""

    max_waiting: Count = Field(default=256, description="Most requests that wait for one name, in each worker; 0 refuses at once.")
    max_wait_seconds: Annotated[Seconds, Field()] = Field(default=30.0, description="Seconds after which a waiting request is refused.")
