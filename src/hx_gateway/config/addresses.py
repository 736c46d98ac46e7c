"""Judges addresses as text: URLs of model servers, hosts to listen on, header names."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_OWN_HEADERS = frozenset(("host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive"))


def url_fault(url: str) -> str:
    """Why ``url`` cannot be the address of a model server; empty if it can. Never repeats the address."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "should be an address of ASCII characters without spaces, e.g. http://llm-01:11434"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
        host = parts.hostname
    except ValueError:
        return "is no address: its host or port is malformed; write e.g. http://llm-01:11434"
    if parts.scheme not in ("http", "https"):
        return "should start with http:// or https://"
    if not host:
        return "has no host; write e.g. http://llm-01:11434"
    if port == 0:
        return "has port 0; name the port the server listens on"
    if "@" in parts.netloc:
        return "holds a user or password; put the credential into api_key as env:NAME"
    if parts.query or parts.fragment:
        return "should end with the path, without ? or #"
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_fault(host: str) -> str:
    """Why ``host`` cannot be listened on; empty if it can."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if re.fullmatch(r"[0-9A-Za-z._-]+", host):
            return ""
        return "should be an IP address or a host name, without scheme, brackets and port (the port is service.port)"
    return ""


def header_fault(name: str) -> str:
    """Why ``name`` cannot be a configured header; empty if it can."""
    if not _HEADER_NAME.fullmatch(name):
        return "is no valid header name"
    if name.lower() in _OWN_HEADERS:
        return "is set by the gateway itself; remove it"
    return ""
