"""Opens the vector store that the configuration asks for; what a store needs is imported only for that store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import database_url
from hx_gateway.core.errors import Unavailable

if TYPE_CHECKING:
    from hx_gateway.rag.points import VectorStore

FOLDER = "vectors"
"""Name of the embedded store's folder in the state directory."""


def chosen(config: GatewayConfig) -> str:
    """Which store it is: ``embedded``, ``qdrant`` or ``postgres``."""
    if config.rag.store != "auto":
        return config.rag.store
    return "qdrant" if config.storage.qdrant_url is not None else "embedded"


async def opened(config: GatewayConfig, folder: Path | None) -> VectorStore:
    """The store; nothing is asked of it yet.

    Args:
        config: The configuration.
        folder: The state directory; None where there is none.

    Raises:
        Unavailable: It cannot be used as configured.
    """
    name, storage = chosen(config), config.storage
    if name == "embedded":
        if folder is None:
            raise Unavailable("the embedded store needs a state directory that can be written (storage.state_directory)")
        from hx_gateway.stores.vectors.edge import EmbeddedStore

        return EmbeddedStore(folder / FOLDER)
    if name == "qdrant":
        if storage.qdrant_url is None:
            raise Unavailable("rag.store is qdrant, but storage.qdrant_url is not set")
        from hx_gateway.stores.vectors.qdrant import QdrantStore

        return QdrantStore(storage.qdrant_url.reveal(), storage.qdrant_api_key.reveal() if storage.qdrant_api_key is not None else "")
    if folder is None and storage.database_url is None:
        raise Unavailable("rag.store is postgres, but storage.database_url is not set")
    url = database_url(storage, folder or Path())
    if not url.startswith("postgresql"):
        raise Unavailable("rag.store is postgres, but storage.database_url is not Postgres")
    from hx_gateway.stores.vectors.pgvector import PostgresStore

    return PostgresStore(url)
