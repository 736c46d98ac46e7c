"""First paint of every page of the dashboard over a million requests in SQLite, `python -m bench.dashboard`."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright
from tests.browser.conftest import ARGUMENTS, DESKTOP
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess
from tests.support.required import program

from bench.analytics import fill
from hx_gateway.control.dashboard import PAGES
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.upgrade import upgrade

TIMES = 5
MORE = (
    "/requests?outcome=upstream_error",
    "/requests?key=key-7&outcome=upstream_error",
    "/requests?user=nobody",
    "/usage?span=24+hours",
    "/usage?span=7+days&by=model",
    "/usage?span=90+days&by=key&show=tokens",
    "/usage?span=year&by=endpoint",
    "/usage?span=90+days&key=key-7&by=model",
    "/config?all=1",
)
PAINTED = """() => new Promise(told => {
    const [page] = performance.getEntriesByType('navigation');
    const first = () => performance.getEntriesByName('first-contentful-paint')[0];
    const say = () => { const at = first(); at && page.loadEventEnd ? told([page.responseEnd, at.startTime, page.loadEventEnd]) : setTimeout(say, 10); };
    say();
})"""


async def filled(url: str, rows: int) -> None:
    """A database as after three months of traffic."""
    await upgrade(url)
    store = Store(url, statement_s=3600.0)
    try:
        await fill(store, rows, int(time.time() * 1000))
    finally:
        await store.close()


def look(page: Any, url: str) -> list[tuple[float, float, float]]:
    """Milliseconds until a page was there, until its first contentful paint, and until all of it was loaded, several times."""
    found = []
    for _ in range(TIMES):
        page.goto(url)
        found.append(tuple(page.evaluate(PAINTED)))
    return found


def main() -> None:
    """Fill, open and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="requests in the store")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="hx-bench-") as folder, scripted(models=("tiny",)) as backend:
        asyncio.run(filled(f"sqlite:///{Path(folder) / 'hx-gateway.db'}", rows))
        config = f'endpoints: {{one: {{url: "{backend.url}", provider: openai}}}}\nmodels: {{tiny: {{endpoint: one}}}}\n'
        with GatewayProcess(config, {"STATE_DIRECTORY": folder}, workers=2) as gateway, sync_playwright() as driver:
            newest = httpx.get(f"{gateway.url}/admin/requests", headers={"authorization": f"Bearer {KEY}"}, timeout=60).json()["data"][0][
                "id"
            ]
            browser = driver.chromium.launch(executable_path=program("chromium"), args=ARGUMENTS)
            page = browser.new_page(viewport=DESKTOP)
            page.goto(gateway.url)
            page.get_by_label("Admin key").fill(KEY)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url("**/ui/fleet")
            print(f"{rows:,} requests in SQLite; milliseconds, the middle of {TIMES} and the longest")
            print(f"  {'page':<46} {'there':>7} {'painted':>9} {'longest':>9} {'loaded':>8}")
            for path in (*(one.path for one in PAGES), f"/requests/{newest}", *MORE):
                there, painted, loaded = zip(*look(page, f"{gateway.url}/ui{path}"), strict=True)
                middle = statistics.median
                print(f"  {path:<46} {middle(there):>7.0f} {middle(painted):>9.0f} {max(painted):>9.0f} {middle(loaded):>8.0f}", flush=True)
            page.goto(f"{gateway.url}/ui/requests")
            took = []
            while (older := page.get_by_role("link", name="Older")).count() and len(took) < 50:
                older.click()
                took.append(page.evaluate(PAINTED)[1])
            print(f"  fifty pages back in the log, one by one: middle {statistics.median(took):.0f}, longest {max(took):.0f}")
            browser.close()


if __name__ == "__main__":
    main()
