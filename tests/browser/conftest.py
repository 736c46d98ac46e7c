"""A real Chromium before a real gateway: two workers, three model servers in processes of their own, and traffic.

What others build on: ``fleet`` (the running gateway), ``open_page`` (a signed-in page that fails the test for any console error), and
``judge`` (axe-core finds nothing serious). ``HX_SHOTS=folder`` keeps the pictures that `shoot` takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support import required
from tests.support.gateway import KEY, GatewayProcess, free_port

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'hx-gateway[dev]'")

HERE = Path(__file__).parent
ARGUMENTS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-gpu",
    "--disable-quic",
]  # fmt: skip
SHOTS = os.environ.get("HX_SHOTS", "")  # read here: within a test such variables are not there
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 780}


@dataclass
class Fleet:
    """A gateway with its servers.

    Args:
        gateway: The gateway.
        servers: Processes of the model servers, by name.
    """

    gateway: GatewayProcess
    servers: dict[str, subprocess.Popen[bytes]]
    _quiet: threading.Event = field(default_factory=threading.Event)

    def ask(self, model: str = "hx-chat", prompt: str = "Count to 20") -> httpx.Response:
        """One chat."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=30)

    def busy(self, seconds_between: float = 0.05) -> Callable[[], None]:
        """Ask again and again in the background; returns what ends that."""
        over = threading.Event()

        def work() -> None:
            number = 0
            while not over.wait(seconds_between):
                number += 1
                self.ask(("hx-chat", "llama3.2-3b", "phi3")[number % 3], f"Count to {5 + number % 40}, and think of {number}")

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def end() -> None:
            over.set()
            thread.join()

        return end


def serve(dialect: str, port: int, *models: str, token_s: float = 0.0) -> subprocess.Popen[bytes]:
    """A scripted model server in a process of its own."""
    named = ["--token-s", str(token_s), *(argument for model in models for argument in ("--model", model))]
    command = [sys.executable, "-m", "hx_gateway.testing.backend", "--port", str(port), "--dialect", dialect, *named]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"http"), "the model server did not start"
    return process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two chat servers and an Ollama with an embedding model, in processes of their own, behind a gateway of two workers."""
    ports = {name: free_port() for name in ("llm-01", "llm-02", "orc")}
    servers = {
        "llm-01": serve("openai", ports["llm-01"], "llama3.2-3b"),
        "llm-02": serve("openai", ports["llm-02"], "llama3.2-3b", "phi3"),
        "orc": serve("ollama", ports["orc"], "mxbai-embed-large"),
    }
    config = f"""
endpoints:
  llm-01: {{url: "http://127.0.0.1:{ports["llm-01"]}", provider: openai}}
  llm-02: {{url: "http://127.0.0.1:{ports["llm-02"]}", provider: openai}}
  orc: {{url: "http://127.0.0.1:{ports["orc"]}", provider: ollama, memory_gb: 8}}
models:
  llama3.2-3b: {{endpoints: [llm-01, llm-02]}}
  phi3: {{endpoint: llm-02}}
  phi3-limited: {{endpoint: llm-02, upstream_model: phi3, requests_per_minute: 6, tokens_per_minute: 1500}}
  emb-premium: {{endpoint: orc, upstream_model: mxbai-embed-large, mode: embedding}}
groups:
  hx-chat: {{models: [llama3.2-3b, phi3], tier: balanced, policy: intelligent}}
load_balancer: {{algorithm: round_robin}}
"""
    state = tmp_path_factory.mktemp("state")
    try:
        with GatewayProcess(config, {"STATE_DIRECTORY": str(state)}, workers=2) as gateway:
            yield Fleet(gateway, servers)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser that the system has."""
    path = required.program("chromium")
    with playwright.sync_playwright() as driver:
        playwright.expect.set_options(timeout=30_000)  # a busy build server is slow, not wrong
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, fleet: Fleet) -> Iterator[Callable[..., Any]]:
    """Opens a page of the dashboard, signed in; at the end nothing may have complained in any console."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text}")

    def opened(path: str = "/ui/fleet", viewport: dict[str, int] | None = None, scheme: str = "light") -> Any:
        context = chromium.new_context(viewport=viewport or DESKTOP, color_scheme=scheme, base_url=fleet.gateway.url)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.goto("/")
        page.get_by_label("Admin key").fill(KEY)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/ui/fleet")
        if path != "/ui/fleet":
            page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, in the version that package.json names; npm brings it the first time."""
    installed = HERE / "node_modules" / "axe-core"
    version = json.loads((HERE / "package.json").read_text())["dependencies"]["axe-core"]
    described = installed / "package.json"
    if not described.exists() or json.loads(described.read_text())["version"] != version:
        command = [required.program("npm"), "install", "--prefix", str(HERE), "--no-package-lock", "--no-audit", "--no-fund"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            required.missing(f"needs axe-core, which npm could not bring: {done.stderr[-500:]}")
    return (installed / "axe.min.js").read_text()


@pytest.fixture
def judge(axe: str) -> Callable[[Any], None]:
    """Fails for what axe-core finds serious or critical on a page."""

    def judged(page: Any) -> None:
        # Through the debugger's own world: the page's policy allows no scripts but its own.
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        told = [f"{one['id']}: {one['help']}: {node['html'][:160]}" for one in serious for node in one["nodes"][:3]]
        assert told == []

    return judged


def shoot(page: Any, name: str, full: bool = False) -> None:
    """Keep a picture of a page where ``HX_SHOTS`` names a folder."""
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=full)
