"""Tests that a host is resolved in a thread, wherever libpq would take the host from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict

from pgha._options import NodeConfig, parse_nodes
from pgha._wire.addresses import targets
from pgha._wire.connect import ConnectFailed, open_pgconn

pytestmark = pytest.mark.anyio

HOSTS = {"db.example": ["192.0.2.1", "192.0.2.2"], "other.example": ["2001:db8::1"]}


@pytest.fixture(autouse=True)
def only_these_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hosts of `HOSTS` exist, and no settings of this machine."""

    async def getaddrinfo(host: str, *args: object, **more: object) -> list[Any]:
        if host not in HOSTS:
            raise OSError(f"no such host: {host}")
        return [(None, None, None, "", (address, 0)) for address in HOSTS[host]]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)


def config(conninfo: str = "") -> NodeConfig:
    (one,) = parse_nodes([conninfo])
    return one


async def test_the_conninfos_own_host() -> None:
    assert await targets(config("host=db.example")) == [
        {"hostaddr": "192.0.2.1"},
        {"hostaddr": "192.0.2.2"},
    ]


@pytest.mark.parametrize("host", ["/var/run", "@abstract"])
async def test_a_socket_is_not_resolved(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert await targets(config(f"host={host}")) == [{}]
    monkeypatch.setenv("PGHOST", host)
    assert await targets(config()) == [{"host": host, "port": "5432"}]


async def test_an_address_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await targets(config("host=db.example hostaddr=192.0.2.9")) == [{}]
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.9")
    assert await targets(config()) == [{}]


async def test_a_host_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert [one["hostaddr"] for one in await targets(config("dbname=a"))] == HOSTS["db.example"]


@pytest.mark.parametrize("where", ["conninfo", "environment"])
async def test_a_host_of_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str) -> None:
    file = tmp_path / "services.conf"
    file.write_text("[shop]\nhost=other.example\nport=6543\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    if where == "environment":
        monkeypatch.setenv("PGSERVICE", "shop")
    found = await targets(config("service=shop" if where == "conninfo" else ""))
    assert found == [{"host": "other.example", "hostaddr": "2001:db8::1", "port": "6543"}]


async def test_a_list_of_hosts_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example,gone.example,/run,other.example")
    monkeypatch.setenv("PGPORT", "1,2,3,4")
    assert await targets(config()) == [
        {"host": "db.example", "hostaddr": "192.0.2.1", "port": "1"},
        {"host": "db.example", "hostaddr": "192.0.2.2", "port": "1"},
        {"host": "/run", "port": "3"},
        {"host": "other.example", "hostaddr": "2001:db8::1", "port": "4"},
    ]


async def test_a_service_that_does_not_exist_is_left_to_libpq(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "none"))
    assert (await targets(config("service=shop")))[0].get("hostaddr") is None


async def test_a_host_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "gone.example")
    with pytest.raises(ConnectFailed, match=r"cannot be resolved.*gone\.example"):
        await open_pgconn(config(), 5.0)


async def test_libpq_gets_no_name_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq resolves a name in the thread that asks: the loop's."""
    given: list[dict[str, Any]] = []

    def refuse(conninfo: str) -> Any:
        given.append(conninfo_to_dict(conninfo))
        raise psycopg.OperationalError("as if the server had refused")

    monkeypatch.setattr(generators, "connect", refuse)
    monkeypatch.setenv("PGHOST", "db.example")
    with pytest.raises(ConnectFailed):
        await open_pgconn(config("dbname=a"), 5.0)
    assert [one["hostaddr"] for one in given] == HOSTS["db.example"]
    assert {one["host"] for one in given} == {"db.example"}
