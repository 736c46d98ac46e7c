"""``hx-gateway schema``: the configuration's JSON Schema, for editors and other programs."""

from __future__ import annotations

from typing import Any

import typer


def document() -> dict[str, Any]:
    """The JSON Schema of the configuration file, as plain data."""
    from hx_gateway.config.schema import GatewayConfig

    described = GatewayConfig.model_json_schema()
    described["title"] = "HX Gateway configuration"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}


def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    import json

    typer.echo(json.dumps(document(), indent=2))
