"""Secrets in configuration: references to the environment or to files, resolved at load and never shown."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_HIDDEN = "********"
_MAX_FILE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class SecretSources:
    """Where references are looked up; the loader hands one to validation as its context.

    Args:
        environ: For ``env:NAME``.
        directory: What a relative ``file:PATH`` is relative to.
    """

    environ: Mapping[str, str] = field(repr=False)
    directory: Path


def _refuse(message: str, **names: str) -> PydanticCustomError:
    # The value must not be in the message: pydantic's own errors would print their input.
    return PydanticCustomError("secret", message, dict(names))


def _from_environment(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if value is None:
        raise _refuse("the environment variable {name} is not set; set it, or leave the setting out", name=name)
    return value


def _from_file(name: str, directory: Path) -> str:
    path = directory / name
    content = None
    try:
        if path.is_file():
            with path.open("rb") as stream:
                content = stream.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "it is not a usable path"
        raise _refuse("the file {path} cannot be read: {reason}", path=str(path), reason=reason) from None
    if content is None:
        raise _refuse("the file {path} does not exist or is no regular file", path=str(path))
    if len(content) > _MAX_FILE_BYTES:
        raise _refuse("the file {path} is larger than 64 KiB; it must hold one secret only", path=str(path))
    try:
        return content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _refuse("the file {path} is not UTF-8 text", path=str(path)) from None


class Secret:
    """A value that is used but never shown: neither ``repr`` nor ``str`` nor JSON holds it.

    Args:
        value: The secret itself.
        reference: Where it came from (``env:NAME`` or ``file:PATH``); empty when it was written out.
    """

    __slots__ = ("_value", "reference")

    def __init__(self, value: str, reference: str = "") -> None:
        self._value = value
        self.reference = reference

    def reveal(self) -> str:
        """The secret itself; for the moment of use only."""
        return self._value

    @property
    def literal(self) -> bool:
        """Whether it was written out instead of referred to."""
        return not self.reference

    def __repr__(self) -> str:
        return f"<Secret {self.reference or _HIDDEN}>"

    def __str__(self) -> str:
        return self.reference or _HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled or copied by value")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    @classmethod
    def parse(cls, text: str, sources: SecretSources) -> Secret:
        """The secret that ``text`` is or refers to.

        Raises:
            PydanticCustomError: The reference leads nowhere, or the value is empty or holds control characters.
        """
        kind, _, name = text.partition(":")
        reference = ""
        if kind in ("env", "file"):
            if not name.strip():
                raise _refuse("{kind}: needs a name after the colon", kind=kind)
            reference = text
            value = _from_environment(name, sources.environ) if kind == "env" else _from_file(name, sources.directory)
        else:
            value = text
        where = f"the value of {reference}" if reference else "the value"
        if not value:
            raise _refuse("{where} is empty; leave the setting out instead", where=where)
        if any(ord(character) < 32 or ord(character) == 127 or 0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise _refuse("{where} holds a line break or another control character", where=where)
        return cls(value, reference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: object, info: core_schema.ValidationInfo[Any]) -> Secret:
            if isinstance(value, Secret):
                return value
            if not isinstance(value, str):
                raise _refuse("should be text: env:NAME, file:PATH or the secret itself (put it in quotes)")
            sources = info.context if isinstance(info.context, SecretSources) else SecretSources(os.environ, Path())
            return cls.parse(value, sources)

        return core_schema.with_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "minLength": 1, "writeOnly": True, "description": "`env:NAME`, `file:PATH`, or the secret itself."}
