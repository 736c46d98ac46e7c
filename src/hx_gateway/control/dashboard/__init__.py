"""The dashboard: pages for administrators, rendered here, without a build step and without anything from elsewhere.

How a page is added, in three steps and without touching the others:

1. A module beside this one, ``keys.py``, with a function ``router() -> APIRouter`` whose routes begin with the page's own path
   (``/keys``; everything here is mounted below ``/ui``). A handler takes ``session: SignedIn`` (`frame`), which is a session of an
   admin key (``session.identity``), and ``gateway: GatewayOf``, and answers
   ``render(request, session, "keys.html", title="Keys", ...)``. Import what is heavy inside the handler.
2. A template ``templates/keys.html`` that begins with ``{% extends "base.html" %}`` and fills ``{% block page %}`` (and ``{% block head %}``
   for a stylesheet or a script of its own: ``<script type="module" src="{{ static('keys.js') }}"></script>``). Autoescape is on.
   No ``style=`` and no script in it: the policy forbids both. Bars are ``{{ ui.bar(value, most) }}`` and badges ``{{ ui.badge(text, tone) }}``
   after ``{% import "ui.html" as ui %}``; colours and sizes are the variables at the top of ``static/hx.css``.
3. A line in `PAGES`, which makes its link and includes its router.

What changes something is a POST. A plain form carries ``{{ csrf() }}``; htmx and ``fetch`` through ``post()`` of ``static/hx.js`` send the
header ``x-csrf`` by themselves. Whoever takes ``SignedIn`` has it checked. A handler reads fields by ``await fields(request)`` and ends with
``go(request, "/ui/keys", "Key made.")``, which shows the sentence on the next page; a `Failure` becomes a page with its message.
A page that lives takes ``live.stream(request, session, look)`` at a route of its own, and ``<main data-live="/ui/keys/live">`` follows it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """An entry of the navigation.

    Args:
        path: Below ``/ui``, with which all its routes begin.
        title: In the navigation.
        module: In this package; its ``router()`` is included.
    """

    path: str
    title: str
    module: str


PAGES = (
    Page("/fleet", "Fleet", "fleet"),
    Page("/requests", "Requests", "requests"),
    Page("/routing", "Routing", "routing"),
    Page("/usage", "Usage and cost", "usage"),
    Page("/keys", "Keys", "keys"),
    Page("/rag", "RAG", "rag"),
    Page("/playground", "Playground", "playground"),
    Page("/config", "Config", "config"),
)
"""In the order of the navigation."""
