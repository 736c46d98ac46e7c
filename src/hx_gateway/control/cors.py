"""The CORS policy that the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hx_gateway.core.cors import CorsPolicy

if TYPE_CHECKING:
    from hx_gateway.config.schema import CorsSettings


def cors_policy(settings: CorsSettings) -> CorsPolicy | None:
    """The policy for door and control plane; None when pages of other origins are not answered."""
    if not settings.enabled:
        return None
    return CorsPolicy(
        settings.allow_origins,
        settings.allow_methods,
        settings.allow_headers,
        settings.allow_credentials,
        settings.max_age_seconds,
    )
