"""A stand-in for a Qdrant server: Qdrant's API over HTTP, every request checked against the models of its published description.

The models that come with ``qdrant-client`` are generated from that description and refuse fields it does not know; the behaviour behind them
is the client's local mode. It is no Qdrant server: nothing here tells whether a real one behaves the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any, Self

import httptools
import pydantic
from qdrant_client import AsyncQdrantClient, models

NAME = r"/collections/(?P<name>[^/]+)"
# Method, path, model of the body, whether `wait=true` is needed.
ROUTES: tuple[tuple[str, str, Any, str], ...] = (
    ("GET", "/collections", None, "list"),
    ("GET", NAME + "/exists", None, "exists"),
    ("GET", NAME, None, "get"),
    ("PUT", NAME, models.CreateCollection, "create"),
    ("DELETE", NAME, None, "drop"),
    ("PUT", NAME + "/index", models.CreateFieldIndex, "index"),
    ("PUT", NAME + "/points", models.PointsList, "upsert"),
    ("POST", NAME + "/points", models.PointRequest, "retrieve"),
    ("POST", NAME + "/points/count", models.CountRequest, "count"),
    ("POST", NAME + "/points/delete", models.FilterSelector, "delete"),
    ("POST", NAME + "/points/query", models.QueryRequest, "query"),
    ("POST", NAME + "/points/scroll", models.ScrollRequest, "scroll"),
    ("POST", NAME + "/facet", models.FacetRequest, "facet"),
)


class StandIn:
    """A server on 127.0.0.1.

    Args:
        api_key: What requests must carry; empty for nothing.

    Attributes:
        seen: Names of the routes that were asked.
        fault: A status to answer everything with; 0 for none.
    """

    def __init__(self, api_key: str = "") -> None:
        self.local = AsyncQdrantClient(":memory:")
        self.seen: list[str] = []
        self.indexes: dict[str, dict[str, str]] = {}
        self.fault = 0
        self._api_key = api_key
        self._goes = asyncio.Event()
        self._goes.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the port of before, if it did so before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and break off every connection."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        self._goes.set()

    def hang(self) -> None:
        """Take everything and answer nothing."""
        self._goes.clear()

    def resume(self) -> None:
        """Undo `hang`."""
        self._goes.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                status, answer = await self._answer(head, body)
                await self._goes.wait()
                payload = json.dumps(answer).encode()
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status, len(payload), payload)
                )
                await writer.drain()
        self._connections.discard(writer)
        writer.close()

    async def _answer(self, head: bytes, body: bytes) -> tuple[int, dict[str, Any]]:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if self._api_key and not re.search(rf"(?i)\r\napi-key: {self._api_key}\r\n", head.decode()):
            return 401, {"status": {"error": "Invalid API key"}}
        if self.fault:
            return self.fault, {"status": {"error": "No space left on device"}, "time": 0.0}
        url = httptools.parse_url(target.encode())
        for route_method, pattern, model, kind in ROUTES:
            found = re.fullmatch(pattern, url.path.decode())
            if method == route_method and found:
                self.seen.append(kind)
                if kind in ("upsert", "delete", "index"):
                    assert b"wait=true" in (url.query or b""), f"{kind} does not wait until it is done"
                try:
                    asked = model.model_validate_json(body) if model else None
                    result = await getattr(self, f"_{kind}")(found.groupdict().get("name", ""), asked)
                except pydantic.ValidationError as error:
                    raise AssertionError(f"Qdrant does not know this {kind}: {error}") from error
                except ValueError as error:
                    status = 404 if "not found" in str(error) else 400
                    return status, {"status": {"error": str(error)}, "time": 0.0}
                return 200, {"result": result, "status": "ok", "time": 0.001}
        raise AssertionError(f"Qdrant has no {method} {target}")

    async def _list(self, name: str, asked: Any) -> Any:
        return _json(await self.local.get_collections())

    async def _exists(self, name: str, asked: Any) -> Any:
        return {"exists": await self.local.collection_exists(name)}

    async def _get(self, name: str, asked: Any) -> Any:
        schema = {key: {"data_type": kind, "points": 0} for key, kind in self.indexes.get(name, {}).items()}
        return {**_json(await self.local.get_collection(name)), "payload_schema": schema}

    async def _create(self, name: str, asked: models.CreateCollection) -> Any:
        if await self.local.collection_exists(name):
            raise ValueError(f"Collection `{name}` already exists!")
        return await self.local.create_collection(
            name, vectors_config=asked.vectors, sparse_vectors_config=asked.sparse_vectors, metadata=asked.metadata
        )

    async def _drop(self, name: str, asked: Any) -> Any:
        self.indexes.pop(name, None)
        return await self.local.delete_collection(name)

    async def _index(self, name: str, asked: models.CreateFieldIndex) -> Any:
        schema = asked.field_schema
        self.indexes.setdefault(name, {})[asked.field_name] = str(getattr(schema, "type", schema).value)  # type: ignore[union-attr]
        return {"operation_id": 0, "status": "completed"}

    async def _upsert(self, name: str, asked: models.PointsList) -> Any:
        return _json(await self.local.upsert(name, asked.points, wait=True))

    async def _retrieve(self, name: str, asked: models.PointRequest) -> Any:
        found = await self.local.retrieve(name, asked.ids, with_payload=bool(asked.with_payload), with_vectors=bool(asked.with_vector))
        return [_json(record) for record in found]

    async def _count(self, name: str, asked: models.CountRequest) -> Any:
        assert asked.exact is True
        return _json(await self.local.count(name, asked.filter, exact=True))

    async def _delete(self, name: str, asked: models.FilterSelector) -> Any:
        return _json(await self.local.delete(name, asked, wait=True))

    async def _query(self, name: str, asked: models.QueryRequest) -> Any:
        found = await self.local.query_points(
            name,
            query=asked.query,
            using=asked.using,
            query_filter=asked.filter,
            search_params=asked.params,
            limit=asked.limit or 10,
            score_threshold=asked.score_threshold,
            with_payload=bool(asked.with_payload),
        )
        return _json(found)

    async def _scroll(self, name: str, asked: models.ScrollRequest) -> Any:
        found, following = await self.local.scroll(
            name,
            scroll_filter=asked.filter,
            limit=asked.limit or 10,
            offset=asked.offset,
            with_payload=bool(asked.with_payload),
            with_vectors=bool(asked.with_vector),
        )
        return {"points": [_json(record) for record in found], "next_page_offset": following}

    async def _facet(self, name: str, asked: models.FacetRequest) -> Any:
        return _json(await self.local.facet(name, asked.key, limit=asked.limit or 10, exact=True))


def _json(value: pydantic.BaseModel) -> Any:
    return json.loads(value.model_dump_json(exclude_none=True))
