"""Every error answer of the control plane in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind, Failure, error_body

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

_BY_STATUS: Mapping[int, ErrorKind] = {
    401: errors.INVALID_API_KEY,
    403: errors.ADMIN_ONLY,
    404: errors.NOT_FOUND,
    405: errors.METHOD_NOT_ALLOWED,
    413: errors.TOO_LARGE,
    415: errors.UNSUPPORTED_MEDIA,
}


def failure_response(failure: Failure) -> Response:
    """A failure as an answer."""
    headers: dict[str, str] = {}
    if failure.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(failure.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(failure.retry_after_s * 1000))
    if failure.kind is errors.INVALID_API_KEY:
        headers["www-authenticate"] = 'Bearer realm="hx-gateway"'
    return Response(failure.upstream_body or failure.body(), failure.status, headers, "application/json")


def method_refused(request: Request, allowed: str, why: str = "") -> Response:
    """405, with the methods that would do, and the reason where there is more to say."""
    method: str = request.scope.get("state", {}).get("method", request.method)
    message = f"{method} is not possible on {request.url.path}; use {allowed.replace(', ', ' or ')}"
    body = error_body(errors.METHOD_NOT_ALLOWED, f"{message}: {why}" if why else message)
    return Response(body, 405, {"allow": allowed}, "application/json")


async def _on_failure(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Failure)
    return failure_response(error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        methods = sorted({*allowed.replace(" ", "").split(","), *(("HEAD",) if "GET" in allowed else ())})
        return method_refused(request, ", ".join(methods))
    if status == 404:
        message = f"there is no {request.method} {request.url.path} here; GET /docs lists what there is"
    else:
        message = str(error.detail)
    kind = _BY_STATUS.get(status, errors.INVALID_VALUE if status < 500 else errors.INTERNAL)
    return Response(error_body(kind, message), status, dict(error.headers or {}), "application/json")


async def _on_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first = problems[0]
    if first.get("type") == "json_invalid":
        return Response(error_body(errors.INVALID_JSON, "the body is not valid JSON"), 400, media_type="application/json")
    # The place is (where, field, field …); what was sent is not repeated, it may be a secret in the wrong place.
    param = ".".join(str(part) for part in first.get("loc", ())[1:]) or "body"
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    body = error_body(errors.INVALID_VALUE, f"{param}: {first.get('msg', 'not valid')}{rest}", param)
    return Response(body, 422, media_type="application/json")


def install(app: FastAPI) -> None:
    """Let the app answer all its errors this way; faults of our own are answered by the envelope."""
    app.add_exception_handler(Failure, _on_failure)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
