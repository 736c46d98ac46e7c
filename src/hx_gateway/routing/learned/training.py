"""A scorer made from judged prompts: one logistic head a model, trained on what sets the models apart, folded into a few columns.

Needs the extra `learn` (scipy); what it makes does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from hx_gateway.routing.learned import artifact
from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import BITS, SHAPES, STEPS, named
from hx_gateway.routing.learned.meaning import unpacked
from hx_gateway.routing.learned.model import Scorer

COLUMNS = 6  # of weights that all models share at most; each costs a prompt about 10 µs
LEAST_EXAMPLES = 50
_SHAPE = 0.18  # how far the shape of a prompt may speak beside its words
_COMMON, _APART = 1.0, 2.0  # ridge on what is common to all models, and on what sets them apart
_MEANT = 4.0, 8.0  # the same for embeddings
_ROUNDS, _MEANT_ROUNDS = 20, 50  # of the optimiser: stopping early is part of the ridge
_FOLDS, _FEW = 3, 1000  # prompts that a scorer has not seen tell what is usual; of few, more are left to train on
_REFERENCE = 1000  # prompts kept as an example of traffic
_NAMES = 2000  # of the heaviest words, for explanations


class TrainingError(Exception):
    """There is too little to learn from, or the extra is not installed; the message says which."""


@dataclass(slots=True)
class _Fit:
    """Weights for each kept hash or shape (rows) and model (columns), the usual score of each model in logits, and what words tell."""

    keep: Any
    norms: Any
    weights: Any
    biases: Any


def train(examples: Sequence[Example], seed: int = 1, embeddings: str = "") -> tuple[dict[str, Any], list[bytes]]:
    """Facts and columns of an artifact; the same examples and seed give the same.

    Args:
        examples: What to learn from.
        seed: Of how they are dealt.
        embeddings: The model whose embeddings all of them carry; empty for none.

    Raises:
        TrainingError: There are too few examples or models, or scipy is not installed.
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise TrainingError("training needs scipy: pip install 'hx-gateway[learn]'") from None
    models = sorted({model for example in examples for model in example.scores})
    if len(examples) < LEAST_EXAMPLES or not models:
        raise TrainingError(f"{len(examples)} examples; at least {LEAST_EXAMPLES} are needed")
    counts, shapes = _matrices(examples)
    vectors = _vectors(examples) if embeddings else None
    scores = np.array([[example.scores.get(model, np.nan) for model in models] for example in examples])
    parts = _FOLDS if len(examples) >= _FEW else 4 * _FOLDS
    folds = np.random.default_rng(seed).permutation(len(examples)) % parts
    unseen, meant = np.zeros(scores.shape), np.zeros(scores.shape)  # logits of prompts that were not trained on, by words, by embeddings
    unknown, rarity = np.zeros(len(examples)), np.zeros(len(examples))
    for fold in range(parts):
        inside, outside = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        fit = _fit(counts[inside], shapes[inside], scores[inside])
        unseen[outside] = _inputs(counts[outside], shapes[outside], fit) @ fit.weights
        if vectors is not None:
            center, heads = _meaning(vectors[inside], scores[inside], fit.biases)
            meant[outside] = (vectors[outside] - center) @ heads
        total = np.asarray(counts[outside].sum(1)).ravel()
        unknown[outside] = 1.0 - (counts[outside] @ (fit.norms > 0.0)) / np.maximum(1.0, total)
        rarity[outside] = shapes[outside] @ _rarity(shapes[inside])
    fit = _fit(counts, shapes, scores)
    (slope,) = _slopes([unseen], fit.biases, scores)
    basis = _basis(unseen)
    weights = slope * (fit.weights @ basis)  # (kept, columns)
    columns = np.zeros((basis.shape[1] + 1, 1 << BITS))
    words = len(fit.keep)
    idf = np.sqrt(fit.norms[fit.keep])
    columns[:-1, fit.keep] = (weights[:words] * idf[:, None]).T
    columns[-1] = fit.norms
    outward = weights[words:].T * _SHAPE / sqrt(len(SHAPES))
    chosen = np.random.default_rng(seed).permutation(len(examples))[:_REFERENCE]
    part = basis @ basis.T  # of what the models' heads can tell
    packed, scales = _packed(columns)
    facts = {
        "heads": {
            model: {"bias": float(bias), "mix": [float(value) for value in mix], "labels": int(np.isfinite(score).sum())}
            for model, bias, mix, score in zip(models, fit.biases, basis, scores.T, strict=True)
        },
        "scales": scales,
        "shapes": [[round(float(value), 5) for value in column] for column in outward],
        "prompts": len(examples),
        "seed": seed,
        "slope": round(float(slope), 4),
        "usual": {name: _quantiles(values) for name, values in (("unknown", unknown), ("rarity", rarity))},
        "rarity": [round(float(value), 4) for value in _rarity(shapes)],
        "names": _names(examples, columns[:-1]),
        "reference": _reference(models, slope * (unseen[chosen] @ part) + fit.biases),
    }
    if vectors is not None:
        both = _slopes([unseen, meant], fit.biases, scores)
        center, heads = _meaning(vectors, scores, fit.biases)
        facts["meaning"] = {
            "model": embeddings,
            "center": [round(float(value), 6) for value in center],
            "weights": [[round(float(value), 5) for value in column] for column in (both[1] * (heads @ basis)).T],
            "share": round(float(both[0] / slope), 4),
            "seen": len(examples),
            "reference": _reference(models, (both[0] * unseen[chosen] + both[1] * meant[chosen]) @ part + fit.biases),
        }
    return facts, packed


def save(path: Path, examples: Sequence[Example], seed: int = 1, embeddings: str = "") -> Scorer:
    """`train`, write the artifact and load it again.

    Raises:
        TrainingError: There is too little to learn from.
        OSError: It cannot be written.
    """
    artifact.write(path, *train(examples, seed, embeddings))
    return Scorer.load(path)


def _matrices(examples: Sequence[Example]) -> tuple[Any, Any]:
    """Which hashes, and which positions of the shape, each example has: two sparse matrices of ones."""
    import numpy as np
    from scipy.sparse import csr_matrix

    def ones(rows: list[tuple[int, ...]], width: int) -> Any:
        ends = np.cumsum([0, *map(len, rows)])
        entries = np.fromiter((entry for row in rows for entry in row), dtype=np.int32, count=int(ends[-1]))
        return csr_matrix((np.ones(len(entries), dtype=np.float32), entries, ends), shape=(len(rows), width))

    words = [tuple(sorted(number for number in example.features.words if number)) for example in examples]
    return ones(words, 1 << BITS), ones([example.features.shape for example in examples], len(SHAPES) * STEPS)


def _vectors(examples: Sequence[Example]) -> Any:
    """The embeddings (examples, dimensions).

    Raises:
        TrainingError: One has none, or they are of several models.
    """
    import numpy as np

    if any(not example.features.meaning for example in examples):
        raise TrainingError("a prompt has no embedding; embed all of them, or train without")
    found = [unpacked(example.features.meaning) for example in examples]
    if len({(tag, len(vector)) for tag, vector in found}) > 1:
        raise TrainingError("the embeddings are of several models; embed all prompts with one")
    return np.array([vector for _, vector in found], dtype=np.float32)


def _fit(counts: Any, shapes: Any, scores: Any) -> _Fit:
    """Train on rows of hashes and shapes and (examples, models) of scores, NaN where a model did not answer."""
    import numpy as np

    frequency = np.asarray(counts.sum(0)).ravel()
    idf = np.where(frequency >= 2.0, np.log((1.0 + len(scores)) / (1.0 + frequency)) + 1.0, 0.0)
    there = np.isfinite(scores)
    usual = np.clip((np.nansum(scores, 0) + 0.5) / (there.sum(0) + 1.0), 0.02, 0.98)
    biases = np.log(usual / (1.0 - usual))
    fit = _Fit(np.flatnonzero(idf), idf**2, None, biases)
    fit.weights = _heads(_inputs(counts, shapes, fit), scores, biases, (_COMMON, _APART), _ROUNDS)
    return fit


def _meaning(vectors: Any, scores: Any, biases: Any) -> tuple[Any, Any]:
    """The mean of embeddings, and weights (dimensions, models) for what sets one apart from it."""
    center = vectors.mean(0)
    return center, _heads(vectors - center, scores, biases, _MEANT, _MEANT_ROUNDS)


def _heads(inputs: Any, scores: Any, biases: Any, ridge: tuple[float, float], rounds: int) -> Any:
    """Weights (inputs, models): logistic, with a ridge on what is common to all models and another on what sets them apart."""
    import numpy as np
    from scipy.optimize import minimize

    there = np.isfinite(scores)
    back = inputs.T.tocsr() if hasattr(inputs, "tocsr") else inputs.T
    models = scores.shape[1]
    filled = np.where(there, scores, 0.0)
    axes, _ = np.linalg.qr(np.hstack([np.full((models, 1), 1.0), np.eye(models)[:, 1:]]))
    loose = np.sqrt(1.0 / np.array(ridge[:1] + ridge[1:] * (models - 1)))

    def loss(flat: Any) -> tuple[float, Any]:
        weights = (flat.reshape(-1, models) * loose) @ axes.T
        chance = 1.0 / (1.0 + np.exp(-(inputs @ weights.astype(np.float32) + biases)))
        likely = filled * np.log(chance + 1e-9) + (1.0 - filled) * np.log(1.0 - chance + 1e-9)
        slope = np.where(there, chance - filled, 0.0).astype(np.float32)
        return float(0.5 * (flat @ flat) - likely[there].sum()), (((back @ slope) @ axes) * loose).ravel() + flat

    found = minimize(loss, np.zeros(inputs.shape[1] * models), jac=True, method="L-BFGS-B", options={"maxiter": rounds})
    return (found.x.reshape(-1, models) * loose) @ axes.T


def _inputs(counts: Any, shapes: Any, fit: _Fit) -> Any:
    """Rows as the weights take them: words by how telling they are, to length 1, and the shape beside them."""
    import numpy as np
    from scipy.sparse import diags, hstack

    words = counts[:, fit.keep] @ diags(np.sqrt(fit.norms[fit.keep]))
    lengths = np.sqrt(np.asarray(words.multiply(words).sum(1)).ravel())
    words = diags(1.0 / np.where(lengths > 0.0, lengths, 1.0)) @ words
    return hstack([words, shapes * (_SHAPE / sqrt(len(SHAPES)))]).tocsr().astype(np.float32)


def _rarity(shapes: Any) -> Any:
    """For each position of a shape how surprising it is, in nats."""
    import numpy as np

    return -np.log((np.asarray(shapes.sum(0)).ravel() + 0.5) / (shapes.shape[0] + 0.5 * STEPS))


def _slopes(unseen: Sequence[Any], biases: Any, scores: Any) -> Any:
    """What each part of the logits of unseen prompts must be multiplied by so that the probabilities are as likely as they can be."""
    import numpy as np
    from scipy.optimize import minimize

    there = np.isfinite(scores)
    filled = np.where(there, scores, 0.0)

    def unlikely(slopes: Any) -> float:
        chance = 1.0 / (1.0 + np.exp(-(sum(slope * part for slope, part in zip(slopes, unseen, strict=True)) + biases)))
        return -float((filled * np.log(chance + 1e-9) + (1.0 - filled) * np.log(1.0 - chance + 1e-9))[there].mean())

    bounds = [(0.4, 4.0), (0.0, 4.0)][: len(unseen)]
    return minimize(unlikely, np.ones(len(unseen)), method="L-BFGS-B", bounds=bounds).x


def _reference(models: Sequence[str], logits: Any) -> dict[str, list[float]]:
    return {model: [round(float(value), 3) for value in column] for model, column in zip(models, logits.T, strict=True)}


def _basis(logits: Any) -> Any:
    """Orthonormal directions (models, columns) in which the models' logits vary: what is common to all first, then what sets them apart."""
    import numpy as np

    models = logits.shape[1]
    common = np.full((models, 1), 1.0 / sqrt(models))
    rest = logits - logits @ common @ common.T
    _, _, directions = np.linalg.svd(rest - rest.mean(0), full_matrices=False)
    return np.hstack([common, directions[: min(models, COLUMNS) - 1].T])


def _packed(columns: Any) -> tuple[list[bytes], list[float]]:
    """Each column in bytes, 128 for nothing, and what one step is worth."""
    import numpy as np

    scales = [float(np.abs(column).max() / 127.0) or 1.0 for column in columns]
    numbers = [np.round(column / scale) for column, scale in zip(columns, scales, strict=True)]
    numbers[-1] = np.where(columns[-1] > 0.0, np.maximum(1.0, numbers[-1]), 0.0)  # what was seen stays so
    return [(number + 128).astype(np.uint8).tobytes() for number in numbers], scales


def _quantiles(values: Any) -> list[float]:
    import numpy as np

    return [round(float(value), 5) for value in np.quantile(values, np.linspace(0.0, 1.0, 201))]


def _names(examples: Sequence[Example], columns: Any) -> dict[str, str]:
    """The heaviest hashes in words."""
    import numpy as np

    heavy = set(np.argsort(-np.abs(columns).max(0), kind="stable")[:_NAMES].tolist())
    found: dict[int, str] = {}
    for example in examples:
        if not example.text or heavy.isdisjoint(example.features.words):
            continue
        found |= {number: name for number, name in named(example.text).items() if number in heavy and number not in found}
    return {str(number): found[number] for number in sorted(found)}
