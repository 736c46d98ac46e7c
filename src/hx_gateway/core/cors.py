"""Which web pages may read the gateway's answers: header lines for an origin, and the answer to a preflight."""

from __future__ import annotations

from collections.abc import Iterable

EXPOSED = (
    "x-request-id, retry-after, retry-after-ms, x-should-retry, x-hx-model, x-hx-model-group, x-hx-endpoint, x-hx-policy, x-hx-attempts, "
    "x-hx-params-dropped"
)
"""Response headers a page may read besides the few that browsers always show."""

_REMEMBERED = 256  # origins whose lines are kept ready; more are made on each request
_PREFLIGHT_VARY = b"vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"


def _printable(value: bytes) -> bool:
    return value.isascii() and value.decode("latin-1").isprintable()


class CorsPolicy:
    """What the operator allows pages of other origins.

    Args:
        origins: Origins allowed, compared without regard to case; ``*`` means any.
        methods: Methods they may use; ``*`` means any.
        headers: Request headers they may send; ``*`` means any.
        credentials: Whether cookies may come along; then the origin is named in each answer, as browsers demand.
        max_age_s: Seconds a browser may keep the answer to a preflight.
    """

    __slots__ = ("_any_header", "_any_method", "_any_origin", "_credentials", "_headers", "_lines", "_max_age", "_methods", "_origins")

    def __init__(
        self,
        origins: Iterable[str] = ("*",),
        methods: Iterable[str] = ("GET", "POST", "OPTIONS"),
        headers: Iterable[str] = ("*",),
        credentials: bool = False,
        max_age_s: int = 600,
    ) -> None:
        self._origins = frozenset(origin.lower().encode("latin-1", "replace") for origin in origins)
        self._any_origin = b"*" in self._origins
        methods = tuple(methods)
        self._any_method = "*" in methods
        self._methods = frozenset(method.upper().encode("latin-1", "replace") for method in methods) | {b"HEAD"}
        headers = tuple(headers)
        self._any_header = "*" in headers
        self._headers = frozenset(header.lower().encode("latin-1", "replace") for header in headers)
        self._credentials = b"access-control-allow-credentials: true\r\n" if credentials else b""
        self._max_age = b"access-control-max-age: %d\r\n" % max_age_s
        self._lines: dict[bytes, bytes] = {}

    def allows(self, origin: bytes) -> bool:
        """Whether pages of ``origin`` may read answers."""
        return self._any_origin or origin.lower() in self._origins

    def response_lines(self, origin: bytes) -> bytes:
        """Header lines for the answer to a request with this ``Origin``; for an origin not allowed only ``vary``."""
        lines = self._lines.get(origin)
        if lines is None:
            lines = self._make(origin)
            if len(self._lines) < _REMEMBERED:
                self._lines[origin] = lines
        return lines

    def _make(self, origin: bytes) -> bytes:
        if not self.allows(origin) or not _printable(origin):
            return b"vary: Origin\r\n"
        exposed = b"access-control-expose-headers: %b\r\n" % EXPOSED.encode()
        return self._allowed(origin) + exposed

    def _allowed(self, origin: bytes) -> bytes:
        if self._any_origin and not self._credentials:
            return b"access-control-allow-origin: *\r\n"
        return b"access-control-allow-origin: %b\r\n%bvary: Origin\r\n" % (origin, self._credentials)

    def preflight(self, origin: bytes, method: bytes, headers: bytes = b"") -> tuple[int, bytes]:
        """The answer to a preflight: its status and header lines; it has no body.

        Args:
            origin: ``Origin``.
            method: ``Access-Control-Request-Method``.
            headers: ``Access-Control-Request-Headers``; empty for none.

        Returns:
            204 with what is allowed, or 403 without it.
        """
        wanted = [name.strip().lower() for name in headers.split(b",") if name.strip()]
        permitted = (
            self.allows(origin)
            and _printable(origin + method + headers)
            and (self._any_method or method in self._methods)
            and (self._any_header or all(name in self._headers for name in wanted))
        )
        if not permitted:
            return 403, _PREFLIGHT_VARY
        lines = b"access-control-allow-origin: %b\r\n" % (b"*" if self._any_origin and not self._credentials else origin)
        lines += self._credentials + b"access-control-allow-methods: %b\r\n" % (
            method if self._any_method else b", ".join(sorted(self._methods))
        )
        if wanted:
            lines += b"access-control-allow-headers: %b\r\n" % b", ".join(wanted)
        return 204, lines + self._max_age + _PREFLIGHT_VARY
