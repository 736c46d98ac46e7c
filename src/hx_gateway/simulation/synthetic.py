"""Makes traces where none was recorded: requests at random times for models of unequal popularity."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from random import Random

from hx_gateway.simulation.trace import Arrival, TraceError

PREFIX = "zipf:"
_DEFAULTS = {"models": 1.0, "rate": 1.0, "requests": 1000.0, "exponent": 1.0, "input": 800.0, "output": 200.0, "spread": 0.8}


def generate(text: str, names: Sequence[str], seed: int, limit: int = 0) -> list[Arrival]:
    """The trace that ``zipf:models=6,rate=1.5,requests=2000`` describes.

    Arrivals are a Poisson process; the k-th model of the fleet is asked for in proportion to ``1 / k ** exponent``;
    lengths are log-normal.

    Args:
        text: ``zipf:`` and any of ``models`` (how many), ``rate`` (requests per second), ``requests`` (how many),
            ``exponent``, ``input`` and ``output`` (mean tokens), ``spread`` (sigma of the logarithm of lengths).
        names: The fleet's models, the most popular first.
        seed: Of the random numbers.
        limit: Most requests; 0 for as many as described.

    Raises:
        TraceError: It asks for something unknown or impossible.
    """
    given = dict(_DEFAULTS)
    for part in filter(None, text.removeprefix(PREFIX).split(",")):
        name, _, value = part.partition("=")
        if name not in _DEFAULTS:
            raise TraceError(f"--trace {text}: {name!r} is unknown; it takes {', '.join(_DEFAULTS)}")
        try:
            given[name] = float(value)
        except ValueError:
            given[name] = -1.0
        if not 0.0 <= given[name] < 1e9 or (given[name] == 0.0 and name not in ("exponent", "spread")):
            raise TraceError(f"--trace {text}: {name} should be a number more than 0, e.g. {name}={_DEFAULTS[name]:g}")
    count = int(given["models"])
    if not 1 <= count <= len(names):
        raise TraceError(f"--trace {text}: models={count}, but the fleet serves {len(names)}; ask for 1 to {len(names)}")
    random = Random(seed)
    weights = [1.0 / rank ** given["exponent"] for rank in range(1, count + 1)]
    spread = given["spread"]

    def length(mean: float) -> int:
        return max(1, round(random.lognormvariate(log(mean) - spread * spread / 2, spread)))

    found: list[Arrival] = []
    at_s = 0.0
    requests = int(given["requests"])
    for _ in range(min(requests, limit) if limit else requests):
        model = random.choices(names[:count], weights)[0]
        found.append(Arrival(at_s, length(given["input"]), length(given["output"]), model))
        at_s += random.expovariate(given["rate"])
    return found
