"""What administrators send and get about keys: typed bodies, the same for the API and the command line."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hx_gateway.access.keys import RESERVED, digest_of, hint_of, new_key
from hx_gateway.access.moments import moment_ms, span_ms
from hx_gateway.access.snapshot import StoredKey
from hx_gateway.config.keys import KeyLimitSettings
from hx_gateway.core.identifiers import new_id

_MOST = 1000  # entries of a list
_PLAIN = r"^[^\x00-\x1f\x7f]*$"


def _name(name: str) -> str:
    if name in RESERVED:
        raise ValueError("is a name that the gateway uses itself; choose another")
    if name != name.strip():
        raise ValueError("should not begin or end with spaces")
    return name


def _expiry(text: str | None) -> str | None:
    if text is not None:
        moment_ms(text, 0)
    return text


def _span(text: str) -> str:
    span_ms(text)
    return text


Label = Annotated[str, Field(max_length=256, pattern=_PLAIN)]
Entry = Annotated[str, Field(min_length=1, max_length=256, pattern=_PLAIN)]
Expiry = Annotated[str | None, AfterValidator(_expiry)]


class _Body(BaseModel):
    # hide_input_in_errors: a wrong value may be a secret in the wrong place.
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class KeyChange(_Body):
    """What may be changed of a key; what is left out stays."""

    owner: Label = Field(default="", description="Whose it is, for people.")
    team: Label = Field(default="", description="Who it is counted for, in reports.")
    tags: list[Entry] = Field(default=[], max_length=_MOST, description="Free labels, for reports.")
    admin: bool = Field(default=False, description="Whether admin routes and endpoint addresses are open to it.")
    models: list[Entry] | None = Field(
        default=None, max_length=_MOST, description="Models, aliases and groups it may use; null means all, an empty list none."
    )
    namespaces: list[Entry] | None = Field(
        default=None,
        max_length=_MOST,
        description="Namespaces of documents it may use, with `:r` behind a name to read only; null means all, an empty list none.",
    )
    show_endpoints: bool = Field(default=True, description="Whether answers to it carry x-hx-endpoint.")
    limits: KeyLimitSettings = Field(
        default=KeyLimitSettings(), description="How much it may use; of these, too, a change leaves what is not named as it is."
    )
    expires: Expiry = Field(default=None, description="When it ends: a span such as 90d or 12h, or a moment in ISO 8601; null for never.")

    def changes(self, key: StoredKey) -> dict[str, Any]:
        """The fields of ``key`` that were given, with their new values."""
        given = self.model_fields_set
        found: dict[str, Any] = {name: getattr(self, name) for name in given - {"limits", "expires"}}
        for name in ("tags", "models", "namespaces"):
            if found.get(name) is not None:
                found[name] = tuple(found[name])
        if "limits" in given:
            found["limits"] = replace(key.limits, **{name: getattr(self.limits, name) for name in self.limits.model_fields_set})
        if "expires" in given:
            found["expires_ms"] = None if self.expires is None else moment_ms(self.expires, now_ms())
        return found


class KeyDraft(KeyChange):
    """A key to be made."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=_PLAIN), AfterValidator(_name)] = Field(
        description="Its name in logs and reports; unique, for ever."
    )

    def made(self, text: str = "") -> tuple[StoredKey, str]:
        """The key for the store, and the key itself, which is kept nowhere: ``text``, or a new one."""
        text = text or new_key()
        key = StoredKey(id=new_id(time.time()), name=self.name, hash=digest_of(text), hint=hint_of(text), created_ms=now_ms())
        return msgspec.structs.replace(key, **self.changes(key)), text


class KeyRotation(_Body):
    """How a key is replaced."""

    grace: Annotated[str, AfterValidator(_span)] = Field(default="1h", description="How long the old one is let in; 0 ends it at once.")


def rotated(key: StoredKey, text: str, grace: str) -> dict[str, Any]:
    """The fields of ``key`` that change when ``text`` takes its place."""
    at_ms = now_ms()
    return {
        "hash": digest_of(text),
        "hint": hint_of(text),
        "old_hash": key.hash,
        "old_until_ms": at_ms + span_ms(grace),
        "rotated_ms": at_ms,
    }


def revoked(key: StoredKey) -> dict[str, Any]:
    """The fields of ``key`` that change when it is revoked; none where it is."""
    return {} if key.revoked_ms is not None else {"revoked_ms": now_ms()}


class Limits(BaseModel):
    """How much a key may use; 0 is no limit."""

    requests_per_second: float
    burst: int
    tokens_per_minute: int
    max_concurrent: int
    day_cost: float
    month_cost: float
    day_tokens: int
    month_tokens: int


class KeyShown(BaseModel):
    """A key of the store, without the key itself. Times are UTC."""

    object: Literal["key"] = "key"
    id: str
    name: str
    hint: str = Field(description="the first characters of the key, to tell it from others")
    state: Literal["active", "expired", "revoked"]
    owner: str
    team: str
    tags: list[str]
    admin: bool
    models: list[str] | None
    namespaces: list[str] | None
    show_endpoints: bool
    limits: Limits
    created_at: str
    expires_at: str | None
    rotated_at: str | None
    old_key_until: str | None = Field(description="until when the key before the last rotation is let in")
    revoked_at: str | None
    used_at: str | None = Field(description="when it was used last, about a minute late; null for never")


class KeyMade(KeyShown):
    """A key that has just been made, shown this once."""

    key: str = Field(description="the key itself; it cannot be shown again")


def now_ms() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)
