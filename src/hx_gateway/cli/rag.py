"""`hx-gateway rag`: bring documents to a running gateway, search them and remove them, over HTTP and with an API key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hx_gateway.rag.sources import Source

_DOCUMENTS, _BYTES = 32, 1 << 20  # of one request
_TIMEOUT_S = 600.0
_TRIES = 6
_LONGEST_WAIT_S = 30.0

Url = Annotated[str, typer.Option("--url", envvar="HX_URL", help="Address of the gateway.")]
Key = Annotated[str, typer.Option("--key", help="Where the API key is: env:NAME or file:PATH; env:HX_API_KEY without it.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Whose documents.")]
CollectionName = Annotated[str | None, typer.Option("--collection", help="Collection; without it the gateway's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_URL, _KEY = "http://127.0.0.1:8000", "env:HX_API_KEY"


class Refused(Exception):
    """The gateway answered with an error, or not at all.

    Args:
        message: In words.
        status: HTTP status; 0 for no answer.
        wait_s: Seconds after which to try again; 0 where nobody said.
    """

    def __init__(self, message: str, status: int = 0, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s


class _Client:
    """A gateway, asked over one connection."""

    def __init__(self, url: str, key: str) -> None:
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise typer.BadParameter(f"{url!r} is no http or https address", param_hint="--url")
        self._parts = parts
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {_secret(key)}"}
        self._connection: Any = None

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of a request.

        Raises:
            Refused: There is none.
        """
        import http.client
        import json
        import ssl

        secure = self._parts.scheme == "https"
        if self._connection is None:
            where: dict[str, Any] = {"timeout": _TIMEOUT_S, **({"context": ssl.create_default_context()} if secure else {})}
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            self._connection = kind(str(self._parts.hostname), self._parts.port, **where)
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, self._parts.path.rstrip("/") + path, data, self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Refused(
                f"no answer from {self._parts.hostname}:{self._parts.port or self._parts.scheme}: {error or type(error).__name__}"
            ) from None
        try:
            value = json.loads(text)
        except ValueError:
            value = {}
        if answer.status == 200 and isinstance(value, dict) and isinstance(value.get("result"), dict):
            result: dict[str, Any] = value["result"]
            return result
        said = value.get("error") if isinstance(value, dict) else None
        words = said.get("message") if isinstance(said, dict) else None
        after = answer.getheader("retry-after", "")
        raise Refused(
            str(words or f"HTTP status {answer.status}, which is no answer of a gateway"),
            answer.status or 1,
            float(after) if after.isdigit() else 0.0,
        )


def _secret(reference: str) -> str:
    import os

    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
        if not value:
            raise typer.BadParameter(f"the environment has no {name}; put an API key there", param_hint="--key")
    elif kind == "file":
        try:
            value = Path(name).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{name}: {error}", param_hint="--key") from None
    else:
        raise typer.BadParameter(
            "say env:NAME or file:PATH: a key on the command line can be seen by everyone on the machine", param_hint="--key"
        )
    return value


class _State:
    """What was stored by earlier runs: the hash of each document that the gateway acknowledged, a line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                digest, _, id = line.partition(" ")
                if len(digest) == 64 and id:  # a line cut off by a crash is one document more to send
                    self._known[id] = digest

    @staticmethod
    def digest(source: Source) -> str:
        """What tells a document from another version of it."""
        import hashlib
        import json

        return hashlib.sha256(json.dumps([source.text, source.format, source.metadata], sort_keys=True).encode()).hexdigest()

    def has(self, source: Source) -> bool:
        """Whether this version is stored."""
        return self._known.get(_line(source.id)) == self.digest(source)

    def add(self, sources: list[Source]) -> None:
        """Remember that these are stored."""
        import os

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for source in sources:
                self._known[_line(source.id)] = digest = self.digest(source)
                file.write(f"\n{digest} {_line(source.id)}\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self) -> None:
        """Begin anew."""
        self._known.clear()
        self._path.unlink(missing_ok=True)


def _line(id: str) -> str:
    return id.replace("\n", " ")


def _batches(sources: Iterator[Source]) -> Iterator[list[Source]]:
    batch: list[Source] = []
    size = 0
    for source in sources:
        length = len(source.text.encode("utf-8", "replace"))
        if batch and (len(batch) >= _DOCUMENTS or size + length > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(source)
        size += length
    if batch:
        yield batch


class _Ingest:
    """One run: sends documents and counts what became of them."""

    def __init__(self, client: _Client, state: _State, namespace: str, collection: str | None) -> None:
        self._client = client
        self._state = state
        self._where = {"namespace": namespace, **({"collection": collection} if collection else {})}
        self.counts = {"stored": 0, "unchanged": 0, "skipped": 0, "failed": 0}
        self.chunks = 0
        self.errors: list[tuple[str, str]] = []

    def fail(self, source: Source, why: str) -> None:
        """Note a document that is not stored."""
        self.counts["failed"] += 1
        self.errors.append((source.place, why))

    def fresh(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Those that are to be sent."""
        seen: set[str] = set()
        for source in sources:
            if source.error:
                self.fail(source, source.error)
            elif source.id in seen:
                self.fail(source, f"the id {source.id!r} was there before in this run")
            elif self._state.has(source):
                self.counts["skipped"] += 1
            else:
                yield source
            seen.add(source.id)

    def send(self, batch: list[Source]) -> None:
        """Store documents; those at fault are noted.

        Raises:
            Refused: No document can be stored, now or with this key.
        """
        documents = [{"id": one.id, "text": one.text, "format": one.format, "metadata": one.metadata} for one in batch]
        try:
            result = self._asked({**self._where, "documents": documents})
        except Refused as error:
            if error.status not in (400, 413, 422):
                raise
            if len(batch) == 1:
                self.fail(batch[0], str(error))
                return
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self.send(half)
            return
        done = []
        for source, outcome in zip(batch, result["documents"], strict=True):
            if outcome["status"] == "failed":
                self.fail(source, outcome["error"]["message"])
            else:
                self.counts[outcome["status"]] += 1
                self.chunks += outcome.get("chunks", 0) * (outcome["status"] == "stored")
                done.append(source)
        self._state.add(done)

    def _asked(self, body: dict[str, Any]) -> dict[str, Any]:
        import time

        for tried in range(_TRIES):
            try:
                return self._client.ask("POST", "/v1/rag/upsert", body)
            except Refused as error:
                if error.status not in (0, 429, 502, 503, 504) or tried == _TRIES - 1:
                    raise
                time.sleep(min(error.wait_s or 2.0**tried / 4, _LONGEST_WAIT_S))
        raise AssertionError


def _state_path(url: str, namespace: str, collection: str | None) -> Path:
    import hashlib
    import os

    from hx_gateway.config.storage import StorageSettings, state_directory

    name = hashlib.sha256(f"{url.rstrip('/')}\n{collection or ''}\n{namespace}".encode()).hexdigest()[:16]
    return state_directory(StorageSettings(), os.environ) / "ingest" / name


def _quit(error: Exception) -> typer.Exit:
    typer.echo(f"hx-gateway: {error}", err=True)
    return typer.Exit(1)


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders of .txt, .md, .rst, .html and .jsonl.")],
    namespace: Namespace = "default",
    collection: CollectionName = None,
    url: Url = _URL,
    key: Key = _KEY,
    text_field: Annotated[str, typer.Option(help="Field of JSON lines that holds the text; else text, contents, content or body.")] = "",
    state: Annotated[Path | None, typer.Option(help="File that remembers what is stored; without it one in the state directory.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Send everything, whatever earlier runs stored; unchanged documents stay as they are.")
    ] = False,
) -> None:
    """Store documents; run again it sends only what is new, changed or failed. Ends with 1 if a document could not be stored."""
    from rich.console import Console
    from rich.progress import Progress

    from hx_gateway.rag.sources import files, read

    client = _Client(url, key)
    known = _State(state or _state_path(url, namespace, collection))
    run = _Ingest(client, known, namespace, collection)
    try:
        found = files(paths)
        there = client.ask("GET", "/v1/rag/collections")
        named = collection or there["default"]
        if again or not any(one["name"] == named and one["namespaces"].get(namespace) for one in there["collections"]):
            known.forget()
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("documents", total=len(found))

            def sources() -> Iterator[Source]:
                for number, (file, id) in enumerate(found):
                    yield from read(file, id, text_field)
                    bar.update(task, completed=number + 1, description=f"{sum(run.counts.values())} documents")

            for batch in _batches(run.fresh(sources())):
                run.send(batch)
    except (FileNotFoundError, Refused) as error:
        typer.echo(_summary(run), err=True)
        raise _quit(error) from None
    for place, why in run.errors:
        typer.echo(f"{place}: {why}", err=True)
    typer.echo(_summary(run))
    if run.errors:
        raise typer.Exit(1)


def _summary(run: _Ingest) -> str:
    counts = run.counts
    return (
        f"{sum(counts.values())} documents: {counts['stored']} stored in {run.chunks} chunks, {counts['unchanged']} unchanged, "
        f"{counts['skipped']} stored before, {counts['failed']} failed"
    )


def search(
    query: Annotated[str, typer.Argument(help="What is looked for.")],
    namespace: Namespace = "default",
    collection: CollectionName = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most hits.")] = 5,
    mode: Annotated[str, typer.Option(help="dense (by meaning), sparse (by words) or hybrid.")] = "hybrid",
    url: Url = _URL,
    key: Key = _KEY,
    as_json: Json = False,
) -> None:
    """Search documents and show the best chunks, with the rank that each part of the search gave them."""
    import json

    body = {"query": query, "namespace": namespace, "limit": limit, "mode": mode, **({"collection": collection} if collection else {})}
    try:
        result = _Client(url, key).ask("POST", "/v1/rag/search", body)
    except Refused as error:
        raise _quit(error) from None
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for number, hit in enumerate(result["points"], 1):
        payload = hit["payload"]
        by = ", ".join(f"{part} {rank}" for part, rank in hit["found_by"].items())
        where = " > ".join(payload["metadata"].get("headings", []))
        typer.echo(f"{number}. {payload['document']} #{payload['chunk']}  {hit['score']:.4f} ({by}){'  ' + where if where else ''}")
        typer.echo(f"   {' '.join(payload['text'].split())[:300]}")
    if not result["points"]:
        typer.echo("nothing found", err=True)


def collections(url: Url = _URL, key: Key = _KEY, as_json: Json = False) -> None:
    """List collections: model, dimension, and the chunks of each namespace that the key may read."""
    import json

    try:
        result = _Client(url, key).ask("GET", "/v1/rag/collections")
    except Refused as error:
        raise _quit(error) from None
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for one in result["collections"]:
        counts = ", ".join(f"{name} {count}" for name, count in one["namespaces"].items()) or "nothing"
        typer.echo(f"{one['name']}  {one['model'] or 'no model'}  {one['dimension']} dimensions  {counts}")


def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents.")] = None,
    namespace: Namespace = "default",
    everything: Annotated[bool, typer.Option("--everything", help="Remove all documents of the namespace.")] = False,
    collection: CollectionName = None,
    url: Url = _URL,
    key: Key = _KEY,
) -> None:
    """Remove documents; to bring them back, ingest with --again."""
    body: dict[str, Any] = {"namespace": namespace, **({"collection": collection} if collection else {})}
    body |= {"everything": True} if everything else {}
    body |= {"ids": ids} if ids else {}
    try:
        result = _Client(url, key).ask("POST", "/v1/rag/delete", body)
    except Refused as error:
        raise _quit(error) from None
    typer.echo(f"{result['deleted']} chunks removed")


def group() -> typer.Typer:
    """The commands."""
    from hx_gateway.cli.rag_migrate import migrate

    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for function in (ingest, search, collections, delete, migrate):
        app.command()(function)
    return app
