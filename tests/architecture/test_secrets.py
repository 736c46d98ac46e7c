"""No key, no real address, no trace of the place where this was written, in any tracked file."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT, shown, text, tracked

KEYS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"),
    "OpenAI or LiteLLM key": re.compile(r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "password in a URL": re.compile(r"\b[a-z][a-z0-9+]*://[^/\s:@'\"{}<>$]+:(?!(?:pass(?:word)?|secret|pw|test|x+|\*+|\.\.\.|…)@)[^/\s@'\"{}<>$]{4,}@[a-z0-9]"),
}  # fmt: skip
ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(/\d{1,2})?(?!\w|\.\d)")
HARMLESS_NETWORKS = [
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "0.0.0.0/32", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32")
]
TOKEN = re.compile(r"(?<![\w/+.-])[A-Za-z0-9_+/=-]{32,}(?![\w/+-])")
# Spelt in pieces, so that this file passes its own scan.
PLACES = ["/" + "root/", "/" + "work/", "/" + "home/[a-z]", "/Use" + "rs/[a-z]"]
REGISTRIES = [
    r"pypi\.(?:org|python)",
    "python" + r"hosted\.org",
    "registry" + r"\.npmjs",
    "files" + r"\.pythonhosted",
    "find" + "-links",
    "--index" + "-url",
]
WORKPLACE = re.compile(r"(?<![\w.:-])(?:" + "|".join(PLACES) + ")|" + "|".join(REGISTRIES))


@cache
def allowed() -> frozenset[str]:
    lines = (Path(__file__).parent / "allowed_tokens.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(token for line in lines if (token := line.partition("#")[0].strip()))


def texts() -> list[tuple[Path, str]]:
    skipped = {ROOT / "LICENSE", Path(__file__).parent / "allowed_tokens.txt"}
    return [(path, content) for path in tracked() if path not in skipped and (content := text(path)) is not None]


def where(path: Path, content: str, position: int) -> str:
    return f"{shown(path)}:{content.count(chr(10), 0, position) + 1}"


def is_harmless(address: str, suffix: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True  # 300.1.2.3 is no address
    return address + suffix in allowed() or any(parsed in network for network in HARMLESS_NETWORKS)


def bits(token: str) -> float:
    """Shannon entropy in bits a character."""
    return -sum(count / len(token) * math.log2(count / len(token)) for count in Counter(token).values())


def looks_random(token: str) -> bool:
    """A long mix of cases and digits, or long hexadecimal: what generated secrets look like and prose does not."""
    if re.fullmatch(r"[0-9a-fA-F]{32,}", token):
        return bits(token) > 3
    kinds = [any(map(test, token)) for test in (str.isdigit, str.islower, str.isupper)]
    words = re.split(r"[_/+=-]", token)
    return all(kinds) and bits(token) > 4.2 and max(map(len, words)) >= 20


def test_there_is_something_to_scan() -> None:
    names = {shown(path) for path, _ in texts()}
    assert {"pyproject.toml", "README.md", "src/hx_gateway/core/errors.py"} <= names


@pytest.mark.parametrize("kind", KEYS)
def test_no_credential_is_in_the_repository(kind: str) -> None:
    found = [
        f"{where(path, content, match.start())}: {kind}"
        for path, content in texts()
        for match in KEYS[kind].finditer(content)
        if match.group() not in allowed()
    ]
    assert found == []


def test_no_address_but_loopback_and_documentation_ranges() -> None:
    found = [
        f"{where(path, content, match.start())}: {match.group()}"
        for path, content in texts()
        for match in ADDRESS.finditer(content)
        if not is_harmless(match.group(1), match.group(2) or "")
    ]
    assert found == [], "use 192.0.2.0/24, 198.51.100.0/24 or 203.0.113.0/24, which are for documentation"


def test_nothing_looks_like_a_generated_secret() -> None:
    found = [
        f"{where(path, content, match.start())}: {match.group()[:6]}… ({len(match.group())} characters)"
        for path, content in texts()
        for match in TOKEN.finditer(content)
        if match.group() not in allowed() and looks_random(match.group())
    ]
    assert found == [], "if it is harmless, name it in allowed_tokens.txt and say why"


def test_no_trace_of_the_place_where_this_was_written() -> None:
    found = [
        f"{where(path, content, match.start())}: {match.group()}" for path, content in texts() for match in WORKPLACE.finditer(content)
    ]
    assert found == []


def test_the_allow_list_holds_nothing_that_is_gone() -> None:
    everything = "\n".join(content for _, content in texts())
    assert [token for token in allowed() if "/" not in token and token not in everything] == []


# The scan itself: each rule has to find what it is for. Samples are put together here, so that the scan does not find this file.
@pytest.mark.parametrize(
    ("kind", "sample"),
    [
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 3),
        ("OpenAI or LiteLLM key", "sk-" + "aB3dE5gH7jK9mN1pQ3sT"),
        ("AWS key", "AKIA" + "IOSFODNN7EXAMPLE"),
        ("GitHub token", "ghp_" + "a1B2" * 9),
        ("Hugging Face token", "hf_" + "a1B2" * 9),
        ("Slack token", "xoxb-" + "123456789012"),
        ("JSON web token", "eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + "."),
        ("password in a URL", "postgresql://gateway:" + "hunter2@db"),
    ],
)
def test_each_rule_finds_what_it_is_for(kind: str, sample: str) -> None:
    assert KEYS[kind].search(f"key = '{sample}'")


def test_the_other_rules_find_what_they_are_for() -> None:
    assert looks_random("q7Rk2" + "VbX9mT4" + "zLp8WcY3" + "nHs6JdF1gKa5")
    assert looks_random("9f86d081884c7d65" + "9a2feaa0c55ad015")
    assert not looks_random("a_function_name_that_is_long_but_only_words_v2")
    assert not looks_random("SomeQuiteLong/PathTo/ADocument-Of-2026/Readme")
    assert not is_harmless("10.1.2" + ".3", "")
    assert is_harmless("192.0.2.7", "")
    assert is_harmless("10.0.0" + ".0", "/8")
    assert WORKPLACE.search("see " + PLACES[0] + "x")
    assert not KEYS["password in a URL"].search("postgresql://user:password@db/name")
