"""What every page of the dashboard needs: the session behind a request, the templates, and where to go next."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, quote, unquote

from fastapi import Depends, Request
from starlette.responses import RedirectResponse, Response

from hx_gateway.control.dashboard import PAGES
from hx_gateway.control.dashboard.sessions import LASTS_S, Kept, Sessions, same
from hx_gateway.control.dependencies import Gateway, gateway_of
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure, Unavailable

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
_SAID = "hx-said"
_MOST_FIELDS = 200
_STORE = ("upgrade", "reports")


@dataclass(frozen=True, slots=True)
class Session:
    """Someone who is signed in.

    Args:
        token: Of the cookie.
        kept: What the state directory has of it.
        identity: Whose admin key it is; of nobody in particular where no key is required.
    """

    token: str
    kept: Kept
    identity: Identity


class SignedOut(Exception):
    """Nobody is signed in, or no longer."""


class Desk:
    """What the pages of one worker share.

    Args:
        gateway: The gateway.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.streams = 0  # open now
        self._waking: asyncio.Task[None] | None = None
        self._sessions: Sessions | None = None
        self._templates: Environment | None = None
        self._files: dict[str, tuple[bytes, str, str]] = {}

    def wake(self) -> None:
        """Somebody has signed in: what the first page needs is brought while they still look at the one before."""
        if self._waking is None:
            self._waking = asyncio.get_running_loop().create_task(self._wake(), name="dashboard")

    async def _wake(self) -> None:
        await asyncio.to_thread(lambda: [self.templates, *(importlib.import_module(f"hx_gateway.stores.sql.{name}") for name in _STORE)])
        with contextlib.suppress(Unavailable):  # the page that needs it says so
            await self.gateway.backing.store()

    @property
    def sessions(self) -> Sessions:
        """Opened with the first use, when the state directory is known."""
        if self._sessions is None:
            self._sessions = Sessions(self.gateway.backing.folder)
        return self._sessions

    @property
    def templates(self) -> Environment:
        """Read with the first page."""
        if self._templates is None:
            from jinja2 import Environment, FileSystemLoader, StrictUndefined

            self._templates = Environment(
                loader=FileSystemLoader(HERE / "templates"),
                autoescape=True,
                undefined=StrictUndefined,
                trim_blocks=True,
                lstrip_blocks=True,
            )
            self._templates.globals |= {"pages": PAGES, "static": "/ui/static/{}".format}
            self._templates.filters |= {"ago": ago, "clock": clock, "number": number, "size": size, "duration": duration}
        return self._templates

    def file(self, name: str) -> tuple[bytes, str, str]:
        """A file of the page: content, content type and digest.

        Raises:
            Failure: There is none of that name.
        """
        found = self._files.get(name)
        if found is None:
            path = next((path for path in (HERE / "static").rglob("*") if path.relative_to(HERE / "static").as_posix() == name), None)
            if path is None or not path.is_file():
                raise Failure(errors.NOT_FOUND, f"the dashboard has no file {name!r}")
            data = path.read_bytes()
            kind = mimetypes.guess_type(name)[0] or "text/plain"
            found = self._files[name] = (data, kind, sha256(data).hexdigest())
        return found

    def identity(self, kept: Kept) -> Identity | None:
        """Whose session it is now; None when its key is no admin key any more."""
        keys: Any = self.gateway.keys
        if not kept.key:
            return None if keys.required else Identity("anonymous", admin=True)
        identity: Identity | None = keys.holder(bytes.fromhex(kept.key))
        return identity if identity is not None and identity.admin else None


def desk_of(request: Request) -> Desk:
    """What the pages share."""
    desk: Desk = request.app.state.desk
    return desk


def cookie_of(request: Request) -> tuple[str, bool]:
    """Name of the session's cookie, and whether it goes by TLS alone; several gateways on one host do not take each other's."""
    secure = request.url.scheme == "https"
    return f"{'__Secure-' if secure else ''}hx-session-{request.scope['server'][1] if request.scope.get('server') else 0}", secure


def session_in(request: Request) -> Session:
    """The session of a request.

    Raises:
        SignedOut: There is none.
    """
    desk = desk_of(request)
    token = request.cookies.get(cookie_of(request)[0], "")
    kept = desk.sessions.find(token) if token else None
    identity = desk.identity(kept) if kept is not None else None
    if kept is None or identity is None:
        raise SignedOut
    return Session(token, kept, identity)


async def fields(request: Request) -> dict[str, str]:
    """The fields of a form; of a name that comes more than once the last.

    Raises:
        Failure: There are more than any form here has.
    """
    try:
        return dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise Failure(errors.INVALID_VALUE, f"a form may have at most {_MOST_FIELDS} fields") from None


async def _signed_in(request: Request) -> Session:
    session = session_in(request)
    if request.method not in ("GET", "HEAD"):
        shown = request.headers.get("x-csrf", "")
        if not shown and "form-urlencoded" in request.headers.get("content-type", ""):
            shown = (await fields(request)).get("csrf", "")
        if not same(shown, session.kept.csrf):
            raise Failure(errors.ADMIN_ONLY, "this page was opened in another session; load it again and repeat what you did")
    return session


SignedIn = Annotated[Session, Depends(_signed_in)]
"""Who is signed in; for anything but GET only where the request shows the session's own token."""


def render(request: Request, session: Session | None, template: str, status: int = 200, **context: Any) -> Response:
    """A page, or a part of one, as an answer.

    Args:
        request: What it answers.
        session: Who asks; None on pages for everyone.
        template: File name of the template.
        status: HTTP status.
        context: What the template shows; ``title`` for a whole page.
    """
    from markupsafe import Markup

    csrf = session.kept.csrf if session is not None else ""
    said = unquote(request.cookies.get(_SAID, ""))
    text = part(
        request,
        template,
        path=request.url.path,
        session=session,
        said=said,
        open_to_all=not gateway_of(request).keys.required,
        token=csrf,
        csrf=lambda: Markup('<input type="hidden" name="csrf" value="{}">').format(csrf),
        **context,
    )
    response = Response(text, status, media_type="text/html; charset=utf-8")
    if said:
        response.delete_cookie(_SAID, "/ui", samesite="strict")
    return response


def part(request: Request, template: str, **context: Any) -> str:
    """A template filled in, as text."""
    return desk_of(request).templates.get_template(template).render(service=gateway_of(request).config.service.name, **context)


def go(request: Request, path: str, said: str = "") -> Response:
    """To another page, which shows a sentence once."""
    headers: Mapping[str, str] = {"hx-redirect": path} if "hx-request" in request.headers else {}
    response: Response = Response(status_code=204, headers=headers) if headers else RedirectResponse(path, 303)
    if said:
        response.set_cookie(_SAID, quote(said), max_age=30, path="/ui", secure=cookie_of(request)[1], samesite="strict")
    return response


def sign(request: Request, response: Response, token: str) -> Response:
    """Put a session's token into an answer; an empty one takes it away."""
    name, secure = cookie_of(request)
    age = LASTS_S if token else 0
    response.set_cookie(name, token, max_age=age, path="/ui", secure=secure, httponly=True, samesite="strict")
    return response


# How values are shown


def number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def size(value: float | None) -> str:
    """Bytes as gigabytes or megabytes."""
    if not value:
        return "–"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def duration(value_ms: float | None) -> str:
    """Milliseconds as what people say."""
    if value_ms is None:
        return "–"
    if value_ms < 1000:
        return f"{value_ms:.1f} ms" if value_ms < 10 else f"{value_ms:.0f} ms"
    return (
        f"{value_ms / 1000:.2f} s"
        if value_ms < 10_000
        else f"{value_ms / 1000:.1f} s"
        if value_ms < 120_000
        else f"{value_ms / 60_000:.1f} min"
    )


def clock(at_ms: float) -> str:
    """A moment of Unix milliseconds, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float | None) -> str:
    """How long ago."""
    if seconds is None:
        return "never"
    for limit, unit, word in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {word} ago"
    return f"{seconds / 86_400:.0f} days ago"
