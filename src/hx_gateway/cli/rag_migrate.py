"""`hx-gateway rag migrate`: moves collections of documents from one vector store to another, and proves it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hx_gateway.cli.configuration import Config, configured


class Kind(StrEnum):
    """A vector store."""

    EMBEDDED = "embedded"
    QDRANT = "qdrant"
    POSTGRES = "postgres"


def migrate(
    source: Annotated[Kind, typer.Option("--from", help="Store to move from; it is left as it is.")],
    target: Annotated[Kind, typer.Option("--to", help="Store to move to.")],
    config: Config = None,
    collection: Annotated[list[str] | None, typer.Option("--collection", help="Only this one; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Copy collections from one vector store of a configuration to another, then read both and compare every point.

    It may be broken off and run again. Ends with 1 when something failed or differs: usually because somebody wrote meanwhile.
    """
    import asyncio
    import json

    from hx_gateway.core.errors import Unavailable
    from hx_gateway.rag.points import Unfit
    from hx_gateway.stores.vectors.moving import Differs, Proof, move
    from hx_gateway.stores.vectors.opening import opened

    settings, folder = configured(config)
    if source is target:
        raise typer.BadParameter("both are the same store", param_hint="--to")

    async def run() -> dict[str, Proof]:
        stores = [
            await opened(settings.model_copy(update={"rag": settings.rag.model_copy(update={"store": kind.value})}), folder)
            for kind in (source, target)
        ]
        try:
            names = collection or [found.name for found in await stores[0].collections()]
            return {name: await move(stores[0], stores[1], name) for name in names}
        finally:
            for store in stores:
                await store.close()

    try:
        proofs = asyncio.run(run())
    except (Unavailable, Unfit, Differs) as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({name: {"points": proof.points, "sha256": proof.checksum} for name, proof in proofs.items()}, indent=2))
        return
    for name, proof in proofs.items():
        typer.echo(f"{name}: {proof.points:,} points in both, SHA-256 {proof.checksum}")
    if not proofs:
        typer.echo(f"there is nothing in {source.value}")
