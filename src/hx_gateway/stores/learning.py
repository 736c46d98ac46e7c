"""The duty that learns: brings feedback into the store, has each group's scorers learn from it, and decides between them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.config.schema import GatewayConfig, GroupSettings
from hx_gateway.ledger.feedback import Feedback, waiting
from hx_gateway.routing.learned.artifact import ArtifactError
from hx_gateway.routing.learned.features import Features
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.trial import learn, verdict
from hx_gateway.stores.learned_files import Event, Standing, load, place_of, write

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_LOOK_S = 1.0  # between looks at what other gateways and the command line wrote
_UNKNOWN_MS = 120_000  # a request may reach the store so much later than feedback on it
_EVENTS = 100
_KEPT_MS = 30 * 86_400_000  # features of prompts that nobody judged
_PRUNE_S = 3600.0
_log = logging.getLogger(__name__)


def changed(standing: Standing, champion: str, challenger: str | None, *events: tuple[str, str, str]) -> Standing:
    """A standing with other roles, which are measured anew; each event is action, version, why."""
    now_ms = int(time.time() * 1000)
    found = [*standing.events, *(Event(now_ms, *event) for event in events)][-_EVENTS:]
    states = {version: state for version, state in standing.states.items() if version in (champion, challenger)}
    return Standing(champion, challenger, states, standing.judged, [], found)


class Learning:
    """Feedback of this machine into the store, and what is learned from that of all machines; of several gateways one does each step.

    Args:
        config: The configuration.
        folder: The state directory.
    """

    name = "learn"
    interval_s = 0.5
    at_end = True

    def __init__(self, config: GatewayConfig, folder: Path) -> None:
        self.folder = folder
        self.groups = {name: group for name, group in config.groups.items() if group.learned is not None}
        self.kept = self.refused = 0
        self._known: dict[str, tuple[int, Scorer, Scorer | None]] = {}  # with the revision of what they are
        self._offered: dict[str, int] = {}  # configured artifacts, as they were when last read
        self._next_s = self._prune_s = 0.0

    def pending(self) -> bool:
        """Whether feedback waits, or it is time to look."""
        return bool(waiting(self.folder)) or (bool(self.groups) and time.monotonic() >= self._next_s)

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Take what there is; says how every group stands.

        Raises:
            StoreError: The store cannot be used; what was not taken is taken by the next run.
        """
        from hx_gateway.stores.sql import learning

        await self._ship(store)
        groups = {}
        for name, group in self.groups.items():
            try:
                groups[name] = await self._group(store, name, group)
            except learning.Overtaken:
                self._known.pop(name, None)
        now_s = time.monotonic()
        self._next_s = now_s + _LOOK_S
        if self.groups and now_s >= self._prune_s:
            self._prune_s = now_s + _PRUNE_S
            await learning.prune(store, int(time.time() * 1000) - _KEPT_MS)
        return {"feedback": self.kept, "refused": self.refused, "groups": groups}

    async def _ship(self, store: Store) -> None:
        from hx_gateway.stores.sql import learning

        for path in waiting(self.folder):
            try:
                given = msgspec.json.decode(path.read_bytes(), type=Feedback)
            except msgspec.DecodeError:
                _log.error("%s is no feedback and is left out", path)
                self.refused += 1
            else:
                became = await learning.keep(store, given)
                if became == "unknown" and time.time() * 1000 - given.at_ms < _UNKNOWN_MS:
                    continue
                if became in ("unknown", "foreign"):
                    self.refused += 1
                    why = "there is no such request in the log" if became == "unknown" else "another key made the request"
                    _log.warning("feedback on %s is left out: %s", given.id, why)
                self.kept += became == "kept"
            path.unlink(missing_ok=True)

    async def _group(self, store: Store, name: str, group: GroupSettings) -> dict[str, Any]:
        """Have one group learn; says how it stands."""
        from hx_gateway.stores.sql import learning

        settings = group.learned
        assert settings is not None
        revision, standing = await learning.standing(store, name)
        if offered := await self._offer(store, name, settings.artifact, revision, standing):
            revision, standing = await learning.write(store, name, revision, offered), offered
        known = self._known.get(name)
        if known is None or known[0] != revision:
            known = self._known[name] = await self._loaded(store, name, group, revision, standing)
        _, champion, challenger = known
        while rows := await learning.turns(store, name):
            self._known.pop(name, None)  # until what they learn is surely written
            found = await asyncio.to_thread(_learned, champion, challenger, rows)
            standing.judged += len(rows)
            standing.trial = [*standing.trial, *found][-settings.trial_answers :]
            standing.states = {one.version: one.state() for one in (champion, challenger) if one is not None}
            if judgement := verdict(standing.trial, settings.trial_answers, settings.trial_errors):
                standing = _judged(name, standing, judgement)
                if judgement > 0 and challenger is not None:
                    champion, challenger = challenger, champion
                else:
                    challenger = None
            revision = await learning.write(store, name, revision, standing, [row.id for row in rows])
            self._known[name] = (revision, champion, challenger)
            await self._write(store, name, standing)
        trial = standing.trial
        return {
            "champion": standing.champion[:12],
            "challenger": standing.challenger[:12] if standing.challenger is not None else None,
            "judged": standing.judged,
            "trial": len(trial),
            "lead": round(-sum(trial) / len(trial), 6) if trial else 0.0,
            "revision": revision,
            "changes": sum(event.action in ("promoted", "demoted", "retired") for event in standing.events),
        }

    async def _offer(self, store: Store, name: str, artifact: str | None, revision: int, standing: Standing) -> Standing | None:
        """What the configured artifact makes of a standing: the first is the champion, a new one goes into shadow; None for no change."""
        from hx_gateway.stores.sql import learning

        if artifact is None:
            return Standing() if not revision else None
        try:
            offered = await asyncio.to_thread(_offered, Path(artifact), self._offered.get(name) if revision else None)
        except (OSError, ArtifactError) as error:
            if self._offered.get(name) != -1:
                _log.error("groups.%s.learned.artifact: %s", name, error)
            self._offered[name] = -1
            return Standing() if not revision else None
        if offered is None:
            return None
        self._offered[name], version, data = offered
        new = await learning.keep_artifact(store, name, version, data)
        if not revision:
            return changed(standing, version, None, ("promoted", version, "it is the first"))
        if new and version not in (standing.champion, standing.challenger):
            return changed(standing, standing.champion, version, ("shadow", version, "it is newly configured"))
        return None

    async def _loaded(
        self, store: Store, name: str, group: GroupSettings, revision: int, standing: Standing
    ) -> tuple[int, Scorer, Scorer | None]:
        await self._write(store, name, standing)

        def read() -> list[Scorer | None]:
            found = [load(place_of(self.folder, name), version, group.models) for version in (standing.champion, standing.challenger)]
            for scorer in found:
                if scorer is not None and scorer.version in standing.states:
                    scorer.restore(standing.states[scorer.version])
                    for model in group.models:
                        scorer.add(model, group.models)
            return found

        champion, challenger = await asyncio.to_thread(read)
        assert champion is not None
        return revision, champion, challenger

    async def _write(self, store: Store, name: str, standing: Standing) -> None:
        """Tell the workers."""
        from hx_gateway.stores.sql import learning

        needed = {version for version in (standing.champion, standing.challenger) if version}
        missing = [version for version in needed if not (place_of(self.folder, name) / version).exists()]
        found = await learning.artifacts(store, name, missing) if missing else {}
        data = {version: found[version][1] if version in found else b"" for version in needed}
        await asyncio.to_thread(write, self.folder, name, standing, data)


def _offered(path: Path, before: int | None) -> tuple[int, str, bytes] | None:
    """When a configured artifact was written, its version and bytes; None where that is when it was ``before``."""
    stamp = path.stat().st_mtime_ns
    return None if stamp == before else (stamp, Scorer.load(path).version, path.read_bytes())


def _learned(champion: Scorer, challenger: Scorer | None, rows: Sequence[Any]) -> list[float]:
    """Have both learn from judged answers; by how much the challenger was wrong more often, for each that tells."""
    found = [learn(champion, challenger, Features.unpack(row.features), row.model, row.score) for row in rows]
    return [one for one in found if one is not None]


def _judged(name: str, standing: Standing, judgement: int) -> Standing:
    """What a verdict makes of a standing: the better one decides, the other stays in shadow where it decided before, else it goes."""
    champion, challenger = standing.champion, standing.challenger
    assert challenger is not None
    lead = abs(sum(standing.trial) / len(standing.trial))
    why = f"its squared error was {{}} by {lead:.4f} in the last {len(standing.trial)} judged answers"
    if judgement > 0:
        _log.info("group %s: artifact %s takes over from %s", name, challenger[:12] or "none", champion[:12] or "none")
        better, worse = why.format("smaller"), why.format("larger")
        return changed(standing, challenger, champion, ("promoted", challenger, better), ("demoted", champion, worse))
    _log.info("group %s: artifact %s is given up", name, challenger[:12] or "none")
    return changed(standing, champion, None, ("retired", challenger, why.format("larger")))
