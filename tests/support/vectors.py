"""Points for tests of vector stores: small, distinct, and with vectors whose order is known."""

from __future__ import annotations

import math
import uuid
from typing import Any

from hx_gateway.rag.points import Collection, Point, packed
from hx_gateway.rag.sparse import document_terms

PAPERS = Collection(name="papers", model="minilm", digest="sha256:1", dimension=3)


def ident(number: int, namespace: str = "default") -> str:
    """An id that grows with the number."""
    tail = uuid.uuid5(uuid.NAMESPACE_URL, namespace).hex[:12]
    return f"{number:08x}-0000-5000-8000-{tail}"


def point(number: int, namespace: str = "default", text: str = "", **metadata: Any) -> Point:
    """A point whose angle to the first axis is ``number`` degrees; four make a document."""
    angle = math.radians(number % 90)
    return Point(
        id=ident(number, namespace),
        namespace=namespace,
        document=f"d{number // 4}",
        chunk=number % 4,
        text=text or f"text {number}",
        vector=packed([math.cos(angle), math.sin(angle), 0.0]),
        sparse=document_terms(text) if text else None,
        metadata=metadata,
        content_hash=f"h{number // 4}",
    )


EAST = packed([1, 0, 0])
