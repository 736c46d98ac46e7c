"""What every test shares: no operator's environment, no proxies, no clock in property tests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.support.engines import (  # noqa: F401 # fixtures
    database_url,
    databases,
    empty_database_url,
    empty_postgres_url,
    own_postgres,
    own_valkey,
    postgres_url,
    redis_url,
    valkey_address,
)

from hx_gateway.local import tiny

# A loaded build server must not turn a slow example into a failure.
settings.register_profile("hx", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("hx"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "hx")

# Settings that the gateway reads from the environment; a developer's own must not leak into a test.
READ_FROM_ENVIRONMENT = (
    "API_GATEWAY_", "CIRCUIT_BREAKER_", "COST_OPTIMIZATION_ENABLED", "DATABASE_URL", "DEFAULT_MODEL", "DISABLE_ADMIN_UI", "EMBEDDING_",
    "GATEWAY_BASE", "HEALTH_CHECK_", "HX_", "INTELLIGENT_ROUTING", "LITELLM_", "LOAD_BALANCER_", "MASTER_KEY", "MAX_CONCURRENT_REQUESTS",
    "METRICS_ENDPOINT", "MODEL_ROUTING_ENABLED", "PROMETHEUS_PORT", "QDRANT_", "RATE_LIMIT", "REDIS_URL", "REQUEST_TIMEOUT_SECONDS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_operator_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the gateway's own variables and every proxy out of the environment."""
    for name in list(os.environ):
        if name.startswith(READ_FROM_ENVIRONMENT) or name.endswith("_ENDPOINT") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    """Keep every gateway's state in a folder of the test's own; it is made when a gateway starts."""
    name = hashlib.sha1(request.node.nodeid.encode(), usedforsecurity=False).hexdigest()[:16]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / f"state-{name}"))


@pytest.fixture
def tiny_model() -> Path:
    """The GGUF file of the model that ships with the gateway."""
    return tiny.path()
