"""Adds documents: cut into chunks, embedded unless they are known, stored, and rid of what they replace; each answered for by itself."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.errors import Blame, Failure
from hx_gateway.rag.bodies import Chunk, Document, Upsert
from hx_gateway.rag.chunking import cut, tokens
from hx_gateway.rag.points import Collection, Point, StoreUnavailable, Unfit, checked_name, packed
from hx_gateway.rag.service import Asker, Shelves, namespace_of, suited
from hx_gateway.rag.sparse import document_terms

_METADATA = 64 << 10  # bytes as JSON
_IDS = uuid.UUID("6f2c3c0e-7b0f-5a55-9d6c-2d1d6a1c7e11")
_AGAIN_S = 5.0
_LONG, _MANY = 4096, 16  # characters, and chunks, of a document that is not prepared while others wait
_READ = 440  # tokens that are embedded at once, by an estimate that is rather too high: small models read 512
_GIVEN = 256  # chunks that are stored together where none has to be embedded: each call waits for the disk
_LEVELS, _TITLE = 8, 200  # headings above a chunk, and characters of each, that are found and embedded with it


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one call may bring, and how it is embedded: settings of the section ``rag``."""

    documents: int = 1000
    document_bytes: int = 2 << 20
    batch: int = 64
    concurrency: int = 2


class Result(msgspec.Struct, omit_defaults=True):
    """What became of one document."""

    id: str
    namespace: str
    status: str = ""
    chunks: int = 0
    embedded: int = 0
    error: dict[str, Any] | None = None


class _Work:
    """One document on its way."""

    __slots__ = ("above", "at", "failure", "hash", "inputs", "metadata", "result", "texts", "vectors")

    def __init__(self, result: Result, at: str) -> None:
        self.result = result
        self.at = at  # where it stands in the request, for errors
        self.texts: list[str] = []
        self.above: list[str] = []  # title and headings of each, whose words count as its own
        self.inputs: list[str] = []  # what is embedded for each: the text below them, where both fit
        self.vectors: list[bytes] = []  # empty where one is still to be made
        self.metadata: list[dict[str, Any]] = []
        self.hash = ""
        self.failure: Failure | None = None

    def failed(self, failure: Failure) -> None:
        self.failure = failure
        self.result.status = "failed"
        self.result.error = msgspec.json.decode(failure.body())["error"]


def failure_of(error: Unfit | StoreUnavailable | Failure) -> Failure:
    """What an error is to the client."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, StoreUnavailable):
        return Failure(errors.STORE_UNAVAILABLE, f"{error}; try again when it is back", retry_after_s=_AGAIN_S)
    kind = errors.TOO_LARGE if isinstance(error, _TooLarge) else errors.INVALID_VALUE
    return Failure(kind, f"{error}" if error.field in str(error) else f"{error.field}: {error}", param=error.field)


def point_id(namespace: str, document: str, chunk: int) -> str:
    """The id of a chunk, the same whenever it is stored."""
    return str(uuid.uuid5(_IDS, f"{namespace}\0{document}\0{chunk}"))


async def upsert(
    shelves: Shelves, ask: Upsert, asker: Asker, limits: Limits, progress: Callable[[int, Result], None] | None = None
) -> dict[str, Any]:
    """Store documents; returns when all that it calls stored outlive a crash.

    Args:
        shelves: Where to.
        ask: What.
        asker: Who.
        limits: How much.
        progress: Told the number and the outcome of each document when it is known.

    Returns:
        Counts, and the outcome of each document in the order given.

    Raises:
        Unfit, Failure, StoreUnavailable: The request cannot be done, or not one of its documents could be stored.
    """
    if len(ask.documents) > limits.documents:
        raise Unfit(f"documents: at most {limits.documents} at once (rag.max_documents); send them in several requests", "documents")
    name = checked_name(ask.collection or shelves.default)
    works: list[_Work] = []
    seen: set[tuple[str, str]] = set()
    for number, document in enumerate(ask.documents):
        at = f"documents[{number}]"
        namespace = namespace_of(
            document.namespace or ask.namespace, asker.identity, True, f"{at}.namespace" if document.namespace is not None else "namespace"
        )
        work = _Work(Result(document.id or "", namespace), at)
        works.append(work)
        try:
            if len(document.text or "") > _LONG or len(document.chunks or ()) > _MANY:
                await asyncio.to_thread(_prepared, work, document, limits)
            else:
                _prepared(work, document, limits)
        except Unfit as error:
            work.failed(failure_of(error))
        if (namespace, work.result.id) in seen and work.failure is None:
            work.failed(failure_of(Unfit(f"{at}.id: {work.result.id!r} is given twice in this request", f"{at}.id")))
        seen.add((namespace, work.result.id))
        if number % 4 == 3:
            await asyncio.sleep(0)  # others wait while texts are cut
    call = _Call(shelves, name, ask.model, asker, limits)
    done = progress or (lambda number, result: None)
    for number, work in enumerate(works):
        if work.failure is not None:
            done(number, work.result)
    left = [(number, work) for number, work in enumerate(works) if work.failure is None]
    groups = _groups(left, limits.batch if any(not vector for _, work in left for vector in work.vectors) else _GIVEN)

    async def worker() -> None:
        for group in groups:
            await call.store([work for _, work in group])
            for number, work in group:
                done(number, work.result)

    # Not a task group: one that fails is told of per document, and none raises.
    await asyncio.gather(*(worker() for _ in range(limits.concurrency)))
    results = [work.result for work in works]
    counts = {status: sum(result.status == status for result in results) for status in ("stored", "unchanged", "failed")}
    if counts["failed"] == len(results):
        first = next(work.failure for work in works if work.failure is not None)
        if len(results) > 1:
            first.message += f" (and none of the other {len(results) - 1} documents could be stored)"
        raise first
    return {
        "status": "partial" if counts["failed"] else "completed",
        **counts,
        "chunks": sum(result.chunks for result in results if result.status == "stored"),
        "documents": results,
    }


def _groups(works: Sequence[tuple[int, _Work]], most: int) -> Iterator[list[tuple[int, _Work]]]:
    """Documents that go together: as many as have ``most`` chunks, or one that has more."""
    group: list[tuple[int, _Work]] = []
    size = 0
    for number, work in works:
        if group and size + len(work.texts) > most:
            yield group
            group, size = [], 0
        group.append((number, work))
        size += len(work.texts)
    if group:
        yield group


def _prepared(work: _Work, document: Document, limits: Limits) -> None:
    """Cut a document, check it, and find out what tells it from another version of it.

    Raises:
        Unfit: It cannot be stored.
    """
    at = work.at
    if (document.text is None) == (document.chunks is None):
        raise Unfit(f"{at}: text or chunks is required, and not both", f"{at}.text")
    if document.id is not None and "\0" in document.id:
        raise Unfit(f"{at}.id: holds a NUL character", f"{at}.id")
    whole = (
        [document.text] if document.text is not None else [part if isinstance(part, str) else part.text for part in document.chunks or ()]
    )
    size = sum(len(text) if text.isascii() else len(text.encode()) for text in whole)
    if size > limits.document_bytes:
        raise _TooLarge(
            f"{at}.text: {size} bytes are more than a document may have ({limits.document_bytes}, rag.max_document_bytes)", f"{at}.text"
        )
    for number, text in enumerate(whole):
        field = f"{at}.text" if document.text is not None else f"{at}.chunks[{number}]"
        if not text.strip():
            raise Unfit(f"{field}: should not be empty", field)
        if "\0" in text:
            raise Unfit(f"{field}: holds a NUL character", field)
    own = document.metadata
    if document.text is not None:
        for piece in cut(document.text, document.format):
            work.texts.append(piece.text)
            work.vectors.append(b"")
            work.metadata.append({**piece.metadata, **own} if piece.metadata else own)
    else:
        for number, part in enumerate(document.chunks or ()):
            chunk = Chunk(part) if isinstance(part, str) else part
            work.texts.append(chunk.text)
            work.metadata.append({**own, **chunk.metadata} if chunk.metadata else own)
            try:
                work.vectors.append(packed(chunk.numbers()) if chunk.embedded else b"")
            except Unfit as error:
                raise Unfit(f"{at}.chunks[{number}].vector: {error}", f"{at}.chunks[{number}].vector") from None
    try:
        metadata = msgspec.json.encode(work.metadata)
    except (OverflowError, ValueError, RecursionError) as error:
        raise Unfit(f"{at}.metadata: {error}", f"{at}.metadata") from None
    if len(metadata) > _METADATA * len(work.metadata):
        raise Unfit(f"{at}.metadata: at most {_METADATA} bytes as JSON", f"{at}.metadata")
    if b"\\u0000" in metadata.replace(b"\\\\", b""):
        raise Unfit(f"{at}.metadata: holds a NUL character", f"{at}.metadata")
    for text, about in zip(work.texts, work.metadata, strict=True):
        above = _above(about)
        below = "\n".join([*above, text])
        work.above.append("\n".join(above))
        work.inputs.append(below if above and len(below) <= 4 * _READ and tokens(below) <= _READ else text)
    digest = hashlib.sha256(msgspec.json.encode([work.texts, document.format if document.text is not None else ""]) + metadata)
    for vector in work.vectors:
        digest.update(hashlib.sha256(vector).digest())
    if not work.result.id:
        work.result.id = f"sha256-{digest.hexdigest()[:40]}"
    if any(work.above):
        digest.update(b"titles and headings")  # what was stored without their words is stored again, not called unchanged
    work.hash = digest.hexdigest()[:40]


def _above(metadata: dict[str, Any]) -> list[str]:
    """What stands above a chunk: the title of its document and the headings that lead to it, each once."""
    headings = metadata.get("headings")
    found = [metadata.get("title"), *(headings[:_LEVELS] if isinstance(headings, list) else ())]
    return list(dict.fromkeys(part.strip()[:_TITLE] for part in found if isinstance(part, str) and part.strip()))


class _TooLarge(Unfit):
    """More than may be sent."""


class _Call:
    """One upsert, as far as all its documents have it in common."""

    def __init__(self, shelves: Shelves, name: str, model: str | None, asker: Asker, limits: Limits) -> None:
        self.shelves = shelves
        self.name = name
        self.model = model
        self.asker = asker
        self.limits = limits

    async def store(self, works: Sequence[_Work]) -> None:
        """Store a few documents together; those at fault are taken apart from the others."""
        try:
            await self._stored(works)
        except (Unfit, StoreUnavailable, Failure) as error:
            failure = failure_of(error)
            if (
                len(works) > 1
                and failure.kind.blame is Blame.CLIENT
                and failure.kind not in (errors.RATE_LIMITED, errors.INSUFFICIENT_QUOTA)
            ):
                for work in works:
                    await self.store([work])
                return
            for work in works:
                work.failed(Failure(failure.kind, failure.message, param=failure.param, retry_after_s=failure.retry_after_s))

    async def _stored(self, works: Sequence[_Work]) -> None:
        store = self.shelves.store
        collection = await self.shelves.find(self.name)
        model = self.model or (collection.model if collection is not None else self.asker.model)
        if collection is not None:
            suited(collection, model)
        there: dict[tuple[str, str], list[Point]] = {}
        if collection is not None:
            for namespace in {work.result.namespace for work in works}:
                ids = [work.result.id for work in works if work.result.namespace == namespace]
                for id, points in (await store.documents(self.name, namespace, ids)).items():
                    there[namespace, id] = points
        left = []
        for work in works:
            known = there.get((work.result.namespace, work.result.id), [])
            if len(known) == len(work.texts) and all(point.content_hash == work.hash for point in known):
                work.result.status, work.result.chunks = "unchanged", len(known)
            else:
                left.append(work)
        if not left:
            return
        collection = await self._embedded(left, collection, model)
        points = []
        for work in left:
            for number, vector in enumerate(work.vectors):
                if len(vector) != 4 * collection.dimension:
                    field = f"{work.at}.chunks[{number}].vector"
                    raise Unfit(
                        f"{field}: {len(vector) // 4} numbers, but those of collection {self.name!r} have {collection.dimension}", field
                    )
            for point in await asyncio.to_thread(list, _points(work)) if max(map(len, work.texts)) > _LONG else _points(work):
                points.append(point)
                await asyncio.sleep(0)  # to find the words of a long text takes a millisecond
        await store.upsert(self.name, points)
        for work in left:
            # Only when what replaces them is stored: whatever happens, the document is never gone.
            beyond = [
                point.id
                for point in there.get((work.result.namespace, work.result.id), [])
                if point.id not in {point_id(work.result.namespace, work.result.id, number) for number in range(len(work.texts))}
            ]
            if beyond:
                await store.delete(self.name, work.result.namespace, beyond)
            work.result.status, work.result.chunks = "stored", len(work.texts)

    async def _embedded(self, works: Sequence[_Work], collection: Collection | None, model: str) -> Collection:
        """Embed what has no vector, and make the collection if this is its first."""
        missing = [(work, number) for work in works for number, vector in enumerate(work.vectors) if not vector]
        if missing and not model:
            raise Failure(
                errors.MISSING_MODEL, "no model embeds documents here: set embeddings.model, or send vectors with the chunks", param="model"
            )
        digest = ""
        for start in range(0, len(missing), self.limits.batch):
            part = missing[start : start + self.limits.batch]
            made = await self.asker.embed(model, [work.inputs[number] for work, number in part])
            digest = made.digest or digest
            for (work, number), vector in zip(part, made.vectors, strict=True):
                work.vectors[number] = vector
                work.result.embedded += 1
        if collection is not None:
            suited(collection, model, digest)
            return collection
        dimension = len(works[0].vectors[0]) // 4
        return await self.shelves.made(
            Collection(name=self.name, model=model, digest=digest, dimension=dimension, created_ms=int(time.time() * 1000))
        )


def _points(work: _Work) -> Iterator[Point]:
    namespace, document = work.result.namespace, work.result.id
    for number, (text, above, vector, metadata) in enumerate(zip(work.texts, work.above, work.vectors, work.metadata, strict=True)):
        yield Point(
            id=point_id(namespace, document, number),
            namespace=namespace,
            document=document,
            chunk=number,
            text=text,
            vector=vector,
            sparse=document_terms(f"{text}\n{above}"),
            metadata=metadata,
            content_hash=work.hash,
        )
