"""`hx-gateway router`: train the scorer that knows which prompt needs which model, measure it, and look into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hx_gateway.cli.router_live import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hx_gateway.routing.learned.examples import Example
    from hx_gateway.routing.learned.model import Scorer

Data = Annotated[list[Path], typer.Argument(help='JSON lines, also .gz: {"prompt": "...", "scores": {"model": 0.0 to 1.0}}.')]
Artifact = Annotated[Path, typer.Argument(help="A file that `router train` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="HX_URL", help="Gateway that embeds the prompts, for an artifact of embeddings; without it words alone count."
    ),
]
Key = Annotated[str, typer.Option("--key", help="Environment variable that holds an API key; without it HX_API_KEY, else MASTER_KEY.")]

_SHARES = (0.1, 0.3, 0.5, 0.7)


def _fail(error: object) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)


def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the artifact; what is there is replaced.")],
    seed: Annotated[int, typer.Option("--seed", help="Of how prompts are dealt: the same data and seed give the same artifact.")] = 1,
    embedding: Annotated[str, typer.Option("--embedding", help="Model whose embeddings it reads beside the words; needs --url.")] = "",
    url: Url = "",
    key: Key = "",
) -> None:
    """Train a scorer from judged prompts and write it into one file; needs the extra `learn`."""
    from hx_gateway.routing.learned.examples import ExampleError, read
    from hx_gateway.routing.learned.training import TrainingError, save

    try:
        examples = read(data)
        if embedding and not url:
            _fail("--embedding: say with --url which gateway embeds the prompts")
        if embedding:
            _embed(examples, embedding, url, key)
        scorer = save(out, examples, seed, embedding)
    except (ExampleError, TrainingError, OSError) as error:
        _fail(error)
    typer.echo(
        f"{out}: {len(examples)} prompts, {len(scorer.models)} models, version {scorer.version[:12]}, {out.stat().st_size / 1e6:.1f} MB"
    )


def evaluate(artifact: Artifact, data: Data, as_json: Json = False, url: Url = "", key: Key = "") -> None:
    """Measure a scorer on judged prompts; give it others than it was trained on, or the figures flatter."""
    import json

    from hx_gateway.routing.learned.artifact import ArtifactError
    from hx_gateway.routing.learned.examples import ExampleError, read
    from hx_gateway.routing.learned.model import Scorer

    try:
        scorer, examples = Scorer.load(artifact), read(data)
    except (ArtifactError, ExampleError) as error:
        _fail(error)
    if url and "meaning" in scorer.facts:
        _embed(examples, scorer.facts["meaning"]["model"], url, key)
    known = [example for example in examples if any(model in example.scores for model in scorer.models)]
    if not known:
        _fail(f"no prompt has a score of a model that {artifact} knows: {', '.join(scorer.models)}")
    report = _report(scorer, known)
    typer.echo(json.dumps(report) if as_json else _shown(report))


def show(
    artifact: Artifact,
    prompt: Annotated[str | None, typer.Option("--prompt", help="A prompt: what is expected of each model, and why.")] = None,
    as_json: Json = False,
    url: Url = "",
    key: Key = "",
) -> None:
    """Show what is in an artifact, or what it makes of a prompt."""
    import json

    from hx_gateway.routing.learned.artifact import ArtifactError
    from hx_gateway.routing.learned.examples import Example
    from hx_gateway.routing.learned.features import extract
    from hx_gateway.routing.learned.model import Scorer, probability

    try:
        scorer = Scorer.load(artifact)
    except ArtifactError as error:
        _fail(error)
    heads = scorer.facts["heads"]
    report: dict[str, Any] = {
        "version": scorer.version,
        "prompts": scorer.facts["prompts"],
        "embedding": scorer.facts.get("meaning", {}).get("model"),
        "models": {model: {"usual": round(probability(head["bias"]), 3), "judged": head["labels"]} for model, head in heads.items()},
    }
    if prompt is not None:
        features = extract(prompt)
        if url and report["embedding"]:
            _embed([Example(features, {}, prompt)], report["embedding"], url, key)
        prediction = scorer.predict(features, scorer.models)
        expected = dict(zip(scorer.models, prediction.probabilities, strict=True))
        order = sorted(expected, key=lambda model: -expected[model])
        report["expected"] = {model: round(expected[model], 3) for model in order}
        report |= {"confidence": round(prediction.confidence, 3), "doubt": prediction.doubt}
        if len(order) > 1:
            why = scorer.explain(features, order[0], order[-1], prompt)
            report["why"] = {"better": order[0], "worse": order[-1], "parts": [[name, round(part, 3)] for name, part in why]}
    typer.echo(json.dumps(report) if as_json else _described(artifact, report))


def _embed(examples: Sequence[Example], model: str, url: str, key: str) -> None:
    from hx_gateway.cli.embedder import meanings

    try:
        found = meanings(url, key, model, [example.text for example in examples])
    except ValueError as error:
        _fail(f"the embeddings of {model} cannot be used: {error}")
    for example, meaning in zip(examples, found, strict=True):
        example.features.meaning = meaning


def _report(scorer: Scorer, examples: Sequence[Example]) -> dict[str, Any]:
    from itertools import combinations
    from statistics import fmean

    from hx_gateway.routing.learned.evaluate import apgr, calls_for
    from hx_gateway.routing.learned.targets import ShareThreshold

    predictions = [scorer.predict(example.features, scorer.models) for example in examples]
    meant = any(example.features.meaning for example in examples)
    found: dict[str, dict[str, float]] = {}
    columns: dict[str, list[tuple[int, float, float]]] = {}  # by model: which example, what was expected, what was reached
    for place, model in enumerate(scorer.models):
        column = [
            (row, predictions[row].probabilities[place], one.scores[model]) for row, one in enumerate(examples) if model in one.scores
        ]
        if column:
            columns[model] = column
            expected, reached = fmean(part[1] for part in column), fmean(part[2] for part in column)
            error = fmean((part[1] - part[2]) ** 2 for part in column)
            found[model] = {"prompts": len(column), "expected": round(expected, 4), "reached": round(reached, 4), "brier": round(error, 4)}
    pairs = []
    for one, other in combinations(columns, 2):
        weak, strong = sorted((one, other), key=lambda model: found[model]["reached"])
        better = {row: (expected, reached) for row, expected, reached in columns[strong]}
        both = [(better[row][0] - expected, reached, better[row][1], row) for row, expected, reached in columns[weak] if row in better]
        gains, low, high = [part[0] for part in both], [part[1] for part in both], [part[2] for part in both]
        if sum(low) == sum(high):
            continue
        given = {}
        for share in _SHARES:
            limit = ShareThreshold.of(scorer, weak, strong, share, meant).limit
            given[f"{share:g}"] = round(fmean(gain > limit for gain in gains), 4)
        figures = {"apgr": apgr(gains, low, high), "cpt50": calls_for(gains, low, high, 0.5), "cpt80": calls_for(gains, low, high, 0.8)}
        pairs.append({"weak": weak, "strong": strong, **{name: round(value, 4) for name, value in figures.items()}, "share": given})
    in_doubt = fmean(bool(prediction.doubt) for prediction in predictions)
    return {
        "version": scorer.version,
        "prompts": len(examples),
        "embedded": meant,
        "in_doubt": round(in_doubt, 4),
        "models": found,
        "pairs": pairs,
    }


def _shown(report: dict[str, Any]) -> str:
    read = "words and embeddings" if report["embedded"] else "words alone"
    lines = [f"{report['prompts']} prompts, by {read}, in doubt about {100 * report['in_doubt']:.1f} %"]
    width = max(map(len, report["models"]))
    for model, one in report["models"].items():
        lines.append(f"  {model:{width}}  expected {one['expected']:.3f}, reached {one['reached']:.3f}, Brier score {one['brier']:.3f}")
    for pair in report["pairs"]:
        lines.append(f"{pair['weak']} to {pair['strong']}: APGR {pair['apgr']:.3f} (0.5 is chance)")
        lines.append(f"  half of the gap with {100 * pair['cpt50']:.0f} % strong calls, 80 % of it with {100 * pair['cpt80']:.0f} %")
        shares = ", ".join(f"{100 * float(asked):.0f} % -> {100 * given:.1f} %" for asked, given in pair["share"].items())
        lines.append(f"  share of strong calls, asked -> given: {shares}")
    return "\n".join(lines)


def _described(artifact: Path, report: dict[str, Any]) -> str:
    embeddings = f", with embeddings of {report['embedding']}" if report["embedding"] else ""
    lines = [f"{artifact}: version {report['version'][:12]}, from {report['prompts']} prompts{embeddings}"]
    for model, head in report["models"].items():
        lines.append(f"  {model}: usually {head['usual']:.2f}, from {head['judged']} judged answers")
    if "expected" in report:
        lines.append("This prompt:")
        lines += [f"  {model}: {value:.2f}" for model, value in report["expected"].items()]
        lines.append(f"  confidence {report['confidence']:.2f}" + (f": not to be relied on, {report['doubt']}" if report["doubt"] else ""))
    if "why" in report:
        lines.append(f"What speaks for {report['why']['better']} (+) or {report['why']['worse']} (-), in logits:")
        lines += [f"  {part:+.3f}  {name}" for name, part in report["why"]["parts"]]
    return "\n".join(lines)


def group() -> typer.Typer:
    """The commands below `router`."""
    several = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for command in (train, evaluate, show):
        several.command()(command)
    for live, name in COMMANDS:
        several.command(name)(live)
    return several
