"""The level of the log, looked at and changed while the gateway runs."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field

from hx_gateway.control.audit import audit
from hx_gateway.control.dependencies import Administrator, GatewayOf
from hx_gateway.control.openapi import failures


class LogLevel(BaseModel):
    """The least severe level that is logged."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = Field(description="the least severe level that is logged", examples=["DEBUG"])


async def level(gateway: GatewayOf, caller: Administrator) -> LogLevel:
    """The least severe level that is logged now. Needs an admin key."""
    return LogLevel.model_validate({"level": logging.getLevelName(gateway.telemetry.level)})


async def change(new: LogLevel, request: Request, gateway: GatewayOf, caller: Administrator) -> LogLevel:
    """Change the level that is logged: in all workers within two seconds, until the gateway is started again or the file names another. Needs an admin key."""
    gateway.telemetry.set_level(logging.getLevelNamesMapping()[new.level])
    audit(gateway, request, caller, "log.level", new.level)
    return new


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["state"], responses=failures("401", "403"))
    routes.add_api_route("/admin/log-level", level, methods=["GET"], response_model=LogLevel)
    routes.add_api_route("/admin/log-level", change, methods=["PUT"], response_model=LogLevel)
    return routes
