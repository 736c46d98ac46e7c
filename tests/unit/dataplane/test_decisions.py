"""What is remembered of choices: all that was weighed for some, and for fewer where there was much to weigh."""

from __future__ import annotations

import pytest

from hx_gateway.dataplane import proxy as proxies
from hx_gateway.dataplane.explain import remembered
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.testing.factories import make_deployment


def test_what_was_weighed_long_ago_is_forgotten_where_a_name_has_many_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "_WEIGHED", 20)
    proxy = Proxy(Router(policy), lambda endpoint: None)  # type: ignore[arg-type,return-value]
    target = Target("solo", "model", tuple(make_deployment() for _ in range(5)), policy="round_robin")
    proxy.explained = 10
    for number in range(10):
        decision = proxy.weighing(target)
        chosen = proxy.router.choose(Ask(target), 0.0, decision)
        assert chosen is not None
        proxy.decisions.append((str(number), "solo", "round_robin", chosen, 0, "", decision))
    assert proxy.explained == 0
    told = remembered(proxy.decisions, True)
    assert [len(one["explanation"]["candidates"]) if one["explanation"] else 0 for one in told] == [0] * 6 + [5] * 4
    assert all(one["endpoint"] == "test-host" for one in told)
