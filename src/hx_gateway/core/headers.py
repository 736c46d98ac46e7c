"""Which request headers go upstream, which the gateway reads itself, and which end here."""

from __future__ import annotations

DROP, NOTE, KEEP, FRAMING = 0, 1, 2, 3
DIGEST = b" digest"
"""Among the notes: the SHA-256 of the key they carry, once it was asked for; no header is called so."""

# Hop-by-hop (RFC 9110, 7.6.1), credentials for this gateway, and what our side of the next hop makes itself.
_DROPPED = frozenset(
    (b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"upgrade",
     b"http2-settings", b"accept-encoding", b"cookie", b"content-type", b"forwarded", b"via")
)  # fmt: skip
_NOTED = frozenset((b"authorization", b"x-api-key", b"api-key", b"x-request-id", b"origin", b"idempotency-key"))
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect", b"connection"))


def disposition(name: bytes) -> int:
    """What becomes of a request header with this lower-case name: `DROP`, `NOTE`, `KEEP` or `FRAMING`."""
    if name in _FRAMING:
        return FRAMING
    if name in _NOTED or name.startswith(b"x-hx-"):
        return NOTE
    if name in _DROPPED or name.startswith(b"x-forwarded-"):
        return DROP
    return KEEP
