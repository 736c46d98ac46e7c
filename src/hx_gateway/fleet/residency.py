"""Which models a server has in memory, is loading, or could hold: what a request for another one would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hx_gateway.fleet.deployment import Deployment

_HORIZON_S = 60.0  # how far ahead the next request for a pushed-out model is expected
_KEPT_S = 240.0  # a model used so recently that is gone was pushed out, and did not run out of its keep-alive


class Resident:
    """One model in memory.

    Args:
        size: Memory it takes, in bytes.
        ready_s: Monotonic time from which it answers; in the past for a model that is loaded.
        used_s: When it was last asked.
    """

    __slots__ = ("ready_s", "size", "used_s")

    def __init__(self, size: float, ready_s: float, used_s: float) -> None:
        self.size = size
        self.ready_s = ready_s
        self.used_s = used_s


class Residency:
    """The memory of one server, as far as it is known.

    A server that keeps its models always (``managed`` False) costs nothing to ask. Of an Ollama-like server the probes
    tell what is loaded, and each request sent there changes it at once: what is asked for will be loaded, what was used
    longest ago goes when there is no room. What fits need not be known: once a model was pushed out by another, it is
    the most that was ever seen together.

    Args:
        memory: Bytes that models may take together; 0 for unknown.
        most: Most models at once; 0 for unknown.
    """

    __slots__ = ("_seen_bytes", "_seen_models", "_told", "demand", "managed", "memory", "most", "pushed", "resident")

    def __init__(self, memory: float = 0.0, most: int = 0) -> None:
        self.managed = False
        self.memory = memory
        self.most = most
        self.pushed = False  # a model was seen to go for another
        self.resident: dict[str, Resident] = {}
        self.demand: dict[str, tuple[float, float, float]] = {}  # requests per second (averaged), when last, load seconds
        self._told: frozenset[str] = frozenset()
        self._seen_bytes = 0.0
        self._seen_models = 0

    def told(self, loaded: dict[str, float], now_s: float) -> None:
        """A probe's word: models in memory with their sizes in bytes. What is still loading by our own count stays."""
        self.managed = True
        if not self.pushed and loaded.keys() - self._told:
            self.pushed = any(self._recent(name, now_s) for name in self._told - loaded.keys())
        self._told = frozenset(loaded)
        self._seen_bytes = max(self._seen_bytes, sum(loaded.values()))
        self._seen_models = max(self._seen_models, len(loaded))
        kept = {name: held for name, held in self.resident.items() if name in loaded or held.ready_s > now_s}
        for name, size in loaded.items():
            held = kept.get(name)
            if held is None:
                kept[name] = Resident(size, now_s, now_s)
            elif size:
                held.size = size
        self.resident = kept

    def _recent(self, name: str, now_s: float) -> bool:
        asked = self.demand.get(name)
        return asked is not None and now_s - asked[1] < _KEPT_S

    def load_s(self, deployment: Deployment, now_s: float) -> float:
        """Seconds that loading will cost a request now: its own, and those of whoever wants what it pushes out."""
        if not self.managed:
            return 0.0
        held = self.resident.get(deployment.upstream_model)
        if held is not None:
            return held.ready_s - now_s if held.ready_s > now_s else 0.0
        seconds = self._line_s(now_s) + deployment.pace.load_s
        for name in self._victims(deployment.size):
            rate, last_s, load_s = self.demand.get(name, (0.0, 0.0, 0.0))
            wanted = rate * _HORIZON_S * 0.5 ** ((now_s - last_s) / _HORIZON_S)
            seconds += load_s * (wanted if wanted < 1.0 else 1.0)
        return seconds

    def _line_s(self, now_s: float) -> float:
        """Seconds until the loads under way are done: models are loaded one after the other."""
        latest_s = now_s
        for held in self.resident.values():
            if held.ready_s > latest_s:
                latest_s = held.ready_s
        return latest_s - now_s

    def sent(self, deployment: Deployment, now_s: float) -> None:
        """A request goes to this model here."""
        if not self.managed:
            return
        name = deployment.upstream_model
        rate, last_s, _ = self.demand.get(name, (0.0, now_s, 0.0))
        fade = 0.5 ** ((now_s - last_s) / _HORIZON_S)
        self.demand[name] = (rate * fade + 0.69 / _HORIZON_S, now_s, deployment.pace.load_s)
        held = self.resident.get(name)
        if held is None:
            ready_s = now_s + self._line_s(now_s) + deployment.pace.load_s
            for victim in self._victims(deployment.size):
                del self.resident[victim]
            self.resident[name] = Resident(deployment.size, ready_s, now_s)
        else:
            held.used_s = now_s

    def answered(self, deployment: Deployment, now_s: float) -> None:
        """The model answered: it is in memory, whatever was believed."""
        if not self.managed:
            return
        held = self.resident.get(deployment.upstream_model)
        if held is None:
            self.resident[deployment.upstream_model] = Resident(deployment.size, now_s, now_s)
        elif held.ready_s > now_s:
            held.ready_s = now_s

    def _victims(self, size: float) -> list[str]:
        """Models that must go for one of this size, longest unused first."""
        resident = self.resident
        memory, most = self.memory, self.most
        if not memory and not most and self.pushed:
            memory = self._seen_bytes
            most = 0 if memory else self._seen_models
        used = sum(held.size for held in resident.values())
        count = len(resident)
        going: list[str] = []
        if not resident or not ((memory and used + size > memory) or (most and count >= most)):
            return going
        for name in sorted(resident, key=lambda name: resident[name].used_s):
            if not ((memory and used + size > memory) or (most and count >= most)):
                break
            going.append(name)
            used -= resident[name].size
            count -= 1
        return going
