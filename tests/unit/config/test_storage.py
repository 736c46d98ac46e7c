"""Addresses of stores: what is accepted, what is refused with a remedy, and that none is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from hx_gateway.config.load import ConfigError, load_text
from hx_gateway.config.storage import database_fault, database_url


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://hx@sql/hx", "postgresql://hx@sql/hx"),
        ("postgresql+asyncpg://hx@sql:5433/hx?sslmode=require", "postgresql://hx@sql:5433/hx?sslmode=require"),
        ("postgresql://hx@one:5432,two:5432/hx", "postgresql://hx@one:5432,two:5432/hx"),
        ("postgresql:///hx", "postgresql:///hx"),
        ("sqlite:////var/lib/hx.db", "sqlite:////var/lib/hx.db"),
        ("sqlite:///hx.db", "sqlite:///hx.db"),
        ("", "sqlite:///state/hx-gateway.db"),
    ],
)
def test_addresses_that_are_understood(given: str, used: str) -> None:
    loaded = load_text("", "f.yaml", {"DATABASE_URL": given} if given else {})
    assert database_url(loaded.config.storage, Path("state")) == used
    assert loaded.unused == ()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("mysql://hx@sql/hidden", "postgresql:// or sqlite:///"),
        ("hidden", "postgresql:// or sqlite:///"),
        ("sqlite://", "sqlite:/// followed by the path"),
        ("sqlite:///:memory:", "sqlite:/// followed by the path"),
        ("sqlite:///hidden.db?mode=ro", "sqlite:/// followed by the path"),
        ("postgres://hx:hid/den@sql/hx", "in a password write"),
        ("postgres://hx@sql:70000/hidden", "is no address"),
        ("postgres://hx@sql:0/hidden", "is no address"),
    ],
)
def test_addresses_that_are_refused_without_being_shown(given: str, remedy: str) -> None:
    assert remedy in database_fault(given)
    with pytest.raises(ConfigError) as caught:
        load_text("", "f.yaml", {"DATABASE_URL": given})
    assert "storage.database_url" in str(caught.value) and remedy in str(caught.value)
    assert "hid" not in str(caught.value)
