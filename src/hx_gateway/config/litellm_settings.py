"""Carries the settings of a LiteLLM file over: its router, its library, its server, its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hx_gateway.config.litellm_cache import cache, redis
from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.litellm_keys import GENERAL, LITELLM, PARAMS, ROUTER
from hx_gateway.config.litellm_names import Members, aliases, default_fallbacks, fallbacks, groups, names_of, policies
from hx_gateway.config.litellm_rows import DEFAULTS, HANDLED, tls
from hx_gateway.config.litellm_source import REFERENCE
from hx_gateway.config.located import Path
from hx_gateway.config.shape import nearest, shown
from hx_gateway.config.storage import database_fault
from hx_gateway.config.weak_keys import fault

STRATEGIES = {
    "simple-shuffle": ("weighted", "exact", ""),
    "least-busy": ("least_busy", "exact", ""),
    "latency-based-routing": ("latency", "exact", ""),
    "cost-based-routing": ("cost", "exact", ""),
    "usage-based-routing": ("least_tokens", "exact", ""),
    "usage-based-routing-v2": ("least_tokens", "exact", ""),
}
_BOTH = (
    "num_retries", "timeout", "stream_timeout", "request_timeout", "fallbacks", "default_fallbacks", "context_window_fallbacks", "allowed_fails",
    "cooldown_time", "disable_cooldowns", "cache_responses", "default_max_parallel_requests", "redis_url", "redis_host", "redis_port", "redis_password",
)  # fmt: skip
_ROUTER = (
    *_BOTH, "routing_strategy", "model_group_alias", "model_group", "default_litellm_params", "enable_tag_filtering", "tag_filtering_match_any",
    "routing_groups", "optional_pre_call_checks",
)  # fmt: skip
_LITELLM = (*_BOTH, "cache", "cache_params", "callbacks", "success_callback", "drop_params", "ssl_verify", "model_alias_map")
_GENERAL = (
    "master_key", "database_url", "max_parallel_requests", "global_max_parallel_requests", "health_check_interval", "max_request_size_mb",
    "completion_model", "embedding_model", "max_response_size_mb",
)  # fmt: skip
_NEVER_OPEN = 1_000_000  # failures in a row


def carry(draft: Draft, members: Members) -> None:
    """Carry every section of settings over, once the models are known."""
    router, library, server = draft.section("router_settings"), draft.section("litellm_settings"), draft.section("general_settings")
    if "model_group" in router:
        groups(draft, router["model_group"], members)
    if isinstance(given := router.get("model_group_alias", {}), dict):
        aliases(draft, given, members)
    else:
        draft.say("manual", ("router_settings", "model_group_alias"), "should be a mapping of names; nothing of it was imported")
    # Where both sections say something, LiteLLM takes the router's.
    for section, settings, handled, rules in (
        ("litellm_settings", library, _LITELLM, LITELLM),
        ("router_settings", router, _ROUTER, ROUTER),
    ):
        other = router if section == "litellm_settings" else {}
        for key, value in settings.items():
            path: Path = (section, key)
            if draft.told(path) or key in ("model_group", "model_group_alias"):
                continue
            if key in other and key in _BOTH:
                draft.say("approximate", path, f"router_settings.{key} is what counts", ("router_settings", key))
            elif not _setting(draft, path, key, value, members):
                draft.by_rule(path, rules, handled)
    redis(draft, router, ("router_settings",), "redis_")
    cache(draft, library)
    for key, value in server.items():
        if not _general(draft, ("general_settings", key), key, value, members):
            draft.by_rule(("general_settings", key), GENERAL, _GENERAL)


def _setting(draft: Draft, path: Path, key: str, value: Any, members: Members) -> bool:
    """One setting of the router or the library; whether there was anything to do with it."""
    if key == "routing_strategy":
        policy, level, why = STRATEGIES.get(str(value), ("", "", ""))
        if policy:
            draft.put(("load_balancer", "algorithm"), policy, path, why, level)
        else:
            draft.say("manual", path, f"LiteLLM has no such strategy; choose load_balancer.algorithm{nearest(str(value), STRATEGIES)}")
    elif key == "enable_tag_filtering":
        # Both keys are one setting, and the order in the file is anybody's.
        kinds = "all" if not draft.flag(path, draft.section("router_settings").get("tag_filtering_match_any", True)) else "any"
        why = "tags of keys do not count: a request names its own, in metadata.tags or the header X-HX-Tags (or x-litellm-tags)"
        on = draft.flag(path, value)
        draft.put(("load_balancer", "tag_filtering"), kinds if on else "off", path, why if on else "", "approximate" if on else "exact")
    elif key == "tag_filtering_match_any":
        draft.say("exact", path, "", ("load_balancer", "tag_filtering"))
    elif key == "routing_groups" and isinstance(value, list):
        policies(draft, path, value, {name: policy for name, (policy, _, _) in STRATEGIES.items()})
    elif key == "optional_pre_call_checks" and value == ["enforce_model_rate_limits"]:
        draft.say("exact", path, "", ("models",))
    elif key == "ssl_verify" and isinstance(value, bool | str):
        for endpoint in draft.data.get("endpoints", {}).values():
            if "tls_verify" not in endpoint and "tls_ca_file" not in endpoint and endpoint["url"].startswith("https:"):
                tls(draft, path, value, endpoint)
        if not draft.told(path):
            draft.say("exact", path, "no server is asked by https")
    elif key == "model_alias_map" and isinstance(value, dict):
        aliases(draft, value, members, path)
    elif key in ("fallbacks", "context_window_fallbacks"):
        fallbacks(draft, path, value, "down" if key == "fallbacks" else "context", members)
    elif key == "default_fallbacks":
        default_fallbacks(draft, path, value, members)
    elif key == "drop_params":
        draft.say("exact", path, "is always so, where a server cannot take a field; the header x-hx-params-dropped names what was left out")
    elif key in ("callbacks", "success_callback"):
        _callbacks(draft, path, value)
    elif key == "disable_cooldowns":
        if draft.flag(path, value):
            why = "a breaker cannot be switched off; it opens after a million failures in a row"
            draft.put(("load_balancer", "circuit_breaker_threshold"), _NEVER_OPEN, path, why, "approximate")
        else:
            draft.say("exact", path)
    elif key == "default_litellm_params" and isinstance(value, dict):
        _defaults(draft, path, value)
    elif key == "cache_responses":
        draft.put(("cache", "enabled"), draft.flag(path, value), path)
    elif key in (
        "num_retries",
        "timeout",
        "stream_timeout",
        "request_timeout",
        "allowed_fails",
        "cooldown_time",
        "default_max_parallel_requests",
    ):
        if (number := draft.number(path, value)) is not None:
            _quantity(draft, path, key, number)
    else:
        return key.startswith("redis_") and key in _BOTH or key in ("cache", "cache_params")  # looked at together
    return True


def _quantity(draft: Draft, path: Path, key: str, number: float) -> None:
    if key == "num_retries":
        why = "counts servers that are tried, each once; it is not multiplied by the retries of a client library"
        draft.put(("load_balancer", "max_attempts"), min(int(number) + 1, 16), path, why, "approximate")
    elif key == "allowed_fails":
        why = "counts failures in a row, not by the minute"
        draft.put(("load_balancer", "circuit_breaker_threshold"), int(number) + 1, path, why, "approximate")
    elif key == "default_max_parallel_requests":
        _every_model(draft, path, "max_concurrent", int(number))
    elif not number:
        draft.say("exact", path, "0 is the gateway's default")
    elif key == "cooldown_time":
        why = "then one request tries, instead of all"
        draft.put(("load_balancer", "circuit_breaker_timeout"), min(number, 604800.0), path, why, "approximate")
    elif key == "stream_timeout":
        why = "bounds the wait for the first byte, and between bytes"
        draft.put(("performance", "request_timeout_seconds"), min(number, 604800.0), path, why, "approximate")
    else:
        why = "bounds a whole answer, streams too; the wait for its first byte is performance.request_timeout_seconds"
        draft.put(("performance", "total_timeout_seconds"), min(number, 604800.0), path, why, "approximate")


def _every_model(draft: Draft, path: Path, setting: str, value: Any) -> None:
    for model in draft.data.get("models", {}).values():
        model.setdefault(setting, value)
    draft.say("exact", path, "", ("models",))


def _defaults(draft: Draft, path: Path, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key in DEFAULTS and isinstance(value, str | int | float) and not str(value).startswith(REFERENCE):
            for model in draft.data.get("models", {}).values():
                if model.get("mode") != "embedding":
                    model.setdefault("defaults", {}).setdefault(key, value)
            draft.say("exact", (*path, key), "", ("models",))
        elif key in HANDLED:
            draft.say("manual", (*path, key), "set it at each model or endpoint")
        else:
            draft.by_rule((*path, key), PARAMS, HANDLED)


def _callbacks(draft: Draft, path: Path, value: Any) -> None:
    for position, name in enumerate(value if isinstance(value, list) else [value]):
        here: Path = (*path, position) if isinstance(value, list) else path
        if name == "prometheus":
            draft.say("exact", here, "is always on: monitoring.metrics_endpoint", ("monitoring", "metrics_endpoint"))
        elif name in ("otel", "arize", "arize_phoenix", "langtrace", "logfire"):
            draft.say("manual", here, "set monitoring.otlp_endpoint to the collector that is to get traces")
        elif isinstance(name, str) and "." in name:
            draft.say("manual", here, "runs Python of yours; write it as a stage (docs: Architecture, Adding to it)")
        else:
            draft.say(
                "manual",
                here,
                "records of requests are in the ledger (hx-gateway's dashboard and /admin/usage); nothing is sent to other services",
            )


def _general(draft: Draft, path: Path, key: str, value: Any, members: Members) -> bool:
    """One setting of the server; whether there was anything to do with it."""
    if key == "master_key":
        literal = not str(value).startswith(REFERENCE)
        if literal and (why := fault(str(value))):
            draft.variables.setdefault("MASTER_KEY", None)
            draft.say("manual", path, f"{why}; put it into MASTER_KEY of the environment file")
        else:
            reference = draft.secret(value, "MASTER_KEY")
            moved = f"was written out in the file; moved to {reference[4:]} in the environment file" if literal else ""
            draft.put(("keys", "master_key"), reference, path, moved)
    elif key == "database_url":
        if not str(value).startswith(REFERENCE) and database_fault(str(value)):
            draft.say("manual", path, "is no address of Postgres; set storage.database_url, or leave it out for a SQLite file")
        else:
            why = "the gateway makes tables of its own beside LiteLLM's; keys in LiteLLM's tables are not taken over (make them with hx-gateway keys create)"
            draft.put(("storage", "database_url"), draft.secret(value, "DATABASE_URL"), path, why, "approximate")
    elif key in (
        "max_parallel_requests",
        "global_max_parallel_requests",
        "health_check_interval",
        "max_request_size_mb",
        "max_response_size_mb",
    ):
        if (number := draft.number(path, value)) is None:
            return True
        if key == "max_parallel_requests":
            _every_model(draft, path, "max_concurrent", int(number))
        elif key == "global_max_parallel_requests":
            draft.put(("performance", "max_concurrent_requests"), int(number), path)
        elif not number:
            draft.say("exact", path)
        elif key == "health_check_interval":
            why = "servers are probed without spending tokens, so that every 30 seconds is no burden"
            draft.put(("load_balancer", "health_check_interval"), min(number, 604800.0), path, why, "approximate")
        else:
            setting = "max_body_bytes" if key == "max_request_size_mb" else "max_response_bytes"
            draft.put(("http", setting), max(int(number * (1 << 20)), 1024), path)
    elif key in ("completion_model", "embedding_model"):
        known = names_of(members, draft)
        target: Path = ("gateway", "default_model") if key == "completion_model" else ("embeddings", "model")
        if str(value) in known:
            why = (
                "is used where a request names none; LiteLLM overrides the one it names"
                if key == "completion_model"
                else "embeds documents and queries"
            )
            draft.put(target, str(value), path, why, "approximate")
        else:
            draft.say("manual", path, f"left out: there is no model called {shown(str(value))}{nearest(str(value), known)}")
    else:
        return False
    return True
