"""Passwords stay out of what people read."""

from __future__ import annotations

import pytest

from ww_opt.study.secrets import has_password, shown, without_password
from ww_opt.study.storages import StorageError, reading

SECRETS = [
    "postgresql://me:secret@host/db",
    "postgresql+psycopg://me:se/secret@host:5432/db?sslmode=require",
    "postgresql://me:p@secret@host/db",
    "redis://:secret@host:6379/0",
    "rediss://default:secret@host",
    "mysql+pymysql://host/db?user=me&password=secret&charset=utf8",
]


@pytest.mark.parametrize("address", SECRETS)
def test_no_password_is_shown(address: str) -> None:
    assert "secret" not in shown(address)
    assert "secret" not in without_password(f"ww-opt run a.py --storage '{address}' --workers 2")
    assert "host" in shown(address)
    assert has_password(address)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///a@b.db",
        "sqlite:////x/a:b@c.db",
        "--storage=sqlite:///a:b@c.db",
        "a.journal",
        "postgresql://me@host/db",
    ],
)
def test_what_holds_none_is_left_as_it_is(address: str) -> None:
    assert without_password(address) == address
    assert not has_password(address)


def test_what_a_driver_says_holds_none_either() -> None:
    def fail() -> None:
        raise RuntimeError("could not parse me:secret@host")

    with pytest.raises(StorageError) as caught:
        reading("postgresql://me:secret@host/x", fail)
    assert "secret" not in str(caught.value)
