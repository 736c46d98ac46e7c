"""Whether deployments behind one name are the same model: what differs is reported, and embeddings of two kinds are never mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hx_gateway.core.errors import BAD_RESPONSE, Failure
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint

DIGEST_SHOWN = 12  # hex digits of a digest that people are shown, as Ollama's own list does


@dataclass(frozen=True, slots=True)
class Likeness:
    """What tells a deployment's model from another of the same name; empty or 0 where it is not known.

    Args:
        digest: Digest of the model's content.
        dimensions: Length of its embeddings, as configured or seen in answers.
        width: Width of the model, which equal models share.
    """

    digest: str = ""
    dimensions: int = 0
    width: int = 0

    def fits(self, other: Likeness) -> bool:
        """Whether both can be the same model: the strongest evidence that both have decides."""
        if self.digest and other.digest:
            return self.digest == other.digest
        if self.dimensions and other.dimensions:
            return self.dimensions == other.dimensions
        return not (self.width and other.width) or self.width == other.width

    def __bool__(self) -> bool:
        return bool(self.digest or self.dimensions or self.width)

    def __str__(self) -> str:
        if self.digest:
            return f"digest {self.digest[:DIGEST_SHOWN]}"
        if self.dimensions:
            return f"{self.dimensions} dimensions"
        return f"a width of {self.width}" if self.width else "nothing known of it"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a name that its operator should know.

    Args:
        name: The public name.
        camps: Those that are alike, each with what they have in common; the served ones first.
        remedy: What to do, and what is done meanwhile.
    """

    name: str
    camps: tuple[tuple[str, tuple[Endpoint, ...]], ...]
    remedy: str

    def says(self, shown: Callable[[Endpoint], str] = lambda endpoint: endpoint.name) -> str:
        """The notice in words, with endpoints called what ``shown`` calls them."""
        sides = "; ".join(f"{likeness} at {', '.join(shown(endpoint) for endpoint in endpoints)}" for likeness, endpoints in self.camps)
        return f"{self.name} is not the same model everywhere: {sides}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """Which deployments may serve a name.

    Args:
        served: Those that may, in their order.
        excluded: The others, each with the reason.
        notices: What the operator should know.
    """

    served: tuple[Deployment, ...]
    excluded: tuple[tuple[Deployment, str], ...] = ()
    notices: tuple[Notice, ...] = ()


def embeds(deployment: Deployment) -> bool:
    """Whether a deployment is there for embeddings: as configured, or else because its model does nothing else."""
    if deployment.mode:
        return deployment.mode == "embedding"
    facts = deployment.endpoint.facts.of(deployment.upstream_model)
    return facts is not None and "embedding" in facts.able and "completion" not in facts.able


def likeness(deployment: Deployment) -> Likeness:
    """What is known of a deployment's model."""
    facts = deployment.endpoint.facts.of(deployment.upstream_model)
    dimensions = deployment.dimensions or deployment.options.dimensions or 0
    return Likeness(facts.digest, dimensions, facts.embedding_length) if facts is not None else Likeness("", dimensions)


def judge(name: str, deployments: Sequence[Deployment], exclude: bool = False) -> Judgement:
    """Which deployments may serve a name, by what is known of their models now.

    Deployments for embeddings serve it only if their vectors belong together: the largest number of equal ones, the first
    in configuration order where numbers are equal. It counts whether they are equal, not whether they are well: another
    model's vectors are no substitute when the right ones are down. Of other models only the digest is compared, within
    one model; a difference is a notice, and an exclusion where the operator wants that.

    Args:
        name: The public name.
        deployments: All that the configuration and discovery put behind it.
        exclude: Whether chat models of another digest are excluded, too.
    """
    excluded: dict[Deployment, str] = {}
    notices: list[Notice] = []
    _pins(deployments, excluded, notices)
    given, deployments = deployments, [deployment for deployment in deployments if deployment not in excluded]
    embedders = [deployment for deployment in deployments if embeds(deployment)]
    if len(embedders) > 1:
        _embedders(name, embedders, excluded, notices)
    for model in dict.fromkeys(deployment.model for deployment in deployments):
        others = [deployment for deployment in deployments if deployment.model == model and deployment not in embedders]
        if len(others) > 1:
            _digests(model, others, exclude, excluded, notices)
    return Judgement(
        tuple(deployment for deployment in given if deployment not in excluded),
        tuple((deployment, excluded[deployment]) for deployment in given if deployment in excluded),
        tuple(notices),
    )


def expect(served: Iterable[Deployment]) -> None:
    """Tell those deployments of one model of whose embeddings nothing is known which length their siblings' have."""
    embedders = [deployment for deployment in served if embeds(deployment)]
    length = next((deployment.dimensions for deployment in embedders if deployment.dimensions), 0)
    for deployment in embedders:
        deployment.expected_dimensions = 0 if deployment.dimensions else length


def first_embedding(deployment: Deployment, length: int) -> None:
    """A deployment answered with embeddings of the length that is natural to its model, for the first time.

    Raises:
        Failure: Its siblings' are of another length: the answer must not reach the client (``bad_upstream_response``).
    """
    deployment.dimensions = length
    expected = deployment.expected_dimensions
    if expected and length != expected:
        raise Failure(
            BAD_RESPONSE,
            f"{deployment.endpoint.name} gave an embedding with {length} dimensions, where the others that serve {deployment.model} give {expected}",
        )


def _pins(deployments: Sequence[Deployment], excluded: dict[Deployment, str], notices: list[Notice]) -> None:
    """Exclude what shows another digest than the operator named."""
    for model in dict.fromkeys(deployment.model for deployment in deployments):
        wrong = []
        for deployment in deployments:
            pinned, known = deployment.options.digest, likeness(deployment)
            if deployment.model == model and pinned and known.digest and not known.digest.startswith(pinned):
                excluded[deployment] = f"its model has the {known}, and models.{model}.digest is {pinned[:DIGEST_SHOWN]}"
                wrong.append((deployment, known))
        if wrong:
            remedy = f"It is not served where it has another than models.{model}.digest ({wrong[0][0].options.digest[:DIGEST_SHOWN]})"
            notices.append(Notice(model, _sides([wrong]), remedy))


def _embedders(name: str, deployments: list[Deployment], excluded: dict[Deployment, str], notices: list[Notice]) -> None:
    camps = _camps((deployment, likeness(deployment)) for deployment in deployments)
    if len(camps) < 2:
        return
    kept, *others = _largest_first(camps)
    here = _named(kept)
    for camp in others:
        why = f"its embeddings belong to another model ({_named(camp)}) than those {name} is served with ({here}), and are never mixed with them"
        excluded.update((deployment, why) for deployment, _ in camp)
    places = "only there" if len(kept) == 1 else "only by the first"
    remedy = f"Embeddings of different models are never mixed: it is served {places}. Put the same model everywhere, or give the others a name of their own"
    notices.append(Notice(name, _sides([kept, *others]), remedy))


def _digests(model: str, deployments: list[Deployment], exclude: bool, excluded: dict[Deployment, str], notices: list[Notice]) -> None:
    known = ((deployment, Likeness(likeness(deployment).digest)) for deployment in deployments)
    camps = _camps(pair for pair in known if pair[1])
    if len(camps) < 2:
        return
    kept, *others = _largest_first(camps)
    if exclude:
        why = f"its model has another digest than those {model} is served by ({_named(kept)}), and load_balancer.digest_policy is exclude"
        for camp in others:
            excluded.update((deployment, why) for deployment, _ in camp)
        remedy = "Only the first serve it (load_balancer.digest_policy: exclude). Pull the same version everywhere"
    else:
        remedy = "Pull the same version everywhere, or set load_balancer.digest_policy: exclude to serve it by the first only"
    notices.append(Notice(model, _sides([kept, *others]), remedy))


_Camp = list[tuple[Deployment, Likeness]]


def _camps(deployments: Iterable[tuple[Deployment, Likeness]]) -> list[_Camp]:
    """Deployments by likeness, in their order; one of which nothing is known belongs to whichever turns out the largest."""
    camps: list[_Camp] = []
    unknown: _Camp = []
    for pair in deployments:
        if not pair[1]:
            unknown.append(pair)
            continue
        # Who shares the strongest evidence is looked for first: a digest says more than a number of dimensions.
        fitting = [camp for camp in camps if all(pair[1].fits(other) for _, other in camp)]
        same = next(
            (camp for camp in fitting if any(pair[1] == other or (pair[1].digest and pair[1].digest == other.digest) for _, other in camp)),
            None,
        )
        if same is None and fitting:
            same = fitting[0]
        if same is None:
            camps.append([pair])
        else:
            same.append(pair)
    if unknown:
        if camps:
            _largest_first(camps)[0].extend(unknown)
        else:
            camps.append(unknown)
    return camps


def _largest_first(camps: list[_Camp]) -> list[_Camp]:
    return sorted(camps, key=len, reverse=True)  # a stable sort: configuration order among equals


def _named(camp: _Camp) -> str:
    return str(max((known for _, known in camp), key=lambda known: (bool(known.digest), known.dimensions, known.width)))


def _sides(camps: Iterable[_Camp]) -> tuple[tuple[str, tuple[Endpoint, ...]], ...]:
    return tuple((_named(camp), tuple(dict.fromkeys(deployment.endpoint for deployment, _ in camp))) for camp in camps)
