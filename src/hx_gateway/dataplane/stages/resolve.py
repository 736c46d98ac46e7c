"""Stage `resolve`: from the name the client uses to the deployments that may serve it."""

from __future__ import annotations

from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Stage
from hx_gateway.dataplane.suiting import SHORT, settle
from hx_gateway.fleet.registry import Registry
from hx_gateway.openai.tags import move_tags


def unknown(name: str, registry: Registry, exchange: Exchange) -> Failure:
    """Why a name cannot be resolved, with the nearest names the caller may use."""
    identity = exchange.identity
    allowed = [name for name, known in registry.targets.items() if not known.hidden and (identity is None or identity.may_use(name))]
    near = registry.nearest(name, allowed)
    hint = f"; did you mean {' or '.join(repr(found) for found in near)}?" if near else "; GET /v1/models lists those there are"
    return Failure(errors.MODEL_NOT_FOUND, f"the model {name!r} does not exist here{hint}", param="model")


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; it reads the gateway's current registry at every request."""
    by_name = gateway.config.gateway.model_routing_enabled

    def resolve(exchange: Exchange) -> None:
        registry: Registry = gateway.registry
        name = exchange.facts.model if by_name else registry.default
        if not name:
            header = exchange.notes.get(b"x-hx-model-group")
            name = header.decode("utf-8", "replace").strip() if header else registry.default
            if not name:
                raise Failure(
                    errors.MISSING_MODEL,
                    "no model was named; set 'model' in the body or the header X-HX-Model-Group (this gateway has no default model)",
                    param="model",
                )
        target = registry.targets.get(name) or registry.find(name)
        identity = exchange.identity
        if target is None:
            raise unknown(name, registry, exchange)
        if identity is not None and identity.models is not None and not identity.may_use(target.name):
            raise Failure(errors.MODEL_NOT_ALLOWED, f"the API key may not use the model {name!r}", param="model")
        if (exchange.route is EMBEDDINGS) == (target.mode == "chat") and target.mode:
            raise Failure(
                errors.INVALID_VALUE,
                f"the model {name!r} is configured for {target.mode}, not for {exchange.route.name}",
                param="model",
            )
        exchange.asked = name
        if target.tagging:
            move_tags(exchange)
        if target.lacking or target.tagging or len(exchange.body) > SHORT:
            target = settle(exchange, target, registry, gateway.proxy)
        exchange.candidates = target

    return resolve
