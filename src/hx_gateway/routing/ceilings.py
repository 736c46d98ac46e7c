"""How much a deployment may be asked for in a minute: taken by each request that goes there, exact over the workers of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hx_gateway.access.account import MINUTE_S, Account, Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.core.context import KeyLimits
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.router import Router

_SOONEST_S = 0.01  # nobody is asked again sooner: what is refused now would be refused again


def limits_of(requests_per_minute: int, tokens_per_minute: int) -> KeyLimits | None:
    """A deployment's limits, 0 for none: so many at once after a pause, and as many a minute from then on; None for no limit."""
    if not (requests_per_minute or tokens_per_minute):
        return None
    return KeyLimits(requests_per_minute / MINUTE_S, requests_per_minute, tokens_per_minute)


class Ceilings:
    """The deployments' limits as accounts of the limiter that keeps those of the keys.

    One that has had all it may is left alone until it may have more, as if it had said that it is busy: the router need
    not know of limits.

    Args:
        limiter: Where it is counted.
        gateways: By how many gateways each limit is divided.
    """

    __slots__ = ("_gateways", "_limiter")

    def __init__(self, limiter: Limiter, gateways: Callable[[], int] = lambda: 1) -> None:
        self._limiter = limiter
        self._gateways = gateways

    def account(self, deployment: Deployment) -> Account:
        """The account of a deployment that has limits."""
        account: Account | None = deployment.account
        limits = deployment.limits
        assert limits is not None
        if account is None or account.limits is not limits:
            account = self._limiter.account(f"deployment:{deployment.model}@{deployment.place}", deployment.place, limits)
            account.scope = "deployment"
            deployment.account = account
        return account

    def within(
        self, router: Router, ask: Ask, deployment: Deployment | None, now_s: float, tokens: Callable[[Account], int]
    ) -> tuple[Deployment | None, Hold | None]:
        """The deployment that was chosen, or the next best if that has had all it may; and what the request then holds of its limits.

        Args:
            router: Chooses again.
            ask: The request.
            deployment: The router's first choice.
            now_s: Monotonic time.
            tokens: Tokens that the request may need, by what the account knows of answers.
        """
        while deployment is not None and deployment.limits is not None:
            account, share = self.account(deployment), self._gateways()
            # One that is longer than a whole minute's tokens goes out when nothing else does, and is owed for.
            wanted = min(tokens(account), max(1, account.limits.tokens_per_minute // share)) if account.settles else 0
            taken = self._limiter.take(account, now_s, wanted, 0, share)
            if isinstance(taken, Hold):
                interval_s = account.interval_s * share
                over_s = account.ahead_s + interval_s - max(account.burst_s, interval_s)
                if interval_s and over_s > 0.0:  # that was the last one for now: the next is not even sent here
                    self._rest(deployment, now_s + over_s)
                return deployment, taken
            self._rest(deployment, now_s + max(taken.wait_s, _SOONEST_S))
            deployment = router.choose(ask, now_s)
        return deployment, None

    def _rest(self, deployment: Deployment, until_s: float) -> None:
        deployment.limited_until_s = until_s
        deployment.cool_until_s = max(deployment.cool_until_s, until_s)

    def settle(self, deployment: Deployment, hold: Hold, prompt: int, completion: int, took_s: float) -> None:
        """Put what a request truly used in place of what it held.

        Args:
            deployment: Where it was sent.
            hold: What it holds.
            prompt, completion: Tokens; -1 where nobody told, which charges what was reserved for both.
            took_s: Seconds from its sending.
        """
        if completion >= 0:
            hold.account.learn(completion, took_s)
        used = hold.tokens if prompt < 0 else prompt + max(0, completion)
        self._limiter.settle(hold, used, 0)
        if used < hold.tokens and deployment.cool_until_s == deployment.limited_until_s:
            deployment.cool_until_s = 0.0  # who was refused for tokens may have them now

    def left(self, deployment: Deployment, now_s: float) -> tuple[int | None, int | None]:
        """Requests and tokens that a deployment may have at once now, of all workers; None where it has no such limit."""
        if deployment.limits is None:
            return None, None
        account = self.account(deployment)
        ahead_s, tokens_ahead_s = self._limiter.ahead(account, now_s)
        requests = max(0, int((account.burst_s - ahead_s) / account.interval_s + 1e-6)) if account.interval_s else None
        if not account.token_s:
            return requests, None
        held = account.table.reserved(account.index)[0] if account.table is not None else 0
        return requests, max(0, int((MINUTE_S - tokens_ahead_s) / account.token_s + 1e-6) - held)

    def minute(self, deployment: Deployment, now_s: float) -> Iterator[tuple[str, int, int]]:
        """Of each limit that a deployment has: ``requests`` or ``tokens``, how many are `left`, and how many it is a minute."""
        limits = deployment.limits
        most = (limits.burst, limits.tokens_per_minute) if limits is not None else (0, 0)
        for unit, left, limit in zip(("requests", "tokens"), self.left(deployment, now_s), most, strict=True):
            if left is not None:
                yield unit, left, limit
