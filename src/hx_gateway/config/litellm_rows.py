"""Reads one row of a LiteLLM model_list: which server and model it means, and what it sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from hx_gateway.config.addresses import header_fault, url_fault
from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.litellm_engines import Engine, engine_of
from hx_gateway.config.litellm_keys import INFO, PARAMS
from hx_gateway.config.litellm_source import REFERENCE
from hx_gateway.config.located import Path

DEFAULTS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repeat_penalty", "n", "think", "reasoning_effort", "num_predict", "mirostat", "mirostat_eta", "mirostat_tau", "repeat_last_n", "tfs_z",
)  # fmt: skip
"""Request parameters that a row may preset."""
HANDLED = (
    *DEFAULTS, "model", "custom_llm_provider", "api_base", "base_url", "api_key", "rpm", "tpm", "weight", "order", "max_parallel_requests", "timeout",
    "stream_timeout", "keep_alive", "num_ctx", "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost",
    "input_cost_per_second", "output_cost_per_second", "tags", "litellm_credential_name", "extra_headers", "headers", "ssl_verify", "dimensions",
    "access_groups", "mode", "output_vector_size", "extra_body", "organization", "project",
)  # fmt: skip
_PRICES = {
    "input_cost_per_token": "cost_per_prompt_token",
    "output_cost_per_token": "cost_per_completion_token",
    "cache_read_input_token_cost": "cost_per_cached_token",
}
_A_MINUTE = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute"}
_ACCOUNT = {"organization": "OpenAI-Organization", "project": "OpenAI-Project"}  # headers
_MODES = {"chat": "chat", "embedding": "embedding", "completion": "", "responses": "chat"}
_STAND_INS = frozenset(
    (
        "",
        "none",
        "null",
        "na",
        "n/a",
        "empty",
        "dummy",
        "fake",
        "fake-key",
        "not-needed",
        "anything",
        "ollama",
        "sk-no-key-required",
        "no-key-required",
    )
)
NO_NAME = re.compile(r"[\s\x00-\x1f\x7f]+")


@dataclass(slots=True)
class Row:
    """One entry of the list, as the gateway needs it.

    Args:
        path: Where it stands.
        name: The name clients use.
        model: Its settings as a model.
        endpoint: Those of its endpoint.
        share: ``weight``, ``rpm`` and ``tpm``, as far as given.
        order: Its priority; the lowest is asked first.
        wildcard: Whether it stands for whatever the server has.
    """

    path: Path
    name: str
    model: dict[str, Any]
    endpoint: dict[str, Any]
    share: dict[str, float] = field(default_factory=dict)
    order: float = 0.0
    wildcard: bool = False
    place: str = ""


def row_of(draft: Draft, path: Path, entry: dict[str, Any], params: dict[str, Any]) -> Row | None:
    """What one entry of the list says; None, and a remark, where the gateway cannot use it."""
    inside: Path = (*path, "litellm_params")
    credential, values = _credential(draft, inside, params)
    given = {**values, **{key: value for key, value in params.items() if value is not None}}
    model = draft.text((*inside, "model"), given["model"]) or ""
    engine, upstream = engine_of(model, str(given.get("custom_llm_provider") or ""))
    if not engine.provider or not model:
        draft.say("unsupported", path, engine.message or "its model is not known; not imported")
        return None
    name = NO_NAME.sub("-", str(entry["model_name"]).strip())
    if name != str(entry["model_name"]):
        draft.say(
            "manual", (*path, "model_name"), "names have no spaces here; clients must send it with - in their place", ("models", name)
        )
    row = Row(path, name, {"upstream_model": upstream}, {"provider": engine.provider}, wildcard="*" in upstream or "*" in name)
    draft.say(engine.level, (*inside, "model"), engine.message)
    row.endpoint["url"] = _url(draft, inside, given, engine)
    if not urlsplit(row.endpoint["url"]).path:
        row.endpoint["url"] += engine.path
    if "api_key" not in given and engine.key and row.endpoint["url"] == engine.url:
        draft.variables.setdefault(engine.key, None)
        row.endpoint["api_key"] = f"env:{engine.key}"
    for key in given:
        where: Path = (*inside, key) if key in params else (*credential, key)
        if key not in ("model", "litellm_credential_name") and not (key in params and draft.told(where)):
            _param(draft, where, key, given[key], row, engine)
    for key, value in params.items():
        if value is None:
            draft.say("exact", (*inside, key))
    info = entry.get("model_info")
    for key, value in info.items() if isinstance(info, dict) else ():
        _info(draft, (*path, "model_info", key), key, value, row)
    for key, value in entry.items():
        if key in ("rpm", "tpm", "weight", "order", "tags"):
            _param(draft, (*path, key), key, value, row, engine)
        elif key not in ("model_name", "litellm_params", "model_info") or (key == "model_info" and not isinstance(info, dict)):
            draft.unknown((*path, key)) if value is not None else draft.say("exact", (*path, key))
    return row


def _credential(draft: Draft, inside: Path, params: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Path and values of the named credential that a row uses."""
    name = params.get("litellm_credential_name")
    listed = draft.source.data.get("credential_list")
    for position, entry in enumerate(listed if isinstance(listed, list) else []):
        if name is not None and isinstance(entry, dict) and entry.get("credential_name") == name:
            values = entry.get("credential_values")
            draft.say("exact", (*inside, "litellm_credential_name"), "", ("endpoints",))
            return ("credential_list", position, "credential_values"), values if isinstance(values, dict) else {}
    if name is not None:
        draft.say("manual", (*inside, "litellm_credential_name"), "there is no such entry in credential_list; set api_key at its endpoint")
    return (), {}


def _url(draft: Draft, inside: Path, given: Mapping[str, Any], engine: Engine) -> str:
    """Address of the server, without the tail that the gateway adds by itself."""
    key = "api_base" if "api_base" in given else "base_url"
    path: Path = (*inside, key)
    raw = given.get(key)
    if raw is None:
        if not engine.url:
            draft.say("manual", (*inside[:-1], "model_name"), "has no api_base; write its address into the endpoint's url")
        return engine.url or "http://address-to-be-set.invalid"
    text = draft.text(path, raw)
    if text is None:
        return f"http://{str(raw).removeprefix(REFERENCE).lower().replace('_', '-')}.invalid"
    address = text.strip() if "://" in text else f"http://{text.strip()}"
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that do not close
        parts = urlsplit("")
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    bare = bare.removesuffix("/chat/completions")
    if not bare.endswith("/api/v1"):  # the one place where /api is no dialect's own
        bare = bare.removesuffix("/v1").removesuffix("/api")
    if url_fault(bare):
        draft.say("manual", path, "is no address that can be used; write it into the endpoint's url")
        return "http://address-to-be-set.invalid"
    if "@" in parts.netloc or parts.query:
        draft.say(
            "manual", path, "holds a password or a query, which were left out; give a credential as api_key or headers of the endpoint"
        )
    return bare


def _param(draft: Draft, path: Path, key: str, value: Any, row: Row, engine: Engine) -> None:
    if key in ("api_base", "base_url", "custom_llm_provider"):
        if not draft.told(path):
            draft.say("exact", path, "", ("endpoints",))
    elif key == "api_key":
        if str(value).strip().lower() in _STAND_INS:
            draft.say("exact", path, "is only a stand-in for a key; left out")
            return
        host = host_of(row.endpoint["url"])
        row.endpoint["api_key"] = draft.secret(value, f"{host}_API_KEY")
        moved = (
            ""
            if str(value).startswith(REFERENCE)
            else f"was written out in the file; moved to {row.endpoint['api_key'][4:]} in the environment file"
        )
        draft.say("exact", path, moved, ("endpoints",))
    elif key in ("extra_headers", "headers") and isinstance(value, dict):
        for header, content in value.items():
            if fault := header_fault(header):
                draft.say("manual", (*path, header), fault)
                continue
            row.endpoint.setdefault("headers", {})[header] = draft.secret(content, f"{host_of(row.endpoint['url'])}_{header}")
            draft.say("exact", (*path, header), "its value moved to the environment file", ("endpoints",))
    elif (
        key
        in (
            "rpm",
            "tpm",
            "weight",
            "order",
            "max_parallel_requests",
            "timeout",
            "stream_timeout",
            "num_ctx",
            "dimensions",
            "output_vector_size",
        )
        or key in _PRICES
    ):
        if (number := draft.number(path, value)) is not None:
            _quantity(draft, path, key, number, row)
    elif key in ("input_cost_per_second", "output_cost_per_second"):
        if (number := draft.number(path, value)) is not None:
            row.endpoint["cost_per_hour"] = round(max(row.endpoint.get("cost_per_hour", 0.0), number * 3600), 9)
            draft.say("approximate", path, "became a price for each hour of the endpoint's work", ("endpoints",))
    elif key == "keep_alive":
        kept = draft.text(path, value) if isinstance(value, str) else value
        if isinstance(kept, str | int | float) and not isinstance(kept, bool):
            row.model["keep_alive"] = kept
            draft.say("exact", path, "", ("models", row.name, "keep_alive"))
        elif not draft.told(path):
            draft.say("manual", path, "should be seconds, or text such as 30m; left out")
    elif key in ("tags", "access_groups"):
        labels = [str(label) for label in (value if isinstance(value, list) else [value])]
        row.model["tags"] = list(dict.fromkeys([*row.model.get("tags", []), *labels]))
        draft.say("exact", path, "", ("models", row.name, "tags"))
    elif key == "ssl_verify" and isinstance(value, bool | str):
        tls(draft, path, value, row.endpoint)
    elif key in _ACCOUNT and isinstance(value, str) and value:
        row.endpoint.setdefault("headers", {})[_ACCOUNT[key]] = value if not value.startswith(REFERENCE) else draft.secret(value, "")
        draft.say("exact", path, f"is sent as the header {_ACCOUNT[key]}", ("endpoints",))
    elif key == "extra_body" and isinstance(value, dict):
        for name, content in value.items():
            row.model.setdefault("defaults", {})[str(name)] = content
            draft.say("exact", (*path, name), "", ("models", row.name, "defaults", str(name)))
    elif key == "stop" and isinstance(value, list):
        row.model.setdefault("defaults", {})[key] = value
        draft.say("exact", path, "", ("models", row.name, "defaults", key))
    elif key in DEFAULTS:
        if isinstance(value, str) and value.startswith(REFERENCE):
            value = draft.text(path, value)
        if isinstance(value, str | int | float) and value != "":
            field_name = "max_tokens" if key == "num_predict" else key
            row.model.setdefault("defaults", {})[field_name] = value
            draft.say("exact", path, "", ("models", row.name, "defaults", field_name))
        elif not draft.told(path):
            draft.say("manual", path, "is no single value; left out")
    else:
        draft.by_rule(path, PARAMS, HANDLED)


def _quantity(draft: Draft, path: Path, key: str, number: float, row: Row) -> None:
    """A setting that is a number."""
    target: Path = ("models", row.name)
    if key in _PRICES:
        row.model[_PRICES[key]] = number
        draft.say("exact", path, "", (*target, _PRICES[key]))
    elif key in ("weight", "rpm", "tpm"):
        row.share[key] = number
        if key != "weight" and (most := int(number)):
            _ceiling(draft, path, _A_MINUTE[key], most, row)
        else:
            draft.say("exact", path, "", (*target, "weight"))
    elif key == "order":
        row.order = number
        draft.say("exact", path, "", ("fallbacks", row.name, "down"))
    elif key == "max_parallel_requests":
        row.model["max_concurrent"] = int(number)
        draft.say("exact", path, "", (*target, "max_concurrent"))
    elif key == "num_ctx":
        row.model["num_ctx"] = max(1, int(number))
        draft.say("exact", path, "", (*target, "num_ctx"))
    elif key in ("dimensions", "output_vector_size"):
        row.model["dimensions"] = max(1, int(number))
        draft.say("exact", path, "", (*target, "dimensions"))
    elif number:
        name = "total_timeout_seconds" if key == "timeout" else "request_timeout_seconds"
        row.endpoint[name] = min(max(number, row.endpoint.get(name, 0.0)), 604800.0)
        what = "bounds a whole answer" if key == "timeout" else "bounds the wait for the first byte, and between bytes"
        draft.say("approximate", path, f"{what}, for all models of the endpoint", ("endpoints",))
    else:
        draft.say("exact", path)


def _ceiling(draft: Draft, path: Path, setting: str, most: int, row: Row) -> None:
    row.model[setting] = most
    router = draft.section("router_settings")
    checks = router.get("optional_pre_call_checks")
    if str(router.get("routing_strategy", "")).startswith("usage-based") or "enforce_model_rate_limits" in (
        checks if isinstance(checks, list) else ()
    ):
        draft.say("exact", path, "", ("models", row.name, setting))
        return
    why = f"became a limit, too; LiteLLM only weighs with it, unless its strategy is usage-based: take {setting} out where more may be sent there"
    draft.say("approximate", path, why, ("models", row.name, setting))


def _info(draft: Draft, path: Path, key: str, value: Any, row: Row) -> None:
    if value is None:
        draft.say("exact", path)
    elif key == "mode":
        mode = _MODES.get(str(value))
        if mode is None:
            draft.say(
                "unsupported", path, "only chat, completions and embeddings are served; gateway.default_upstream can forward other paths"
            )
            return
        if mode:
            row.model["mode"] = mode
        draft.say("exact", path, "", ("models", row.name, "mode"))
    elif key in _PRICES or key in ("access_groups", "input_cost_per_second", "output_cost_per_second", "output_vector_size", "tags"):
        _param(draft, path, key, value, row, Engine())
    else:
        draft.by_rule(path, INFO, HANDLED)


def tls(draft: Draft, path: Path, value: Any, endpoint: dict[str, Any]) -> None:
    """Whether, and against which authorities, a server's certificate is checked."""
    text = draft.text(path, value)
    if text is None:
        return
    if not text or text.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        endpoint["tls_verify"] = draft.flag(path, value)
    else:
        endpoint["tls_ca_file"] = text
    draft.say("exact", path, "", ("endpoints",))


def host_of(url: str) -> str:
    """The host of an address."""
    return urlsplit(url).hostname or "server"
