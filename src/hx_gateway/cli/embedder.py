"""Has a running gateway embed prompts, for commands that train and measure with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH = 16
_TIMEOUT_S = 120.0


def meanings(url: str, key: str, model: str, prompts: Sequence[str]) -> list[bytes]:
    """For each prompt its embedding, as `Features.meaning` has it; empty for one without text. The command ends where there is no answer.

    Args:
        url: Address of a gateway, or of any server with OpenAI's ``/v1/embeddings``.
        key: The variable of the environment that holds an API key, as `key_from` takes it.
        model: Who embeds.
        prompts: Whole; what is too much for small models is left out.

    Raises:
        ValueError: The answer is no list of embeddings.
    """
    import json

    from hx_gateway.cli.endpoints import asked
    from hx_gateway.dataplane.inside import embeddings_of
    from hx_gateway.routing.learned.meaning import bounded, packed

    read = [bounded(prompt) for prompt in prompts]
    texts = list(dict.fromkeys(text for text in read if text.strip()))
    known: dict[str, bytes] = {}
    with typer.progressbar(length=len(texts), label=f"embedding with {model}", file=typer.get_text_stream("stderr")) as bar:
        for start in range(0, len(texts), _BATCH):
            part = texts[start : start + _BATCH]
            body = json.dumps({"model": model, "input": part, "encoding_format": "float"}).encode()
            answer = json.dumps(asked(url, key, "POST", "/v1/embeddings", body, _TIMEOUT_S)).encode()
            known |= zip(part, [packed(model, vector) for vector in embeddings_of(answer, len(part))], strict=True)
            bar.update(len(part))
    return [known.get(text, b"") for text in read]
