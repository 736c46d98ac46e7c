"""The section of the configuration that describes the response cache."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hx_gateway.config.sections import Flag, Seconds, Settings


class CacheSettings(Settings):
    """Answers that are given again to the same request."""

    enabled: Flag = Field(default=False, description="Whether answers are kept and given again.")
    ttl_seconds: Seconds = Field(default=3600.0, description="Seconds an answer is kept.")
    max_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = Field(
        default=64 << 20, description="Most bytes of answers in the memory of each worker; the least recently used go first."
    )
    max_entry_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = Field(
        default=1 << 20, description="Largest answer that is kept, in bytes; a longer one is passed on and forgotten."
    )
    scope: Literal["key", "shared"] = Field(
        default="key", description="Whether each API key has answers of its own, or all that may use a model share them."
    )
    sampled: Flag = Field(
        default=False, description="Whether answers to requests with any temperature are kept, not only those with temperature 0."
    )
    embeddings: Flag = Field(default=True, description="Whether embeddings are kept, each item of a batch by itself.")
    collapse: Flag = Field(default=True, description="Whether identical requests at the same time share one call of the model server.")
