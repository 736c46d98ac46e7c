"""Embeddings of prompts by a real model, all-MiniLM-L6-v2 on llama.cpp, kept in a cache: it takes minutes to make some thousand."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from tools import minilm

from hx_gateway.dataplane.inside import embeddings_of
from hx_gateway.routing.learned.meaning import bounded, packed

CACHE = Path(__file__).parents[1] / ".hx" / "cache"
MODEL = "all-minilm-l6-v2"
_BATCH = 16


def meanings(prompts: Sequence[str]) -> list[bytes]:
    """For each prompt its embedding as features keep it; those that are not in the cache are made."""
    path = CACHE / f"{MODEL}.prompts"
    known: dict[str, bytes] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            known[name] = base64.b64decode(value)
    names = [sha256(prompt.encode()).hexdigest()[:32] for prompt in prompts]
    missing = list({name: bounded(prompt) for name, prompt in zip(names, prompts, strict=True) if name not in known}.items())
    if missing:
        CACHE.mkdir(parents=True, exist_ok=True)
        with served() as address, path.open("a") as file:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                for (name, _), vector in zip(part, embedded(address, [text for _, text in part]), strict=True):
                    known[name] = packed(MODEL, vector)
                    file.write(f"{name} {base64.b64encode(known[name]).decode()}\n")
                if start % (64 * _BATCH) == 0:
                    print(f"embedded {start} of {len(missing)} prompts", file=sys.stderr, flush=True)
    return [known[name] for name in names]


@contextmanager
def served() -> Iterator[str]:
    """The address of a server with the model."""
    path = minilm.make(CACHE / f"{MODEL}.gguf")
    command = [sys.executable, "-m", "hx_gateway.local.server", "--path", str(path), "--alias", MODEL, "--embedding", "--slots", "8"]
    with subprocess.Popen([*command, "--context", "512", "--threads", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["address"]
        finally:
            server.kill()


def embedded(address: str, texts: Sequence[str]) -> list[list[float]]:
    """The embeddings of texts, in their order."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=120)
    connection.request("POST", "/v1/embeddings", json.dumps({"model": MODEL, "input": texts}), {"content-type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    try:
        return embeddings_of(answer, len(texts))
    except ValueError:
        raise SystemExit(f"the model server says: {answer.decode(errors='replace')[:500]}") from None
