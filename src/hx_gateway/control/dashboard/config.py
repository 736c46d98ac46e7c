"""The page Config: what is served, what the file says and where they differ, load it again, and how earlier reloads ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.config.shape import dotted
from hx_gateway.control.dashboard import live
from hx_gateway.control.dashboard.frame import Session, SignedIn, go, part, render
from hx_gateway.control.dashboard.keys import told
from hx_gateway.control.dependencies import Gateway, GatewayOf
from hx_gateway.control.routes import keys
from hx_gateway.control.routes.routing import reload
from hx_gateway.core.errors import Failure

if TYPE_CHECKING:
    from hx_gateway.config.load import Loaded
    from hx_gateway.config.problems import Problem

_DEEDS = 20
_SLOW_LOOKS = 2  # the database is asked, so not with every look


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/config")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf, all: str = "") -> Response:
        """The whole page."""
        return await _page(request, session, gateway, bool(all))

    @routes.post("/config/reload")
    async def again(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Loads the file again, in all workers."""
        done = await reload(request, gateway, session.identity, Response())
        if not done["ok"]:
            return await _page(request, session, gateway, refused=done["problems"])
        later = f" At the next start: {', '.join(done['restart'])}." if done["restart"] else ""
        return go(request, "/ui/config", f"The configuration is loaded again, in all workers.{later}")

    @routes.get("/config/live")
    async def follow(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """How reloads ended, as they do."""
        seen: dict[str, Any] = {}
        looks = 0

        async def look() -> dict[str, Any]:
            nonlocal looks
            if looks % _SLOW_LOOKS == 0:
                seen["history"] = part(request, "deeds.html", **await _history(gateway, session))
            looks += 1
            return dict(seen)

        return live.stream(request, session, look)

    return routes


async def _page(request: Request, session: Session, gateway: Gateway, all: bool = False, refused: list[str] | None = None) -> Response:
    loaded, problems = await asyncio.to_thread(_read, gateway)
    served = dict(values(gateway.config))
    file = dict(values(loaded.config)) if loaded is not None else served
    path = gateway.reloading.path if gateway.reloading is not None else None

    def source(setting: str) -> str:
        found = loaded.sources.get(setting, "") if loaded is not None else ""
        return f"line {found.rpartition(':')[2]}" if found.startswith(f"{path}:") else "" if found == "default" else found

    differ = [
        {"path": name, "served": shown(old), "file": shown(new), "source": source(name)}
        for name in dict.fromkeys([*served, *file])
        for (old, _), (new, _) in [(served.get(name, _ABSENT), file.get(name, _ABSENT))]
        if old != new
    ]
    settings = [
        {"path": name, "value": shown(value), "source": source(name)} for name, (value, usual) in served.items() if all or not usual
    ]
    reloading = gateway.reloading
    return render(
        request,
        session,
        "config.html",
        title="Config",
        file=str(path or ""),
        reloading=reloading is not None,
        last=reloading.last if reloading is not None else None,
        began_ms=gateway.started_wall_s * 1000,
        loaded=loaded is not None,
        problems=problems,
        warnings=loaded.warnings if loaded is not None else (),
        unused=loaded.unused if loaded is not None else (),
        differ=differ,
        settings=settings,
        all=all,
        refused=refused,
        **await _history(gateway, session),
    )


def _read(gateway: Gateway) -> tuple[Loaded | None, list[Problem]]:
    """The configuration as it would be loaded now, and why it would be refused."""
    from hx_gateway.config.problems import ConfigError

    if gateway.reloading is None:
        return None, []
    try:
        loaded = gateway.reloading.again()
    except ConfigError as error:
        return None, list(error.problems)
    return loaded, list(loaded.blockers)


async def _history(gateway: Gateway, session: Session) -> dict[str, Any]:
    try:
        found = await keys.deeds(gateway, session.identity, _DEEDS, "", "", "", "reload")
    except Failure as failure:
        return {"deeds": [], "failure": failure}
    return {"deeds": told(found["data"]), "failure": None}


_ABSENT = (object(), False)


def values(settings: Any, path: tuple[str | int, ...] = (), usual: bool = False) -> Iterator[tuple[str, tuple[Any, bool]]]:
    """Every value of a configuration by its dotted path, and whether it is the default; secrets as they are, which do not show themselves."""
    if hasattr(settings, "model_fields_set"):
        known = type(settings).model_fields
        for name, value in settings:
            yield from values(value, (*path, name), value == known[name].get_default(call_default_factory=True))
    elif isinstance(settings, dict) and settings:
        for name, value in settings.items():
            yield from values(value, (*path, name))
    elif isinstance(settings, list | tuple) and any(hasattr(one, "model_fields_set") for one in settings):
        for number, value in enumerate(settings):
            yield from values(value, (*path, number))
    else:
        yield dotted(path), (settings, usual)


def shown(value: Any) -> str:
    """A value as the page shows it; of a secret where it comes from, or stars."""
    if value is _ABSENT[0]:
        return "not there"
    if value is None or value in ((), [], {}, ""):
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
