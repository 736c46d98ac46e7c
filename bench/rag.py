"""How well documents are found: the Cranfield collection through the gateway's HTTP routes, by meaning, by words and by both, on each store.

Without the collection or the model it says so and ends. The model is a real one in llama.cpp behind the gateway; what it made of a text is
remembered in a file, so that the next store, and the next run, need not wait for it again. The bounds are those of the folder's own measure, in
which every document listed as relevant counts alike; the grades of its judgements are printed beside.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import http.client
import json
import math
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.background import Background, llamacpp
from tests.support.engines import Postgres
from tests.support.gateway import GatewayProcess
from tests.support.qdrant import StandIn
from tools import minilm

DATA, MODEL = Path("../shared/data/retrieval"), Path(".hx/cache/all-minilm-l6-v2.gguf")
BOUNDS = {"sparse": 0.36, "dense": 0.38, "hybrid": 0.42}
DEPTH = 10  # of nDCG
LONGEST = 1500  # characters of an abstract: the model reads 512 tokens
_BATCH = 50
_ATTEMPTS = 10
_CONFIG = """
endpoints: {{model: {{url: "{url}", provider: openai}}}}
models: {{minilm: {{endpoint: model, mode: embedding, dimensions: 384}}}}
embeddings: {{model: minilm}}
storage: {{state_directory: "{state}"{database}}}
rag: {{store: {store}, batch: 16}}
"""


class Remembered:
    """An OpenAI-style server for embeddings that asks the model once for each text.

    Args:
        file: Where the vectors are kept, a line of JSON each.
        model: Address of the model's server.
    """

    def __init__(self, file: Path, model: str) -> None:
        self._file, self._model = file, model
        self._lock = threading.Lock()
        self._known: dict[str, list[float]] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    name, vector = json.loads(line)
                    self._known[name] = vector

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text."""
        names = [hashlib.sha256(" ".join(text.split()).encode()).hexdigest() for text in texts]
        with self._lock:
            missing = [number for number, name in enumerate(names) if name not in self._known]
            if missing:
                body = json.dumps({"model": "minilm", "input": [texts[number] for number in missing]}).encode()
                request = urllib.request.Request(f"{self._model}/v1/embeddings", body, {"content-type": "application/json"})
                with urllib.request.urlopen(request, timeout=600) as answer, self._file.open("a") as file:
                    for number, item in zip(missing, json.load(answer)["data"], strict=True):
                        self._known[names[number]] = item["embedding"]
                        file.write(json.dumps([names[number], item["embedding"]]) + "\n")
        return [self._known[name] for name in names]

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Its address, for the length of a ``with``."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(200, {"object": "list", "data": [{"id": "minilm", "object": "model"}]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
                texts = [asked] if isinstance(asked, str) else asked
                try:
                    data = [
                        {"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(outer.embed(texts))
                    ]
                except urllib.error.HTTPError as error:
                    self.answer(400, json.load(error))
                    return
                used = sum(len(text) // 4 for text in texts)
                self.answer(
                    200, {"object": "list", "model": "minilm", "data": data, "usage": {"prompt_tokens": used, "total_tokens": used}}
                )

            def answer(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


def asked(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The result of a request to the gateway; what is refused ends the program, but a store that is busy is asked again."""
    for _ in range(_ATTEMPTS):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=1200)
        try:
            connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {gateway.key}"})
            answer = connection.getresponse()
            value = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status == 200:
            return dict(value["result"])
        if answer.status != 503:
            break
        time.sleep(1)  # the client's local mode answers nothing while it looks for something
    raise SystemExit(f"{path}: {answer.status} {value}")


def ndcg(found: Sequence[str], relevant: Mapping[str, int]) -> float:
    """nDCG@10, where what is relevant gains its score."""
    gain = sum(relevant.get(one, 0) / math.log2(rank + 1) for rank, one in enumerate(found[:DEPTH], 1))
    best = sum(score / math.log2(rank + 1) for rank, score in enumerate(sorted(relevant.values(), reverse=True)[:DEPTH], 1))
    return gain / best if best else 0.0


def collection(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Documents, queries, and what is relevant for each query."""

    def lines(name: str) -> list[str]:
        with gzip.open(folder / name, "rt") as file:
            return file.read().splitlines()

    judged: dict[str, dict[str, int]] = {}
    for line in lines("cranfield_qrels.tsv.gz")[1:]:
        query, document, score = line.split("\t")
        judged.setdefault(query, {})[document] = int(score)
    documents = [json.loads(line) for line in lines("cranfield_corpus.jsonl.gz")]
    return documents, [json.loads(line) for line in lines("cranfield_queries.jsonl.gz")], judged


def measured(
    gateway: GatewayProcess, documents: Any, queries: Any, judged: Any, chunked: bool, more: dict[str, Any]
) -> dict[str, list[tuple[float, float]]]:
    """nDCG@10 of each query by mode: with every relevant document alike, and with the grades of their relevance."""
    bodies = []
    for one in documents:
        text = f"{one['title']}\n{one['text']}".strip()
        if text:
            bodies.append(
                {"id": one["_id"], "metadata": {"title": one["title"]}, **({"text": text} if chunked else {"chunks": [text[:LONGEST]]})}
            )
    for start in range(0, len(bodies), _BATCH):
        for _ in range(_ATTEMPTS):  # what is stored already is not stored again
            result = asked(gateway, "/v1/rag/upsert", {"documents": bodies[start : start + _BATCH]})
            if not result["failed"]:
                break
            time.sleep(1)
        else:
            raise SystemExit(f"not stored: {[one for one in result['documents'] if one['status'] == 'failed'][:3]}")
    figures: dict[str, list[tuple[float, float]]] = {}
    for mode in BOUNDS:
        for query in queries:
            if query["_id"] not in judged:
                continue
            body = {"query": query["text"], "mode": mode, "limit": 30 if chunked else DEPTH, **(more if mode == "hybrid" else {})}
            found = [point["payload"]["document"] for point in asked(gateway, "/v1/rag/search", body)["points"]]
            once, graded = list(dict.fromkeys(found)), judged[query["_id"]]
            figures.setdefault(mode, []).append((ndcg(once, dict.fromkeys(graded, 1)), ndcg(once, graded)))
    return figures


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def stores(names: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Each store with what the configuration says of its database."""
    for name in names:
        if name == "postgres":
            with Postgres() as postgres:
                yield name, f', database_url: "{postgres.url()}"'
        elif name == "qdrant":
            with Background(StandIn) as qdrant:
                yield name, f', qdrant_url: "{qdrant.url}"'
        else:
            yield name, ""


def main() -> int:
    """Measure, print, and compare with the bounds; 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.rag", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collection")
    parser.add_argument("--model", type=Path, default=MODEL, help="GGUF file of all-MiniLM-L6-v2; made where it is not there")
    parser.add_argument("--stores", default="embedded,postgres,qdrant", help="embedded, postgres, qdrant: its client's local mode")
    parser.add_argument("--chunked", action="store_true", help="let the gateway cut the abstracts instead of one chunk each")
    parser.add_argument("--rrf-k", type=float, default=None)
    parser.add_argument("--candidates", type=int, default=None)
    options = parser.parse_args()
    if not (options.data / "cranfield_corpus.jsonl.gz").exists():
        print(f"no Cranfield collection in {options.data}: nothing is measured")
        return 0
    try:
        model = minilm.make(options.model)
    except minilm.ModelError as error:
        print(f"no embedding model: {error}; nothing is measured")
        return 0
    documents, queries, judged = collection(options.data)
    more = {name: value for name, value in (("rrf_k", options.rrf_k), ("candidates", options.candidates)) if value is not None}
    missed = False
    server = llamacpp(model.resolve(), "--embedding", "--context", "512", "--slots", "2", "--alias", "minilm")
    with server as address, Remembered(model.with_suffix(".vectors.jsonl"), address).served() as url:
        print(
            f"{len(documents)} documents, {len(judged)} queries; nDCG@{DEPTH} of all, of the odd queries (tuned on), of the even ones; all, graded"
        )
        for name, database in stores(options.stores.split(","), model.parent):
            with tempfile.TemporaryDirectory() as state:
                config = _CONFIG.format(url=url, state=state, database=database, store=name)
                with GatewayProcess(config) as gateway:
                    figures = measured(gateway, documents, queries, judged, options.chunked, more)
            best = max(mean([alike for alike, _ in pairs]) for pairs in figures.values())
            for mode, pairs in figures.items():
                values, graded = [alike for alike, _ in pairs], mean([grade for _, grade in pairs])
                good = mean(values) >= BOUNDS[mode] and (mode != "hybrid" or mean(values) >= best)
                missed |= not good
                said = "" if good else f"  MISSED: at least {BOUNDS[mode]}, and hybrid at least as good as the best single"
                print(
                    f"{name:9} {mode:7} {mean(values):.4f}  {mean(values[::2]):.4f}  {mean(values[1::2]):.4f}  {graded:.4f}{said}",
                    flush=True,
                )
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
