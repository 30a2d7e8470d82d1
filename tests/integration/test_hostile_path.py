"""Nothing on the search path runs in place of what pgha's own statements call.

A schema in front of pg_catalog, or behind it, contains a function for each function that pgha calls, an
operator for each operator, and a domain for each type. All raise an alarm.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
import psycopg
import pytest
from support import own_sql
from support.common import eventually, within

import pgha
import pgha.chaos
from pgha._core.pipeline import Doing
from pgha._dispatch.proofs import COMMIT
from pgha._operation.key import Keyed, undecided
from pgha._wire.compiler import Statement
from pgha.chaos import Node

pytestmark = pytest.mark.anyio

ALARM = "mallory was here"
BASICS = """
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.alarm() RETURNS bool LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '% was here', 'mallory'; END$$;
CREATE FUNCTION evil.counted(int8) RETURNS int8 LANGUAGE plpgsql AS $$BEGIN PERFORM evil.alarm(); END$$;
CREATE FUNCTION evil.counted(int8, anyelement) RETURNS int8 LANGUAGE plpgsql AS
    $$BEGIN PERFORM evil.alarm(); END$$;
"""
"""The log contains the text of these statements, but not the alarm."""
OF_THE_CATALOG = """
SELECT proname, CASE WHEN proname = 'make_interval' THEN pg_get_function_arguments(oid)
        ELSE oidvectortypes(proargtypes) END,
    CASE WHEN proretset THEN 'SETOF ' ELSE '' END || prorettype::regtype, prokind::text
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s)
"""
OPERATORS = """
DO $do$
DECLARE
    types text[] := '{bool,bytea,name,int8,int2,int4,text,oid,tid,uuid,timestamptz,interval,regclass,"char"}';
    one text; l text; r text; result text;
BEGIN
    FOREACH l IN ARRAY types LOOP
        FOREACH r IN ARRAY types LOOP
            EXECUTE format('CREATE FUNCTION evil.compared(pg_catalog.%s, pg_catalog.%s) RETURNS bool
                LANGUAGE plpgsql AS $$BEGIN RETURN evil.alarm(); END$$', l, r);
            FOREACH one IN ARRAY '{=,<>,<,>,<=,>=,||,-,+,*,/}'::text[] LOOP
                EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = pg_catalog.%s, RIGHTARG = pg_catalog.%s,
                    FUNCTION = evil.compared)', one, l, r);
            END LOOP;
        END LOOP;
    END LOOP;
    FOREACH one IN ARRAY types LOOP
        IF one <> '"char"' THEN
            EXECUTE format('CREATE DOMAIN evil.%s AS pg_catalog.text CHECK (evil.alarm())', one);
        END IF;
    END LOOP;
END $do$;
"""
PATHS = ("evil, pg_catalog", "evil")
ALARMING = (
    "SELECT count(*) FROM public.t",
    "SELECT clock_timestamp()",
    "SELECT make_interval(secs => 1.0)",
    "SELECT 1 = 2",
    "SELECT 'a'::pg_catalog.name || 'b'::pg_catalog.text",
    "SELECT 'pg_class'::regclass",
)


def called() -> list[str]:
    """Return the names of all functions that pgha calls, and other words in front of a parenthesis."""
    return sorted({name for text in own_sql.texts() for name in re.findall(r"(\w+) ?\(", text)})


def shadow_functions(connection: psycopg.Connection[tuple[str, ...]]) -> None:
    """Shadow every function of pg_catalog that pgha calls."""
    shadowed = set()
    functions = connection.execute(OF_THE_CATALOG, [called()]).fetchall()
    for name, arguments, result, kind in functions:
        try:
            if kind == "a":
                connection.execute(
                    f"CREATE AGGREGATE evil.{name}({arguments or '*'})"
                    " (sfunc = evil.counted, stype = int8, initcond = 0)"
                )
            else:
                connection.execute(
                    f"CREATE FUNCTION evil.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql"
                    " AS $$BEGIN PERFORM evil.alarm(); END$$"
                )
        except psycopg.errors.InvalidFunctionDefinition:
            continue  # a pseudo-type; the function exists with other types, too
        shadowed.add(name)
    assert shadowed == {name for name, *_ in functions}


@asynccontextmanager
async def hostile(path: str) -> AsyncGenerator[Node]:
    """Yield a server with mallory's schema on the path of all sessions, which logs every statement."""
    async with pgha.chaos.standalone(1, settings={"log_statement": "all"}) as nodes:
        with psycopg.connect(nodes[0].dsn, autocommit=True) as connection:
            connection.execute(BASICS)
            shadow_functions(connection)
            connection.execute(OPERATORS)
            connection.execute("CREATE TABLE public.t (i int)")
            connection.execute("CREATE ROLE app LOGIN PASSWORD 'x'")
            connection.execute(f"ALTER DATABASE postgres SET search_path = {path}")
        yield nodes[0]


def ask(connection: psycopg.Connection[object], statement: Statement) -> None:
    """Run one of the ledger's statements, as a resolution would."""
    result = connection.pgconn.exec_params(
        statement.query, statement.params, statement.types, statement.formats
    )
    assert result.status in (psycopg.pq.ExecStatus.TUPLES_OK, psycopg.pq.ExecStatus.COMMAND_OK), (
        result.error_message
    )


async def use_everything(node: Node) -> None:
    """Have pgha run every statement of its own."""
    insert = "INSERT INTO public.t VALUES (1)"
    key = pgha.new_idempotency_key
    async with pgha.open_cluster(
        pgha.Node(node.dsn, "n1"), ledger="auto", ping_interval=0.05, on_connect="SET work_mem = '5MB'"
    ) as cluster:
        ledger = cluster.ledger
        await ledger.install()
        await ledger.install(grant_to=["app"])
        status = (await ledger.status())["n1"]
        assert (status.problem, status.keys) == ("", 0)
        await cluster.execute(insert, idempotency_key=key())
        await cluster.execute_batch([insert, insert], idempotency_key=key(), statement_timeout=9.0)
        await cluster.execute_batch(["SET TRANSACTION READ WRITE", insert], statement_timeout=9.0)
        await cluster.execute_batch(["SET LOCAL client_min_messages = error", insert])
        await cluster.fetch("SELECT 1", statement_timeout=9.0)
        await look_at_backends(cluster)
        assert (await ledger.prune())["n1"].reason == ""
        with pytest.raises(pgha.LedgerError, match="within the last hour"):
            await ledger.uninstall()
        ask_the_ledger(node)
        assert await ledger.uninstall(force=True) == {"n1": True}


async def look_at_backends(cluster: pgha.Cluster) -> None:
    """Have the monitor inspect a backend and end it."""
    (pid,) = (await cluster.execute("SELECT pg_catalog.pg_backend_pid()"))[0]
    monitor = cluster._nodes["n1"]._monitor
    seen = anyio.Event()

    def report(doing: Doing) -> None:
        seen.set()

    monitor.inspect(pid, report)
    await seen.wait()
    monitor.terminate(pid)
    await eventually(lambda: not monitor._to_terminate)


def ask_the_ledger(node: Node) -> None:
    """Run the statements of resolutions and proofs, which only failures cause."""
    write = Keyed(uuid4(), b"f" * 16, False, 0)
    with psycopg.connect(node.dsn, autocommit=True) as connection:
        for statement in (write.decide(1), write.tell(1), undecided(0.0), COMMIT):
            ask(connection, statement)


def unseen(log: str) -> list[str]:
    """Return pgha's statements that the server did not run."""
    flat = " ".join(log.split())
    parts = r"%s|%d|\{\}|\$\d"
    patterns = {
        text: r".{1,60}?".join(re.escape(part) for part in re.split(parts, text)) for text in own_sql.texts()
    }
    return [text for text, pattern in patterns.items() if not re.search(pattern, flat)]


@pytest.mark.parametrize("path", PATHS)
async def test_every_statement_with_mallory_on_the_path(path: str) -> None:
    async with hostile(path) as node:
        with within(60):
            await use_everything(node)
        log = await node.logs()
        assert ALARM not in log
        assert "ERROR:" not in log
        assert unseen(log) == []


async def test_the_alarms_work() -> None:
    async with hostile(PATHS[0]) as node:
        await node.execute("INSERT INTO public.t VALUES (1)")
        for query in ALARMING:
            with pytest.raises(psycopg.errors.RaiseException, match=ALARM):
                await node.execute(query)
