"""The section of the configuration that describes search over documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hx_gateway.config.sections import Settings


class RagSettings(Settings):
    """Documents that can be searched: where they are kept, and how much one call may bring."""

    store: Literal["auto", "embedded", "qdrant", "postgres"] = Field(
        default="auto",
        description="Where vectors are kept: embedded (state directory), qdrant (its URL), postgres (pgvector); auto is qdrant where it has a URL, else embedded.",
    )
    max_documents: Annotated[int, Field(ge=1, le=100_000)] = Field(default=1000, description="Most documents of one upsert or delete.")
    max_document_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = Field(
        default=2 << 20, description="Most bytes of text of one document, as UTF-8."
    )
    batch: Annotated[int, Field(ge=1, le=2048)] = Field(default=64, description="Most texts of one embeddings request.")
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Most embeddings requests that one upsert has under way at the same time."
    )
