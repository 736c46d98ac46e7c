"""The last hour of the gateway in steps of ten seconds, for plots."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from hx_gateway.control.dependencies import Administrator, GatewayOf
from hx_gateway.control.openapi import failures
from hx_gateway.telemetry.history import EVERY_S, STEPS, course

Line = list[float | None]


class Rates(BaseModel):
    """What happened at each of the times; null where no worker was there."""

    requests_per_s: Line = Field(description="requests that came to an end")
    errors_per_s: Line = Field(description="of them, those that ended in an error, whosever fault it was")
    prompt_tokens_per_s: Line = Field(description="tokens that model servers read")
    completion_tokens_per_s: Line = Field(description="tokens that model servers wrote")
    in_flight: Line = Field(description="requests under way at the end of the step")


class Course(Rates):
    """The same of all requests, and how long they took; estimated from buckets as Prometheus does."""

    response_p50_s: Line = Field(description="median response time in seconds; null where no request came to an end")
    response_p95_s: Line = Field(description="response time in seconds that 95 % were within")
    first_token_p50_s: Line = Field(description="of streams: median time to the first token, in seconds")
    first_token_p95_s: Line = Field(description="of streams: time to the first token in seconds that 95 % were within")


class History(BaseModel):
    """The course of the last hour, all workers together."""

    object: Literal["history"] = "history"
    interval_s: int = Field(default=EVERY_S, description="seconds from one time to the next")
    times: list[int] = Field(description="ends of the steps in Unix seconds, oldest first; the step under way is left out")
    all: Course
    endpoints: dict[str, Rates] = Field(description="by name; of the first 32 endpoints")


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["state"], responses=failures("401", "403"))

    @routes.get("/admin/history", response_model=History)
    async def history(
        gateway: GatewayOf,
        caller: Administrator,
        seconds: Annotated[int, Query(ge=EVERY_S, le=STEPS * EVERY_S, description="How far back, in seconds.")] = STEPS * EVERY_S,
    ) -> Any:
        """Rates, response times and what was under way over the last hour, restarts included where there is a state directory. Needs an admin key."""
        return await asyncio.to_thread(course, gateway.telemetry.book, gateway.clock.wall(), seconds // EVERY_S)

    return routes
