"""The configuration that grows out of a LiteLLM file: what was made, of what, and which secrets have to be in the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hx_gateway.config.litellm_findings import Remark
from hx_gateway.config.litellm_keys import Rules, known, rule
from hx_gateway.config.litellm_source import REFERENCE, Source, leaves
from hx_gateway.config.located import Path
from hx_gateway.config.shape import dotted

_LOOK_BACK = 200  # what several rows share (a credential) is said once
_NOT_A_VARIABLE = re.compile(r"[^A-Z0-9]+")


class Draft:
    """Collects settings, environment and remarks; whatever is left without a remark at the end is named as not imported.

    Args:
        source: The file.
        environ: The environment of whoever imports; names in it are looked up, values are never written anywhere.

    Attributes:
        data: The gateway's configuration so far, as plain data.
        origins: For each path of it that was made of one thing, the path of that in the file.
        variables: What has to be in the environment: the value where the file held it, None where it only named it.
        remarks: What was found, in the order of the finding.
    """

    def __init__(self, source: Source, environ: Mapping[str, str]) -> None:
        self.source = source
        self.data: dict[str, Any] = {}
        self.origins: dict[Path, Path] = {}
        self.variables: dict[str, str | None] = {}
        self.remarks: list[Remark] = []
        self._told: set[Path] = set()
        given = source.data.get("environment_variables")
        own = given if isinstance(given, Mapping) else {}
        self.environ: Mapping[str, str] = {**{name: str(value) for name, value in own.items() if value is not None}, **environ}

    def say(self, level: str, path: Path, message: str = "", target: Path = ()) -> None:
        """Remark on the thing at ``path`` and everything below it."""
        file, place = self.source.place(path)
        self._told.add(path)
        remark = Remark(level, dotted(path), message, dotted(target), file, place.line, place.column)
        if remark not in self.remarks[-_LOOK_BACK:]:
            self.remarks.append(remark)

    def put(self, target: Path, value: Any, path: Path, message: str = "", level: str = "exact") -> None:
        """Set ``target`` in the gateway's configuration, because of the thing at ``path``."""
        holder = self.data
        for part in target[:-1]:
            holder = holder.setdefault(str(part), {})
        holder[str(target[-1])] = value
        self.origins[target] = path
        self.say(level, path, message, target)

    def told(self, path: Path) -> bool:
        """Whether the thing at ``path``, or one around it, has a remark."""
        return any(path[:length] in self._told for length in range(1, len(path) + 1))

    def text(self, path: Path, value: Any) -> str | None:
        """The text of a value, looked up in the environment where it says so; None, and a remark, where it is not there."""
        if not isinstance(value, str) or not value.startswith(REFERENCE):
            return str(value)
        name = value.removeprefix(REFERENCE)
        found = self.environ.get(name)
        if found is None:
            self.say(
                "manual", path, f"the environment variable {name} was not set at the import; set it and import again, or write the value in"
            )
        return found

    def number(self, path: Path, value: Any) -> float | None:
        """The number of a value; None, and a remark, where it is none."""
        found = self.text(path, value) if not isinstance(value, bool) else "no number"
        try:
            number = float(found) if found is not None else None
        except ValueError:
            self.say("manual", path, "should be a number; left out")
            return None
        if number is not None and not 0 <= number < 1e12:
            self.say("manual", path, "is no number that makes sense here; left out")
            return None
        return number

    def flag(self, path: Path, value: Any) -> bool:
        """Whether a value means yes, as LiteLLM's YAML reads it."""
        return (self.text(path, value) or "").lower() in ("true", "yes", "on", "1")

    def secret(self, value: Any, wanted: str) -> str:
        """A reference to the environment for a secret, which moves there where the file holds it.

        Args:
            value: The secret, or ``os.environ/NAME``.
            wanted: Name of the variable for one that is written out.
        """
        text = str(value)
        if text.startswith(REFERENCE):
            name = text.removeprefix(REFERENCE)
            self.variables.setdefault(name, None)
            return f"env:{name}"
        base = _NOT_A_VARIABLE.sub("_", wanted.upper()).strip("_")
        wanted = base = f"HOST_{base}" if base[:1].isdigit() else base  # no shell and no systemd takes one that begins with a digit
        number = 2
        while self.variables.get(wanted, text) != text:
            wanted, number = f"{base}_{number}", number + 1
        self.variables[wanted] = text
        return f"env:{wanted}"

    def by_rule(self, path: Path, rules: Rules, handled: Iterable[str]) -> None:
        """Remark on a key that no setting takes: by what is known of it, or as one that nobody knows."""
        key = str(path[-1])
        found = rule(rules, key)
        if found is not None:
            self.say(found[0], path, found[1])
        else:
            self.unknown(path, known(rules, key, tuple(handled)))

    def unknown(self, path: Path, hint: str = "") -> None:
        """Remark on each value below a key that nobody knows."""
        below = list(leaves(self._at(path), path)) or [path]
        for leaf in below:
            self.say("not-imported", leaf, f"LiteLLM documents no such key{hint}")

    def _at(self, path: Path) -> Any:
        found: Any = self.source.data
        for part in path:
            found = found[part]
        return found

    def section(self, name: str) -> dict[str, Any]:
        """The entries of a section that hold something; a section of another kind has a remark."""
        found = self.source.data.get(name)
        if found is None:
            if name in self.source.data:
                self.say("exact", (name,))
            return {}
        if not isinstance(found, dict):
            self.say("manual", (name,), "should be a mapping; nothing of it was imported")
            return {}
        for key, value in found.items():
            if value is None:
                self.say("exact", (name, key))
        return {key: value for key, value in found.items() if value is not None}

    def sweep(self) -> None:
        """Name what nothing was said about, so that nothing is lost in silence."""
        for leaf in leaves(self.source.data):
            if not self.told(leaf):
                empty = self._at(leaf) in (None, {}, [])
                self.say("exact" if empty else "not-imported", leaf, "" if empty else "nothing was made of this")
