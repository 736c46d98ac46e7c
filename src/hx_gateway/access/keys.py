"""Knows who is calling: keys are held as SHA-256 digests only, and found by one hash and one look-up."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING

from hx_gateway.access.moments import written
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure

if TYPE_CHECKING:
    from hx_gateway.access.snapshot import StoredKey
    from hx_gateway.config.schema import GatewayConfig, KeysSettings

MASTER = "master"
"""Name of the identity behind the master key."""
RESERVED = frozenset({MASTER, "anonymous"})
"""Names that no other key may have."""
_PREFIX = "hx-"
_AGAIN_S = 1.0


class KeyRing:
    """The keys that are let in: those of the configuration, and those of the store as far as they are known.

    A reload makes a new one; what is known of the store is taken over by `take`, in one step.

    Args:
        entries: SHA-256 digest of each key (32 bytes), with who it stands for.
        required: Whether a key is needed even where there is none; with no entries nobody is let in then.

    Attributes:
        required: Whether a key is needed.
        unread: Whether there is a store whose keys nobody has read yet: a token that is not known may be one of them.
    """

    __slots__ = ("_always", "_ended", "_entries", "_own", "required", "unread")

    def __init__(self, entries: Iterable[tuple[bytes, Identity]], required: bool = True) -> None:
        self._own = self._entries = {digest: (digest, identity) for digest, identity in entries}
        self._ended: dict[bytes, tuple[str, int]] = {}  # what ends or ended keys of the store, and when in Unix milliseconds
        self._always = self.required = required
        self.unread = False

    @classmethod
    def from_config(cls, config: GatewayConfig) -> KeyRing:
        """The ring that ``config`` asks for.

        No key is required only where none is known and nobody but this machine can connect: a gateway that listens to
        others without a key lets nobody in.
        """
        # Here, because the data plane imports this module and must not bring the configuration's machinery with it.
        from hx_gateway.config.addresses import is_loopback

        entries = list(_entries(config.keys))
        return cls(entries, required=bool(entries) or not is_loopback(config.service.host))

    def take(self, keys: Iterable[StoredKey], unread: bool = False) -> list[str]:
        """Let in the keys of the store, too, instead of those it had before.

        Args:
            keys: All of them, also those that are let in no more.
            unread: Whether they are not known at all.

        Returns:
            Names that the configuration has as well; it wins.
        """
        entries = dict(self._own)
        ended: dict[bytes, tuple[str, int]] = {}
        names = {identity.name for _, identity in self._own.values()}
        twice, any_key = [], False
        for key in keys:
            any_key = True
            if key.name in names:
                twice.append(key.name)
                continue
            for digest, until_ms, word in key.digests():
                if digest in self._own:
                    continue
                if until_ms is not None:
                    ended[digest] = (word, until_ms)
                if key.revoked_ms is None:
                    identity = key.identity()
                    entries[digest] = (digest, identity if until_ms is None else replace(identity, expires_s=until_ms / 1000))
        # The hot path reads one attribute: it sees the old keys or the new ones.
        self._ended, self._entries = ended, entries
        self.unread = unread
        self.required = self._always or any_key or unread
        return twice

    def identify(self, token: bytes) -> Identity | None:
        """Who the key ``token`` belongs to; None if nobody."""
        digest = sha256(token).digest()
        entry = self._entries.get(digest)
        if entry is not None and hmac.compare_digest(entry[0], digest):
            identity = entry[1]
            if identity.expires_s and identity.expires_s <= time():
                return None
            return identity
        return None

    def holder(self, digest: bytes) -> Identity | None:
        """Who the key with this SHA-256 belongs to now; None if nobody."""
        entry = self._entries.get(digest)
        if entry is None or (entry[1].expires_s and entry[1].expires_s <= time()):
            return None
        return entry[1]

    def refusal(self, token: bytes) -> Failure:
        """Why `identify` knows nobody for ``token``."""
        if not token and (self._own or not self.unread):
            return Failure(errors.INVALID_API_KEY, "no API key was sent; send it as 'Authorization: Bearer YOUR_KEY'")
        ended = self._ended.get(sha256(token).digest())
        if ended is not None:
            return Failure(
                errors.INVALID_API_KEY, f"the API key {ended[0]} at {written(ended[1])}; ask this gateway's operator for another"
            )
        if self.unread:
            text = (
                "the store of keys has not answered since this gateway is there, so it cannot tell whose key this is; try again in a moment"
            )
            return Failure(errors.STORE_UNAVAILABLE, text, retry_after_s=_AGAIN_S)
        return Failure(errors.INVALID_API_KEY, "the API key is not known to this gateway; check it, or ask its operator for one")

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        names = ", ".join(identity.name for _, identity in self._entries.values())
        return f"<KeyRing {names or 'empty'}{'' if self.required else ', open'}>"


def _entries(keys: KeysSettings) -> Iterable[tuple[bytes, Identity]]:
    if keys.master_key is not None:
        yield digest_of(keys.master_key.reveal()), Identity(MASTER, admin=True)
    for key in keys.api_keys:
        identity = Identity(
            key.name,
            key.admin,
            None if key.models is None else frozenset(key.models),
            key.show_endpoints,
            key.limits.frozen() if key.limits else None,
            team=key.team,
            tags=key.tags,
            owner=key.owner,
            namespaces=None if key.namespaces is None else frozenset(key.namespaces),
        )
        if key.key is not None:
            yield digest_of(key.key.reveal()), identity
        elif key.key_hash is not None:
            yield bytes.fromhex(key.key_hash.removeprefix("sha256:")), identity


def digest_of(key: str) -> bytes:
    """What is kept of a key: its SHA-256, 32 bytes."""
    return sha256(key.encode()).digest()


def new_key() -> str:
    """A key that nobody can guess: ``hx-`` and 43 random characters that fit into a URL."""
    return _PREFIX + secrets.token_urlsafe(32)


def hint_of(key: str) -> str:
    """What people may see of a key, to tell it from others: its first 8 characters, of a short one that somebody made up 2."""
    return key[: 8 if len(key) >= 24 else 2]
