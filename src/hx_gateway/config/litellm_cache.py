"""Carries over where a LiteLLM file keeps what is shared: its cache, and its Redis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.litellm_keys import CACHE
from hx_gateway.config.litellm_source import REFERENCE
from hx_gateway.config.located import Path
from hx_gateway.config.storage import redis_fault


def redis(draft: Draft, given: Mapping[str, Any], path: Path, prefix: str) -> None:
    """The address of Redis, of its parts; what only the environment knows is put together there."""
    parts = {name: given.get(prefix + name) for name in ("url", "host", "port", "password")}
    used = {name: value for name, value in parts.items() if value is not None}
    if not used:
        return
    url = str(used["url"]) if "url" in used else None
    if url is None:
        found = {
            name: draft.environ.get(str(value).removeprefix(REFERENCE)) if str(value).startswith(REFERENCE) else str(value)
            for name, value in used.items()
        }
        password = f":{quote(found['password'] or '', safe='')}@" if found.get("password") else ""
        scheme = "rediss" if draft.flag((*path, prefix + "ssl"), given.get(prefix + "ssl", False)) else "redis"
        complete = "host" in used and all(value is not None for value in found.values())
        url = f"{scheme}://{password}{found['host']}:{found.get('port') or 6379}" if complete else None
    if url is not None and not url.startswith(REFERENCE) and redis_fault(url):
        url = None
    for name in used:
        if url is None:
            draft.say(
                "manual", (*path, prefix + name), "write the address as redis://:PASSWORD@HOST:PORT into REDIS_URL of the environment file"
            )
        else:
            draft.say("exact", (*path, prefix + name), "REDIS_URL in the environment file holds the address", ("storage", "redis_url"))
    if url is None:
        draft.variables.setdefault("REDIS_URL", None)
    else:
        draft.data.setdefault("storage", {})["redis_url"] = draft.secret(url, "REDIS_URL")


def cache(draft: Draft, library: Mapping[str, Any]) -> None:
    """Whether, how long and where answers are kept."""
    path: Path = ("litellm_settings", "cache")
    given, enabled = library.get("cache_params"), library.get("cache")
    params: dict[str, Any] = given if isinstance(given, dict) else {}
    kind = str(params.get("type") or "redis")
    semantic = "semantic" in kind
    opted = params.get("mode") == "default_off"
    if enabled is not None:
        on = draft.flag(path, enabled)
        why = "only the same request is answered again, of the same key, and with temperature 0: cache.scope and cache.sampled widen that"
        draft.put(("cache", "enabled"), on and not semantic and not opted, path, why if on else "", "approximate" if on else "exact")
    if given is not None and not isinstance(given, dict):
        draft.say("manual", ("litellm_settings", "cache_params"), "should be a mapping; nothing of it was imported")
    for key, value in params.items():
        here: Path = ("litellm_settings", "cache_params", key)
        if value is None:
            draft.say("exact", here)
        elif key == "type":
            if semantic:
                draft.say(
                    "unsupported", here, "answers that are only alike are never given again; the cache is left off", ("cache", "enabled")
                )
            elif kind in ("redis", "local"):
                draft.say("exact", here)
            else:
                draft.say(
                    "approximate",
                    here,
                    "cached answers are kept in the memory of the gateway, or in Redis where storage.redis_url names one",
                )
        elif key == "ssl":
            draft.say("exact", here, "", ("storage", "redis_url"))
        elif key == "mode":
            draft.say(
                "approximate" if opted else "exact",
                here,
                "clients cannot ask for the cache; it is left off: cache.enabled" if opted else "",
            )
        elif key == "ttl":
            if (number := draft.number(here, value)) is not None and number:
                draft.put(("cache", "ttl_seconds"), min(number, 604800.0), here)
            else:
                draft.say("exact", here)
        elif key == "supported_call_types" and isinstance(value, list):
            draft.put(
                ("cache", "embeddings"),
                any("embedding" in str(one) for one in value),
                here,
                "chats and completions are always kept",
                "approximate",
            )
        elif key not in ("host", "port", "password", "url"):
            draft.by_rule(here, CACHE, ("type", "ttl", "mode", "host", "port", "password", "supported_call_types"))
    if "redis_url" not in draft.data.get("storage", {}):
        redis(draft, params, ("litellm_settings", "cache_params"), "")
    else:
        for key in ("host", "port", "password", "url"):
            if params.get(key) is not None:
                draft.say(
                    "approximate",
                    ("litellm_settings", "cache_params", key),
                    "one Redis serves limits and cache: that of router_settings",
                    ("storage", "redis_url"),
                )
