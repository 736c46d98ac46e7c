"""A LiteLLM config.yaml as a configuration of the gateway: what it becomes, what it needs from the environment, and what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.litellm_findings import OPEN, Remark
from hx_gateway.config.litellm_keys import TOP
from hx_gateway.config.litellm_models import models
from hx_gateway.config.litellm_settings import carry
from hx_gateway.config.litellm_source import leaves, read
from hx_gateway.config.located import Path, Place, scalar
from hx_gateway.config.shape import dotted

__all__ = ["OPEN", "Imported", "load"]

_SECTIONS = ("model_list", "litellm_settings", "router_settings", "general_settings", "environment_variables", "credential_list", "include")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+=,-]*")
_HEAD = """\
# Configuration of HX Gateway, made from {name} by `hx-gateway import-litellm`.
# What needs a look is in the report; every setting: `hx-gateway schema`. Secrets are in the environment file beside it.
# LiteLLM listens on 0.0.0.0:4000 unless told otherwise: to take its place, set service: {{host: "0.0.0.0", port: 4000}} and a master key.
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """A file carried over.

    Args:
        file: Where it came from.
        data: The configuration, as plain data; secrets are references to the environment.
        variables: What the environment has to hold: the value where the file held it, None where it only named it.
        remarks: What was found.
        places: For each part of ``data`` that was made of one thing, its file and place.
    """

    file: FilePath
    data: dict[str, Any]
    variables: Mapping[str, str | None] = field(repr=False)
    remarks: tuple[Remark, ...]
    places: Mapping[Path, tuple[str, Place]]

    @property
    def open(self) -> bool:
        """Whether something is left for somebody to look at."""
        return any(remark.level in OPEN for remark in self.remarks)

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` with what the file held of secrets and variables; ``environ`` wins."""
        return {**{name: value for name, value in self.variables.items() if value is not None}, **environ}

    def served(self, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[tuple[Path, str]]]:
        """The configuration without what refers to variables that ``environ`` does not have, and those: path and variable."""
        missing: list[tuple[Path, str]] = []

        def kept(value: Any, path: Path) -> Any:
            if not isinstance(value, dict):
                return value
            for name, inside in value.items():
                if isinstance(inside, str) and inside.startswith("env:") and inside[4:] not in environ:
                    missing.append(((*path, name), inside[4:]))
            gone = {where[-1] for where, _ in missing if where[:-1] == path}
            return {name: kept(inside, (*path, name)) for name, inside in value.items() if name not in gone}

        return kept(self.data, ()), missing

    def text(self) -> str:
        """The configuration as YAML, one entry a line, with where it came from."""
        lines = [_HEAD.format(name=self.file.name)]
        for section, content in self.data.items():
            lines.append(f"{section}:")
            for name, value in content.items():
                lines.append(f"  {_flow(name)}: {_flow(value)}{self._origin((section, name))}")
            lines.append("")
        return "\n".join(lines)

    def _origin(self, path: Path) -> str:
        file, place = self.places.get(path, ("", Place()))
        return f"  # {FilePath(file).name}:{place.line}" if place.line else ""

    def environment_text(self) -> str:
        """The environment file, as systemd and shells read it; holds secrets."""
        lines = [
            f"# Environment of HX Gateway, made from {self.file.name}. It holds secrets: keep it readable by root and the service only.",
            "# Take the # away from names that begin with it, and set them to what LiteLLM had.",
            "",
        ]
        lines += [f"#{name}=" if value is None else f"{name}={_shell(value)}" for name, value in self.variables.items()]
        return "\n".join(lines) + "\n"


def load(file: FilePath, environ: Mapping[str, str]) -> Imported:
    """Carry a LiteLLM configuration over.

    Args:
        file: Its config.yaml.
        environ: The environment, for addresses and numbers given as ``os.environ/NAME``; no value of it is kept.

    Raises:
        ConfigError: It, or a file it includes, cannot be read as YAML.
    """
    source = read(file)
    draft = Draft(source, environ)
    members = models(draft)
    carry(draft, members)
    for path, why in source.included:
        draft.say("manual", path, why)
    for leaf in leaves(source.data["include"], ("include",)) if "include" in source.data else ():
        if not draft.told(leaf):
            draft.say("exact", leaf)
    for leaf, (name, place), by in source.replaced:
        why = f"is replaced by the same section of {by}, which is included; LiteLLM takes that one alone, so put the two together by hand"
        draft.remarks.append(Remark("manual", dotted(leaf), why, "", name, place.line, place.column))
    _environment(draft)
    _credentials(draft)
    for key in source.data:
        if key not in _SECTIONS and not draft.told((key,)):
            draft.by_rule((key,), TOP, _SECTIONS)
    draft.sweep()
    order = ("models", "groups", "aliases", "fallbacks", "endpoints")
    data = {name: draft.data[name] for name in (*order, *(key for key in draft.data if key not in order)) if name in draft.data}
    places = {target: source.place(path) for target, path in draft.origins.items()}
    return Imported(file, data, draft.variables, tuple(draft.remarks), places)


def _environment(draft: Draft) -> None:
    given = draft.source.data.get("environment_variables")
    if isinstance(given, dict):
        for name, value in given.items():
            if value is not None and not isinstance(value, dict | list):
                draft.variables[name] = str(value)
                draft.say("exact", ("environment_variables", name), "moved to the environment file")


def _credentials(draft: Draft) -> None:
    listed = draft.source.data.get("credential_list")
    used = {str(row["litellm_params"].get("litellm_credential_name")) for row in draft.source.data.get("model_list") or () if _params(row)}
    for position, entry in enumerate(listed if isinstance(listed, list) else []):
        path: Path = ("credential_list", position)
        if isinstance(entry, dict) and str(entry.get("credential_name")) in used:
            draft.say("exact", (*path, "credential_name"))
            draft.say("approximate", (*path, "credential_info"), "is for people; a YAML comment can keep it")
        else:
            draft.say("approximate", path, "no row of model_list uses it; left out")


def _params(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("litellm_params"), dict)


def _flow(value: Any) -> str:
    """``value`` as YAML on one line, read back as it is by the gateway's own reader."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(name)}: {_flow(inside)}" for name, inside in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(inside) for inside in value) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and scalar(value) == value else json.dumps(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return json.dumps(value)


def _shell(value: str) -> str:
    """``value`` as a shell and systemd's EnvironmentFile both read it."""
    if _BARE.fullmatch(value):
        return value
    return f"'{value}'" if "'" not in value else '"' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'
