"""The section of the configuration that describes the ledger: the journal on disk, and whose end users are recorded."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, Strict

from hx_gateway.config.sections import Flag, Names, Settings

MIB = 1 << 20
Days = Annotated[int, Field(ge=0, le=36500)]
JournalBytes = Annotated[int, Field(ge=MIB, le=1 << 40)]


def _pattern(text: str) -> str:
    try:
        re.compile(text.encode())
    except re.error as error:
        raise ValueError(f"should be a regular expression: {error}") from None
    return text


class BodiesSettings(Settings):
    """Bodies of requests and answers, for administrators to read by request id; headers are never kept."""

    enabled: Flag = Field(default=False, description="Whether bodies are kept; needs a state directory that can be written.")
    keys: Names = Field(default=(), description="Names of the keys whose bodies are kept; empty for all.")
    models: Names = Field(default=(), description="Models, aliases and groups whose bodies are kept; empty for all.")
    max_bytes: Annotated[int, Field(ge=256, le=4 * MIB)] = Field(
        default=32 << 10, description="Most bytes of each body that are kept; the rest is cut off, and that is said at its end."
    )
    redact: Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], Strict(False)] = Field(
        default=(), description="Regular expressions of what is replaced by [redacted], beside bearer tokens and keys that begin with sk-."
    )
    waiting_max_bytes: Annotated[int, Field(ge=4 * MIB, le=1 << 40)] = Field(
        default=64 * MIB, description="Most bytes of bodies on disk that are not in the store yet; what comes then is lost and counted."
    )


class LedgerSettings(Settings):
    """The record of every exchange: a journal in the state directory, shipped to the store."""

    enabled: Flag = Field(default=True, description="Whether exchanges are recorded.")
    journal_max_bytes: JournalBytes = Field(
        default=512 * MIB,
        description="Most bytes of journal while the store is away; then the oldest segments go to journal/dead-letter in the state directory.",
    )
    segment_bytes: Annotated[int, Field(ge=256 << 10, le=64 * MIB)] = Field(
        default=4 * MIB,
        description="Size of one segment, taken at once; less where four for each worker would not fit into journal_max_bytes.",
    )
    dead_letter_max_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = Field(
        default=256 * MIB, description="Most bytes of dead letters; then the oldest are deleted."
    )
    retention_days: Days = Field(
        default=0,
        description="Days for which each request's row is kept, on Postgres up to a month longer; sums by the hour stay. 0 for ever.",
    )
    sums_retention_days: Days = Field(
        default=0, description="Days for which sums by hour and day are kept, never less than retention_days; 0 for ever."
    )
    audit_retention_days: Days = Field(default=0, description="Days for which the log of what administrators did is kept; 0 for ever.")
    bodies_retention_days: Days = Field(default=7, description="Days for which bodies are kept, where there are any; 0 for ever.")
    bodies: BodiesSettings = Field(default=BodiesSettings(), description="Bodies of requests and answers.")
    end_user_keys: Names = Field(
        default=(), description="Names of the keys that are believed when they say which end user a request is for."
    )
    end_user_header: str = Field(
        default="x-openwebui-user-id",
        pattern=r"^[A-Za-z0-9-]{0,64}$",
        description="Header in which they say it; where it is missing, the user in the body counts.",
    )
