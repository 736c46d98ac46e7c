"""Keys from end to end: the real command line and API beside gateways with several workers, on SQLite and Postgres."""

from __future__ import annotations

from pathlib import Path

from tests.support.gateway import KEY
from tests.support.keyed import asked, chatted, delay_s, keyed


def test_made_and_revoked_by_the_command_line_it_is_so_in_every_worker(tmp_path: Path) -> None:
    with keyed(tmp_path, workers=3) as gateway, gateway.each_worker() as workers:
        made = gateway.command("create", "app", "--model", "tiny", "--team", "red", "--expires", "90d")
        key = made["key"]
        known_s = delay_s(lambda: all(chatted(worker, key) == (200, "ok") for worker in workers))
        for worker in workers:
            assert chatted(worker, key, "other") == (403, "model_not_allowed")
            assert [model["id"] for model in asked(worker, "GET", "/v1/models", key=key)[1]["data"]] == ["tiny"]
            assert asked(worker, "GET", "/admin/keys", key=key)[1]["error"]["code"] == "admin_required"
        second = gateway.command("rotate", "app", "--grace", "1h")["key"]
        delay_s(lambda: all(chatted(worker, second) == (200, "ok") for worker in workers))
        assert all(chatted(worker, key) == (200, "ok") for worker in workers), "the old one is let in for its grace"
        gateway.command("limits", "app", "--rps", "1")
        delay_s(lambda: any(chatted(worker, second)[1] == "rate_limit_exceeded" for worker in workers))
        assert gateway.command("revoke", "app")["state"] == "revoked"
        gone_s = delay_s(lambda: all(chatted(worker, token)[0] == 401 for worker in workers for token in (key, second)))
        for token in (key, second):
            error = asked(workers[0], "GET", "/v1/models", key=token)[1]["error"]
            assert "was revoked at 20" in error["message"] and token not in str(error)
        assert all(chatted(worker, KEY) == (200, "ok") for worker in workers)
        assert "choose another name" in gateway.command("create", "app", fails=True)
        listed = gateway.command("list")["keys"]
        assert [(one["name"], one["state"], one["team"]) for one in listed] == [("app", "revoked", "red")]
        actions = [deed["action"] for deed in asked(workers[1], "GET", "/admin/audit")[1]["data"]]
        assert actions == ["key.revoke", "key.change", "key.rotate", "key.create"]
        print(f"in three workers a key was known {known_s:.2f} s and refused {gone_s:.2f} s after the command")
        kept = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
        assert key not in gateway.log + kept and second not in gateway.log + kept


def test_two_machines_on_one_postgres(tmp_path: Path, empty_postgres_url: str) -> None:
    machines = keyed(tmp_path / "a", empty_postgres_url, workers=2), keyed(tmp_path / "b", empty_postgres_url, workers=2)
    with machines[0] as one, machines[1] as two, one.each_worker() as first, two.each_worker() as second:
        workers = [*first, *second]
        status, made = asked(first[0], "POST", "/admin/keys", {"name": "app", "limits": {"max_concurrent": 5}})
        assert status == 201
        key = made["key"]
        assert chatted(first[0], key) == (200, "ok"), "the worker that made it knows it at once"
        known_s = delay_s(lambda: all(chatted(worker, key) == (200, "ok") for worker in workers))
        assert asked(second[1], "DELETE", "/admin/keys/app")[1]["state"] == "revoked"
        assert chatted(second[1], key)[0] == 401, "the worker that revoked it refuses it at once"
        gone_s = delay_s(lambda: all(chatted(worker, key)[0] == 401 for worker in workers))
        by_hand = one.command("create", "by hand")["key"]
        delay_s(lambda: all(chatted(worker, by_hand) == (200, "ok") for worker in workers))
        print(f"on two machines a key was known {known_s:.2f} s and refused {gone_s:.2f} s after the answer")


def test_keys_in_the_store_alone(tmp_path: Path) -> None:
    with keyed(tmp_path, key="") as gateway:
        assert gateway.chat("") == (200, "ok")
        key = gateway.command("create", "first", "--admin")["key"]
        delay_s(lambda: gateway.chat("") == (401, "invalid_api_key"))
        assert gateway.chat(key) == (200, "ok")
        assert "1 keys are in the store: from now on a key is required" in gateway.log
        assert gateway.ask("GET", "/admin/keys", key=key)[1]["data"][0]["name"] == "first"
        # So it may listen to other machines, which without any key it must not.
        gateway.process.stop()
        host = gateway.process._command.index("--host") + 1
        gateway.process._command[host] = "0.0.0.0"
        gateway.process.start()
        assert gateway.chat(key) == (200, "ok") and gateway.chat("") == (401, "invalid_api_key")
