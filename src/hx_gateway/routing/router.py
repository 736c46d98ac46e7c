"""Where a request goes: filter those that cannot take it, score the rest in seconds, pick; and the same with its reasons."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import Policy
from hx_gateway.routing.prefix import Held, PrefixIndex

WARM_S = 20.0  # seconds over which a recovered deployment gets its full share again
_SESSIONS = 20_000
_SESSION_SHARE = 0.9  # of a conversation's last prompt believed to be cached where it was answered


@dataclass(slots=True)
class Candidate:
    """One deployment in a decision.

    Args:
        deployment: The deployment.
        removed: Why it could not be chosen; empty if it could.
        terms: Seconds by term; empty where the policy counts none.
        total: Their sum, each as often as the decision's ``weights`` say.
        cached_tokens: Tokens of the prompt believed to be cached there.
    """

    deployment: Deployment
    removed: str = ""
    terms: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    cached_tokens: float = 0.0


@dataclass(slots=True)
class Decision:
    """A choice with its reasons.

    Args:
        policy: Name of the policy.
        chosen: The deployment; None when none can take the request.
        candidates: All deployments of the target.
        rule: What decided, in a few words.
        weights: How often the seconds of a term count, where that is not once.
    """

    policy: str
    chosen: Deployment | None = None
    candidates: list[Candidate] = field(default_factory=list)
    rule: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)


def summed(seconds: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """A sum of terms in words, as ``wait 0.10 + prefill 0.40 x2``; terms too small to show are left out, no term is empty text."""
    parts = [
        f"{name} {value:.2f}" + (f" x{weights[name]:g}" if name in weights else "")
        for name, value in seconds.items()
        if abs(value) >= 0.005
    ]
    return " + ".join(parts)


class Router:
    """Chooses deployments.

    Args:
        policy: Returns the policy of a name; asked once a name.
        blocks: Size of the prefix index, in blocks per generation.
        chance: Random numbers from 0 to 1.
    """

    __slots__ = ("_chance", "_find", "_policies", "_sessions", "prefixes")

    def __init__(self, policy: Callable[[str], Policy], blocks: int = 65536, chance: Callable[[], float] = random.random) -> None:
        self._find = policy
        self._policies: dict[str, Policy] = {}
        self._sessions: dict[int, tuple[int, float]] = {}  # session to endpoint's bit and length of its last prompt
        self._chance = chance
        self.prefixes = PrefixIndex(blocks)

    def policy(self, name: str) -> Policy:
        """The policy called ``name``."""
        found = self._policies.get(name)
        if found is None:
            found = self._policies[name] = self._find(name)
        return found

    def replace(self, policy: Callable[[str], Policy]) -> None:
        """Take policies from elsewhere; what is known of prefixes and conversations stays."""
        self._find = policy
        self._policies = {}

    def explain(self, ask: Ask, now_s: float) -> Decision:
        """The choice for a request with its reasons, by the same code, and without leaving a trace."""
        name = ask.target.policy
        kept = self.policy(name)
        decision = Decision(name)
        self._policies[name] = dataclasses.replace(kept, picker=copy.deepcopy(kept.picker))  # a picker may count its turns
        try:
            self.choose(ask, now_s, decision)
        finally:
            self._policies[name] = kept
        decision.candidates += [Candidate(deployment, reason) for deployment, reason in ask.target.unfit]
        return decision

    def choose(self, ask: Ask, now_s: float, decision: Decision | None = None, picking: bool = True) -> Deployment | None:
        """The deployment for the next attempt, or None when none can take it now.

        A deployment whose breaker is open is passed over, unless every one that is left is: a name is never shut out,
        it gets one trial at a time, of the deployment that has been resting longest.

        Args:
            ask: The request.
            now_s: Monotonic time.
            decision: Filled with the reasons where given; the choice is the same.
            picking: False where it only matters whether there is one: nothing is compared, and no picker's turn passes.
        """
        target = ask.target
        tried = ask.tried
        usable: list[Deployment] = []
        resting: list[Deployment] = []
        due: Deployment | None = None
        cold_s = now_s - WARM_S
        recovering = False
        for deployment in target.deployments:
            endpoint = deployment.endpoint
            if (
                deployment.cool_until_s > now_s
                or endpoint.cool_until_s > now_s
                or (deployment.max_concurrent and deployment.in_flight >= deployment.max_concurrent)
                or (endpoint.max_concurrent and endpoint.in_flight >= endpoint.max_concurrent)
                or not deployment.weight
                or (tried and deployment in tried)
            ):
                if decision is not None:
                    decision.candidates.append(Candidate(deployment, self._removed(deployment, ask, now_s)))
                continue
            mine, servers = deployment.breaker, endpoint.breaker
            if mine.state == "closed" and servers.state == "closed":
                usable.append(deployment)
                if mine.closed_s > cold_s or servers.closed_s > cold_s:
                    recovering = True
                continue
            if due is None and mine.allows(now_s) and servers.allows(now_s):
                due = deployment  # its time is up: this request is the one trial
            resting.append(deployment)
            if decision is not None:
                decision.candidates.append(Candidate(deployment, self._removed(deployment, ask, now_s)))
        if due is not None and usable:
            if decision is not None:
                decision.candidates += [
                    Candidate(deployment, "another deployment has its trial with this request") for deployment in usable
                ]
            return _decided(decision, due, "its breaker's time is up: this request is the trial")
        if usable:
            if recovering and len(usable) > 1:
                usable = self._eased(usable, now_s, decision)
            if ask.choice is not None and ask.choice.order:
                usable = _wanted(ask.choice.order, usable, decision)
            if decision is None and (len(usable) == 1 or not picking):
                return usable[0]
            policy = self._policies.get(target.policy) or self.policy(target.policy)
            if policy.picker is None:
                return self._scored(ask, policy, usable, now_s, decision)
            if decision is None:
                return policy.picker.pick(target, usable)
            decision.candidates += [Candidate(deployment) for deployment in usable]
            if len(usable) == 1:  # nobody's turn, as above
                return _decided(decision, usable[0], "the only one that can take it now")
            return _decided(decision, policy.picker.pick(target, usable), f"{policy.name} picked it")
        idle = [one for one in resting if not _on_trial(one)]
        if idle and (due or not tried) and not any(one.in_flight and _on_trial(one) for one in target.deployments):
            longest = due or min(idle, key=lambda one: max(one.breaker.opened_s, one.endpoint.breaker.opened_s))
            return _decided(decision, longest, "all are being rested, and a name is never shut out: this request is the trial")
        return _decided(decision, None, "none can take a request now")

    def _eased(self, usable: list[Deployment], now_s: float, decision: Decision | None) -> list[Deployment]:
        """Those that take part in this choice: one that just recovered does so more and more often."""
        warm = [deployment for deployment in usable if self._warm(deployment, now_s)]
        if not warm:
            return usable
        if decision is not None:
            left_out = [deployment for deployment in usable if deployment not in warm]
            decision.candidates += [Candidate(deployment, "it recovered a moment ago and gets a growing share") for deployment in left_out]
        return warm

    def _scored(self, ask: Ask, policy: Policy, usable: list[Deployment], now_s: float, decision: Decision | None) -> Deployment:
        if policy.paced:
            unsure = [deployment for deployment in usable if deployment.pace.old_s <= now_s]
            if unsure and len(unsure) < len(usable):
                usable = _ventured(unsure, usable, now_s, decision)
        cached = self.cached(ask, usable) if policy.affine else [0.0] * len(usable)
        # One length for all: what the answer will be does not depend on where it is written, and chance differences would steer.
        ask.usual_tokens = sum([deployment.pace.output_tokens for deployment in usable]) / len(usable)
        terms = policy.terms
        totals = []
        for deployment, tokens in zip(usable, cached, strict=True):
            total = 0.0
            for _, term, weight in terms:
                total += weight * term(ask, deployment, tokens, now_s)
            totals.append(total)
        position = policy.best(totals, usable, self._chance)
        chosen = ask.scored = usable[position]
        ask.believed_tokens = cached[position]
        if decision is not None:
            for deployment, tokens, total in zip(usable, cached, totals, strict=True):
                seconds = policy.seconds(ask, deployment, tokens, now_s)
                decision.candidates.append(Candidate(deployment, "", seconds, total, tokens))
            decision.weights = policy.weights
            _decided(decision, chosen, "the least total")
        return chosen

    def _warm(self, deployment: Deployment, now_s: float) -> bool:
        since_s = now_s - max(deployment.breaker.closed_s, deployment.endpoint.breaker.closed_s)
        return since_s >= WARM_S or self._chance() * WARM_S < since_s + 1.0

    def _removed(self, deployment: Deployment, ask: Ask, now_s: float) -> str:
        endpoint = deployment.endpoint
        if deployment in ask.tried:
            return "it already failed this request"
        if not deployment.weight:
            return "its weight is 0"
        if endpoint.drained:
            return "its endpoint is drained"
        if deployment.full:
            return f"it is at its limit of concurrent requests ({deployment.in_flight} under way)"
        cool_s = max(deployment.cool_until_s, endpoint.cool_until_s) - now_s
        if deployment.limited_until_s - now_s >= cool_s > 0:
            return f"it has had all the requests or tokens it may have in a minute; asked again in {cool_s:.1f} s"
        if cool_s > 0:
            return f"it said it is busy; asked again in {cool_s:.1f} s"
        breaker = deployment.breaker if deployment.breaker.state != "closed" else endpoint.breaker
        if breaker.trial:
            return "its breaker is half-open and a trial is under way"
        return f"its breaker is open; a trial in {breaker.retry_after_s(now_s):.1f} s"

    def cached(self, ask: Ask, deployments: Sequence[Deployment]) -> list[float]:
        """Tokens of the prompt believed to be in each deployment's prefix cache."""
        bits = [self._bit(deployment) for deployment in deployments]
        most = ask.prompt_tokens
        tokens = [0.0] * len(bits)
        if ask.blocks:
            for position, count in enumerate(self.prefixes.matches(ask.blocks, bits)):
                covered = ask.edges[count] if ask.edges else count * ask.block_tokens
                believed = covered * deployments[position].endpoint.cache_trust
                tokens[position] = believed if believed < most else most
        if ask.session:
            known = self._sessions.get(ask.session)
            if known is not None:
                for position, bit in enumerate(bits):
                    if bit == known[0]:
                        believed = min(known[1] * _SESSION_SHARE, most)
                        if believed > tokens[position]:
                            tokens[position] = believed
        return tokens

    def _held(self, deployment: Deployment) -> Held:
        held = self.prefixes.held(deployment.place)
        cache = deployment.endpoint.facts.cache
        if held.told is not cache:
            self.prefixes.heed(held, cache)
        return held

    def _bit(self, deployment: Deployment) -> int:
        """The deployment's mask in the index; 0 where its model is not in memory, and so nothing is cached."""
        residency = deployment.endpoint.residency
        if residency.managed and deployment.upstream_model not in residency.resident:
            return 0
        return self._held(deployment).bit

    def _believed(self, ask: Ask, deployment: Deployment) -> float:
        """Tokens of the prompt believed to be cached at a deployment, looked up again only where no score was just made."""
        return ask.believed_tokens if ask.scored is deployment else self.cached(ask, (deployment,))[0]

    def reason(self, ask: Ask, deployment: Deployment, now_s: float) -> str:
        """Why a deployment was chosen, in one line; empty where the policy counts no seconds."""
        policy = self.policy(ask.target.policy)
        if policy.picker is not None:
            return ""
        tokens = self._believed(ask, deployment) if policy.affine else 0.0
        seconds = policy.seconds(ask, deployment, tokens, now_s)
        return f"{summed(seconds, policy.weights) or '0.00'} s" + (f", {tokens:.0f} tokens cached" if tokens >= 1.0 else "")

    def sent(self, ask: Ask, deployment: Deployment, now_s: float) -> float:
        """A request goes to a deployment; returns the seconds of reading it adds to what waits there.

        The same seconds go back through `read` once the first byte came, or the call ended without one.
        """
        endpoint = deployment.endpoint
        ask.among = deployment.in_flight
        tokens = ask.prompt_tokens
        if ask.blocks or ask.session:
            ask.believed_tokens = self._believed(ask, deployment)
            ask.scored = None  # from here on the prompt itself is what is cached there
            tokens -= ask.believed_tokens
            ask.place = deployment.place
            held = self._held(deployment)
            if held.blocks and not self._bit(deployment):
                self.prefixes.forget(held)
            if ask.blocks:
                self.prefixes.add(ask.blocks, held, ask.block_tokens, ask.edges)
            if ask.session:
                sessions = self._sessions
                sessions.pop(ask.session, None)
                sessions[ask.session] = (held.bit, ask.prompt_tokens)
                if len(sessions) > _SESSIONS:
                    del sessions[next(iter(sessions))]
        endpoint.residency.sent(deployment, now_s)
        seconds = tokens / deployment.pace.prefill_rate
        endpoint.pending_s += seconds
        return seconds

    def verified(self, ask: Ask, prompt_tokens: float, cached_tokens: float) -> None:
        """An answer told how much of its prompt had been cached; what `sent` believed is corrected by it.

        Args:
            ask: The request, as it was sent.
            prompt_tokens: Length of its prompt, as the server counts.
            cached_tokens: How much of it was cached there.
        """
        if ask.place and ask.blocks and ask.prompt_tokens:
            believed = ask.believed_tokens * prompt_tokens / ask.prompt_tokens  # in the server's tokens, not in ours
            self.prefixes.verified(self.prefixes.held(ask.place), prompt_tokens, believed, cached_tokens)

    def read(self, endpoint: Endpoint, seconds: float) -> None:
        """A prompt that waited at an endpoint has been read, or will not be."""
        left_s = endpoint.pending_s - seconds
        endpoint.pending_s = left_s if left_s > 1e-9 and endpoint.in_flight else 0.0

    def retry_after_s(self, ask: Ask, now_s: float) -> float:
        """Seconds after which some deployment of the name may take a request; at least one second."""
        waits = [
            max(
                deployment.breaker.retry_after_s(now_s),
                deployment.endpoint.breaker.retry_after_s(now_s),
                deployment.cool_until_s - now_s,
                deployment.endpoint.cool_until_s - now_s,
            )
            for deployment in ask.target.deployments
            if deployment.weight and not deployment.endpoint.drained
        ]
        return max(1.0, min(waits, default=1.0))


def _ventured(unsure: list[Deployment], usable: list[Deployment], now_s: float, decision: Decision | None) -> list[Deployment]:
    """Those that take part in a choice by speed, where of some nothing is known, or nothing any more.

    They count as fast as the fastest of their siblings, so that they are not left to starve; but with no more requests
    at a time than the least busy of these, and one at least, so that they are not flooded before one was answered.
    """
    sure = [deployment for deployment in usable if deployment.pace.old_s > now_s]
    left_out = []
    for deployment in unsure:
        siblings = [one for one in sure if deployment.akin(one)]
        if not siblings:
            continue
        if deployment.pace.seen and not deployment.in_flight:
            deployment.pace.forget(max((one.pace for one in siblings), key=lambda pace: pace.decode_rate))
        if deployment.endpoint.residency.managed:
            continue  # to be left out would mean a load elsewhere, which costs more than a wrong guess
        if not deployment.pace.seen and deployment.in_flight >= max(1, min(one.in_flight for one in siblings)):
            left_out.append(deployment)
    if not left_out:
        return usable
    if decision is not None:
        reason = "its speed is not known (any more): it gets few requests until it has answered one"
        decision.candidates += [Candidate(deployment, reason) for deployment in left_out]
    return [deployment for deployment in usable if deployment not in left_out]


def _wanted(order: Sequence[str], usable: list[Deployment], decision: Decision | None) -> list[Deployment]:
    """Those of the first model in ``order`` that can be used at all; all where none of them is of these models."""
    model = next((name for name in order if any(one.model == name for one in usable)), "")
    if not model:
        return usable
    if decision is not None:
        decision.candidates += [Candidate(one, f"for this prompt {model} comes first") for one in usable if one.model != model]
    return [one for one in usable if one.model == model]


def _on_trial(deployment: Deployment) -> bool:
    return bool(deployment.breaker.trial or deployment.endpoint.breaker.trial)


def _decided(decision: Decision | None, chosen: Deployment | None, rule: str) -> Deployment | None:
    if decision is not None:
        for candidate in decision.candidates:
            if candidate.deployment is chosen:
                candidate.removed = ""
        decision.chosen = chosen
        decision.rule = rule
    return chosen
