"""The page Keys: make one and show it once, say what it may do, replace it, end it, and who did that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard.frame import Session, SignedIn, clock, fields, go, render
from hx_gateway.control.dependencies import Gateway, GatewayOf
from hx_gateway.control.routes import keys
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure

if TYPE_CHECKING:
    from hx_gateway.control.key_bodies import KeyChange

_PAGE = 100
_DEEDS = 25
LIMITS = {
    "requests_per_second": "Requests per second",
    "burst": "Burst, requests",
    "tokens_per_minute": "Tokens per minute",
    "max_concurrent": "At once, requests",
    "day_cost": "Cost a day",
    "month_cost": "Cost a month",
    "day_tokens": "Tokens a day",
    "month_tokens": "Tokens a month",
}
_FRACTIONS = ("requests_per_second", "day_cost", "month_cost")
_NOTHING = "none"  # how a list of no entries is written, since an empty field is no list


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/keys")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf, after: str = "") -> Response:
        """The whole page."""
        return await _page(request, session, gateway, after)

    @routes.post("/keys")
    async def make(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Makes a key; the answer alone shows it."""
        from hx_gateway.control.key_bodies import KeyDraft

        body = _body(KeyDraft, await fields(request))
        made = await keys.create(body, request, gateway, session.identity)
        return await _made(request, session, gateway, made, "made")

    @routes.get("/keys/{id}")
    async def one(id: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """One key, with what was done to it."""
        key = await keys.shown(id, gateway, session.identity)
        return render(request, session, "key.html", title=key["name"], **await _about(gateway, session, key["name"]), key=key)

    @routes.post("/keys/{id}/change")
    async def change(id: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Changes what it may do."""
        from hx_gateway.control.key_bodies import KeyChange

        given = await fields(request)
        kept = () if given.get("expires", "") != given.get("expires_before", "") else ("expires",)
        key = await keys.change(id, _body(KeyChange, given, kept), request, gateway, session.identity)
        return go(request, f"/ui/keys/{key['id']}", f"{key['name']} is changed, everywhere within a second.")

    @routes.post("/keys/{id}/rotate")
    async def rotate(id: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Replaces it; the answer alone shows the new one."""
        from hx_gateway.control.key_bodies import KeyRotation

        given = await fields(request)
        body = _valid(KeyRotation, {"grace": given.get("grace", "").strip() or "1h"})
        made = await keys.rotate(id, request, gateway, session.identity, body)
        return await _made(request, session, gateway, made, "replaced")

    @routes.post("/keys/{id}/revoke")
    async def revoke(id: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Ends it for good."""
        key = await keys.revoke(id, request, gateway, session.identity)
        return go(request, f"/ui/keys/{key['id']}", f"{key['name']} is revoked, and refused everywhere within a second.")

    return routes


async def _page(request: Request, session: Session, gateway: Gateway, after: str = "", **shown: Any) -> Response:
    found = await keys.listed(gateway, session.identity, _PAGE, after)
    own = gateway.config.keys
    about = await _about(gateway, session)
    return render(
        request,
        session,
        "keys.html",
        **{"title": "Keys", "made": None, "found": found, "own": own.api_keys, "master": own.master_key is not None, **about, **shown},
    )


async def _made(request: Request, session: Session, gateway: Gateway, made: dict[str, Any], word: str) -> Response:
    """A key that is shown this once: into the page it was made on, or a page of its own."""
    if "hx-request" in request.headers:
        found = await keys.listed(gateway, session.identity, _PAGE, "") if word == "made" else None
        return render(request, session, "key_made.html", made=made, word=word, found=found)
    return await _page(request, session, gateway, made=made, word=word)


async def _about(gateway: Gateway, session: Session, subject: str = "") -> dict[str, Any]:
    """What forms offer, and the latest of the audit log."""
    deeds = await keys.deeds(gateway, session.identity, _DEEDS, "", subject, "", "key.")
    names = [name for name, target in gateway.registry.targets.items() if target.kind != "alias"]
    return {"limits": LIMITS, "names": names, "deeds": told(deeds["data"]), "nothing": _NOTHING}


def told(deeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of the audit log with what changed in words, ``said``."""
    return [{**deed, "said": "; ".join(_said(deed["detail"]))} for deed in deeds]


def _said(detail: dict[str, Any]) -> Iterator[str]:
    for name, value in detail.items():
        if not value or name in ("id", "hint", "show_endpoints"):
            continue
        words = name.replace("_", " ")
        if isinstance(value, dict):
            yield from _said(value)
        elif name.endswith("_ms"):
            yield f"{words[:-3]} {clock(value)} UTC"
        elif isinstance(value, list):
            yield f"{words}: {', '.join(map(str, value))}"
        else:
            yield words if value is True else f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"


def _list(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.replace("\n", ",").split(",")) if part]


def _number(name: str, text: str) -> float | int:
    try:
        return float(text or 0) if name in _FRACTIONS else int(text or 0)
    except ValueError:
        kind = "number" if name in _FRACTIONS else "whole number"
        raise Failure(errors.INVALID_VALUE, f"{LIMITS[name]} ({name}): should be a {kind}; 0 or nothing for no limit", param=name) from None


def _body(kind: type[KeyChange], given: dict[str, str], without: tuple[str, ...] = ()) -> Any:
    """A form as the API's body.

    Raises:
        Failure: ``invalid_value``, with the field.
    """
    words = {name: given.get(name, "").strip() for name in ("name", "owner", "team", "expires", "tags", "models", "namespaces")}
    scopes = {name: [] if words[name] == _NOTHING else _list(words[name]) or None for name in ("models", "namespaces")}
    body = {
        **{name: words[name] for name in ("owner", "team") + (("name",) if "name" in kind.model_fields else ())},
        **scopes,
        "tags": _list(words["tags"]),
        "expires": words["expires"] or None,
        "admin": "admin" in given,
        "show_endpoints": "show_endpoints" in given,
        "limits": {name: _number(name, given.get(name, "").strip()) for name in LIMITS},
    }
    return _valid(kind, {name: value for name, value in body.items() if name not in without})


def _valid(kind: Any, body: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Failure(errors.INVALID_VALUE, f"{name}: {first['msg'].removeprefix('Value error, ')}", param=name) from None
