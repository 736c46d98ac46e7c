"""Secrets: resolved where they should be, and shown nowhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hx_gateway.config.load import ConfigError, load, load_text
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.secrets import Secret

VALUE = "correct horse battery"


def refusal(text: str, environ: dict[str, str], directory: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f.yaml", environ, directory)
    return str(caught.value)


def master(text: str, environ: dict[str, str] | None = None, directory: Path | None = None) -> Secret:
    key = load_text(f"keys: {{master_key: {json.dumps(text)}}}", "f.yaml", environ or {}, directory).config.keys.master_key
    assert key is not None
    return key


def test_a_reference_to_the_environment() -> None:
    secret = master("env:THE_KEY", {"THE_KEY": VALUE})
    assert secret.reveal() == VALUE
    assert secret.reference == "env:THE_KEY"
    assert not secret.literal


def test_a_reference_to_a_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{VALUE}\r\n")
    file = tmp_path / "gateway.yaml"
    file.write_text("keys: {master_key: 'file:key'}")
    key = load(file, {}).config.keys.master_key
    assert key is not None
    assert key.reveal() == VALUE
    assert master(f"file:{tmp_path}/key").reveal() == VALUE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("env:NOT_THERE", "the environment variable NOT_THERE is not set"),
        ("env:", "needs a name"),
        ("file:not-there", "does not exist"),
        ("file:.", "no regular file"),
        ("file:big", "64 KiB"),
        ("file:binary", "not UTF-8"),
        ("file:lines", "line break"),
        ("file:empty", "is empty"),
        ("env:EMPTY", "is empty"),
        ("file:\x00", "no regular file"),
        ("", "is empty"),
    ],
)
def test_what_leads_nowhere_is_located(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "lines").write_text(f"{VALUE}\n{VALUE}\n")
    (tmp_path / "empty").write_text("\n")
    said = refusal(f"keys:\n  master_key: {json.dumps(text)}\n", {"EMPTY": ""}, tmp_path)
    assert said.startswith("f.yaml:2:15: keys.master_key: ")
    assert words in said
    assert VALUE not in said


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(VALUE)
    (tmp_path / "key").chmod(0)
    assert "Permission denied" in refusal("keys: {master_key: 'file:key'}", {}, tmp_path)


def test_a_number_is_no_secret_and_is_not_repeated() -> None:
    said = refusal("keys: {master_key: 987654321}", {})
    assert "in quotes" in said
    assert "987654321" not in said


def test_it_is_never_shown() -> None:
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret]), json.dumps({"a": str(secret)})]
    assert all(VALUE not in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert copy.deepcopy(secret) is secret
    assert copy.copy(secret) is secret


def test_equal_secrets_are_equal_whatever_they_come_from() -> None:
    assert Secret(VALUE) == Secret(VALUE, "env:A")
    assert Secret(VALUE) != Secret("another")
    assert Secret(VALUE) != VALUE
    assert len({Secret(VALUE), Secret(VALUE, "env:A")}) == 1


EVERYWHERE = """
service: {tls: {cert_file: c, key_file: k, key_password: "%s"}}
gateway: {default_upstream: {url: "http://up:1", api_key: "%s"}}
models: {m: {endpoint: e, api_key: "%s"}}
endpoints: {e: {url: "http://e:1", api_key: "%s", headers: {authorization: "%s"}}}
keys: {master_key: "%s", api_keys: [{name: a, key: "%s"}]}
storage: {database_url: "postgres://sql/%s", redis_url: "redis://%s", qdrant_url: "http://q/%s", qdrant_api_key: "%s"}
litellm: {master_key: "%s"}
embeddings: {auth_header: "%s"}
"""


def test_no_secret_of_a_whole_configuration_is_shown() -> None:
    count = EVERYWHERE.count("%s")
    values = [f"tell-nobody-{n:02}" for n in range(count)]
    loaded = load_text(EVERYWHERE % tuple(values), "f.yaml", {})
    shown = [
        repr(loaded),
        str(loaded.config),
        loaded.config.model_dump_json(),
        repr(loaded.config.model_dump()),
        repr(loaded.sources),
        *map(str, loaded.warnings),
    ]
    assert all("tell-nobody" not in text for text in shown)
    revealed = [loaded.config.keys.master_key, loaded.config.endpoints["e"].headers["authorization"]]
    assert [secret.reveal() for secret in revealed if secret] == ["tell-nobody-05", "tell-nobody-04"]
    # Each of them is written out, and the file's owner is told so.
    assert (
        len([warning for warning in loaded.warnings if "move it to env:NAME" in warning.message]) == count - 4
    )  # plain store URLs are no secret


@given(
    st.sampled_from(["keys", "keys.master_key", "keys.api_keys", "models", "endpoints", "service", "storage", "nonsense", "service.port"])
)
def test_a_secret_in_the_wrong_place_is_not_repeated(path: str) -> None:
    section, _, name = path.partition(".")
    for value in ("sk-tell-nobody", "[sk-tell-nobody, 1]", "{a: [{b: sk-tell-nobody}]}", "[{name: a, key: [sk-tell-nobody]}]"):
        text = f"{section}: {{{name}: {value}}}" if name else f"{section}: {value}"
        try:
            load_text(text, "f.yaml", {})
        except ConfigError as error:
            assert "tell-nobody" not in str(error)
            assert "tell-nobody" not in json.dumps([problem.as_json() for problem in error.problems])


def test_the_schema_itself_does_not_repeat_its_input() -> None:
    with pytest.raises(ValidationError) as caught:
        GatewayConfig.model_validate({"service": {"port": "sk-tell-nobody"}})
    assert "tell-nobody" not in str(caught.value)
