"""The contract's fleet on real llama.cpp passes every check of `verify`."""

from __future__ import annotations

from tests.integration.contract.conftest import House

from hx_gateway.config.load import load
from hx_gateway.ops.verify import expected, run


def test_verify_is_green_against_real_model_servers(house: House) -> None:
    report = run(house.gateway.url, house.gateway.key, expected(load(house.gateway.path, {"MASTER_KEY": house.gateway.key}).config))
    assert report.ok, report.failures
    assert {"chat", "stream", "embeddings", "group header", "auth", "documents"} <= {
        one.check for one in report.results if one.state == "passed"
    }
