"""Knows who is calling: keys are held as SHA-256 digests only, and found by one hash and one look-up."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

from hx_gateway.core.context import Identity

if TYPE_CHECKING:
    from hx_gateway.config.schema import GatewayConfig, KeysSettings

MASTER = "master"
"""Name of the identity behind the master key."""


class KeyRing:
    """The keys that are let in.

    Immutable: a reload makes a new one.

    Args:
        entries: SHA-256 digest of each key (32 bytes), with who it stands for.
        required: Whether a key is needed at all; with no entries nobody is let in then.
    """

    __slots__ = ("_entries", "anonymous", "required")

    def __init__(self, entries: Iterable[tuple[bytes, Identity]], required: bool = True) -> None:
        self._entries = {digest: (digest, identity) for digest, identity in entries}
        self.required = required
        self.anonymous = Identity("anonymous")  # who calls where no key is required

    @classmethod
    def from_config(cls, config: GatewayConfig) -> KeyRing:
        """The ring that ``config`` asks for.

        No key is required only where none is configured and nobody but this machine can connect: a gateway that
        listens to others without a key lets nobody in.
        """
        # Here, because the data plane imports this module and must not bring the configuration's machinery with it.
        from hx_gateway.config.addresses import is_loopback

        entries = list(_entries(config.keys))
        return cls(entries, required=bool(entries) or not is_loopback(config.service.host))

    def identify(self, token: bytes) -> Identity | None:
        """Who the key ``token`` belongs to; None if nobody."""
        digest = sha256(token).digest()
        entry = self._entries.get(digest)
        if entry is not None and hmac.compare_digest(entry[0], digest):
            return entry[1]
        return None

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        names = ", ".join(identity.name for _, identity in self._entries.values())
        return f"<KeyRing {names or 'empty'}{'' if self.required else ', open'}>"


def _entries(keys: KeysSettings) -> Iterable[tuple[bytes, Identity]]:
    if keys.master_key is not None:
        yield digest_of(keys.master_key.reveal()), Identity(MASTER, admin=True)
    for key in keys.api_keys:
        models = None if key.models is None else frozenset(key.models)
        identity = Identity(key.name, key.admin, models, key.show_endpoints, key.limits.frozen() if key.limits else None)
        if key.key is not None:
            yield digest_of(key.key.reveal()), identity
        elif key.key_hash is not None:
            yield bytes.fromhex(key.key_hash.removeprefix("sha256:")), identity


def digest_of(key: str) -> bytes:
    """What is kept of a key: its SHA-256, 32 bytes."""
    return sha256(key.encode()).digest()
