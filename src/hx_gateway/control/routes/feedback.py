"""Feedback on answers: how good one was, by the key that asked for it; what groups that learn go by."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from hx_gateway.control.dependencies import Caller, Gateway, GatewayOf
from hx_gateway.control.openapi import failures
from hx_gateway.control.routes.usage import ask
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure
from hx_gateway.core.identifiers import time_of
from hx_gateway.ledger.feedback import Feedback, Full, note

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_UNSHIPPED_MS = 60_000  # a request that is younger may not be in the store yet
_AGAIN_S = 5.0


class FeedbackGiven(BaseModel):
    """How good an answer was."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(max_length=64, description="`x-hx-decision-id` of the answer, or the `id` of its body.")]
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="From 0, useless, to 1, good.")]
    comment: Annotated[str, Field(max_length=4000, description="In words; kept, and never learned from.")] = ""


class FeedbackKept(BaseModel):
    """Feedback as it is kept."""

    object: Literal["feedback"] = "feedback"
    request_id: str
    score: float
    status: Literal["kept", "accepted"] = Field(description="accepted: written down, and checked once the request is in the log")


async def _known(gateway: Gateway, caller: Any, id: str) -> tuple[str, str, str, float | None] | None:
    async def read(connection: AsyncConnection) -> tuple[str, str, str, float | None] | None:
        from hx_gateway.stores.sql.learning import judged

        return await judged(connection, id)

    return await ask(gateway, caller, read)


async def feedback(given: FeedbackGiven, gateway: GatewayOf, caller: Caller, response: Response) -> Any:
    """Say how good an answer was, once: the same again changes nothing, another score is refused. For the key that asked, and for admins.

    What is confirmed is on disk. 202 where the request is not in the log yet, or the log cannot be read now: it is checked then.
    """
    id = given.request_id.rpartition("-")[2].upper()  # an answer's id has it behind a word such as chatcmpl-
    at_ms = time_of(id)
    folder = gateway.backing.folder
    unknown = Failure(errors.NOT_FOUND, f"request_id: no request {given.request_id!r} of this key is in the log", param="request_id")
    if at_ms < 0:
        raise unknown
    if folder is None:
        raise Failure(errors.STORE_UNAVAILABLE, "feedback cannot be kept: there is no state directory", retry_after_s=_AGAIN_S)
    admin = caller is None or caller.admin
    status, now_ms = 200, int(time.time() * 1000)
    try:
        found = await _known(gateway, caller, id)
        if found is None:
            if not -_UNSHIPPED_MS < now_ms - at_ms < _UNSHIPPED_MS:
                raise unknown
            status = 202
        elif not admin and (caller is None or found[0] != caller.name):
            raise unknown
    except Failure as failure:
        if failure.kind is not errors.STORE_UNAVAILABLE:
            raise
        found, status = None, 202
    score = found[3] if found is not None else None
    if score is None:
        try:
            said = Feedback(id, now_ms, given.score, caller.name if caller is not None else "", admin, given.comment.replace("\0", ""))
            before = await asyncio.to_thread(note, folder, said)
        except Full:
            raise Failure(errors.STORE_UNAVAILABLE, "too much feedback waits for the store; try again", retry_after_s=_AGAIN_S) from None
        except OSError as error:
            reason = error.strerror or error
            raise Failure(errors.STORE_UNAVAILABLE, f"feedback cannot be kept: {reason}", retry_after_s=_AGAIN_S) from None
        score = before.score
    if score != given.score:
        raise Failure(errors.CONFLICT, f"score: feedback on this request was given before, with {score:g}; it stays", param="score")
    response.status_code = status
    return {"request_id": id, "score": score, "status": "kept" if status == 200 else "accepted"}


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["routing"], responses=failures("400", "401", "404", "409", "503"))
    routes.add_api_route("/v1/feedback", feedback, methods=["POST"], response_model=FeedbackKept, responses={202: {"model": FeedbackKept}})
    return routes
