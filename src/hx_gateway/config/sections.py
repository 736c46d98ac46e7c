"""The sections of the configuration that describe the gateway itself: how it listens, limits, balances and reports."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

from hx_gateway.config.secrets import Secret

ALGORITHMS = ("round_robin", "weighted", "least_busy", "power_of_two", "least_tokens", "latency", "cost", "intelligent")
"""Balancing policies that are built in; any other name is a plug-in."""

LATER = "later"
"""Annotation of a setting that is read and checked, but not used by this release."""


def _absolute(path: str) -> str:
    if not path.startswith("/") or any(character in path for character in "?# \t\r\n"):
        raise ValueError("should be a path that starts with / and has no query")
    return path


def _network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError("should be an IP address or a network such as 192.0.2.0/24") from None
    return text


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _upstream(value: object) -> object:
    return {"url": value} if isinstance(value, str) and is_url(value) else value


def is_url(text: str) -> bool:
    """Whether ``text`` is an address rather than the name of an entry in ``endpoints``."""
    if "://" in text:
        return True
    _, colon, port = text.partition("/")[0].rpartition(":")
    return bool(colon) and port.isdigit()


Names = Annotated[tuple[str, ...], Strict(False)]
"""A list of names in the file, a tuple in the frozen configuration."""
Flag = Annotated[bool, Strict(False)]
"""true or false; yes, no, on and off are understood."""
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=604800)]
SecondsOrNone = Annotated[float, Field(ge=0, le=604800)]
Count = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1024)]
HttpPath = Annotated[str, AfterValidator(_absolute)]


class Settings(BaseModel):
    """What every section is: frozen, strict about types, and without room for unknown names."""

    # hide_input_in_errors: a wrong value may be a secret in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class TlsSettings(Settings):
    """Certificate the gateway itself presents."""

    cert_file: str = Field(min_length=1, description="PEM file with the certificate and its chain.")
    key_file: str = Field(min_length=1, description="PEM file with the private key.")
    key_password: Secret | None = Field(default=None, description="Password of the private key, as env:NAME or file:PATH.")


class ServiceSettings(Settings):
    """Where and as what the gateway listens."""

    name: str = Field(default="hx-gateway", min_length=1, description="Name shown in status, logs and metrics.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="TCP port to listen on; 0 takes any free one.")
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; anything but loopback needs a key.")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="Processes that share the port.")
    tls: TlsSettings | None = Field(default=None, description="Certificate for https; none serves plain http.")


class UpstreamSettings(Settings):
    """The server that gets every `/v1` path the gateway does not serve itself."""

    url: str = Field(min_length=1, description="Its address, e.g. http://litellm:4000.")
    api_key: Secret | None = Field(default=None, description="Bearer key for it, as env:NAME or file:PATH.")
    provider: str | None = Field(default=None, description="Dialect it speaks; none means OpenAI.")


class GatewaySettings(Settings):
    """What the gateway does with a request."""

    default_model: str = Field(default="", description="Model, alias or group used when a request names none; empty refuses such requests.")
    model_routing_enabled: Flag = Field(default=True, description="Whether models are chosen by name; off sends all to the default model.")
    intelligent_routing: Annotated[Flag, LATER] = Field(
        default=False, description="Former switch: `load_balancer.algorithm: intelligent` scores replicas by load, latency and residency."
    )
    cost_optimization_enabled: Annotated[Flag, LATER] = Field(
        default=False, description="Former switch: `load_balancer.algorithm: cost` has the cost of a deployment count."
    )
    default_upstream: Annotated[UpstreamSettings | str | None, BeforeValidator(_upstream)] = Field(
        default=None, description="Where any other /v1 path goes: an address, an entry in endpoints, or url, api_key and provider."
    )
    hidden: Names = Field(default=(), description="Models, aliases and groups that work, but are not listed by /v1/models.")
    disable_admin_ui: Flag = Field(default=False, description="Whether the dashboard is switched off.")


class LoadBalancerSettings(Settings):
    """How one of several deployments is chosen, and when one is left alone."""

    algorithm: str = Field(
        default="least_busy", min_length=1, description=f"Policy: {', '.join(ALGORITHMS)}, or the name or dotted path of a plug-in."
    )
    health_check_interval: Seconds = Field(default=30.0, description="Seconds between two probes of an endpoint.")
    circuit_breaker_threshold: Annotated[int, Field(ge=1)] = Field(default=5, description="Consecutive failures that open a breaker.")
    circuit_breaker_timeout: Seconds = Field(default=60.0, description="Seconds a breaker stays open before one trial.")
    seconds_per_cost_unit: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="What one unit of money is worth in seconds, for the intelligent policy; 0 leaves cost out."
    )
    max_attempts: Annotated[int, Field(ge=1, le=16)] = Field(
        default=3, description="Most deployments tried for one request before its first byte."
    )
    tag_filtering: Literal["off", "any", "all"] = Field(
        default="off",
        description="Whether requests go only to models with any or all of the tags they ask for (X-HX-Tags, metadata.tags), "
        "else to those tagged default.",
    )
    digest_policy: Literal["warn", "exclude"] = Field(
        default="warn",
        description="What happens where endpoints have different versions of a model: a warning, or only the commonest is served.",
    )


class PerformanceSettings(Settings):
    """How long things may take, and how much may happen at once."""

    request_timeout_seconds: Seconds = Field(
        default=60.0, description="Seconds to the first byte of an answer, and between two of its bytes."
    )
    connect_timeout_seconds: Seconds = Field(default=3.0, description="Seconds to connect to a model server.")
    load_timeout_seconds: Seconds = Field(default=120.0, description="Seconds to the first byte where the model must be loaded first.")
    total_timeout_seconds: SecondsOrNone = Field(default=0.0, description="Seconds a whole answer may take; 0 for no limit.")
    max_concurrent_requests: Count = Field(
        default=0, description="Most requests at once over all models, workers and gateways that share a Redis; 0 for no limit."
    )
    rate_limiting_enabled: Flag = Field(default=False, description="Whether rate_limit_rps is enforced.")
    rate_limit_rps: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Requests per second over all callers, workers and gateways that share a Redis; 0 for no limit."
    )
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Memory it may use, in GB; enforced by the service unit."
    )
    cpu_cores: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Processor cores it may use; enforced by the service unit."
    )


class HttpSettings(Settings):
    """Limits of the door."""

    max_head_bytes: Bytes = Field(default=65536, description="Largest request head, in bytes.")
    max_body_bytes: Bytes = Field(default=33_554_432, description="Largest request body, in bytes.")
    head_timeout_seconds: Seconds = Field(default=10.0, description="Seconds a client has to send the whole head.")
    body_timeout_seconds: Seconds = Field(default=60.0, description="Seconds a client has to send the whole body.")
    keep_alive_seconds: Seconds = Field(default=75.0, description="Seconds an idle client connection is kept.")
    drain_timeout_seconds: SecondsOrNone = Field(default=30.0, description="Seconds running requests get to finish at shutdown.")
    heartbeat_seconds: SecondsOrNone = Field(
        default=15.0, description="Seconds after which a client waiting for a stream gets a comment line, and again; 0 for never."
    )
    max_response_bytes: Bytes = Field(default=67_108_864, description="Largest answer that is collected whole, in bytes.")
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Strict(False)] = Field(
        default=(),
        description="Addresses and networks of reverse proxies that are believed in X-Forwarded-For and X-Forwarded-Proto; of others they are ignored.",
    )


class CorsSettings(Settings):
    """Which web pages may call from a browser."""

    enabled: Flag = Field(default=False, description="Whether browsers of other origins are answered.")
    allow_origins: Names = Field(default=("*",), description="Origins that may call; * means any.")
    allow_methods: Names = Field(default=("GET", "POST", "OPTIONS"), description="Methods they may use.")
    allow_headers: Names = Field(default=("*",), description="Request headers they may send; * means any.")
    allow_credentials: Flag = Field(default=False, description="Whether cookies may be sent; needs origins by name.")
    max_age_seconds: Count = Field(default=600, description="Seconds a browser may keep the answer to a preflight.")


class PipelineSettings(Settings):
    """The visible order of stages."""

    stages: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] = Field(
        default=("authenticate", "inspect", "resolve", "limits", "cache", "embed", "admission"),
        description="Stages each request passes, in order: built-in names, installed plug-ins or dotted paths.",
    )


class MonitoringSettings(Settings):
    """What is shown to operators, and where."""

    prometheus_port: Port | None = Field(
        default=None,
        description="Further port that serves the metrics of all workers and nothing else, without TLS also where `service.tls` is set; "
        "none for the main port only.",
    )
    health_check_endpoint: HttpPath = Field(default="/health", description="Path of the health report.")
    metrics_endpoint: HttpPath = Field(default="/metrics", description="Path of the Prometheus metrics.")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = Field(
        default="INFO", description="Least severe level that is logged."
    )
    access_log_per_second: Count = Field(
        default=100,
        description="Lines about requests that a worker writes in full each second; of those beyond every hundredth is written. 0 writes none.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL of a collector that takes traces by OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces; needs the extra otel. None traces nothing.",
    )
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Share of requests that are traced, where the client's traceparent does not decide."
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Lines for people, or JSON for machines.")
    observers: Names = Field(
        default=(),
        description="Plug-ins that are told of every attempt and every end, after the gateway's own: dotted paths or entry points.",
    )


class LitellmSettings(Settings):
    """An existing LiteLLM installation."""

    config: str | None = Field(
        default=None,
        description="Path of its config.yaml; LITELLM_CONFIG names the one that is served where the gateway has no file of its own.",
    )
    master_key: Secret | None = Field(
        default=None,
        description="Its master key, as env:NAME or file:PATH; LITELLM_MASTER_KEY is the gateway's own, too, where that has none.",
    )


class EmbeddingsSettings(Settings):
    """Embeddings the gateway makes for itself."""

    model: str | None = Field(
        default=None, description="Model that embeds documents and queries; none means the first embedding model that is served."
    )
    auth_header: Annotated[Secret | None, LATER] = Field(
        default=None,
        description="Authorization header of another gateway that made them; they are made in this process, with the caller's key.",
    )
    gateway_base: Annotated[str | None, LATER] = Field(
        default=None, description="Address of another gateway that made them; they are made in this process."
    )
