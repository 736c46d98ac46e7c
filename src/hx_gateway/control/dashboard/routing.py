"""The page Routing: which server got what share of each name and why, and where a prompt would go now."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard import live
from hx_gateway.control.dashboard.frame import SignedIn, fields, go, part, render
from hx_gateway.control.dashboard.requests import explained
from hx_gateway.control.dependencies import Gateway, GatewayOf, siblings_of
from hx_gateway.control.routes import learning, usage
from hx_gateway.core.context import CHAT, EMBEDDINGS, Identity
from hx_gateway.core.errors import Failure
from hx_gateway.ledger.reports import Filter

SPANS = {"15 minutes": 900, "hour": 3600, "day": 86_400, "week": 604_800}  # seconds
_LATEST = 25
_SLOW_LOOKS = 5  # shares are summed by the database, so not with every look


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/routing")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf, span: str = "hour") -> Response:
        """The whole page."""
        span = span if span in SPANS else "hour"
        targets = gateway.registry.targets
        learned, failure = [], None
        try:
            learned = await learning.standings(gateway, SPANS[span])
        except Failure as refused:  # what stands above it is still of use
            failure = refused
        return render(
            request,
            session,
            "routing.html",
            title="Routing",
            span=span,
            spans=list(SPANS),
            names=[name for name, target in targets.items() if target.kind != "alias"],
            shares=await _shares(gateway, session.identity, SPANS[span]),
            decisions=await _latest(request),
            learns=bool(learned or failure),
            learned=learned,
            failure=failure,
        )

    @routes.get("/routing/live")
    async def follow(request: Request, session: SignedIn, gateway: GatewayOf, span: str = "hour") -> Response:
        """Shares and latest decisions, as they change."""
        seen: dict[str, Any] = {}
        looks = 0

        async def look() -> dict[str, Any]:
            nonlocal looks
            try:
                if looks % _SLOW_LOOKS == 0:
                    shares = await _shares(gateway, session.identity, SPANS.get(span, 3600))
                    seen["shares"] = part(request, "routing_shares.html", shares=shares, span=span)
                    found = await learning.standings(gateway, SPANS.get(span, 3600))
                    seen["learned"] = part(request, "routing_learned.html", learned=found, span=span, token=session.kept.csrf)
                seen["decisions"] = part(request, "routing_decisions.html", decisions=await _latest(request))
                seen["problem"] = ""
            except Failure as failure:
                seen["problem"] = part(request, "problem.html", failure=failure)
            looks += 1
            return dict(seen)

        return live.stream(request, session, look)

    @routes.post("/routing/explain")
    async def explain(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Where a prompt would go now; nothing is sent."""
        given = await fields(request)
        name, prompt, most = given.get("name", ""), given.get("prompt", ""), given.get("max_tokens", "")
        target = gateway.registry.find(name)
        body: dict[str, Any] = {"model": name}
        if target is not None and target.mode == "embedding":
            route, body["input"] = EMBEDDINGS, prompt or "text"
        else:
            route, body["messages"] = CHAT, [{"role": "user", "content": prompt or "Hello"}]
            if most.isdigit():
                body["max_tokens"] = int(most)
        told = gateway.explain(route, json.dumps(body).encode(), {}, session.identity)
        choice = told["choice"] or {"model": "nothing", "endpoint": "no server"}
        decision = explained({**choice, "policy": told["policy"], "reason": told["rule"]}, told)
        return render(request, session, "routing_explained.html", told=told, decision=decision)

    @routes.post("/routing/learned/{group:path}/promote")
    async def promote(group: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Has an artifact of a group run in shadow, or decide."""
        given = await fields(request)
        done = await learning.promote(gateway, request, session.identity, group, given.get("version", ""), "now" in given)
        does = "decides" if done["role"] == "champion" else "runs in shadow"
        return go(request, "/ui/routing", f"{done['version'][:12]} {does} in {group}, everywhere within seconds.")

    @routes.post("/routing/learned/{group:path}/demote")
    async def demote(group: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Takes the champion of a group out."""
        done = await learning.demote(gateway, request, session.identity, group)
        return go(
            request, "/ui/routing", f"{done['version'][:12] or 'The scorer'} decides no longer in {group}, everywhere within seconds."
        )

    return routes


async def _shares(gateway: Gateway, identity: Identity, span_s: int) -> list[dict[str, Any]]:
    """Names with what each of their servers got of them, the busiest first."""
    asked = Filter(from_ms=int((time.time() - span_s) * 1000))
    found = await usage.usage(gateway, identity, asked, by="group,model,endpoint", bucket="", limit=500, form="json")
    names: dict[str, dict[str, Any]] = {}
    for row in found["data"]:
        if row["endpoint"]:
            name = row["group"] or row["model"] or "passed on unread"
            target = gateway.registry.find(name)
            policy = target.policy if target is not None else ""
            one = names.setdefault(name, {"name": name, "policy": policy, "requests": 0, "servers": []})
            one["requests"] += row["requests"]
            one["servers"].append(row)
    for one in names.values():
        one["servers"].sort(key=lambda row: -row["requests"])
    return sorted(names.values(), key=lambda one: -one["requests"])


async def _latest(request: Request) -> list[dict[str, Any]]:
    """The latest decisions of all workers, newest first."""
    found = [one for answer in await siblings_of(request).ask("decisions", str(_LATEST)) for one in answer]
    return sorted(found, key=lambda one: (one["id"], one["attempt"]), reverse=True)[:_LATEST]
