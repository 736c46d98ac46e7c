"""Writes every exchange that comes to its end into the journal, before its last byte goes out."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic, time
from typing import TYPE_CHECKING

from hx_gateway.core.context import Exchange
from hx_gateway.core.interfaces import unheard
from hx_gateway.ledger.bodies import Bodies
from hx_gateway.ledger.record import values_of

if TYPE_CHECKING:
    from hx_gateway.ledger.journal import Journal


class Ledger:
    """An observer that keeps a record of every exchange.

    Args:
        user_header: Lower-case name of the header in which a client such as Open WebUI names its user; empty for none.
        trusted: Names of the keys that are believed when they name a user.
    """

    __slots__ = ("_header", "_trusted", "bodies", "journal", "unrecorded", "wanted")

    def __init__(self, user_header: str = "", trusted: Iterable[str] = ()) -> None:
        self.journal: Journal | None = None  # None before it is opened, and where it cannot be
        self.bodies = Bodies()
        self.wanted = True
        self.unrecorded = 0  # exchanges that ended meanwhile, though records are wanted
        self.believe(user_header, trusted)

    def believe(self, user_header: str, trusted: Iterable[str]) -> None:
        """Change who may name users, and in which header."""
        self._header = b"\n%b: " % user_header.lower().encode() if user_header else b""
        self._trusted = frozenset(trusted)

    attempted = unheard

    def finished(self, exchange: Exchange, /) -> None:
        """Append the record."""
        journal = self.journal
        if journal is None:
            self.unrecorded += self.wanted
            return
        identity = exchange.identity
        user = self._user(exchange) if self._trusted and identity is not None and identity.name in self._trusted else ""
        journal.append(values_of(exchange, exchange.ended_s or monotonic(), time(), user))

    def _user(self, exchange: Exchange) -> str:
        """The end user: by header, else by the body's ``user``."""
        if self._header:
            _, found, rest = (b"\n" + b"".join(exchange.forward)).partition(self._header)
            if found:
                return rest.partition(b"\r")[0].decode("latin-1")
        return getattr(exchange.facts, "user", None) or ""
