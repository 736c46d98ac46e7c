"""The sections of the configuration that describe routing: policies of one's own, fallbacks, the queue."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hx_gateway.config.secrets import Secret
from hx_gateway.config.sections import Count, Names, Seconds, Settings


class PolicySettings(Settings):
    """A balancing policy of one's own: terms with weights, or a picker."""

    terms: dict[str, float] = Field(
        default={},
        description="Terms that count, each with its weight: wait, load, prefill, decode, price, risk, first_byte, busy, tokens, quality.",
    )
    picker: str | None = Field(
        default=None, min_length=1, description="Instead of terms: round_robin, weighted, least_busy, power_of_two, or a plug-in's name."
    )


class JudgeSettings(Settings):
    """A model that judges some answers, asked through the gateway itself; needs ledger.bodies, which keep what is judged."""

    model: str = Field(min_length=1, description="Model, alias or group that judges; none of the group that is judged.")
    api_key: Secret = Field(
        description="Key of this gateway for it alone, as env:NAME or file:PATH; its name marks what it asks in the ledger."
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="Share of answers that are judged, as far as the budget goes."
    )
    requests_per_day: Annotated[int, Field(ge=1)] = Field(default=200, description="Most requests of its key on one day (UTC).")
    cost_per_day: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Most cost of its key on one day (UTC), in the operator's currency; 0 judges only where it costs nothing."
    )


class LearnedSettings(Settings):
    """Choice of a group's model for each prompt, learned from judged answers; without a target the policy's term `quality` decides."""

    artifact: str | None = Field(
        default=None, min_length=1, description="File that `hx-gateway router train` wrote; none means to learn from feedback alone."
    )
    strong_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Target: share of requests for the group's last model, those it gains most for; the rest for the first."
    )
    quality: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Target: the cheapest model whose chance of a good answer is at least this part of the best one's."
    )
    seconds_per_quality: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="Seconds that a surely good answer is worth over a surely bad one, in the policy's term `quality`."
    )
    explore: Annotated[float, Field(ge=0, le=0.2)] = Field(
        default=0.02, description="Share of requests for a model drawn at random, so that all of them go on being judged."
    )
    embedding: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Model whose embedding of the prompt the scorer reads beside its words, asked for through the gateway; none for words alone.",
    )
    embedding_wait_seconds: Annotated[Seconds, Field(le=10)] = Field(
        default=0.1, description="Seconds a request waits for that; what comes later is kept for the next, and words alone decide."
    )
    judge: JudgeSettings | None = Field(default=None, description="A model that judges some of the answers; none leaves it to clients.")
    trial_answers: Annotated[int, Field(ge=20, le=10_000)] = Field(
        default=200, description="Judged answers before a challenger may take over or is given up, and the most that count."
    )
    trial_errors: Annotated[float, Field(ge=1, le=10)] = Field(
        default=2.5, description="Standard errors by which one of champion and challenger must be measured better than the other."
    )


class FallbackSettings(Settings):
    """Where requests for a name go when it cannot serve them, by cause; in order."""

    down: Names = Field(default=(), description="When every deployment is down, failing or full.")
    context: Names = Field(default=(), description="When the prompt is longer than the model's context.")


class QueueSettings(Settings):
    """Waiting for a place when every deployment of a name is full."""

    max_waiting: Count = Field(default=256, description="Most requests that wait for one name, in each worker; 0 refuses at once.")
    max_wait_seconds: Annotated[Seconds, Field()] = Field(default=30.0, description="Seconds after which a waiting request is refused.")
