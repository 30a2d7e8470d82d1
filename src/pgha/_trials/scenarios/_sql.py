"""Statements that break the rules, and servers with messages in another language."""

from __future__ import annotations

import psycopg

import pgha
from pgha._trials.catalogue import scenario
from pgha._trials.field import SLOW_WRITE, Field
from pgha._trials.load import WRITE
from pgha._trials.trial import Setup

_DEFERRED = """
CREATE FUNCTION pgha_deferred() RETURNS trigger LANGUAGE plpgsql
    AS $$BEGIN PERFORM pg_sleep(20); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER pgha_deferred AFTER INSERT ON pgha_trial DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.writer = 9001) EXECUTE FUNCTION pgha_deferred()
"""
_PROCEDURES = """
CREATE PROCEDURE pgha_commits(key text) LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO pgha_trial (key, writer, number) VALUES (key, 9000, 1); COMMIT; PERFORM pg_sleep(20);
END$$
"""


@scenario(
    2,
    "terminate-in-a-deferred-trigger",
    "A backend is terminated at the Sync, after the last CommandComplete: nothing proves the write's outcome,"
    " so it is in doubt",
    setup=Setup(schema=_DEFERRED),
)
async def terminate_in_a_deferred_trigger(field: Field) -> None:
    await field.more()
    victim = field.victim
    async with field.writing("deferred", query=f"{WRITE} /* deferred */", writer=9001) as ended:
        pid = await field.running(victim, "/* deferred */", "PgSleep")
        await victim.execute("SELECT pg_terminate_backend(%s)", [pid])
    field.claim(ended == ["in doubt"], "verdict", f"the write was reported as {ended}")
    await field.more()


@scenario(
    24,
    "unruly-sql",
    "COMMIT, COPY, VACUUM, CALL and double statements under load: each is rejected or runs alone, and does"
    " not disturb other operations",
    setup=Setup(schema=_PROCEDURES),
)
async def unruly_sql(field: Field) -> None:
    await field.more()
    victim = field.victim
    for _ in range(3):
        for text in ("COMMIT", "BEGIN", "SET search_path = x", "COPY pgha_trial TO STDOUT", "LISTEN x"):
            await field.refused(text, pgha.SessionRequired)
        await field.refused("SELECT 1; SELECT 2", psycopg.errors.SyntaxError)
        await field.refused("SELECT 1/0", psycopg.errors.DivisionByZero)
        await field.cluster.execute("VACUUM pgha_trial")
        await field.more(20)
    async with field.writing(
        "called", query="CALL pgha_commits(%s)", alone=True, route=pgha.pin(victim.name)
    ) as ended:
        pid = await field.running(victim, "CALL pgha_commits", "PgSleep")
        await victim.execute("SELECT pg_terminate_backend(%s)", [pid])
    field.claim(ended == ["in doubt"], "verdict", f"a CALL that had committed was reported as {ended}")
    await field.more()


@scenario(
    25,
    "another-language",
    "A server has German messages: pgha decides by error codes and the V field, not by the text",
    setup=Setup(topology="standalone", nodes=2, version=15, settings={"lc_messages": "de_DE.UTF-8"}),
)
async def another_language(field: Field) -> None:
    await field.more()
    victim = field.victim
    try:
        await field.cluster.fetch("SELECT 1/0")
    except psycopg.errors.DivisionByZero as error:
        field.claim("Division durch Null" in str(error), "setup", f"the message is not in German: {error}")
    async with field.writing(
        "terminated", query=SLOW_WRITE, may_fail=True, route=pgha.pin(victim.name)
    ) as ended:
        # FATAL 57P01, in German, proves that the write was not applied, so pgha runs it again.
        pid = await field.running(victim, "pg_sleep")
        await victim.execute("SELECT pg_terminate_backend(%s)", [pid])
        again = await field.running(victim, "pg_sleep")
        await victim.execute("SELECT pg_cancel_backend(%s)", [again])
    field.claim(ended == ["refused"], "verdict", f"a write that was terminated and cancelled ended {ended}")
    await field.strike("restart", victim)
    await field.more()
    async with field.struck("freeze", field.victim):
        await field.more()
    await field.more()
