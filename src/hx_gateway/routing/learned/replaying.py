"""What another policy would have made of logged decisions: cost, latency and expected quality beside those of what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hx_gateway.routing.learned.features import Features
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.targets import ShareThreshold, cheapest_good

Price = tuple[float, float, float]
"""Of a request, of a prompt token, of a completion token."""


class PolicyError(ValueError):
    """It is no policy; the message says what is one."""


def replayed(
    rows: Sequence[Mapping[str, Any]], policy: str, models: Sequence[str], scorer: Scorer, prices: Mapping[str, Price]
) -> dict[str, Any]:
    """Decide again.

    Args:
        rows: Decisions, each with ``features``, ``model``, ``duration_ms``, ``cost``, ``prompt_tokens`` and ``completion_tokens``.
        policy: ``strong_share=0.3``, ``quality=0.95``, ``order`` or ``always=MODEL``.
        models: Of the group, the weakest first.
        scorer: Tells the expected quality, for both sides.
        prices: By model; one without takes the mean cost of its answers.

    Returns:
        ``decisions``, ``moved`` (how many would go elsewhere), and ``was`` and ``would`` with ``cost``, ``latency_ms`` (means), ``quality``
        and ``share`` by model; latency is each model's mean, so that both sides are reckoned alike.

    Raises:
        PolicyError: It is no policy.
    """
    known = [row for row in rows if row["model"] in models]
    features = [Features.unpack(row["features"]) for row in known]
    expected = [dict(zip(models, scorer.predict(one, models).probabilities, strict=True)) for one in features]
    doubts = [bool(scorer.predict(one, models).doubt) for one in features]
    took = {model: [row["duration_ms"] for row in known if row["model"] == model] for model in models}
    paid = {model: [row["cost"] for row in known if row["model"] == model] for model in models}
    latency = {model: fmean(values) if values else None for model, values in took.items()}

    def cost(row: Mapping[str, Any], model: str) -> float:
        request, prompt, completion = prices.get(model, (0.0, 0.0, 0.0))
        priced = request + prompt * (row["prompt_tokens"] or 0) + completion * (row["completion_tokens"] or 0)
        return priced or (fmean(paid[model]) if paid[model] else 0.0)

    choose = _chooser(policy, models, scorer, any(one.meaning for one in features))
    would = [
        models[0] if doubt and not policy.startswith("always=") else choose(one, [cost(row, model) for model in models])
        for row, one, doubt in zip(known, expected, doubts, strict=True)
    ]
    was = [row["model"] for row in known]
    return {
        "policy": policy,
        "decisions": len(known),
        "in_doubt": sum(doubts),
        "moved": sum(one != other for one, other in zip(was, would, strict=True)),
        **{
            side: {
                "cost": round(sum(cost(row, model) for row, model in zip(known, chosen, strict=True)), 9),
                "latency_ms": _mean([latency[model] for model in chosen]),
                "quality": _mean([one[model] for one, model in zip(expected, chosen, strict=True)]),
                "share": {model: round(chosen.count(model) / max(1, len(chosen)), 4) for model in models},
            }
            for side, chosen in (("was", was), ("would", would))
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return round(fmean(known), 4) if known else None


def _chooser(policy: str, models: Sequence[str], scorer: Scorer, meant: bool) -> Any:
    """The function that takes what is expected of each model, and what each costs, and returns a model."""
    name, _, given = policy.partition("=")
    if policy == "order":
        return lambda expected, costs: models[0]
    if name == "always" and given in models:
        return lambda expected, costs: given
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if name == "strong_share" and 0.0 <= value <= 1.0:
        share = ShareThreshold.of(scorer, models[0], models[-1], value, meant)
        return lambda expected, costs: models[-1] if share.takes(expected[models[-1]] - expected[models[0]]) else models[0]
    if name == "quality" and 0.0 < value <= 1.0:
        return lambda expected, costs: models[cheapest_good([expected[model] for model in models], costs, value)]
    raise PolicyError(f"{policy!r} is none: strong_share=0.3, quality=0.95, order, or always= with one of {', '.join(models)}")


def shown(found: Mapping[str, Any]) -> str:
    """What `replayed` returned, as a table."""
    lines = [
        f"{found['decisions']} decisions, {found['moved']} would go elsewhere, {found['in_doubt']} in doubt",
        f"{'':22}{'was':>12}{'would':>12}",
    ]
    was, would = found["was"], found["would"]
    for title, name, form in (("cost", "cost", ".6g"), ("mean latency, ms", "latency_ms", ".0f"), ("expected quality", "quality", ".3f")):
        values = [format(side[name], form) if side[name] is not None else "unknown" for side in (was, would)]
        lines.append(f"{title:22}{values[0]:>12}{values[1]:>12}")
    shares = ((model, 100 * was["share"][model], 100 * would["share"][model]) for model in was["share"])
    lines += [f"{'share of ' + model:22}{before:>10.1f} %{after:>10.1f} %" for model, before, after in shares]
    return "\n".join(lines)
