"""The simulator's three scenarios, made small and fast enough to be played in real time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from bench.replicas import prompt_of, understood
from hx_gateway.simulation.plan import FleetPlan, load_plan
from hx_gateway.simulation.synthetic import generate
from hx_gateway.simulation.trace import Arrival, chained, read, stretched

ROOT = Path(__file__).parents[1]
FLEETS = ROOT / "docs" / "how-to" / "fleets"
TRACES = ROOT.parent / "shared" / "data" / "workload"
_LOAD = 0.65
_PROBE_S = 2.0


@dataclass(frozen=True)
class Scenario:
    """A fleet and what is asked of it.

    Args:
        plan: The fleet.
        arrivals: The requests as the simulator gets them.
        prompts: Their texts, of which the live servers take the same.
        source: Where the requests come from, in words.
    """

    plan: FleetPlan
    arrivals: list[Arrival]
    prompts: list[str]
    source: str


def faster(name: str, times: float, count: int = 0, cache_tokens: int = -1) -> FleetPlan:
    """One of the example fleets with servers so many times faster, and where given with so many of each kind and so much cache."""
    plan = load_plan(FLEETS / f"{name}.yaml")
    servers = {}
    for kind, server in plan.servers.items():
        changes = {
            "prefill_tokens_per_second": server.prefill_tokens_per_second * times,
            "decode_tokens_per_second": server.decode_tokens_per_second * times,
            "load_gb_per_second": server.load_gb_per_second * times,
            "count": count or server.count,
            "cache_tokens": server.cache_tokens if cache_tokens < 0 else cache_tokens,
        }
        servers[kind] = server.model_copy(update=changes)
    gateway = plan.gateway.model_copy(update={"probe_seconds": _PROBE_S})
    return plan.model_copy(update={"servers": servers, "gateway": gateway})


def thinned(arrivals: Sequence[Arrival], requests: int, seed: int) -> list[Arrival]:
    """About so many requests: of those that share their first block, all or none."""
    families = Counter(one.blocks[0] for one in arrivals)
    order = sorted(families)
    Random(seed).shuffle(order)
    kept: set[int] = set()
    left = requests
    for root in order:
        if families[root] <= left:
            kept.add(root)
            left -= families[root]
    found = [one for one in arrivals if one.blocks[0] in kept]
    return [replace(one, at_s=one.at_s - found[0].at_s) for one in found]


def conversations(requests: int, seed: int, documents: int = 24) -> list[Arrival]:
    """A trace for want of a recorded one: questions at random times about documents of Zipf popularity."""
    random = Random(seed)
    weights = [1.0 / rank for rank in range(1, documents + 1)]
    found = []
    at_s = 0.0
    for number in range(requests):
        document = random.choices(range(documents), weights)[0]
        blocks = [document * 1000 + block for block in range(12 + document % 3 * 8)] + [10**6 + number * 10 + own for own in range(4)]
        found.append(Arrival(at_s, len(blocks) * 512, random.randint(20, 200), "", chained(blocks)))
        at_s += random.expovariate(1.0)
    return found


def scenario(plan: FleetPlan, arrivals: Sequence[Arrival], source: str, load: float = _LOAD) -> Scenario:
    """Fit a trace to a fleet: at this load (0 for the trace's own times), and as the servers will understand its prompts."""
    if load:
        arrivals = stretched(arrivals, plan.load_of(arrivals) / load)
    prompts = [prompt_of(one, str(number), plan.block_tokens) for number, one in enumerate(arrivals)]
    first = next(iter(plan.models))
    told = [understood(prompt, plan.block_tokens, one.at_s, one.model or first) for prompt, one in zip(prompts, arrivals, strict=True)]
    return Scenario(plan, told, prompts, source)


def prefixes(seed: int) -> Scenario:
    """Long prompts with common prefixes on four equal servers, eight times as fast as those of the example."""
    plan = faster("prefix-cache", 8.0, count=4, cache_tokens=200_000)
    trace = TRACES / "mooncake_synthetic_trace.jsonl.gz"
    if trace.exists():
        return scenario(plan, thinned(read(trace), 500, seed), "a part of Mooncake's synthetic trace")
    return scenario(plan, conversations(800, seed), "made up")


def slow(seed: int) -> Scenario:
    """Completions of code on four servers, one at 0.4 of the speed of the others."""
    plan = faster("one-slow", 4.0)
    trace = TRACES / "azure2023_code.csv.gz"
    if trace.exists():
        found = read(trace)[4000:5200]
        return scenario(plan, [replace(one, at_s=one.at_s - found[0].at_s) for one in found], "1,200 requests of Azure's code trace")
    return scenario(
        plan, generate("zipf:models=1,rate=1,requests=1200,input=2000,output=28,spread=1.2", list(plan.models), seed), "made up"
    )


def models(seed: int) -> Scenario:
    """Six models of Zipf popularity on three Ollama hosts, two of which fit on each; five times as fast as the example."""
    plan = faster("ollama", 5.0)  # not more: a load of less than a second is not told from the work of a model in memory
    return scenario(plan, generate("zipf:models=6,rate=6,requests=250", list(plan.models), seed), "generated", load=0.0)


SCENARIOS: dict[str, Callable[[int], Scenario]] = {"prefixes": prefixes, "slow": slow, "models": models}
