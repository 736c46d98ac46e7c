"""Logging: one set-up for the gateway's own lines and those of its libraries, with credentials taken out of all."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(
    r"authorization|cookie|passw(?:or)?d|passphrase|secret|credential|private[-_]?key"
    r"|(?:^|[-_])(?:api|master|auth|access|admin)[-_]?key|(?:^|[-_])apikey|(?:^|[-_])(?:auth|access|refresh|bearer|api)?[-_]?token$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?P<scheme>\b(?:bearer|basic)\s+)[^\s\"',;]+"
    r"|\bsk-[A-Za-z0-9_\-]{4,}"
    r"|(?P<name>\b(?:x-)?api-key\b[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]+"
    r"|(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)",
    re.IGNORECASE,
)
_NESTED = 6  # levels of a logged value that are looked through


def scrub(text: str) -> str:
    """``text`` without keys, tokens and passwords in URLs."""
    return _SECRET_TEXT.sub(lambda found: (found["scheme"] or found["name"] or found["user"] or "") + HIDDEN, text)


def _clean(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, bytes):
        return scrub(value.decode("latin-1"))
    if value is None or isinstance(value, int | float):
        return value
    if depth >= _NESTED:
        return HIDDEN
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _SECRET_NAME.search(key if isinstance(key, str) else repr(key)) else _clean(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in value]
    return scrub(str(value))


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Structlog processor: hides the values of fields named like credentials, and credentials inside any text."""
    for name, value in event.items():
        if not name.startswith("_"):
            event[name] = HIDDEN if _SECRET_NAME.search(name) else _clean(value)
    return event


def _plain(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn says everything twice, once with terminal colours
    return event


class LogHandler(logging.StreamHandler[TextIO]):
    """Where log lines go.

    Args:
        stream: The stream.
        form: ``console`` or ``json``.
    """

    def __init__(self, stream: TextIO, form: str) -> None:
        super().__init__(stream)
        self.form = form

    def put(self, text: str) -> None:
        """Write whole lines that need no further look, between those of others."""
        with self.lock or contextlib.nullcontext():
            self.stream.write(text)
            self.stream.flush()


def set_level(level: int) -> None:
    """Change the least severe level that is logged, in this process."""
    logging.getLogger().setLevel(level)
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))  # it tells every plug-in of its own


def configure_logs(level: str = "INFO", format: str = "console", stream: TextIO | None = None) -> None:
    """Send all log lines of the process to one stream in one form.

    Args:
        level: Least severe level that is logged, e.g. ``INFO``.
        format: ``console`` for people, ``json`` for one JSON object a line.
        stream: Where to; None means standard error.

    Raises:
        ValueError: The level or the format is not known.
    """
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise ValueError(f"monitoring.log_level: {level!r} is not a level; use one of {', '.join(sorted(levels))}")
    if format not in ("console", "json"):
        raise ValueError(f"monitoring.log_format: {format!r} is not known; use console or json")
    stream = stream or sys.stderr
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor
    if format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,  # first, so that what it says is looked through as well
            _plain,
            redact,
            renderer,
        ],
    )
    handler = LogHandler(stream, format)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(levels[level.upper()])
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # they bring handlers of their own
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
