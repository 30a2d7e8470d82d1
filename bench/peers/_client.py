"""The operations that every client supports, and their statements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import anyio
from psycopg.conninfo import conninfo_to_dict

from bench.loads import KEYS

T = TypeVar("T")

POOL = 10
"""The number of connections of each pool."""
BATCH = 5
"""The number of inserts of a batch."""
MANY = 100_000
"""The number of rows of the large result."""
COMMIT_TIME = 0.005
"""Seconds that the commit of an insert into `slow_commit` takes, in a deferred trigger."""

SCHEMA = f"""
CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, {KEYS}) i;
CREATE TABLE entry (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item int NOT NULL);
CREATE TABLE slow_commit (item int NOT NULL);
CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM pg_sleep({COMMIT_TIME}); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON slow_commit DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION nap();
CREATE TABLE many (id int PRIMARY KEY, name text, price numeric(10, 2), created timestamptz, flag bool);
INSERT INTO many SELECT i, 'item ' || i, i / 100.0, now() - i * interval '1 minute', i % 3 = 0
  FROM generate_series(1, {MANY}) i;
"""
SELECT = "SELECT id, name FROM item WHERE id = "
INSERT = "INSERT INTO entry (item) VALUES "
ROWS = "SELECT id, name, price, created, flag FROM many"


class Client(Protocol):
    """An open client. Each method is one operation, answered and checked."""

    async def select(self, key: int, /) -> object:
        """Read a row by its primary key."""
        ...

    async def insert(self, key: int, /) -> object:
        """Insert a row in its own transaction."""
        ...

    async def batch(self, key: int, /) -> object:
        """Insert five rows in one transaction."""
        ...

    async def rows(self) -> int:
        """Read 100,000 rows of five columns as Python values, and return the number of rows."""
        ...

    async def run(self, text: str, /) -> None:
        """Run a statement without parameters in its own transaction."""
        ...


Opener: TypeAlias = Callable[[str], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True, slots=True)
class AsyncContestant:
    """A client on one of the event loops."""

    name: str
    open: Opener
    """The function that opens the client, given a conninfo string."""
    backend: str = "asyncio"
    uvloop: bool = False

    def run(self, measure: Callable[[], Awaitable[T]]) -> T:
        """Run the coroutine function on this contestant's event loop."""
        options = {"use_uvloop": True} if self.uvloop else {}
        return anyio.run(measure, backend=self.backend, backend_options=options)


def parts(dsn: str) -> dict[str, Any]:
    """Return the host, port, user and dbname of a conninfo string."""
    found = conninfo_to_dict(dsn)
    return {
        "host": found["host"],
        "port": int(found["port"] or 5432),
        "user": found["user"],
        "dbname": found["dbname"],
    }


def uri(dsn: str) -> str:
    """Return the conninfo string as a URI."""
    p = parts(dsn)
    return f"postgresql://{p['user']}@{p['host']}:{p['port']}/{p['dbname']}"
