"""One collection in Qdrant's engine: a folder, and the calls on it; synchronous, for the threads of the owner."""

from __future__ import annotations

import array
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import qdrant_edge as engine

from hx_gateway.rag.filters import Filter, of_documents
from hx_gateway.rag.points import Collection, Hit, Point, StoreUnavailable, Terms, checked_ids, checked_points, fitting, payload, unpacked
from hx_gateway.stores.vectors.conditions import indexes, named, within

NAME = "embedded"
DENSE, SPARSE = "dense", "bm25"
LEAST_FREE = 128 << 20  # bytes of the disk; the engine maps files into memory, and a write without room behind it would kill it
_BATCH = 64  # points of one engine call: it holds the interpreter's lock while it reads them
# Points changed since the segments were last written out, which stops everybody else; until then the log alone is on disk.
_FLUSH = 50_000
_SCANNED_KB = 400_000  # vectors of a segment up to this size are compared one by one: that is fast enough, and finds the nearest
_EXACT_POINTS = 5_000  # up to so many, whole vectors are compared; beyond, short codes of four bits a number, and of the best whole vectors
_LOOKED_AT, _OVERSAMPLED = 100, 4.0  # so many of the best codes are looked at again, or so many for each hit: hardly one is missed
_DESCRIPTION, _CURRENT = "collection.json", "current.json"
_INDEXES = 16  # keys of metadata that get an index of their own, once a filter names them
_STALE_LEAST, _STALE_PART = 10_000, 0.25


class Shard:
    """A collection that is open.

    Args:
        folder: Its folder, made by `make`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.collection = msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=Collection)
        current = json.loads((folder / _CURRENT).read_bytes())
        self._generation: int = current["generation"]
        self._stale: int = current["stale"]  # points replaced or deleted since it was tidied
        self._added: int = current["added"]
        for left in folder.iterdir():
            if left.is_dir() and left.name != str(self._generation):
                shutil.rmtree(left)
        self._unflushed = 0
        self.writing, self._logging = threading.Lock(), threading.Lock()
        self._calls = self._on_disk = 0  # that changed something, and up to which the disk has it
        self._logged: set[Path] = set()  # files of the log that the disk knows
        self._touched: set[str] | None = None  # while it is tidied: what changed since
        self._opened(engine.EdgeShard.load(str(folder / str(self._generation)), _config(self.collection)))

    def _opened(self, shard: Any) -> None:
        self._engine: Any = shard
        self._indexed = set(shard.info().payload_schema)
        self._counts = Counter(self.namespaces())  # of each namespace, about: what is replaced counts again, what goes stays

    @staticmethod
    def make(folder: Path, collection: Collection) -> None:
        """Make the folder of a collection, whole or not at all."""
        building = folder.with_name(f".new-{folder.name}")
        shutil.rmtree(building, ignore_errors=True)
        (building / "1").mkdir(parents=True)
        (building / _DESCRIPTION).write_bytes(msgspec.json.encode(collection))
        (building / _CURRENT).write_text('{"generation": 1, "stale": 0, "added": 0}')
        made = engine.EdgeShard.create(str(building / "1"), _config(collection))
        made.update(engine.UpdateOperation.create_field_index("namespace", engine.KeywordIndexParams(is_tenant=True)))
        made.update(engine.UpdateOperation.create_field_index("document", engine.KeywordIndexParams()))
        made.flush()
        made.close()
        building.rename(folder)

    def close(self) -> None:
        """Write everything to disk and let go of the folder."""
        with self.writing:
            self._flush()
            self._point_at(self._generation)
            self._engine.close()

    def upsert(self, points: Sequence[Point]) -> None:
        """As `VectorStore.upsert`."""
        checked_points(self.collection, points)
        with self.writing:
            need_room(self.folder)
            self._counts.update(point.namespace for point in points)
            before = self._engine.info().points_count
            for start in range(0, len(points), _BATCH):
                batch = points[start : start + _BATCH]
                self._engine.update(engine.UpdateOperation.upsert_points([_entered(point) for point in batch]))
            self._changed(point.id for point in points)
            grown = self._engine.info().points_count - before
            self._added += grown
            self._stale += len(points) - grown
            mark = self._marked(len(points))
        self._keep(mark)

    def delete(self, namespace: str, what: Sequence[str] | Filter) -> int:
        """As `VectorStore.delete`."""
        if isinstance(what, Filter):
            wanted = self._within(namespace, what)
        else:
            checked_ids(what)
            wanted = engine.Filter(must=[named("namespace", namespace), engine.HasIdCondition(set(what))])
        with self.writing:
            ids: list[Any] = [str(record.id) for record in self._all(wanted, False)]
            if ids:
                need_room(self.folder)
                self._engine.update(engine.UpdateOperation.delete_points(ids))
                self._changed(ids)
                self._stale += len(ids)
            mark = self._marked(len(ids))
        self._keep(mark)
        return len(ids)

    def dense(self, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None) -> list[Hit]:
        """As `VectorStore.dense`."""
        fitting(self.collection, vector)
        query = engine.Query.Nearest(unpacked(vector), using=DENSE)
        codes = engine.QuantizationSearchParams(rescore=True, oversampling=max(_OVERSAMPLED, _LOOKED_AT / limit))
        exact: bool = self._engine.info().points_count <= _EXACT_POINTS
        return self._best(query, limit, namespace, filter, threshold, engine.SearchParams(exact=exact, quantization=codes))

    def sparse(self, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        """As `VectorStore.sparse`."""
        query = engine.Query.Nearest(engine.SparseVector(terms.indices, terms.values), using=SPARSE)
        # How rare a term is, is counted in the namespace alone: scores tell nothing of what others keep.
        rarity = engine.SearchParams(idf=engine.IdfParams(corpus=within(namespace, Filter())))
        return self._best(query, limit, namespace, filter, None, rarity)

    def _best(self, query: Any, limit: int, namespace: str, filter: Filter, threshold: float | None, params: Any) -> list[Hit]:
        # Where most points are of the namespace, each is asked for its own only once it is found: to ask all takes longer than to compare them.
        # What is found so is told only where it is what the whole search would find.
        share = min(1.0, self._counts.get(namespace, 0) / max(1, self._engine.info().points_count))
        if share > 0.5:
            many = limit if len(self._counts) == 1 else int(1.3 * limit / share) + 4
            found = self._found(query, many, self._within("", filter), threshold, params)
            own = [hit for hit in found if hit.point.namespace == namespace]
            if len(own) >= limit or len(found) < many:
                return own[:limit]
        return self._found(query, limit, self._within(namespace, filter), threshold, params)

    def _found(self, query: Any, limit: int, within: Any, threshold: float | None, params: Any) -> list[Hit]:
        asked = engine.QueryRequest(query=query, limit=limit, filter=within, score_threshold=threshold, with_payload=True, params=params)
        return [Hit(_read(found), found.score) for found in self._engine.query(asked)]

    def _within(self, namespace: str, filter: Filter) -> Any:
        """The engine's filter; keys of metadata in it get an index, without which every point would be read from disk."""
        for key, index in self.unindexed(filter):
            with self.writing:
                self._engine.update(engine.UpdateOperation.create_field_index(key, index))
                self._indexed.add(key)
        return within(namespace, filter)

    def unindexed(self, filter: Filter) -> list[tuple[str, Any]]:
        """The indexes that a search with this filter makes first."""
        return [(key, index) for key, index in indexes(filter) if key not in self._indexed and len(self._indexed) < _INDEXES]

    def fetch(self, namespace: str, ids: Sequence[str], vectors: bool) -> list[Point]:
        """As `VectorStore.fetch`."""
        checked_ids(ids)
        found = (_read(record) for record in self._engine.retrieve(list(ids), True, vectors))
        return [point for point in found if point.namespace == namespace]

    def count(self, namespace: str, filter: Filter) -> int:
        """As `VectorStore.count`."""
        counted: int = self._engine.count(engine.CountRequest(exact=True, filter=self._within(namespace, filter)))
        return counted

    def documents(self, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        """As `VectorStore.documents`."""
        found: dict[str, list[Point]] = {}
        if ids:
            for record in self._all(within(namespace, of_documents(*ids)), True):
                point = _read(record)
                found.setdefault(point.document, []).append(point)
        for points in found.values():
            points.sort(key=lambda point: point.chunk)
        return found

    def namespaces(self) -> dict[str, int]:
        """As `VectorStore.namespaces`."""
        answer = self._engine.facet(engine.FacetRequest(key="namespace", limit=1_000_000, exact=True))
        return {_text(hit.value): hit.count for hit in answer.hits if hit.count}

    def scroll(self, after: str, limit: int) -> list[Point]:
        """As `VectorStore.scroll`."""
        asked = engine.ScrollRequest(offset=after or None, limit=limit + 1, with_payload=True, with_vector=True)
        points = [_read(record) for record in self._engine.scroll(asked)[0]]
        return [point for point in points if point.id != after][:limit]

    def _all(self, wanted: Any, payloads: bool) -> list[Any]:
        records: list[Any] = []
        offset = None
        while True:
            asked = engine.ScrollRequest(offset=offset, limit=1000, filter=wanted, with_payload=payloads, with_vector=False)
            found, offset = self._engine.scroll(asked)
            records += found
            if offset is None:
                return records

    def _marked(self, changes: int) -> int:
        """The number of a call whose changes the log has, and the disk not yet."""
        self._unflushed += changes
        if self._unflushed >= _FLUSH:
            self._flush()
        self._calls += bool(changes)
        return self._calls

    def _keep(self, mark: int) -> None:
        """Make what was done up to that call outlive the machine: the log is read again when the folder is opened. Who waits meanwhile, waits once."""
        with self._logging:
            while self._on_disk < mark:
                reached = self._calls
                if self._synced(self.folder / str(self._generation) / "wal"):
                    self._on_disk = reached

    def _synced(self, wal: Path) -> bool:
        """Have the log written to disk; False where its files changed their names at that moment."""
        try:
            files = {path: path.name.startswith("open-") for path in wal.iterdir()}
            for path, growing in files.items():
                if growing or path not in self._logged:
                    _to_disk(path)
            if files.keys() != self._logged:
                _to_disk(wal)
            now = set(wal.iterdir())
        except FileNotFoundError:
            return False
        self._logged = files.keys() & now  # what has got its name since was perhaps written to since
        return files.keys() == now

    def _flush(self) -> None:
        self._engine.flush()
        self._unflushed = 0

    def settle(self) -> None:
        """Write everything to disk, so that opening it takes no time."""
        with self.writing:
            if self._unflushed:
                self._flush()

    def _changed(self, ids: Iterable[str]) -> None:
        if self._touched is not None:
            self._touched.update(ids)

    def untidy(self) -> bool:
        """Whether much of it is left over from points that were replaced, or it has become large enough for an index."""
        count: int = self._engine.info().points_count
        return self._stale > max(_STALE_LEAST, count * _STALE_PART) or (self._large() and self._added > count * _STALE_PART)

    def _large(self) -> bool:
        """Whether its vectors are to have an index."""
        size_kb: int = self._engine.info().points_count * self.collection.dimension * 4 >> 10
        return size_kb > _SCANNED_KB

    def copy(self) -> Path:
        """Begin to tidy: a copy to be put in order by another process. What changes from now on is remembered."""
        with self.writing:
            source = self.folder / str(self._generation)
            need_room(self.folder, 3 * sum(file.stat().st_blocks * 512 for file in source.rglob("*")))
            self._flush()
            target = self.folder / str(self._generation + 1)
            shutil.copytree(source, target)
            self._touched = set()
            return target

    def abandon(self) -> None:
        """Forget about the copy."""
        with self.writing:
            self._touched = None
            shutil.rmtree(self.folder / str(self._generation + 1), ignore_errors=True)
            self._stale = self._added = 0  # not again before there is as much new to do

    def take(self, copy: Path) -> None:
        """Go on with the copy, once what changed meanwhile is in it, too."""
        tidy = engine.EdgeShard.load(str(copy))
        with self.writing:
            touched = sorted(self._touched or ())
            for start in range(0, len(touched), _BATCH):
                ids: list[Any] = touched[start : start + _BATCH]
                kept = [_entered(_read(record)) for record in self._engine.retrieve(ids, True, True)]
                gone = set(ids) - {str(point.id) for point in kept}
                tidy.update(engine.UpdateOperation.delete_points(sorted(gone)))
                tidy.update(engine.UpdateOperation.upsert_points(kept))
            tidy.flush()
            before = self.folder / str(self._generation)
            self._touched = None
            self._stale = self._added = len(touched)
            self._point_at(int(copy.name))
            # Whoever still reads the former one holds it; it closes after the last of them.
            self._generation, self._unflushed = int(copy.name), 0
            self._opened(tidy)
        shutil.rmtree(before, ignore_errors=True)

    def _point_at(self, generation: int) -> None:
        path = self.folder / f"{_CURRENT}.tmp"
        with path.open("w") as file:
            json.dump({"generation": generation, "stale": self._stale, "added": self._added}, file)
            file.flush()
            os.fsync(file.fileno())
        path.replace(self.folder / _CURRENT)


def _config(collection: Collection) -> Any:
    codes = engine.TurboQuantQuantizationConfig(bits=engine.TurboQuantBitSize.Bits4, memory=engine.Memory.Cached)
    return engine.EdgeConfig(
        vectors={DENSE: engine.EdgeVectorParams(size=collection.dimension, distance=engine.Distance.Cosine, quantization_config=codes)},
        sparse_vectors={SPARSE: engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf)},
        optimizers=engine.EdgeOptimizersConfig(indexing_threshold=_SCANNED_KB),
        hnsw_config=engine.HnswIndexConfig(m=16, ef_construct=128, full_scan_threshold=20_000, max_indexing_threads=1),
        max_search_threads=1,  # of a machine's cores, the others are for chats
    )


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(file) if sys.platform == "linux" else os.fsync(file)
    finally:
        os.close(file)


def put_in_order(folder: str) -> None:
    """Rewrite the segments of a copy; holds the interpreter's lock for seconds to minutes, hence a process of its own."""
    shard = engine.EdgeShard.load(folder)
    shard.optimize()
    shard.flush()
    shard.close()


def need_room(folder: Path, size: int = 0) -> None:
    """Make sure of the disk before something is written.

    Raises:
        StoreUnavailable: There are not ``size`` and `LEAST_FREE` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE + size:
        raise StoreUnavailable(NAME, f"has no room: {free >> 20} MiB are free in {folder}, {LEAST_FREE + size >> 20} are needed")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _entered(point: Point) -> Any:
    vectors: dict[str, Any] = {DENSE: unpacked(point.vector)}
    if point.sparse is not None:
        vectors[SPARSE] = engine.SparseVector(point.sparse.indices, point.sparse.values)
    kept = payload(point)
    if flags := _flags(point.metadata):
        kept["flags"] = flags
    return engine.Point(point.id, vectors, kept)


def _flags(value: Any) -> Any:
    """The truth values of metadata as texts, at their places; what has none is left out.

    The engine's Python face takes True in a condition for 1, so that it finds them only so.
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return {key: flags for key, inner in value.items() if (flags := _flags(inner))}
    return [flags for inner in value if (flags := _flags(inner))] if isinstance(value, list) else None


def _read(record: Any) -> Point:
    kept = record.payload
    vectors = getattr(record, "vector", None) or {}
    numbers = array.array("f", vectors.get(DENSE, ()))
    if sys.byteorder == "big":
        numbers.byteswap()
    sparse = vectors.get(SPARSE)
    return Point(
        id=str(record.id),
        namespace=kept["namespace"],
        document=kept["document"],
        chunk=kept["chunk"],
        text=kept["text"],
        metadata=kept["metadata"],
        content_hash=kept["content_hash"],
        vector=numbers.tobytes(),
        sparse=None if sparse is None else Terms(list(sparse.indices), list(sparse.values)),
    )


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
