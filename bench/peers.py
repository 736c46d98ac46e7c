"""The proxies that are measured: where each listens, and how it is started."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {"envoy": "pyvoy==1.3.0", "sglang-router": "sglang-router==0.3.2"}
KEY = "key-of-the-bench"


@dataclass(frozen=True)
class Peer:
    """A proxy in front of the two scripted upstreams.

    Args:
        port: Where it listens.
        command: How to start it; empty for the upstream itself.
    """

    port: int
    command: list[str]


def _nginx(folder: Path) -> list[str]:
    settings = folder / "nginx.conf"
    settings.write_text((HERE / "peers" / "nginx.conf").read_text().replace("FOLDER", str(folder)))
    return ["nginx", "-c", str(settings), "-g", "worker_processes 1;"]


def prepare(name: str, folder: Path) -> Path:
    """The environment of a peer that comes as a Python package, made when it is missing."""
    home = folder / name
    if not (home / "bin" / "python").exists():
        subprocess.check_call([sys.executable, "-m", "venv", str(home)])
        subprocess.check_call([str(home / "bin" / "python"), "-m", "pip", "install", "-q", PACKAGES[name]])
    return home


def peers(names: list[str], folder: Path) -> dict[str, Peer]:
    """The peers asked for that can run on this machine."""
    found: dict[str, Peer] = {}
    for name in names:
        if name in ("gateway", "gateway-no-ledger", "gateway-cache"):
            settings = HERE / ("cache.yaml" if name == "gateway-cache" else "gateway.yaml")
            own = [f"XDG_STATE_HOME={folder / 'state'}", f"HX__LEDGER__ENABLED={str(name != 'gateway-no-ledger').lower()}"]
            found[name] = Peer(8100, ["env", *own, sys.executable, "-m", "hx_gateway", "serve", str(settings)])
        elif name == "nginx" and shutil.which("nginx"):
            found[name] = Peer(8001, _nginx(folder))
        elif name == "haproxy" and shutil.which("haproxy"):
            found[name] = Peer(8002, ["haproxy", "-f", str(HERE / "peers" / "haproxy.cfg")])
        elif name == "envoy":
            options = ["-c", str(HERE / "peers" / "envoy.yaml"), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
            found[name] = Peer(8003, [str(prepare(name, folder) / "bin" / "envoy"), *options])
        elif name == "sglang-router":
            servers = ["--worker-urls", "http://127.0.0.1:9101", "http://127.0.0.1:9102", "--host", "127.0.0.1", "--port", "8010"]
            options = ["--policy", "round_robin", "--prometheus-port", "29010", "--disable-health-check", "--log-level", "warn"]
            python = str(prepare(name, folder) / "bin" / "python")
            found[name] = Peer(8010, [python, "-m", "sglang_router.launch_router", *servers, *options])
        else:
            print(f"{name}: not on this machine, left out")
    return found
