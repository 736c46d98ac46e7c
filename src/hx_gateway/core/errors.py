"""Every failure the gateway can name: its status, code, and whose fault it is, decided once for breaker, retry and log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum


class Blame(Enum):
    """Who caused a failure; breaker, retry and log all read this and decide nothing again."""

    CLIENT = "client"
    ENDPOINT = "endpoint"
    BUSY = "busy"  # the endpoint is full, not sick: cool down, never break
    FLEET = "fleet"
    GATEWAY = "gateway"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the blame table.

    Args:
        code: Stable machine-readable name, sent as ``error.code``.
        status: HTTP status the client sees; 499 is only ever logged.
        type: OpenAI error type, sent as ``error.type``.
        blame: Whose fault it is.
        elsewhere: Whether another deployment may be tried.
        breaks: Whether it counts against the circuit breaker.
        about: One sentence for the reference page.
    """

    code: str
    status: int
    type: str
    blame: Blame
    elsewhere: bool
    breaks: bool
    about: str


_INVALID = "invalid_request_error"


def _client(code: str, status: int, about: str, type_: str = _INVALID) -> ErrorKind:
    return ErrorKind(code, status, type_, Blame.CLIENT, False, False, about)


def _endpoint(code: str, status: int, about: str, type_: str = "upstream_error") -> ErrorKind:
    return ErrorKind(code, status, type_, Blame.ENDPOINT, True, True, about)


# Refused before any model server was asked.
INVALID_JSON = _client("invalid_json", 400, "The body is not valid JSON.")
INVALID_VALUE = _client("invalid_value", 400, "A field has a value that cannot be used; `param` names it.")
UNSUPPORTED_PARAMETER = _client("unsupported_parameter", 400, "A field asks for something the chosen engine cannot do.")
MISSING_MODEL = _client("missing_model", 400, "No model in body or header, and no default model is configured.")
CONTEXT_LENGTH = _client("context_length_exceeded", 400, "The prompt is longer than the model's context.")
INVALID_HTTP = _client("invalid_http", 400, "The bytes are not one unambiguous HTTP request.")
INVALID_API_KEY = _client("invalid_api_key", 401, "No API key was sent, or the key is not known.", "authentication_error")
MODEL_NOT_ALLOWED = _client("model_not_allowed", 403, "The key may not use this model.", "permission_error")
NAMESPACE_NOT_ALLOWED = _client("namespace_not_allowed", 403, "The key may not read or write this namespace of documents.", "permission_error")
ADMIN_ONLY = _client("admin_required", 403, "The route needs an admin key.", "permission_error")
MODEL_NOT_FOUND = _client("model_not_found", 404, "No model, alias or group has this name.")
NAMESPACE_NOT_FOUND = _client("namespace_not_found", 404, "The search names a namespace that neither a document nor the key's scope has.")
NOT_FOUND = _client("not_found", 404, "No such route, and no default upstream to forward it to.")
METHOD_NOT_ALLOWED = _client("method_not_allowed", 405, "The route exists, but not for this method.")
CONFLICT = _client("conflict", 409, "The change does not go with what is there; `param` names the field.")
SLOW_CLIENT = _client("request_timeout", 408, "The request was not received in full in time.", "timeout_error")
TOO_LARGE = _client("request_too_large", 413, "The body is larger than the configured limit.")
HEAD_TOO_LARGE = _client("headers_too_large", 431, "The request head is larger than the configured limit.")
UNSUPPORTED_MEDIA = _client("unsupported_media_type", 415, "The body is not of a type this route reads.")
UPSTREAM_REFUSED = _client("upstream_refused", 400, "The model server refused the request; its answer is passed on.")

# Asked, and the endpoint failed.
CONNECT_FAILED = _endpoint("upstream_connect_failed", 502, "No connection to the model server could be made.")
CONNECTION_RESET = _endpoint("upstream_reset", 502, "The model server closed the connection before answering.")
UPSTREAM_ERROR = _endpoint("upstream_error", 502, "The model server answered with a server error.")
BAD_RESPONSE = _endpoint("bad_upstream_response", 502, "The model server's answer is not valid.")
UPSTREAM_CREDENTIALS = _endpoint("upstream_credentials", 502, "The model server refused the gateway's own credentials or has no database for them.")
CONNECT_TIMEOUT = _endpoint("connect_timeout", 504, "No connection within the connect timeout.", "timeout_error")
FIRST_BYTE_TIMEOUT = _endpoint("first_token_timeout", 504, "No first byte within the request timeout.", "timeout_error")
LOAD_TIMEOUT = _endpoint("load_timeout", 504, "The model did not load in time.", "timeout_error")
TOTAL_TIMEOUT = ErrorKind("upstream_timeout", 504, "timeout_error", Blame.ENDPOINT, False, False, "The request's own total deadline passed.")
STREAM_BROKEN = ErrorKind("stream_broken", 502, "upstream_error", Blame.ENDPOINT, False, True, "The answer broke off after its first byte.")
STREAM_STALLED = ErrorKind("stream_stalled", 504, "timeout_error", Blame.ENDPOINT, False, True, "The answer stopped between two bytes for longer than the request timeout.")
UPSTREAM_BUSY = ErrorKind("upstream_busy", 429, "rate_limit_error", Blame.BUSY, True, False, "Every model server that could answer is full.")

# The fleet or the gateway itself.
QUEUE_FULL = ErrorKind("queue_full", 429, "rate_limit_error", Blame.FLEET, False, False, "Every place is taken, and as many requests wait for one as may.")
QUEUE_TIMEOUT = ErrorKind("queue_timeout", 503, "server_error", Blame.FLEET, False, False, "No place became free within the longest wait.")
NO_DEPLOYMENT = ErrorKind("no_healthy_deployment", 503, "server_error", Blame.FLEET, False, False, "No deployment of the model can take the request now.")
OVERLOADED = ErrorKind("overloaded", 503, "server_error", Blame.FLEET, False, False, "The gateway is at its limit of concurrent requests.")
STORE_UNAVAILABLE = ErrorKind("store_unavailable", 503, "server_error", Blame.GATEWAY, False, False, "What was asked needs a store that cannot be reached now.")
INSUFFICIENT_QUOTA = ErrorKind("insufficient_quota", 429, "insufficient_quota", Blame.CLIENT, False, False, "The key's budget of the day or month is used up.")
RATE_LIMITED = ErrorKind("rate_limit_exceeded", 429, "rate_limit_error", Blame.CLIENT, False, False, "More requests, tokens or concurrent requests than the key or the gateway is limited to.")
CLIENT_CLOSED = ErrorKind("client_closed", 499, "client_closed", Blame.NOBODY, False, False, "The client left before the answer was complete; only logged.")
INTERNAL = ErrorKind("internal_error", 500, "server_error", Blame.GATEWAY, False, False, "A fault of the gateway itself; the request id finds it in the log.")

CATALOGUE: tuple[ErrorKind, ...] = tuple(v for v in list(globals().values()) if isinstance(v, ErrorKind))


class Failure(Exception):
    """One failure of one kind: raised by stages and providers, passed by value through the data plane.

    Args:
        kind: The row of the blame table.
        message: Sentence for the client: what is wrong and what to do about it.
        param: Name of the offending field.
        retry_after_s: Seconds after which trying again makes sense.
        upstream_status: Status the model server answered with.
        upstream_body: Its body, when that is what the client shall see.
        should_retry: False when the gateway already spent its own retries on it.
    """

    __slots__ = ("kind", "message", "param", "retry_after_s", "should_retry", "upstream_body", "upstream_status")

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        upstream_status: int | None = None,
        upstream_body: bytes | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.upstream_status = upstream_status
        self.upstream_body = upstream_body
        self.should_retry = should_retry

    @property
    def status(self) -> int:
        """The HTTP status for the client: the upstream's own where it has a meaning to the client."""
        if self.upstream_status is not None and self.kind in (UPSTREAM_REFUSED, UPSTREAM_ERROR):
            return self.upstream_status
        return self.kind.status

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON bytes (no line breaks, so it fits one SSE data line)."""
        return error_body(self.kind, self.message, self.param)


def error_body(kind: ErrorKind, message: str, param: str | None = None) -> bytes:
    """OpenAI's error object as JSON bytes on one line."""
    return json.dumps({"error": {"message": message, "type": kind.type, "param": param, "code": kind.code}}).encode()


class Unavailable(Exception):
    """A store did not answer, not in time, or not as it should; the message says why, without secrets."""
