"""Reads YAML into plain data and remembers the line and column of every part of it, safely and within bounds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Where something is in a document: mapping keys and list positions from the root."""

MAX_CHARACTERS = 4 * 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 50_000  # after aliases are expanded, so that a few lines cannot become gigabytes

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,18})|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,40}|(?:0|[1-9][0-9]{0,40})(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {"!": "str", **{_TAG + name: name for name in ("str", "int", "float", "bool", "null", "map", "seq")}}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text, both counted from 1; 0 means unknown."""

    line: int = 0
    column: int = 0


@dataclass(slots=True)
class Fault:
    """Something wrong with the text itself."""

    place: Place
    path: Path
    message: str


@dataclass(slots=True)
class Document:
    """What a text holds.

    Args:
        data: Mappings, lists and scalars; keys are always text.
        keys: Where the key of each mapping entry stands, by the entry's path.
        values: Where each value starts.
        faults: What is wrong; data without them is still given where possible.
    """

    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


@dataclass(slots=True)
class _Node:
    kind: str  # scalar, list or mapping
    place: Place
    tag: str = ""
    text: str = ""
    plain: bool = False
    items: list[_Node] = field(default_factory=list)
    entries: list[tuple[_Node, _Node]] = field(default_factory=list)
    closed: bool = False


class _Stop(Exception):
    """Reading cannot go on."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place()


def scalar(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's rules: no dates, no base 60, and ``no`` is text."""
    if text in _NULLS:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""), 0)
    if _FLOAT.fullmatch(text) or _SPECIAL.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".n", "n").replace(".N", "N"))
    return text


class _Reader:
    """Builds nodes from the parser's events: no recursion of unbounded depth, no object construction."""

    def __init__(self, text: str) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._events = yaml.parse(text, Loader=loader)
        self._anchors: dict[str, _Node] = {}

    def document(self) -> _Node | None:
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _Stop(_place(event.start_mark), "a second document starts here; one file holds one document")
            elif isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        place = _place(event.start_mark)
        if depth > MAX_DEPTH:
            raise _Stop(place, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            target = self._anchors.get(event.anchor or "")
            if target is None:
                raise _Stop(place, "the alias (*name) has no anchor (&name) before it; put text that starts with * in quotes")
            if not target.closed:
                raise _Stop(place, "the alias is inside what it stands for")
            return target
        tag = event.tag or ""
        if isinstance(event, yaml.ScalarEvent):
            node = _Node("scalar", place, tag, event.value, plain=event.implicit[0] and not tag)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = _Node("list", place, tag)
        else:
            node = _Node("mapping", place, tag)
        if event.anchor:
            self._anchors[event.anchor] = node
        if node.kind == "list":
            while not isinstance(following := next(self._events), yaml.SequenceEndEvent):
                node.items.append(self._node(following, depth + 1))
        elif node.kind == "mapping":
            while not isinstance(following := next(self._events), yaml.MappingEndEvent):
                key = self._node(following, depth + 1)
                node.entries.append((key, self._node(next(self._events), depth + 1)))
        node.closed = True
        return node


class _Builder:
    """Turns nodes into data and notes where everything stands."""

    def __init__(self) -> None:
        self.document = Document()
        self._nodes = 0

    def value(self, node: _Node, path: Path, depth: int = 0) -> Any:
        self._count(node, depth)
        self.document.values[path] = node.place
        kind = _PLAIN_TAGS.get(node.tag, "") if node.tag else ""
        if node.tag and (not kind or (kind in ("map", "seq")) != (node.kind != "scalar")):
            if not (node.tag == "!" and node.kind != "scalar"):
                self._fault(node, path, "this tag (!) is not supported; write plain YAML")
        if node.kind == "scalar":
            return self._scalar(node, kind, path)
        if node.kind == "list":
            return [self.value(item, (*path, position), depth + 1) for position, item in enumerate(node.items)]
        return self._mapping(node, path, depth)

    def _scalar(self, node: _Node, kind: str, path: Path) -> Any:
        if node.plain:
            return scalar(node.text)
        if kind in ("int", "float", "bool", "null"):
            found = scalar(node.text)
            if kind == "float" and isinstance(found, int) and not isinstance(found, bool):
                return float(found)
            if type(found).__name__ != {"null": "NoneType"}.get(kind, kind):
                self._fault(node, path, f"the value is not what its tag !!{kind} says")
            return found
        return node.text

    def _mapping(self, node: _Node, path: Path, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: list[_Node] = []
        for key, content in node.entries:
            if key.kind != "scalar":
                self._fault(key, path, "a name must be plain text; quote it if it holds brackets or braces")
                continue
            if key.text == "<<" and key.plain:
                merged += content.items if content.kind == "list" else [content]
                continue
            here: Path = (*path, key.text)
            if key.text in data:
                first = self.document.keys[here].line
                self._fault(key, here, f"appears twice; the first is on line {first}")
                continue
            self.document.keys[here] = key.place
            data[key.text] = self.value(content, here, depth + 1)
        for source in merged:
            if source.kind != "mapping":
                self._fault(source, path, "<< needs a mapping, or a list of mappings, to merge")
                continue
            self._merge(source, data, path, depth)
        return data

    def _merge(self, source: _Node, data: dict[str, Any], path: Path, depth: int) -> None:
        self._count(source, depth)
        # Built apart, so that a merged value never replaces one that is written out, nor its place.
        apart = _Builder()
        apart._nodes = self._nodes
        found = apart._mapping(source, path, depth + 1)
        self._nodes = apart._nodes
        added = {name: content for name, content in found.items() if name not in data}
        data.update(added)
        length = len(path)
        for ours, theirs in ((self.document.keys, apart.document.keys), (self.document.values, apart.document.values)):
            ours.update({there: place for there, place in theirs.items() if len(there) > length and there[length] in added})
        known = {(fault.place, fault.message) for fault in self.document.faults}
        self.document.faults += [fault for fault in apart.document.faults if (fault.place, fault.message) not in known]

    def _count(self, node: _Node, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Stop(node.place, f"more than {MAX_NODES} values once aliases are expanded")
        if depth > MAX_DEPTH:
            raise _Stop(node.place, f"nested more than {MAX_DEPTH} deep once aliases are expanded")

    def _fault(self, node: _Node, path: Path, message: str) -> None:
        self.document.faults.append(Fault(node.place, path, message))


def _syntax(error: yaml.YAMLError) -> Fault:
    # Only the parser's own words: its snippets, and names it quotes, could be a secret.
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    words = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read")
    if isinstance(error, yaml.reader.ReaderError):
        words = "a character that YAML does not allow"
    words = re.sub(r"(['\"])[^'\"\s]{2,}\1", "…", words)
    if "cannot start any token" in words:
        words += "; indent with spaces, not tabs, and quote text that starts with @, ` or %"
    return Fault(_place(mark), (), f"YAML syntax: {words}")


def parse(text: str) -> Document:
    """Read one YAML document.

    Never raises on any text: what is wrong is in ``faults``. Anchors, aliases and merge keys work; duplicate keys,
    foreign tags, further documents, and anything past the bounds of this module are faults.

    Args:
        text: At most ``MAX_CHARACTERS`` characters.
    """
    if len(text) > MAX_CHARACTERS:
        return Document(faults=[Fault(Place(), (), f"larger than {MAX_CHARACTERS // 1048576} MiB")])
    builder = _Builder()
    try:
        text.encode("utf-8")
        root = _Reader(text).document()
        if root is not None:
            builder.document.data = builder.value(root, ())
    except _Stop as stop:
        return Document(faults=[*builder.document.faults, Fault(stop.place, (), stop.message)])
    except yaml.YAMLError as error:
        return Document(faults=[_syntax(error)])
    except UnicodeEncodeError:
        return Document(faults=[Fault(Place(), (), "a character that is not valid Unicode text")])
    return builder.document
