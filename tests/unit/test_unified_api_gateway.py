"""The former import paths lead to the gateway, and take the settings they always took."""

from __future__ import annotations

import importlib
import pkgutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import hx_gateway
import hxp_enterprise_llm
from hxp_enterprise_llm.monitoring.health import HealthMonitor, summarize
from hxp_enterprise_llm.orchestration.gateway_orchestrator import GatewayOrchestrator, build
from hxp_enterprise_llm.schemas.configuration.gateway_schemas import GatewayConfigSchema
from hxp_enterprise_llm.services.circuit_breaker import CircuitBreaker
from hxp_enterprise_llm.services.gateway.unified_api_gateway.config import UnifiedAPIGatewayConfig
from hxp_enterprise_llm.services.gateway.unified_api_gateway.service import UnifiedAPIGatewayService
from hxp_enterprise_llm.services.load_balancer import LoadBalancer

MODELS = {
    "mixtral-8x7b": {"endpoint": "http://llm-09:11400", "weight": 1.0, "max_concurrent": 10, "cost_per_request": 0.1},
    "phi-3-mini": {"endpoint": "http://llm-09:11403", "weight": 0.4},
}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return UnifiedAPIGatewayConfig(
        port=8000,
        host="127.0.0.1",
        workers=4,
        memory_gb=2,
        cpu_cores=4,
        default_model="mixtral-8x7b",
        load_balancer_algorithm="round_robin",
        health_check_interval=30,
        circuit_breaker_threshold=5,
        circuit_breaker_timeout=60,
        model_routing_enabled=True,
        intelligent_routing=True,
        cost_optimization_enabled=True,
        request_timeout_seconds=30,
        max_concurrent_requests=100,
        rate_limiting_enabled=True,
        rate_limit_rps=50,
        prometheus_port=9090,
        health_check_endpoint="/health",
        metrics_endpoint="/metrics",
        models=MODELS,
        storage={"state_directory": str(tmp_path)},
    )


def test_flat_names_are_settings(config: Any) -> None:
    whole = config.config
    assert isinstance(whole, GatewayConfigSchema)
    assert (config.port, config.workers, config.default_model, config.load_balancer_algorithm) == (8000, 4, "mixtral-8x7b", "round_robin")
    assert (whole.service.port, whole.load_balancer.algorithm, whole.performance.memory_limit_gb) == (8000, "round_robin", 2)
    assert whole.models["mixtral-8x7b"].cost_per_request == 0.1 and config.loaded.warnings == ()


def test_the_service_tells_its_health(config: Any) -> None:
    health = UnifiedAPIGatewayService(config).get_health_status()
    assert health["status"] == "healthy" and health["gateway"] == "unified-api-gateway"
    assert health["models"] == list(MODELS) and health["unavailable"] == []
    assert datetime.fromisoformat(health["timestamp"]).tzinfo is not None


def test_the_load_balancer_tells_what_is_available(config: Any) -> None:
    balancer = LoadBalancer(config)
    assert balancer.get_available_models() == list(MODELS)
    next(iter(balancer.gateway.registry.endpoints.values())).facts.healthy = False
    assert balancer.get_available_models() == ["phi-3-mini"]
    assert balancer.get_health_status()["status"] == "degraded"
    found = balancer.explain({"model": "phi-3-mini", "messages": [{"role": "user", "content": "hello"}]})
    assert found["choice"]["model"] == "phi-3-mini"


def test_the_schema_is_that_of_the_configuration_file() -> None:
    schema = GatewayConfigSchema.model_json_schema()
    assert {"service", "gateway", "load_balancer", "models", "performance", "monitoring"} <= set(schema["properties"])


def test_breaker_health_and_orchestrator_are_the_gateways_own(config: Any) -> None:
    breaker = CircuitBreaker(threshold=2, timeout_s=60)
    breaker.failed(1.0)
    breaker.failed(2.0)
    assert breaker.state == "open" and not breaker.allows(3.0) and breaker.allows(63.0)
    gateway = build(config.config)
    assert isinstance(gateway, GatewayOrchestrator) and isinstance(gateway.monitor, HealthMonitor)
    assert summarize(gateway.registry).status == "healthy"


def test_a_wrong_name_or_value_is_refused_with_the_right_one() -> None:
    with pytest.raises(TypeError, match="no setting load_balancer_algoritm; did you mean load_balancer_algorithm"):
        UnifiedAPIGatewayConfig(load_balancer_algoritm="round_robin")
    with pytest.raises(hx_gateway.ConfigError, match="port"):
        UnifiedAPIGatewayConfig(port="a lot")
    with pytest.raises(AttributeError, match="no setting colour"):
        _ = UnifiedAPIGatewayConfig().colour


def test_the_environment_does_not_reach_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_GATEWAY_PORT", "1234")
    assert UnifiedAPIGatewayConfig().port == 8000


def test_every_public_name_is_there_and_no_former_path_leads_nowhere() -> None:
    assert all(getattr(hx_gateway, name).__name__ == name for name in hx_gateway.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = hx_gateway.Nothing
    for module in pkgutil.walk_packages(hxp_enterprise_llm.__path__, "hxp_enterprise_llm."):
        found = importlib.import_module(module.name)
        assert all(getattr(found, name).__module__.startswith("hx_gateway.") for name in getattr(found, "__all__", ()))
