"""`python -m bench.choose`: processor time of one choice among eight deployments, by policy; bounded at 20 µs by the project."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from hx_gateway.access.limiter import Limiter
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.ceilings import Ceilings, limits_of
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.simulation.trace import chained

PLACES = 8
ROUNDS = 5  # the fastest counts: the others were disturbed
CHOICES = 5000
NOW_S = 1000.0
LONG_AGO_S = 0.0
BLOCKS = chained(range(32))  # of a prompt of 16,000 tokens, half of which was sent before


def places(managed: bool = False, taught_s: Sequence[float] = (NOW_S,)) -> tuple[Deployment, ...]:
    """Deployments under load, taught in turn at one of those times; managed ones load their model when it is asked for."""
    found = []
    for number in range(PLACES):
        deployment = Deployment("m", "m", Endpoint(f"e{number}", Address("http", "host", number + 1), slots=8))
        if managed:
            deployment.endpoint.residency.told({"m": 5e9, "other": 5e9}, LONG_AGO_S)
        deployment.pace.learn_at_s = taught_s[number % len(taught_s)]
        deployment.pace.answered(2.5, 0.2, 800, 200, True)
        deployment.in_flight = deployment.endpoint.in_flight = random.randint(0, 4)
        found.append(deployment)
    return tuple(found)


def cost_us(name: str, deployments: tuple[Deployment, ...], blocks: Sequence[int] = (), session: int = 0) -> float:
    """Microseconds of processor time for one choice, the making of its `Ask` included."""
    router, target = Router(policy), Target("m", "model", deployments, policy=name)
    for deployment in deployments:
        router.sent(Ask(target, 8192.0, blocks=blocks[: len(blocks) // 2], session=session), deployment, NOW_S)
    best_s = float("inf")
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(CHOICES):
            router.choose(Ask(target, 16384.0, blocks=blocks, session=session), NOW_S)
        best_s = min(best_s, time.process_time() - began_s)
    return best_s / CHOICES * 1e6


def limited_us(requests_per_minute: int, tokens_per_minute: int) -> float:
    """Microseconds for one choice by `least_busy`, with what it takes of the limits of a minute of eight deployments and gives back."""
    with tempfile.TemporaryDirectory() as folder:
        limiter = Limiter(lambda delay_s, work: None)
        limiter.open(Path(folder))
        ceilings, router, deployments = Ceilings(limiter), Router(policy), places()
        for deployment in deployments:
            deployment.limits = limits_of(requests_per_minute, tokens_per_minute)
        ask, best_s = Ask(Target("m", "model", deployments, policy="least_busy")), float("inf")
        for _ in range(ROUNDS):
            began_s = time.process_time()
            for _ in range(CHOICES):
                now_s = time.monotonic()
                chosen, hold = ceilings.within(router, ask, router.choose(ask, now_s), now_s, lambda account: 100)
                if chosen is not None and hold is not None:
                    ceilings.settle(chosen, hold, 50, 50, 0.1)
            best_s = min(best_s, time.process_time() - began_s)
        limiter.close()
    return best_s / CHOICES * 1e6


def main() -> None:
    """Print a line for each."""
    random.seed(1)
    for name in ("round_robin", "weighted", "least_busy", "power_of_two", "least_tokens", "latency", "cost", "intelligent"):
        print(f"{name:44} {cost_us(name, places()):5.1f} µs")
    print(f"{'least_busy, requests a minute':44} {limited_us(60_000_000, 0):5.1f} µs")
    print(f"{'least_busy, requests and tokens a minute':44} {limited_us(60_000_000, 2_000_000_000):5.1f} µs")
    print(f"{'intelligent, long prompt, session':44} {cost_us('intelligent', places(), BLOCKS, 7):5.1f} µs")
    print(f"{'the same, models loaded when asked for':44} {cost_us('intelligent', places(managed=True), BLOCKS, 7):5.1f} µs")
    print(
        f"{'the same, half of them not heard of for long':44} {cost_us('intelligent', places(True, (NOW_S, LONG_AGO_S)), BLOCKS, 7):5.1f} µs"
    )


if __name__ == "__main__":
    main()
