"""A machine that systemd really booted: a container over this system's own root, thrown away afterwards, without a network."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support import required

# Services of the lower system that would only get in the way.
NOT_STARTED = ("nginx", "haproxy", "prometheus", "redis-server", "postgresql")


class Machine:
    """A booted machine.

    Args:
        root: Its root, as seen from here.
        leader: Process id of its systemd, as seen from here.
    """

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader
        self.share = root / "srv/hx"

    def command(self, *words: str, environ: Mapping[str, str] | None = None) -> list[str]:
        """The command that runs ``words`` in there."""
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/srv",
            "LANG": "C.UTF-8",
            **(environ or {}),
        }
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "--"]
        return [*inside, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), *words]

    def run(self, *words: str, environ: Mapping[str, str] | None = None, within_s: float = 110.0) -> subprocess.CompletedProcess[str]:
        """Run a command in there to its end."""
        return subprocess.run(
            self.command(*words, environ=environ), text=True, capture_output=True, timeout=within_s, stdin=subprocess.DEVNULL
        )

    def do(self, *words: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a command that must go well; returns everything it said."""
        done = self.run(*words, environ=environ)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def shown(self, name: str) -> str:
        """A property of the service."""
        return self.do("systemctl", "show", "--value", "-p", name, "hx-gateway.service").strip()

    def get(self, path: str, key: str = "", port: int = 8000) -> str:
        """What the gateway answers, empty when it does not."""
        header = ["-H", f"authorization: Bearer {key}"] if key else []
        return self.run("curl", "-s", "--max-time", "5", *header, f"http://127.0.0.1:{port}{path}").stdout

    @contextlib.contextmanager
    def beside(self, *words: str, environ: Mapping[str, str] | None = None) -> Iterator[None]:
        """A program of this system that runs in the machine's network, for its loopback, until the block ends."""
        here = ["nsenter", "-t", str(self.leader), "-n", "--", *words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(here, stdin=subprocess.PIPE, env={**os.environ, **(environ or {})}, **quiet)
        try:
            yield
        finally:
            process.terminate()
            process.communicate(timeout=30)


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Boot a machine, and take it down."""
    if os.getuid() != 0:
        required.missing("needs root, to boot a container")
    required.program("systemd-nspawn")
    required.program("nsenter")
    folder = Path(tempfile.mkdtemp(prefix="hx-machine-"))
    mounts: list[Path] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(folder)], check=True)
        mounts.append(folder)
        for name in ("up", "wk", "root"):
            (folder / name).mkdir()
        root = folder / "root"
        options = f"lowerdir=/,upperdir={folder / 'up'},workdir={folder / 'wk'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
        mounts.append(root)
        for name in NOT_STARTED:
            (root / f"etc/systemd/system/multi-user.target.wants/{name}.service").unlink(missing_ok=True)
        (root / "srv/hx").mkdir(parents=True, exist_ok=True)
        words = [
            "systemd-nspawn",
            "-D",
            str(root),
            "-M",
            f"hx-{os.getpid()}",
            "--boot",
            "--private-network",
            "--register=no",
            "--keep-unit",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        yield Machine(root, _leader(process, folder / "log"))
    finally:
        if process is not None:
            process.terminate()  # it powers the machine off
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for place in reversed(mounts):
            subprocess.run(["umount", "-l", str(place)], check=False)
        folder.rmdir()


def _leader(process: subprocess.Popen[bytes], log: Path, within_s: float = 60.0) -> int:
    """Wait until it is up; returns the process id of its systemd."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        assert process.poll() is None, log.read_text(errors="replace")
        children = subprocess.run(["pgrep", "-P", str(process.pid)], text=True, capture_output=True).stdout.split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                state = subprocess.run(
                    [*Machine(Path(), int(child)).command("systemctl", "is-system-running")], text=True, capture_output=True
                )
                if state.stdout.strip() in ("running", "degraded"):
                    return int(child)
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace"))


def renamed(wheel: Path, version: str, changes: Mapping[str, bytes | None] | None = None) -> Path:
    """The wheel of another release: the same but for its version, and files that get something added at their end, or with None are not there."""
    name, old = wheel.name.split("-")[:2]
    made = wheel.with_name(wheel.name.replace(f"-{old}-", f"-{version}-"))
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(made, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith(".dist-info/METADATA"):
                data = data.replace(f"\nVersion: {old}\n".encode(), f"\nVersion: {version}\n".encode(), 1)
            if item.filename.endswith(".dist-info/RECORD"):
                data = data.replace(f"{name}-{old}.dist-info".encode(), f"{name}-{version}.dist-info".encode())
            change = (changes or {}).get(item.filename, b"")
            if change is None:
                continue
            data += change
            target.writestr(item.filename.replace(f"{name}-{old}.dist-info", f"{name}-{version}.dist-info"), data)
    return made


def files_below(root: Path, *folders: str) -> dict[str, tuple[int, int, int, int]]:
    """Every file below some folders, with time of change, owner, mode and size."""
    found = {}
    for folder in folders:
        for path in (root / folder).rglob("*"):
            stat = path.lstat()
            found[str(path.relative_to(root))] = (stat.st_mtime_ns, stat.st_uid, stat.st_mode, stat.st_size)
    return found


LOAD = """
import http.client, json, sys, threading, time

key, port = sys.argv[1], int(sys.argv[2])
heads = {"authorization": "Bearer " + key, "content-type": "application/json"}
told = {"good": 0, "streams": 0, "failures": []}
over = False


def ask(connection, **more):
    body = {"model": "hx-chat", "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}], "max_tokens": 8, **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), heads)
    answer = connection.getresponse()
    return answer, answer.read()


def unary(kept):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not over:
        try:
            answer, body = ask(connection)
            assert answer.status == 200 and b"HX-OK" in body, (answer.status, body)
            told["good"] += 1
            if not kept or answer.getheader("connection") == "close":
                connection.close()
        except Exception as error:
            told["failures"].append(repr(error))
            connection.close()
        time.sleep(0.2)


def streams():
    while not over:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            text = [{"role": "user", "content": "Count to 20"}]
            answer, body = ask(connection, stream=True, messages=text, max_tokens=60)
            assert answer.status == 200 and body.rstrip().endswith(b"[DONE]"), (answer.status, body[-200:])
            told["streams"] += 1
            connection.close()
        except Exception as error:
            told["failures"].append("stream: " + repr(error))
        time.sleep(0.3)


threads = [threading.Thread(target=unary, args=(kept,)) for kept in (0, 0, 1, 1)] + [threading.Thread(target=streams) for _ in range(2)]
for thread in threads:
    thread.start()
print("begun", flush=True)
sys.stdin.read()
over = True
for thread in threads:
    thread.join()
print(json.dumps(told))
"""


@contextlib.contextmanager
def load(machine: Machine, key: str, port: int = 8000) -> Iterator[dict[str, object]]:
    """Requests and streams until the block ends; what came of them is in the dictionary afterwards."""
    told: dict[str, object] = {}
    process = subprocess.Popen(
        machine.command("python3", "-c", LOAD, key, str(port)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n", process.stderr and process.stderr.read()
    try:
        yield told
    finally:
        said, wrong = process.communicate("", timeout=100)
        told |= json.loads(said) if said else {"failures": [wrong]}
