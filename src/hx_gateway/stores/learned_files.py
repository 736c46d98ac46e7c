"""What groups learned, as files in the state directory: written by the housekeeper, followed by every worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.files import replace
from hx_gateway.routing.learned.artifact import ArtifactError
from hx_gateway.routing.learned.choice import Learned, ready, untrained
from hx_gateway.routing.learned.model import Scorer

if TYPE_CHECKING:
    from hx_gateway.config.schema import GroupSettings

FOLDER = "learned"
"""Its name in the state directory."""
_log = logging.getLogger(__name__)


class Event(msgspec.Struct):
    """Something that became of an artifact: ``shadow``, ``promoted``, ``demoted``, ``retired``; and why."""

    at_ms: int
    action: str
    version: str
    why: str


class Standing(msgspec.Struct):
    """Where the learning of a group stands; the same in the store and in the files.

    Args:
        champion: Version of the artifact that decides; empty for a scorer that was not trained.
        challenger: Version of the one in shadow; None for none.
        states: By version what was learned since (`Scorer.state`).
        judged: Judged answers that were learned from.
        trial: For each of the latest judged answers by how much the challenger's squared error was larger than the champion's.
        events: The latest, oldest first.
    """

    champion: str = ""
    challenger: str | None = None
    states: dict[str, bytes] = {}
    judged: int = 0
    trial: list[float] = []
    events: list[Event] = []


def place_of(folder: Path, group: str) -> Path:
    """The folder of a group's files."""
    return folder / FOLDER / blake2b(group.encode(), digest_size=8).hexdigest()


def write(folder: Path, group: str, standing: Standing, artifacts: Mapping[str, bytes]) -> None:
    """Write a group's files; artifacts that are not needed any more go.

    Raises:
        OSError: They cannot be written.
    """
    place = place_of(folder, group)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for version, data in artifacts.items():
        if not (place / version).exists():
            replace(place / version, data)
    replace(place / "standing", msgspec.msgpack.encode(standing))
    for path in place.iterdir():
        if path.name not in (*artifacts, "standing"):
            path.unlink(missing_ok=True)


def load(place: Path, version: str | None, models: Sequence[str]) -> Scorer | None:
    """A scorer of a group; None for no version.

    Raises:
        ArtifactError: Its file cannot be read.
    """
    if version is None:
        return None
    return ready(Scorer.load(place / version) if version else untrained(models), models)


class Learners:
    """The groups that learn, in one worker: made from the configuration, and kept as new as the housekeeper's files."""

    def __init__(self) -> None:
        self.groups: dict[str, Learned] = {}
        self._seen: dict[str, int] = {}

    def adopt(self, config: GatewayConfig) -> dict[str, Learned]:
        """The groups of a configuration that learn, by name; those that are as before go on, with what they know."""
        before, self.groups = self.groups, {}
        for name, group in config.groups.items():
            if group.learned is not None:
                kept = before.get(name)
                if kept is None or (kept.models, kept.settings) != (tuple(group.models), group.learned):
                    self._seen.pop(name, None)
                    kept = _begun(name, group)
                self.groups[name] = kept
        return self.groups

    async def look(self, folder: Path | None) -> None:
        """Take over what was learned since the last look; what cannot be read is said, and the groups go on as they were."""
        for name, learned in self.groups.items():
            try:
                stamp = (place_of(folder, name) / "standing").stat().st_mtime_ns if folder is not None else 0
            except OSError:
                continue
            if stamp and stamp != self._seen.get(name):
                self._seen[name] = stamp
                try:
                    learned.take(*await asyncio.to_thread(_read, place_of(folder or Path(), name), learned))
                except (OSError, ArtifactError, ValueError, msgspec.DecodeError) as error:
                    _log.warning("what the group %s learned cannot be read, it goes on as it was: %s", name, error)


def _begun(name: str, group: GroupSettings) -> Learned:
    """A group before the housekeeper has told anything of it: with the configured artifact."""
    assert group.learned is not None
    learned = Learned(name, group.models, group.learned)
    if group.learned.artifact is not None:
        try:
            learned.take(Scorer.load(Path(group.learned.artifact)), None)
            if group.learned.embedding is not None and learned.embedding is None:
                _log.warning(
                    "groups.%s.learned.embedding: the artifact was not trained with embeddings of %s, so words alone decide",
                    name, group.learned.embedding,
                )  # fmt: skip
        except ArtifactError as error:
            _log.error("groups.%s.learned.artifact: %s; the group goes in its stated order until it has learned from feedback", name, error)
    return learned


def _read(place: Path, learned: Learned) -> tuple[Scorer, Scorer | None]:
    """The scorers as the files have them; those that are loaded are brought up to date. In any thread."""
    standing = msgspec.msgpack.decode((place / "standing").read_bytes(), type=Standing)
    loaded = {one.version: one for one in (learned.champion, learned.challenger) if one is not None}
    found: list[Scorer | None] = []
    for version in (standing.champion, standing.challenger):
        scorer = loaded.get(version or "") if version is not None else None
        scorer = scorer or load(place, version, learned.models)
        if scorer is not None and version in standing.states:
            scorer.restore(standing.states[version])
            ready(scorer, learned.models)
        found.append(scorer)
    champion, challenger = found
    assert champion is not None
    return champion, challenger
