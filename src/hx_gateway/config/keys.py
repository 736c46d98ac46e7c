"""The sections of the configuration that describe who may call, and how much."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from hx_gateway.config.secrets import Secret
from hx_gateway.config.sections import Flag, Names, Settings
from hx_gateway.core.context import KeyLimits

Money = Annotated[float, Field(ge=0, le=1e9)]


class KeyLimitSettings(Settings):
    """How much one key may use; 0 is no limit."""

    requests_per_second: Annotated[float, Field(ge=0, le=1e6)] = Field(default=0.0, description="Steady rate of requests; 0 for no limit.")
    burst: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=0, description="Most requests at once after a pause; 0 for one second's worth of requests_per_second."
    )
    tokens_per_minute: Annotated[int, Field(ge=0, le=10**12)] = Field(
        default=0,
        description="Steady rate of tokens of prompts and answers; a minute's worth may be used at once after a pause; 0 for no limit.",
    )
    max_concurrent: Annotated[int, Field(ge=0, le=60000)] = Field(default=0, description="Most requests under way; 0 for no limit.")
    day_cost: Money = Field(default=0.0, description="Most money a day (UTC), in the operator's currency; 0 for no limit.")
    month_cost: Money = Field(default=0.0, description="Most money a calendar month (UTC); 0 for no limit.")
    day_tokens: Annotated[int, Field(ge=0, le=10**15)] = Field(default=0, description="Most tokens a day (UTC); 0 for no limit.")
    month_tokens: Annotated[int, Field(ge=0, le=10**15)] = Field(
        default=0, description="Most tokens a calendar month (UTC); 0 for no limit."
    )

    def frozen(self) -> KeyLimits | None:
        """The same for the data plane; None where nothing is limited."""
        limits = KeyLimits(**self.model_dump())
        return None if limits == KeyLimits(burst=self.burst) else limits


class ApiKeySettings(Settings):
    """One key that clients may use."""

    name: str = Field(min_length=1, description="Its name in logs and reports.")
    key: Secret | None = Field(default=None, description="The key, as env:NAME or file:PATH.")
    key_hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-fA-F]{64}$")] | None = Field(
        default=None, description="Instead of the key: sha256: and its SHA-256 in hex."
    )
    models: Names | None = Field(default=None, description="Models, aliases and groups it may use; none means all.")
    admin: Flag = Field(default=False, description="Whether admin routes and endpoint addresses are open to it.")
    show_endpoints: Flag = Field(default=True, description="Whether answers to it carry x-hx-endpoint.")
    limits: KeyLimitSettings | None = Field(default=None, description="How much it may use; none means no limit.")
    owner: str = Field(default="", description="Whose it is, for people.")
    team: str = Field(default="", description="Who it is counted for, in reports.")
    tags: Names = Field(default=(), description="Free labels, for reports.")
    namespaces: Names | None = Field(
        default=None, description="Namespaces of documents it may use, with `:r` behind a name to read only; none means all."
    )


class KeysSettings(Settings):
    """Who may call."""

    master_key: Secret | None = Field(default=None, description="The admin key, as env:NAME or file:PATH.")
    api_keys: Annotated[tuple[ApiKeySettings, ...], Strict(False)] = Field(default=(), description="Further keys.")
