"""The key ring: right identity for a key, nobody for anything else, and no key kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.access.keys import KeyRing, digest_of
from hx_gateway.config.load import load_text
from hx_gateway.core.context import Identity

HASHED = "kept-as-a-hash-only"
TEXT = f"""
service: {{host: 0.0.0.0}}
endpoints: {{e: {{url: "http://e:1"}}}}
models: {{tiny: {{endpoint: e}}}}
keys:
  master_key: env:MASTER
  api_keys:
    - {{name: app, key: env:APP, models: [tiny]}}
    - {{name: ops, key_hash: "sha256:{hashlib.sha256(HASHED.encode()).hexdigest().upper()}", admin: true, show_endpoints: false}}
    - {{name: none, key: env:NONE, models: []}}
"""
ENVIRON = {"MASTER": "the-master-key", "APP": "the-app-key", "NONE": "the-none-key"}


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing.from_config(load_text(TEXT, "f.yaml", ENVIRON).config)


def test_each_key_is_who_it_is(ring: KeyRing) -> None:
    assert ring.required
    assert len(ring) == 4
    assert ring.identify(b"the-master-key") == Identity("master", admin=True)
    assert ring.identify(b"the-app-key") == Identity("app", models=frozenset({"tiny"}))
    assert ring.identify(HASHED.encode()) == Identity("ops", admin=True, show_endpoints=False)


def test_what_a_key_may_use(ring: KeyRing) -> None:
    app, none, master = (ring.identify(key) for key in (b"the-app-key", b"the-none-key", b"the-master-key"))
    assert app is not None
    assert none is not None
    assert master is not None
    assert (app.may_use("tiny"), app.may_use("other")) == (True, False)
    assert not none.may_use("tiny")  # an empty list allows nothing
    assert master.may_use("anything")


@pytest.mark.parametrize(
    "token", [b"", b"the-app-ke", b"the-app-key ", b"THE-APP-KEY", b"sha256:00", b"\xff\x00", digest_of("the-app-key")]
)
def test_anything_else_is_nobody(ring: KeyRing, token: bytes) -> None:
    assert ring.identify(token) is None


@given(st.binary(max_size=64))
def test_no_other_bytes_are_let_in(token: bytes) -> None:
    ring = KeyRing([(digest_of("the-app-key"), Identity("app"))])
    assert (ring.identify(token) is not None) == (token == b"the-app-key")


def test_no_key_is_kept(ring: KeyRing) -> None:
    kept = repr(ring) + "".join(repr(getattr(ring, name)) for name in KeyRing.__slots__)
    assert "the-" not in kept
    assert HASHED not in kept
    assert repr(ring) == "<KeyRing master, app, ops, none>"


@pytest.mark.parametrize(
    ("host", "required"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("192.0.2.1", True)]
)
def test_without_keys_this_machine_alone_is_let_in(host: str, required: bool) -> None:
    ring = KeyRing.from_config(load_text(f"service: {{host: '{host}'}}", "f.yaml", {}).config)
    assert ring.required is required
    assert ring.identify(b"") is None
    assert ring.identify(b"anything") is None


def test_with_a_key_even_this_machine_needs_it() -> None:
    assert KeyRing.from_config(load_text("", "f.yaml", {"MASTER_KEY": "the-master-key"}).config).required


def test_the_data_plane_gets_it_without_the_configurations_machinery() -> None:
    code = "import sys, hx_gateway.access.keys; print({'pydantic', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
