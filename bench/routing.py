"""`python -m bench.routing`: the simulator's scenarios on live servers in real time, through the gateway and through other routers.

Beside each router stands what the simulator predicts for the same servers and requests. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.peers import KEY, prepare
from bench.replicas import Outcome, Replica, fleet, replay
from bench.scenarios import SCENARIOS, Scenario
from hx_gateway.simulation.plan import FleetPlan
from hx_gateway.simulation.report import percentile
from hx_gateway.simulation.run import simulate

FIRST_PORT = 9301
ROUTER_PORT = 9300
GATEWAY = {"hx round_robin": "round_robin", "hx least_busy": "least_busy", "hx intelligent": "intelligent"}
LIKE = {**GATEWAY, "nginx round robin": "round_robin", "nginx least_conn": "least_busy"}
"""Routers that the simulator can predict, each with its policy there."""
SGLANG = {"sglang cache_aware": [], "sglang tuned": ["--balance-abs-threshold", "4", "--balance-rel-threshold", "1.2"]}
ROUTERS = (*LIKE, *SGLANG)
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Figures:
    """What a router made of a scenario; times in seconds, ``hits`` and ``imbalance`` (of busy seconds) as shares."""

    first_s: Mapping[int, float]
    hits: float
    imbalance: float
    loads: float
    failed: float
    taken: Sequence[float]

    def line(self) -> str:
        """For people."""
        waits = " ".join(f"{self.first_s[percent]:6.3f}" for percent in PERCENTILES)
        return f"{waits}  {100 * self.hits:4.1f} %  {self.imbalance:4.2f}  {self.loads:4.0f}"


def predicted(scenario: Scenario, policy: str, seed: int) -> Figures:
    """The simulator's figures."""
    report = simulate(scenario.plan, scenario.arrivals, policy, seed)
    first_s = {percent: report.first_token_s[f"p{percent}"] for percent in PERCENTILES}
    taken = [server["requests"] for server in report.servers.values()]
    return Figures(first_s, report.hit_rate, report.busy_imbalance, report.cold_loads, report.failed, taken)


def measured(replicas: Sequence[Replica], outcomes: Sequence[Outcome]) -> Figures:
    """The figures of a live run."""
    ordered = sorted(one.first_s for one in outcomes if one.first_s is not None and not one.error)
    servers = [replica.server for replica in replicas]
    prompts, busy = sum(server.prompt_tokens for server in servers), [server.busy_s for server in servers]
    return Figures(
        {percent: percentile(ordered, percent) for percent in PERCENTILES},
        sum(server.cached_tokens for server in servers) / max(prompts, 1),
        max(busy) / max(fmean(busy), 1e-9),
        sum(server.loads for server in servers),
        len(outcomes) - len(ordered),
        [replica.taken for replica in replicas],
    )


def mean(rounds: Sequence[Figures]) -> Figures:
    """The mean of several rounds."""
    return Figures(
        {percent: fmean(one.first_s[percent] for one in rounds) for percent in PERCENTILES},
        fmean(one.hits for one in rounds),
        fmean(one.imbalance for one in rounds),
        fmean(one.loads for one in rounds),
        sum(one.failed for one in rounds),
        [fmean(one.taken[place] for one in rounds) for place in range(len(rounds[0].taken))],
    )


def gateway_config(plan: FleetPlan, urls: Sequence[str], policy: str) -> str:
    """Configuration of the gateway, told nothing but the addresses and names."""
    provider = "ollama" if any(server.managed for server in plan.servers.values()) else "openai"
    models = "".join(f"  {name}: {{endpoints: {list(urls)}, provider: {provider}}}\n" for name in plan.models)
    balancer = f"load_balancer: {{algorithm: {policy}, health_check_interval: {plan.gateway.probe_seconds}}}"
    return f'{balancer}\nkeys: {{api_keys: [{{name: bench, key: "env:BENCH_KEY"}}]}}\nmodels:\n{models}'


def nginx_config(folder: Path, ports: Sequence[int], rule: str) -> str:
    """Configuration of nginx."""
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
    return f"""daemon off; error_log {folder}/nginx.err; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 2m; {temporary}
  upstream servers {{ {rule} {servers} keepalive 64; }}
  server {{
    listen 127.0.0.1:{ROUTER_PORT};
    location / {{ proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s; }}
  }}
}}
"""


def command(router: str, scenario: Scenario, replicas: Sequence[Replica], folder: Path) -> tuple[list[str], str]:
    """How to start a router in front of the servers, and the path that answers once it is ready."""
    if router in GATEWAY:
        settings = folder / "gateway.yaml"
        settings.write_text(gateway_config(scenario.plan, [replica.url for replica in replicas], GATEWAY[router]))
        serve = ["serve", str(settings), "--host", "127.0.0.1", "--port", str(ROUTER_PORT)]
        return [sys.executable, "-m", "hx_gateway", *serve], "/readyz"
    if router in SGLANG:
        options = ["--host", "127.0.0.1", "--port", str(ROUTER_PORT), "--prometheus-port", str(ROUTER_PORT - 1), "--log-level", "warn"]
        workers = ["--worker-urls", *(replica.url for replica in replicas), "--disable-health-check", "--policy", "cache_aware"]
        python = str(prepare("sglang-router", folder) / "bin" / "python")
        return [python, "-m", "sglang_router.launch_router", *workers, *options, *SGLANG[router]], "/v1/models"
    settings = folder / "nginx.conf"
    rule = "least_conn;" if router == "nginx least_conn" else ""
    settings.write_text(nginx_config(folder, [replica.port for replica in replicas], rule))
    return ["nginx", "-c", str(settings), "-g", "worker_processes 1;"], "/v1/models"


@contextlib.asynccontextmanager
async def running(line: Sequence[str], path: str, log: Path) -> AsyncIterator[None]:
    """A router for the time of the block, from when it answers ``path``."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *line, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, "BENCH_KEY": KEY}
        )
    try:
        async with asyncio.timeout(60):
            while not await answers(path):
                if process.returncode is not None:
                    sys.exit(f"{line[0]} ended, see {log}")
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def answers(path: str) -> bool:
    """Whether the router answers with 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", ROUTER_PORT)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


async def live(router: str, scenario: Scenario, folder: Path) -> Figures:
    """One run of a scenario through a router, with servers that hold nothing yet."""
    async with fleet(scenario.plan, FIRST_PORT) as replicas:
        line, path = command(router, scenario, replicas, folder)
        async with running(line, path, folder / f"{router.replace(' ', '-')}.log"):
            outcomes = await replay(ROUTER_PORT, scenario.arrivals, scenario.prompts, KEY)
        errors = [one.error for one in outcomes if one.error]
        if errors:
            print(f"{router}: {len(errors)} failed, the first with {errors[0]!r}")
        return measured(replicas, outcomes)


def ranking(figures: Mapping[str, Figures], percent: int, close: float = 0.1) -> list[set[str]]:
    """Policies from the best to the worst by a percentile of the wait; those within ``close`` of the best of a place share it."""
    found: list[set[str]] = []
    best = 0.0
    for name in sorted(figures, key=lambda name: figures[name].first_s[percent]):
        wait_s = figures[name].first_s[percent]
        if found and wait_s <= best * (1.0 + close):
            found[-1].add(name)
        else:
            found.append({name})
            best = wait_s
    return found


def agreement(simulated: Mapping[str, Figures], seen: Mapping[str, Figures], percent: int) -> str:
    """Whether no two policies stand the other way round, in words."""
    first, second = ranking(simulated, percent), ranking(seen, percent)
    places = [{name: place for place, names in enumerate(order) for name in names} for order in (first, second)]
    agrees = all((places[0][one] - places[0][two]) * (places[1][one] - places[1][two]) >= 0 for one in places[0] for two in places[0])
    orders = (" < ".join(" = ".join(sorted(names)) for names in order) for order in (first, second))
    return f"first token p{percent}: simulator {next(orders)}; live {next(orders)}: {'AGREE' if agrees else 'DIFFER'}"


async def compare(name: str, scenario: Scenario, routers: Sequence[str], rounds: int, folder: Path) -> None:
    """All routers on one scenario, in turns; prints a table."""
    span_s, load = scenario.arrivals[-1].at_s, scenario.plan.load_of(scenario.arrivals)
    print(f"\n{name}: {len(scenario.arrivals)} requests in {span_s:.0f} s ({scenario.source}), load {load:.2f}", flush=True)
    seen: dict[str, list[Figures]] = {router: [] for router in routers}
    for turn in range(rounds):
        for router in routers:
            seen[router].append(await live(router, scenario, folder))
            figures = seen[router][-1]
            print(f"  round {turn + 1}: {router:18} {figures.line()}  requests {[int(one) for one in figures.taken]}", flush=True)
    expected = {policy: mean([predicted(scenario, policy, seed) for seed in range(1, 6)]) for policy in sorted(set(LIKE.values()))}
    head = "   p50    p90    p99    hits  imb.  cold"
    print(f"\n  {'mean of ' + str(rounds):18} {head}   | simulator, mean of 5 seeds\n  {'':18} {'':40}   | {head}")
    for router in routers:
        alike = router in GATEWAY or (router in LIKE and (len(scenario.plan.models) == 1 or router != "nginx round robin"))
        beside = expected[LIKE[router]].line() if alike else ""  # the gateway takes turns for each model, nginx for all together
        print(f"  {router:18} {mean(seen[router]).line()}   | {beside}")
    ours = {policy: mean(seen[router]) for router, policy in GATEWAY.items() if router in routers}
    for percent in PERCENTILES:
        print("  " + agreement({policy: expected[policy] for policy in ours}, ours, percent), flush=True)


def main() -> None:
    """Read the command line and measure."""
    asked = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    asked.add_argument("--scenarios", default=",".join(SCENARIOS), help="any of these")
    asked.add_argument("--routers", default=",".join(ROUTERS), help="any of these")
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--seed", type=int, default=1, help="of the part of the trace that is taken, or of the trace that is made")
    asked.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hx-bench", help="for peers and logs")
    options = asked.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    routers = [router for router in options.routers.split(",") if not router.startswith("nginx") or shutil.which("nginx")]
    for name in options.scenarios.split(","):
        fitting = [router for router in routers if name != "models" or router not in SGLANG]  # it knows no models
        asyncio.run(compare(name, SCENARIOS[name](options.seed), fitting, options.rounds, options.folder))


if __name__ == "__main__":
    main()
