"""Asks a service that was just deployed: readiness, models, and one chat as a client would."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hx_gateway.ops.host import Host, Refused, last_words

_READY_S = 30.0
_CHAT_S = 180.0  # a model may have to be loaded
_SAY = "HX-OK"


@dataclass(frozen=True, slots=True)
class Service:
    """Where the service listens, seen from this machine, and what it may use; units as in `ops.unit.Limits`."""

    url: str
    port: int
    memory_gb: float | None = None
    cpu_cores: int | None = None
    drain_s: float = 30.0


def service_of(checked: dict[str, Any]) -> Service:
    """The service that a checked configuration describes.

    Args:
        checked: What ``hx-gateway check --json`` said.
    """
    listen = urlsplit(checked["listen"]["url"])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.hostname or "", listen.hostname or "127.0.0.1")
    port = listen.port if listen.port is not None else 8000
    settings = {one["path"]: one["value"] for one in checked["settings"]}
    return Service(
        f"{listen.scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        port,
        settings.get("performance.memory_limit_gb"),
        settings.get("performance.cpu_cores"),
        float(settings.get("http.drain_timeout_seconds", 30.0) or 30.0),
    )


@contextmanager
def key_for_validation(host: Host, release: Path, key: str) -> Iterator[str]:
    """A key to ask with: the one given, or one that is made for this and revoked after it; empty where none is needed."""
    if key or not _keys(host, release):
        yield key
        return
    name = f"deploy-{time.time_ns() // 1_000_000:x}"
    done = host.gateway(release, "keys", "create", name, "--expires", "15m", "--config", host.config)
    if done.returncode:
        raise Refused(f"no key to validate with could be made: {last_words(done)}; give one as MASTER_KEY=…")
    try:
        yield done.stdout.strip().splitlines()[-1]
    finally:
        host.gateway(release, "keys", "revoke", name, "--config", host.config)


def _keys(host: Host, release: Path) -> bool:
    keys = json.loads(host.gateway(release, "check", host.config, "--json").stdout or "{}").get("keys") or {}
    return bool(keys.get("master") or keys.get("names") or keys.get("stored"))


def validate(host: Host, release: Path, checked: dict[str, Any], key: str) -> list[str]:
    """Ask the service; returns what is to be said of it.

    Args:
        host: The machine.
        release: The release in use.
        checked: What ``check --json`` said.
        key: A key; empty for none.

    Raises:
        Refused: It does not do what it is for.
    """
    url = service_of(checked).url
    ready(url)
    models = [one["id"] for one in _asked(url, "/v1/models", key)["data"]]
    if not models:
        return ["warning: it serves no model yet: name model servers in the configuration (hx-gateway check --live shows what they have)"]
    default = checked.get("default_model")
    wanted = [default] if default else models
    failures = []
    for model in wanted[:4]:
        body = {
            "model": model,
            "temperature": 0,
            "max_tokens": 10,
            "messages": [{"role": "user", "content": f"Return exactly the text: {_SAY}"}],
        }
        began_s = time.monotonic()
        try:
            said = _asked(url, "/v1/chat/completions", key, body)["choices"][0]["message"]["content"]
        except (Refused, KeyError, IndexError) as error:
            failures.append(f"{model}: {error}")
            continue
        told = f"{len(models)} models; {model} answered {said!r} in {time.monotonic() - began_s:.2f} s"
        return [told, *_verified(host, release, url, key)]
    raise Refused("no model answered a chat: " + "; ".join(failures))


def _verified(host: Host, release: Path, url: str, key: str) -> list[str]:
    """What the release's `verify` finds, where it has one. A fleet need not be perfect for its gateway to stay: these are warnings."""
    if host.gateway(release, "verify", "--help").returncode:
        return []
    done = host.gateway(release, "verify", "--url", url, secret=key)
    return ["verify: everything is as it should be"] if done.returncode == 0 else [f"warning: verify: {last_words(done, 40)}"]


def ready(url: str) -> None:
    """Wait until the service is ready.

    Raises:
        Refused: It is not after a while.
    """
    give_up_s = time.monotonic() + _READY_S
    while True:
        try:
            _asked(url, "/readyz", "")
            return
        except Refused as error:
            if time.monotonic() >= give_up_s:
                raise Refused(f"it is not ready after {_READY_S:g} s: {error}") from None
        time.sleep(0.2)


def _asked(url: str, path: str, key: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body is not None else None, headers)  # noqa: S310 # ours
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its certificate is for another name than this machine's loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=_CHAT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise Refused(f"{path} answered {error.code}: {error.read(400).decode(errors='replace').strip()}") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from None
