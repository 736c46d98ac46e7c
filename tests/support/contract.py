"""The configuration file that the contract says must load as it is."""

OWNERS_FILE = """\
service: {name: unified-api-gateway, port: 8000, host: "0.0.0.0", workers: 4}
gateway: {default_model: mixtral-8x7b, model_routing_enabled: true, intelligent_routing: true, cost_optimization_enabled: true}
load_balancer: {algorithm: round_robin, health_check_interval: 30, circuit_breaker_threshold: 5, circuit_breaker_timeout: 60}
models:
  mixtral-8x7b: {endpoint: "http://llm-09:11400", weight: 1.0, max_concurrent: 10, cost_per_request: 0.1}
  hermes-2:     {endpoint: "http://llm-09:11401", weight: 0.8, max_concurrent: 20, cost_per_request: 0.05}
  openchat-3.5: {endpoint: "http://llm-09:11402", weight: 0.6, max_concurrent: 50, cost_per_request: 0.02}
  phi-3-mini:   {endpoint: "http://llm-09:11403", weight: 0.4, max_concurrent: 100, cost_per_request: 0.01}
performance: {request_timeout_seconds: 30, max_concurrent_requests: 100, rate_limiting_enabled: true, rate_limit_rps: 50, memory_limit_gb: 2, cpu_cores: 4}
monitoring: {prometheus_port: 9090, health_check_endpoint: /health, metrics_endpoint: /metrics, log_level: INFO}
"""

NAMES = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")
"""Its models."""
