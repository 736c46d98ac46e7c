"""The configuration's shape: the root, and the sections that describe the fleet; each setting is declared here or in sections, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hx_gateway.config.cache import CacheSettings
from hx_gateway.config.keys import ApiKeySettings, KeyLimitSettings, KeysSettings
from hx_gateway.config.ledger import LedgerSettings
from hx_gateway.config.rag import RagSettings
from hx_gateway.config.routing import FallbackSettings, LearnedSettings, PolicySettings, QueueSettings
from hx_gateway.config.secrets import Secret
from hx_gateway.config.sections import (
    ALGORITHMS,
    LATER,
    CorsSettings,
    Count,
    EmbeddingsSettings,
    Flag,
    GatewaySettings,
    HttpSettings,
    LitellmSettings,
    LoadBalancerSettings,
    MonitoringSettings,
    Names,
    PerformanceSettings,
    PipelineSettings,
    Seconds,
    SecondsOrNone,
    ServiceSettings,
    Settings,
    TlsSettings,
    UpstreamSettings,
    is_url,
)
from hx_gateway.config.storage import StorageSettings

__all__ = [
    "ALGORITHMS",
    "LATER",
    "ApiKeySettings",
    "CacheSettings",
    "CorsSettings",
    "EmbeddingsSettings",
    "EndpointSettings",
    "FallbackSettings",
    "GatewayConfig",
    "GatewaySettings",
    "GroupSettings",
    "HttpSettings",
    "KeyLimitSettings",
    "KeysSettings",
    "LearnedSettings",
    "LedgerSettings",
    "LitellmSettings",
    "LoadBalancerSettings",
    "ModelSettings",
    "MonitoringSettings",
    "PerformanceSettings",
    "PipelineSettings",
    "PlacementSettings",
    "PolicySettings",
    "QueueSettings",
    "RagSettings",
    "Secret",
    "ServiceSettings",
    "Settings",
    "StorageSettings",
    "TlsSettings",
    "UpstreamSettings",
    "is_url",
]

Price = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
"""A name that clients send: no spaces, no control characters."""


class ModelSettings(Settings):
    """One model, and where it is served."""

    endpoint: str | None = Field(
        default=None, min_length=1, description="Where it is served: an address, or the name of an entry in endpoints."
    )
    endpoints: Names = Field(default=(), description="The same for a model served in several places.")
    path: str | None = Field(default=None, min_length=1, description="GGUF file the gateway serves by itself, instead of an endpoint.")
    provider: str | None = Field(
        default=None, min_length=1, description="Dialect of its endpoints, e.g. ollama or openai; none means find out."
    )
    upstream_model: str | None = Field(default=None, min_length=1, description="Name its endpoints know it by; none means the same name.")
    aliases: Names = Field(default=(), description="Further names for it.")
    policy: str | None = Field(default=None, min_length=1, description="Balancing policy; none means load_balancer.algorithm.")
    weight: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Share of traffic relative to its siblings in a group; 0 takes none."
    )
    max_concurrent: Count = Field(default=0, description="Most requests at once on each of its deployments; 0 for no limit.")
    requests_per_minute: Count = Field(
        default=0, description="Most requests a minute to each of its deployments, as many at once after a pause; 0 for no limit."
    )
    tokens_per_minute: Count = Field(
        default=0, description="Most tokens a minute, of prompts and answers, at each of its deployments; 0 for no limit."
    )
    cost_per_request: Price = Field(default=0.0, description="Price of one request, in the operator's currency.")
    cost_per_prompt_token: Price = Field(default=0.0, description="Price of one prompt token.")
    cost_per_completion_token: Price = Field(default=0.0, description="Price of one completion token.")
    cost_per_cached_token: Price | None = Field(
        default=None, description="Price of a prompt token that the engine had in its cache; none means that of any other prompt token."
    )
    api_key: Secret | None = Field(default=None, description="Bearer key for its endpoints, as env:NAME or file:PATH.")
    mode: Literal["", "chat", "embedding"] = Field(default="", description="What it is for; empty means anything.")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Length of its embeddings; every answer is checked against it."
    )
    truncate_dimensions: Flag = Field(default=False, description="Whether its embeddings may be cut to the length a client asks for.")
    embedding_field: Literal["input", "prompt"] = Field(default="input", description="Field its endpoints read the text to embed from.")
    num_ctx: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Context length in tokens, sent to Ollama with each call; none never changes that of a loaded model."
    )
    keep_alive: str | int | float | None = Field(
        default=None, description="How long Ollama keeps it: seconds, or text such as 30m; -1 for ever."
    )
    digest: Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-fA-F]{12,64}$")] | None = Field(
        default=None, description="Digest, or its beginning, that Ollama must show for it; endpoints with another are left out."
    )
    replicas: Annotated[int, Field(ge=1)] = Field(default=1, description="Servers started for path.")
    threads: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Processor threads of each server started for path.")
    context: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Context length in tokens of each server started for path."
    )
    slots: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Requests each server started for path works on at once.")
    tags: Names = Field(default=(), description="Free labels; with load_balancer.tag_filtering, what requests may ask for it by.")
    defaults: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = Field(
        default={}, description="Request fields of chats and completions, e.g. temperature, and their values where the client sends none."
    )


class EndpointSettings(Settings):
    """One model server, by name."""

    url: str = Field(min_length=1, description="Its address, e.g. http://llm-01:11434.")
    provider: str | None = Field(default=None, min_length=1, description="Dialect it speaks, e.g. ollama or openai; none means find out.")
    api_key: Secret | None = Field(default=None, description="Bearer key for it, as env:NAME or file:PATH.")
    headers: dict[str, Secret] = Field(default={}, description="Further headers sent with each call; values may be env:NAME or file:PATH.")
    cost_per_hour: Price = Field(default=0.0, description="Price of one hour of its work, in the operator's currency.")
    max_concurrent: Count = Field(default=0, description="Most calls at once; 0 for no limit.")
    slots: Count = Field(default=0, description="Requests it works on at the same time; 0 takes what it tells.")
    memory_gb: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="Memory that loaded models may take together, in GB; 0 for unknown."
    )
    max_loaded_models: Count = Field(default=0, description="Most models it holds in memory at once; 0 for unknown.")
    disk_gb_per_second: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="Rate at which it reads a model from disk, in GB/s; for load times until some were seen."
    )
    discover: Flag = Field(default=True, description="Whether the models it offers are served without being listed.")
    legacy_embeddings: Flag | None = Field(
        default=None, description="Whether only Ollama's old /api/embeddings exists there; none means find out."
    )
    tls_verify: Flag = Field(default=True, description="Whether its certificate is checked.")
    tls_ca_file: str | None = Field(
        default=None, min_length=1, description="PEM file with the authorities its certificate is checked against."
    )
    request_timeout_seconds: Seconds | None = Field(default=None, description="Overrides performance.request_timeout_seconds.")
    connect_timeout_seconds: Seconds | None = Field(default=None, description="Overrides performance.connect_timeout_seconds.")
    load_timeout_seconds: Seconds | None = Field(default=None, description="Overrides performance.load_timeout_seconds.")
    total_timeout_seconds: SecondsOrNone | None = Field(default=None, description="Overrides performance.total_timeout_seconds.")


class GroupSettings(Settings):
    """Several models behind one name."""

    models: Annotated[Names, Field(min_length=1)] = Field(description="Models that serve it.")
    tier: str = Field(default="", description="Quality tier, e.g. fast, balanced or premium.")
    policy: str | None = Field(default=None, min_length=1, description="Balancing policy; none means load_balancer.algorithm.")
    learned: LearnedSettings | None = Field(
        default=None, description="Learned choice of the model for each prompt; models are then listed from the weakest to the strongest."
    )
    aliases: Names = Field(default=(), description="Further names for it.")


class PlacementSettings(Settings):
    """Where one model is kept in memory, used or not; for Ollama endpoints."""

    keep: Names = Field(default=(), description="Endpoints that keep it, by name or address; empty for all that serve it.")
    keep_alive: str | int | float | None = Field(
        default=None, description="How long each keeps it unused: seconds, or text such as 30m; none means the model's own, else for ever."
    )


class GatewayConfig(Settings):
    """Everything an operator can set."""

    service: ServiceSettings = Field(default=ServiceSettings(), description="Where and as what the gateway listens.")
    gateway: GatewaySettings = Field(default=GatewaySettings(), description="What the gateway does with a request.")
    load_balancer: LoadBalancerSettings = Field(
        default=LoadBalancerSettings(), description="How a deployment is chosen, and when one is left alone."
    )
    models: dict[Name, ModelSettings] = Field(default={}, description="Models by the name clients use.")
    endpoints: dict[Name, EndpointSettings] = Field(default={}, description="Model servers by name.")
    groups: dict[Name, GroupSettings] = Field(default={}, description="Groups of models by the name clients use.")
    aliases: dict[Name, Name] = Field(default={}, description="Further names, each with the model, group or alias it stands for.")
    placement: dict[Name, PlacementSettings] = Field(
        default={}, description="Models kept in memory, by name: loaded at start and after recovery where there is room."
    )
    policies: dict[Name, PolicySettings] = Field(default={}, description="Balancing policies of one's own, by name.")
    fallbacks: dict[Name, FallbackSettings] = Field(default={}, description="What stands in for a model or group, by its name.")
    queue: QueueSettings = Field(default=QueueSettings(), description="Waiting for a place when every deployment of a name is full.")
    keys: KeysSettings = Field(default=KeysSettings(), description="Who may call.")
    cache: CacheSettings = Field(default=CacheSettings(), description="Answers that are given again to the same request.")
    performance: PerformanceSettings = Field(
        default=PerformanceSettings(), description="How long things may take, and how much may happen at once."
    )
    http: HttpSettings = Field(default=HttpSettings(), description="Limits of the door.")
    cors: CorsSettings = Field(default=CorsSettings(), description="Which web pages may call from a browser.")
    pipeline: PipelineSettings = Field(default=PipelineSettings(), description="The visible order of stages.")
    monitoring: MonitoringSettings = Field(default=MonitoringSettings(), description="What is shown to operators, and where.")
    ledger: LedgerSettings = Field(default=LedgerSettings(), description="The record of every exchange.")
    storage: StorageSettings = Field(default=StorageSettings(), description="Stores that are used when they are there.")
    litellm: LitellmSettings = Field(default=LitellmSettings(), description="An existing LiteLLM installation.")
    embeddings: EmbeddingsSettings = Field(default=EmbeddingsSettings(), description="Embeddings the gateway makes for itself.")
    rag: RagSettings = Field(default=RagSettings(), description="Documents that can be searched.")
