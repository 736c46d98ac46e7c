"""What can be asked of the documents: the bodies of the requests, and errors that name the field at fault."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from hx_gateway.core import errors
from hx_gateway.core.errors import Failure
from hx_gateway.rag.points import Unfit

DEFAULT = "default"
"""The namespace of requests that name none."""

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Vector = Annotated[list[float], Meta(min_length=1, max_length=65536)]
Query = Annotated[str, Meta(max_length=32_768)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Id = Annotated[str, Meta(min_length=1, max_length=512)]
Count = Annotated[int, Meta(ge=1, le=2000)]
Parts = Annotated[list["str | Chunk"], Meta(min_length=1, max_length=10_000)]
Ids = Annotated[list[str], Meta(min_length=1)]

Body = TypeVar("Body", bound=msgspec.Struct)


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    collection: Annotated[Name | None, Meta(description="Collection; without it the gateway's own.")] = None


class Mmr(msgspec.Struct, forbid_unknown_fields=True):
    """Maximal marginal relevance: hits that are like each other are not all shown."""

    diversity: Annotated[float, Meta(ge=0, le=1, description="0 for relevance alone, 1 for difference alone.")] = 0.5


class Rerank(msgspec.Struct, forbid_unknown_fields=True):
    """A second look at the best hits by a model that reads query and text together."""

    model: Annotated[ModelName, Meta(description="A model whose server has /v1/rerank.")]
    candidates: Annotated[int, Meta(ge=1, le=200, description="How many of the best it reads.")] = 30


class Search(_Body):
    """Search for chunks of documents, by words or by a vector."""

    query: Annotated[Query | None, Meta(description="What is looked for; embedded with the caller's key.")] = None
    vector: Annotated[Vector | None, Meta(description="Its embedding, where it is known.")] = None
    limit: Annotated[int, Meta(ge=1, le=1000, description="Most hits.")] = 10
    score_threshold: Annotated[
        float | None,
        Meta(description="Least cosine similarity of a hit, in the modes dense and hybrid; in the mode sparse the least BM25 score."),
    ] = None
    namespace: Annotated[Name | None, Meta(description="Whose documents; `default` without it.")] = None
    mode: Annotated[
        Literal["dense", "sparse", "hybrid"] | None,
        Meta(description="By meaning, by words, or both; without it hybrid where there is a query, dense where there is only a vector."),
    ] = None
    filter: Annotated[
        dict[str, Any] | None, Meta(description="must, must_not and should with match and range over metadata, as Qdrant writes them.")
    ] = None
    mmr: Annotated[bool | Mmr, Meta(description="Whether hits that are like each other are left out.")] = False
    rerank: Annotated[Rerank | None, Meta(description="Have the best hits put in order by a reranking model.")] = None
    with_vectors: Annotated[bool, Meta(description="Whether hits come with their vectors.")] = False
    candidates: Annotated[Count | None, Meta(description="How many of each kind are looked at before they are joined.")] = None
    rrf_k: Annotated[float, Meta(gt=0, le=1000, description="Constant of reciprocal rank fusion.")] = 60.0
    model: Annotated[ModelName | None, Meta(description="Refuses the search if the collection is of another model.")] = None


class Chunk(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a document that is found by itself."""

    text: str
    # Read one by one later: to read a thousand at once would hold up everybody else.
    vector: Annotated[msgspec.Raw, Meta(description="Its embedding, a list of numbers, where it is known.")] = msgspec.field(
        default_factory=msgspec.Raw
    )
    metadata: Annotated[dict[str, Any] | None, Meta(description="Added to the document's.")] = None

    @property
    def embedded(self) -> bool:
        """Whether it comes with its vector."""
        return bytes(self.vector) not in (b"", b"null")

    def numbers(self) -> list[float]:
        """Its vector.

        Raises:
            Unfit: It is no list of numbers.
        """
        try:
            return _numbers(self.vector)
        except msgspec.DecodeError as error:
            raise Unfit(f"should be a list of numbers ({error})", "vector") from None


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A document: a text, which is cut into chunks, or its chunks."""

    id: Annotated[Id | None, Meta(description="A document of the same id is replaced; without it made from the content.")] = None
    text: Annotated[str | None, Meta(description="The whole text.")] = None
    chunks: Annotated[Parts | None, Meta(description="Its parts, in order.")] = None
    metadata: Annotated[
        dict[str, Any], Meta(description="What filters look at, and what comes back with each hit; its `title` is found with every chunk.")
    ] = {}
    namespace: Annotated[Name | None, Meta(description="Where it belongs; that of the request without it.")] = None
    format: Annotated[Literal["text", "markdown"], Meta(description="How the text is cut: Markdown by its headings.")] = "text"


class Upsert(_Body):
    """Add documents, or replace those of the same id."""

    documents: Annotated[list[Document], Meta(min_length=1, description="At most rag.max_documents.")]
    namespace: Annotated[Name | None, Meta(description="Where documents belong that do not say; `default` without it.")] = None
    model: Annotated[ModelName | None, Meta(description="Model of the embeddings; a collection keeps to the first it was given.")] = None
    stream: Annotated[bool, Meta(description="Whether progress comes as server-sent events.")] = False


class Delete(_Body):
    """Remove documents: by id, by filter, or all of a namespace."""

    ids: Annotated[Ids | None, Meta(description="Ids of documents, at most rag.max_documents.")] = None
    filter: Annotated[dict[str, Any] | None, Meta(description="Chunks that it finds are removed.")] = None
    everything: Annotated[bool, Meta(description="Remove all documents of the namespace.")] = False
    namespace: Annotated[Name | None, Meta(description="Whose documents; `default` without it.")] = None


_numbers = msgspec.json.Decoder(Vector).decode
_place = re.compile(r" - at `\$\.?([^`]*)`$")
_unknown = re.compile(r"^Object contains unknown field `([^`]{0,80})")
_CHOICES = {"mode": "; it is dense, sparse or hybrid", "format": "; it is text or markdown"}
_endless = re.compile(rb"[\[:,\s]-?(?:NaN|Infinity)\b")


def read(kind: type[Body], body: bytes) -> Body:
    """A body, decoded and checked.

    Raises:
        Failure: ``invalid_json``, or ``invalid_value`` with the field's name.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _place.search(text)
        place, text = (found.group(1) if found else ""), _place.sub("", text)
        unknown = _unknown.match(text)
        if unknown is not None:
            place = f"{place}.{unknown.group(1)}".lstrip(".")
            text = (
                f"there is no such field; known are {', '.join(kind.__struct_fields__)}" if "." not in place else "there is no such field"
            )
        missing = re.fullmatch(r"Object missing required field `(.*)`", text)
        if missing is not None:
            place, text = f"{place}.{missing.group(1)}".lstrip("."), "is required"
        text += _CHOICES.get(place.rpartition(".")[2], "") if "enum" in text else ""
        raise Failure(errors.INVALID_VALUE, f"{place or 'body'}: {text}", param=place or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "; numbers must be finite: JSON has no NaN and no Infinity" if _endless.search(body) is not None else f": {error}"
        raise Failure(errors.INVALID_JSON, f"the body is not valid JSON{why}", param="vector" if why[0] == ";" else None) from None


def schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON schema of a body, with everything it refers to inside."""
    (found,), parts = msgspec.json.schema_components([kind], ref_template="#/{name}")

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return inlined({**parts[value["$ref"][2:]], **{key: said for key, said in value.items() if key != "$ref"}})
            return {key: inlined(said) for key, said in value.items()}
        return [inlined(item) for item in value] if isinstance(value, list) else value

    whole: dict[str, Any] = inlined(found)
    return whole
