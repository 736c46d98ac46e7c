"""Reports while the database is dead or deaf: those routes alone say so, soon, and are back when it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.faults.test_housekeeper import running
from tests.support.engines import Postgres
from tests.support.gateway import KEY, GatewayProcess

ROUTES = (
    "/admin/usage",
    "/admin/requests",
    "/admin/requests/01JD3W6Y000000000000000000",
    "/v1/usage",
    "/admin/requests?format=csv",
    "/admin/keys",
    "/admin/audit",
)
PATIENCE_S = 30.0  # less than what would wait for a dead database without a bound, and far more than the bound


def get(gateway: GatewayProcess, path: str) -> tuple[int, Any]:
    answer = httpx.get(gateway.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S, verify=False)
    return answer.status_code, answer.json() if "json" in answer.headers["content-type"] else answer.text


def away(gateway: GatewayProcess) -> None:
    """Every report is refused with the name of the store, and chats are answered."""
    with ThreadPoolExecutor(len(ROUTES)) as pool:
        answers = pool.map(lambda route: get(gateway, route), ROUTES)
        for _ in ROUTES:
            assert chat(gateway.port, "all the same", "tiny").content == "all the same"
        for status, body in answers:
            assert (status, body["error"]["code"]) == (503, "store_unavailable"), body
            assert body["error"]["message"].startswith("Postgres ")
    assert get(gateway, "/v1/models")[0] == get(gateway, "/healthz/deps")[0] == 200


def there(gateway: GatewayProcess, requests: int) -> bool:
    status, body = get(gateway, "/admin/usage?by=model")
    return bool(status == 200 and body["data"] and body["data"][0]["requests"] == requests)


def test_reports_of_a_database_that_is_away(tmp_path: Path, own_postgres: Postgres) -> None:
    with running(tmp_path, own_postgres.url()) as gateway:
        assert chat(gateway.port, "one", "tiny").content == "one"
        wait_until(lambda: there(gateway, 1), 30)
        own_postgres.hang()
        away(gateway)
        own_postgres.resume()
        wait_until(lambda: there(gateway, 1 + len(ROUTES)), 60)
        own_postgres.kill()
        away(gateway)
        own_postgres.start()
        wait_until(lambda: there(gateway, 1 + 2 * len(ROUTES)), 60)
        assert "Traceback" not in gateway.log and "never retrieved" not in gateway.log, gateway.log
