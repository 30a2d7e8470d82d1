"""Tests that the first keywords of a statement decide its kind.

The kinds themselves were measured on real servers; see the docstring of the module under test. The tests
here check that each kind is returned, that no spelling changes the kind, and that no text raises an error.
"""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgha._core import statement_kind
from pgha._core.statement_kind import (
    Handling,
    StatementKind,
    classify_statement,
    frame_needed,
    makes_read_only,
    refuse_in_batch,
)

PLAIN = [
    "SELECT 1",
    "select * from begin_foo",
    "SELECT 'BEGIN'",
    "SELECT 1 -- ; COMMIT",
    "INSERT INTO t VALUES ('COPY')",
    "UPDATE t SET a = 1",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "VALUES (1)",
    "TABLE t",
    "SHOW work_mem",
    "SET LOCAL work_mem = '5MB'",
    "set/**/local x = 1",
    "SET LOCAL ROLE somebody",
    "SET LOCAL SESSION AUTHORIZATION somebody",
    "SET TRANSACTION READ ONLY",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "CREATE TABLE t (a int)",
    "CREATE TABLE temp (a int)",
    "CREATE UNLOGGED TABLE t (a int)",
    "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
    "CREATE LOCAL TEMPORARY TABLE t ON/**/COMMIT\nDROP AS SELECT 1",
    "CREATE TABLE IF NOT EXISTS pg_temp.t (a int) ON COMMIT DROP",
    "EXPLAIN ANALYZE CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1",
    "EXPLAIN CREATE TEMP TABLE t AS SELECT 1",
    "EXPLAIN (ANALYZE off) CREATE TEMP TABLE t AS SELECT 1",
    "EXPLAIN ANALYZE INSERT INTO temp VALUES (1)",
    "EXPLAIN (VERBOSE, ANALYZE) INSERT INTO temp VALUES (1)",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT temperature FROM t",
    "SELECT a INTO t FROM u",
    "SELECT 1 INTO temp",
    "SELECT 1 INTO temp FROM t",
    "SELECT 'x INTO TEMP t'",
    'SELECT "INTO TEMP t" FROM u',
    "SELECT $$ a INTO TEMP t $$",
    "SELECT E'\\' INTO TEMP t'",
    "SELECT 1 /* INTO TEMP t */",
    "SELECT into_temp FROM t",
    "INSERT INTO temp VALUES (1)",
    "WITH x AS (INSERT INTO temp VALUES (1) RETURNING 1) SELECT * FROM x",
    "WITH x AS (SELECT 1) INSERT INTO temp SELECT * FROM x",
    "WITH x AS (SELECT 1) MERGE INTO temp AS t USING x ON true WHEN MATCHED THEN DELETE",
    "CREATE INDEX ON t (a)",
    "CREATE UNIQUE INDEX i ON t (a)",
    "CREATE INDEX ON pg_temp.t (a)",
    "DROP INDEX i",
    "CREATE VIEW v AS SELECT 1",
    "CREATE OR REPLACE VIEW v AS SELECT 1",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA s",
    "CREATE EXTENSION citext",
    "CHECKPOINT",
    "TRUNCATE t",
    "NOTIFY c",
    "FETCH 1 FROM c",
    "MOVE c",
    "CLOSE c",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    "ALTER DATABASE d SET work_mem = '5MB'",
    "ALTER DATABASE d SET tablespace.x = '1'",
    "ALTER DATABASE d RENAME TO tablespace",
    "ALTER SUBSCRIPTION s DISABLE",
    "ALTER SUBSCRIPTION s OWNER TO o",
    "ALTER TABLE t ADD c int",
    "ALTER TABLE t DETACH PARTITION p",
    "ALTER TABLE t DETACH PARTITION p FINALIZE",
    "ALTER TABLE t ALTER a SET DEFAULT ' DETACH PARTITION p CONCURRENTLY'",
    "EXPLAIN EXECUTE p",
    "begin_foo",
    "BEGIN$x",
    "set_config",
    '"begin"',
    'U&"begin"',
    "'BEGIN'",
    "$$BEGIN$$",
    "1 BEGIN",
    "\ufeffBEGIN",
    "\u00a0BEGIN",
    "BEGIN\u00e9",
    "",
    ";",
    " -- only a comment",
    "/* never closed BEGIN",
    "/* /* */ BEGIN",
    "-- BEGIN",
    "foo",
]
FRAMED = [
    "LOCK TABLE t",
    "lock t in share mode",
    "DECLARE c CURSOR FOR SELECT 1",
    "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1",
    "DECLARE c CURSOR FOR SELECT 'CURSOR WITH HOLD'",
    "DECLARE cursor NO SCROLL CURSOR FOR SELECT 1",
]
EXCLUSIVE = [
    "VACUUM",
    "VACUUM (FULL) t",
    "CREATE DATABASE d",
    "DROP DATABASE IF EXISTS d",
    "CREATE TABLESPACE s LOCATION '/x'",
    "DROP TABLESPACE s",
    "ALTER SYSTEM SET work_mem = '5MB'",
    "ALTER DATABASE d SET TABLESPACE s",
    'ALTER DATABASE "my db" SET TABLESPACE s',
    "CREATE INDEX CONCURRENTLY i ON t (a)",
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)",
    "DROP INDEX CONCURRENTLY i",
    "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
    "ALTER TABLE IF EXISTS s.t DETACH PARTITION s.p CONCURRENTLY",
    "COMMIT PREPARED 'x'",
    "ROLLBACK PREPARED 'x'",
]
ALONE_OR_BATCH = [
    "CALL p()",
    "DO $$ BEGIN END $$",
    "DO LANGUAGE plpgsql 'begin end'",
    "CLUSTER",
    "CLUSTER t USING i",
    "REINDEX TABLE t",
    "REINDEX (VERBOSE) DATABASE d",
    "REPACK t",
    "ANALYZE",
    "ANALYZE t",
    "analyse verbose t (a), u",
    "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p",
    "DROP SUBSCRIPTION s",
    "ALTER SUBSCRIPTION s REFRESH PUBLICATION",
    'ALTER SUBSCRIPTION "a b" SET PUBLICATION p',
]
REFUSED = [
    "BEGIN",
    "; /*x*/ BEGIN",
    "Begin Isolation Level Serializable",
    "/*/* BEGIN */*/begin",
    "START TRANSACTION",
    "COMMIT",
    "COMMIT AND CHAIN",
    "END",
    "ROLLBACK",
    "ROLLBACK WORK",
    "ABORT",
    "PREPARE TRANSACTION 'x'",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DEALLOCATE ALL",
    "SET x = 1",
    "/* /* */ */ set x = 1",
    "SET SESSION x = 1",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION AUTHORIZATION somebody",
    "SET ROLE somebody",
    "SET TIME ZONE 'UTC'",
    "SET search_path TO a, b",
    "SET local.x = 1",
    "SET LOCAL/**/.x = 1",
    "SET transaction.x = 1",
    "SET constraints.x = 1",
    'SET "local" = 1',
    "RESET ALL",
    "RESET ROLE",
    "LISTEN c",
    "UNLISTEN *",
    "DISCARD ALL",
    "DISCARD TEMP",
    "LOAD 'x'",
    "COPY t FROM STDIN",
    "--c\nCOPY t TO STDOUT",
    "--c\rCOPY t TO STDOUT",
    "(COPY t TO STDOUT)",
    "\vCOPY t TO STDOUT",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "DECLARE c BINARY INSENSITIVE NO SCROLL CURSOR WITH HOLD FOR SELECT 1",
    'DECLARE "for" CURSOR WITH HOLD FOR SELECT 1',
    'DECLARE U&"c" CURSOR WITH HOLD FOR SELECT 1',
    "CREATE TEMP TABLE t (a int)",
    "CREATE TEMPORARY TABLE IF NOT EXISTS t (a int)",
    "CREATE GLOBAL TEMP TABLE t (a int)",
    "CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS",
    "CREATE TEMP TABLE t (a text DEFAULT ' ON COMMIT DROP')",
    "CREATE TEMP TABLE t (a int) -- ON COMMIT DROP",
    'CREATE TEMP TABLE " ON COMMIT DROP" (a int)',
    "CREATE TEMP TABLE t AS SELECT $a$ ON COMMIT DROP $a$",
    "CREATE TEMP TABLE t (a int)\0 ON COMMIT DROP",
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
    "CREATE LOCAL TEMP RECURSIVE VIEW v (a) AS SELECT 1",
    "CREATE TEMP SEQUENCE s",
    "CREATE TABLE pg_temp.t (a int)",
    'CREATE TABLE "pg_temp" . t (a int)',
    "CREATE TABLE IF NOT EXISTS pg_temp.t (a int)",
    "CREATE OR REPLACE VIEW pg_temp.v AS SELECT 1",
    "CREATE OR REPLACE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE pg_temp.t AS (a int)",
    "SELECT 1 INTO TEMP t",
    "SELECT 1 AS a INTO LOCAL TEMPORARY TABLE t FROM u",
    'SELECT 1 INTO TEMP "t"',
    "SELECT 1 INTO/**/temp t",
    "SELECT 1 INTO temp temp",
    "SELECT 1 INTO pg_temp.t",
    "(SELECT 1 INTO TEMP t)",
    "WITH x AS (SELECT 1) SELECT * INTO TEMP t FROM x",
    "SELECT 1 AS insert INTO TEMP t",
    "SELECT 1 merge INTO temp TABLE t",
    'SELECT 1 INTO U&"pg_temp".t',
    "CREATE MATERIALIZED VIEW pg_temp.m AS SELECT 1",
    "EXPLAIN ANALYZE CREATE MATERIALIZED VIEW pg_temp.m AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
    "EXPLAIN (VERBOSE, ANALYSE) CREATE TEMP TABLE t AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TABLE pg_temp.t AS SELECT 1",
    "EXPLAIN ANALYZE SELECT 1 INTO TEMP t",
]
ONLY_IN_BATCH = [
    "SAVEPOINT s",
    "RELEASE s",
    "RELEASE SAVEPOINT s",
    "ROLLBACK TO s",
    "ROLLBACK WORK TO SAVEPOINT s",
    "rollback transaction to s",
]
EVERYTHING = [*PLAIN, *FRAMED, *EXCLUSIVE, *ALONE_OR_BATCH, *REFUSED, *ONLY_IN_BATCH]


def of(text: str) -> StatementKind:
    return classify_statement(text.encode())


@pytest.mark.parametrize("text", PLAIN)
def test_plain(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch, found.hint) == (
        Handling.PLAIN,
        False,
        False,
        "",
    )


@pytest.mark.parametrize("text", FRAMED)
def test_framed(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch) == (Handling.FRAMED, False, False)


@pytest.mark.parametrize("text", EXCLUSIVE)
def test_alone(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch) == (Handling.EXCLUSIVE, True, False)
    assert found.hint


@pytest.mark.parametrize("text", ALONE_OR_BATCH)
def test_alone_or_in_a_batch(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch) == (Handling.EXCLUSIVE, True, True)
    assert found.hint


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch) == (Handling.REFUSED, False, False)
    assert found.hint


@pytest.mark.parametrize("text", ONLY_IN_BATCH)
def test_only_in_a_batch(text: str) -> None:
    found = of(text)
    assert (found.handling, found.self_committing, found.in_batch) == (Handling.REFUSED, False, True)
    assert found.hint


@pytest.mark.parametrize("text", [*REFUSED, *ONLY_IN_BATCH])
def test_a_refusal_names_its_way_out(text: str) -> None:
    assert any(way in of(text).hint for way in ("session()", "transaction()"))


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("select 1", "SELECT"),
        ("set x = 1", "SET"),
        ("set local x = 1", "SET LOCAL"),
        ("copy t from stdin", "COPY"),
        ("create temp table t()", "CREATE TEMPORARY TABLE"),
        ("analyze", "ANALYZE"),
        ("create index concurrently i on t (a)", "CREATE INDEX CONCURRENTLY"),
        ("start transaction", "START TRANSACTION"),
        ("rollback to savepoint s", "ROLLBACK TO"),
        ("select 1 into temp t", "SELECT INTO TEMPORARY"),
        ("frobnicate it", "FROBNICATE"),
        ("\u00e9t\u00e9", "\ufffd\ufffdT\ufffd\ufffd"),
        ("x" * 100, "X" * 32),
        ("", ""),
        ("'a'", ""),
    ],
)
def test_keyword(text: str, keyword: str) -> None:
    assert of(text).keyword == keyword


def test_what_follows_a_nul_is_not_seen_by_the_server() -> None:
    assert classify_statement(b"SELECT 1\0").handling is Handling.PLAIN
    assert classify_statement(b"\0BEGIN").handling is Handling.PLAIN
    assert classify_statement(b"/* \0 */ BEGIN").handling is Handling.PLAIN
    assert classify_statement(b"BEGIN\0 PREPARED").handling is Handling.REFUSED


def test_bytes_that_are_not_utf8() -> None:
    assert classify_statement(b"\xff\xfe BEGIN").handling is Handling.PLAIN
    assert classify_statement(b"/* \xff */ BEGIN").handling is Handling.REFUSED
    assert classify_statement(b"CREATE TEMP TABLE \xe9\xff (a int)").handling is Handling.REFUSED
    assert classify_statement(b"SELECT 1 INTO TEMP \xe9").handling is Handling.REFUSED


def test_a_frame_for_the_batch() -> None:
    insert = of("INSERT INTO t VALUES (1)")
    assert not frame_needed([])
    assert not frame_needed([insert, of("SELECT 1"), of("FETCH c")])
    for text in [*FRAMED, *ONLY_IN_BATCH, *ALONE_OR_BATCH]:
        assert frame_needed(iter([insert, of(text)])), text


def test_refusal_in_a_batch() -> None:
    for text in [*PLAIN, *FRAMED, *ONLY_IN_BATCH, *ALONE_OR_BATCH]:
        assert refuse_in_batch(of(text)) is None, text
    for text in [*EXCLUSIVE, *REFUSED]:
        refusal = refuse_in_batch(of(text))
        assert refusal is not None, text
        assert of(text).keyword in refusal and of(text).hint in refusal


def test_every_rule_of_the_table_has_an_example() -> None:
    given = {of(text) for text in EVERYTHING}
    assert {verdict for _, verdict in statement_kind._TABLE} <= given


def test_only_short_texts_are_kept() -> None:
    statement_kind._cached.cache_clear()
    short, long = b"SELECT 1" + b" " * 4088, b"SELECT 1" + b" " * 4089
    assert classify_statement(short) is classify_statement(short)
    assert classify_statement(long).handling is classify_statement(long).handling is Handling.PLAIN
    assert (statement_kind._cached.cache_info().currsize, statement_kind._cached.cache_info().hits) == (1, 1)


def test_a_long_text_is_judged_to_its_end() -> None:
    filler = "a" * 10_000
    assert of(f"/* {filler} */ BEGIN").handling is Handling.REFUSED
    assert of(f"CREATE TEMP TABLE t AS SELECT '{filler}'").handling is Handling.REFUSED
    assert of(f"CREATE TEMP TABLE t (a int /* {filler} */) ON COMMIT DROP").handling is Handling.PLAIN
    assert of(f"SELECT '{filler}' INTO TEMP t").handling is Handling.REFUSED


@pytest.mark.parametrize(
    "text",
    [
        b"(" * 1_000_000,
        b"/*" * 100_000,
        b"/*" * 100_000 + b"*/" * 100_000 + b"BEGIN",
        b"--\n" * 100_000,
        b"SELECT 1 INTO TEMP" + b"'" * 100_001,
        b"SELECT 1 INTO TEMP" + b'"' * 100_001,
        b"SELECT 1 INTO TEMP" + b" $a$ $b$" * 10_000,
        b"SELECT 1 INTO TEMP" + b" E'\\" * 10_000,
        b"SELECT 'temp' IN (" + b"'into', " * 100_000 + b"0)",
        b"DECLARE " + b"SCROLL " * 100_000,
        b"SET " * 100_000,
    ],
)
def test_no_text_stops_the_loop(text: bytes) -> None:
    """Classify long texts in linear time, which takes milliseconds; quadratic time would take minutes."""
    started = time.process_time()
    classify_statement(text)
    assert time.process_time() - started < 2


# Texts whose repetition made a rule search from each of its words to the end, again and again.
REPEATED = [
    ("", "EXPLAIN ANALYZE CREATE TEMP TABLE a "),
    ("EXPLAIN ANALYZE SELECT temp ", "ANALYZE x INTO "),
    ("EXPLAIN ANALYZE SELECT ", "INSERT INTO TEMP "),
    ("ALTER TABLE t ", "DETACH PARTITION "),
    ("CREATE TEMP TABLE t AS SELECT 1 ", "ON COMMIT "),
    ("CREATE VIEW v AS SELECT 1 ", "ON COMMIT "),
    ("SELECT 1 ", "INTO temp "),
    ("WITH a AS (SELECT 1 ", "INTO TEMP FROM "),
    ("SELECT ", "set_config("),
    ("SELECT ", "set_config(a, "),
]
KEYWORDS = """
    EXPLAIN ANALYZE CREATE TEMP TABLE INTO INSERT MERGE SELECT WITH ALTER DETACH PARTITION ON COMMIT DROP
    CONCURRENTLY DECLARE CURSOR SET_CONFIG pg_temp a 0 OFF ( ) . , ' " /* */ $$
"""
WORDS = st.sampled_from(KEYWORDS.split())


def grows_linearly(start: str, repeated: str) -> bool:
    """Return whether sixteen times the text takes about sixteen times as long, by this thread's own clock.

    Quadratic time would be 256 times as long. The shortest of three measurements is taken.
    """
    size = 1 + 4_000 // len(repeated)
    shorter, longer = (classification_time(start + repeated * count) for count in (size, 16 * size))
    return longer < 64 * max(shorter, 0.001)


def classification_time(text: str) -> float:
    spent = []
    for _ in range(3):
        begun = time.thread_time()
        statement_kind._decide(text.encode())
        spent.append(time.thread_time() - begun)
    return min(spent)


@pytest.mark.parametrize(("start", "repeated"), REPEATED)
def test_the_time_grows_with_the_length(start: str, repeated: str) -> None:
    assert grows_linearly(start, repeated)


@settings(max_examples=25)
@given(st.lists(WORDS, max_size=4), st.lists(WORDS, min_size=1, max_size=6))
def test_the_time_grows_with_the_length_of_any_text(start: list[str], repeated: list[str]) -> None:
    assert grows_linearly(" ".join(start) + " ", " ".join(repeated) + " ")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('a.b', 'x', false)",
        "select pg_catalog . SET_CONFIG /* x */ ('a.b', 'x', 'f')",
        'SELECT "set_config"(name, setting, false) FROM t',
        "SELECT set_config($1, $2, $3)",
        "SELECT set_config('a.b', (SELECT 'x'), true)",
        "SELECT set_config('a.b', 'x', true), set_config('a.c', 'x', false)",
        "WITH a AS (SELECT set_config('a.b', 'x', false)) SELECT 1",
        "INSERT INTO t SELECT set_config('a.b', 'x', false)",
        "EXPLAIN ANALYZE SELECT set_config('a.b', 'x', false)",
        "UPDATE pg_settings SET setting = 'x' WHERE name = 'a.b'",
        'WITH a AS (SELECT 1) update only "pg_catalog"/**/."pg_settings" SET setting = 1',
    ],
)
def test_a_setting_for_the_session(text: str) -> None:
    found = of(text)
    assert found.sets_session and found.handling is Handling.PLAIN


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('a.b', 'x', true)",
        "select set_config ( 'a.b' , $1 , TRUE ) , set_config('a.c', 'y', true)",
        "SELECT 'set_config(a, b, false)'",
        "SELECT 1 -- set_config(a, b, false)",
        "SELECT set_config FROM t",
        "SELECT my_set_config(1)",
        "SELECT * FROM pg_settings",
        "UPDATE my_pg_settings SET setting = 1",
    ],
)
def test_a_setting_for_the_transaction_or_none(text: str) -> None:
    assert not of(text).sets_session


BLANK = st.sampled_from([" ", "\t", "\n", "\r", "\f", "\v", "  \n"])
INSIDE = st.sampled_from(
    ["", "x", " BEGIN ", "'", '"', "$$", ";", "*", "/", "--", "\n", "(", "\u00e9", "SELECT 1"]
)
NESTED = st.recursive(
    INSIDE.map(lambda text: f"/* {text} */"),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"/*{' '.join(parts)}*/"),
    max_leaves=6,
)
LINE = st.tuples(
    st.sampled_from(["", "x", " BEGIN", "/*", "*/", "'", "--", "; COPY"]), st.sampled_from(["\n", "\r"])
).map(lambda parts: f"--{parts[0]}{parts[1]}")
LEADING = st.lists(st.one_of(BLANK, NESTED, LINE, st.sampled_from([";", "("])), max_size=6).map("".join)
BETWEEN = st.lists(st.one_of(BLANK, NESTED, LINE), min_size=1, max_size=3).map("".join)
# Spellings without literals, names or comments, in which only the case and the gaps can vary.
SIMPLE = [text for text in EVERYTHING if text and all(part.isalnum() for part in text.split(" "))]


@given(text=st.sampled_from([text for text in EVERYTHING if text.isascii()]), noise=LEADING)
def test_what_leads_does_not_matter(text: str, noise: str) -> None:
    assert of(noise + text) == of(text)


@given(text=st.sampled_from(SIMPLE), data=st.data())
def test_case_and_gaps_do_not_matter(text: str, data: st.DataObject) -> None:
    swapped = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    varied = "".join(char.swapcase() if swap else char for char, swap in zip(text, swapped, strict=True))
    spelt = "".join(data.draw(BETWEEN) if char == " " else char for char in varied)
    assert of(spelt) == of(text)


@given(text=st.sampled_from(SIMPLE), tail=st.sampled_from(["_x", "x", "9", "$", "\u00e9"]))
def test_a_word_that_merely_begins_like_a_keyword(text: str, tail: str) -> None:
    first, _, rest = text.partition(" ")
    found = of(f"{first}{tail} {rest}")
    assert found.handling is Handling.PLAIN or found == of(f"{first}{tail}")


FRAGMENT = st.sampled_from(
    rb"""' " $$ $a$ /* */ -- \ E' U& ( ) ; . 1 SELECT SET LOCAL CREATE TEMP TABLE""".split()
    + rb"INTO EXPLAIN ANALYZE DECLARE ALTER DETACH CONCURRENTLY pg_temp ON COMMIT DROP".split()
    + [b" ", b"\n", b"\0", b"\xff"]
)


@given(st.one_of(st.binary(max_size=60), st.lists(FRAGMENT, max_size=30).map(b"".join)))
def test_no_text_raises(text: bytes) -> None:
    found = classify_statement(text)
    assert isinstance(found.handling, Handling)
    assert len(found.keyword) <= 32
    assert (found.hint == "") == (found.handling in (Handling.PLAIN, Handling.FRAMED))
    assert found.self_committing == (found.handling is Handling.EXCLUSIVE)
    assert statement_kind._decide(text) == found


HUSHING = [
    "SET LOCAL client_min_messages = error",
    "set local \"Client_Min_Messages\" to 'error'",
    "SELECT set_config('client_min_messages', 'error', true)",
    "SELECT pg_catalog.SET_CONFIG($1, $2, false)",
    "UPDATE pg_settings SET setting = $1 WHERE name = $2",
    "DO $$BEGIN SET LOCAL client_min_messages = error; END$$",
    "WITH x AS (SELECT set_config('a.b', '', true)) INSERT INTO t SELECT 1 FROM x",
    "CREATE FUNCTION f() RETURNS int SET client_min_messages = error AS '' LANGUAGE sql",
    "SELECT " + "1, " * 3000 + "set_config($1, $2, true)",
]
NOT_HUSHING = [
    "SELECT 1",
    "SET LOCAL work_mem = '5MB'",
    "INSERT INTO min_messages VALUES (1)",
    "DO $$BEGIN PERFORM set_config('work_mem', '5MB', true); COMMIT; END$$",
    "",
]


def test_a_text_that_may_suppress_the_servers_warnings() -> None:
    assert [text for text in HUSHING if not classify_statement(text.encode()).may_hush] == []
    assert [text for text in NOT_HUSHING if classify_statement(text.encode()).may_hush] == []


@pytest.mark.parametrize("text", [*HUSHING, *NOT_HUSHING])
def test_that_a_text_may_hush_changes_nothing_else(text: str) -> None:
    kind = classify_statement(text.encode())
    assert kind.keyword == (text.upper().split() or [""])[0] + (" LOCAL" if text[:3].upper() == "SET" else "")
    assert (kind.handling is Handling.EXCLUSIVE) == text.startswith("DO ")


READ_ONLY = [
    "SET TRANSACTION READ ONLY",
    "set transaction /* a */ read -- b\n only",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
    "SET LOCAL TRANSACTION READ ONLY",
    "SET LOCAL transaction_read_only = on",
    "set local Transaction_Read_Only to True",
    "SET LOCAL transaction_read_only TO 'yes'",
    'SET/**/LOCAL "transaction_read_only" = 1',
    "-- a\nSET LOCAL transaction_read_only TO 't'",
]
READ_WRITE = [
    "SET TRANSACTION READ WRITE",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET LOCAL transaction_read_only = off",
    "SET LOCAL transaction_read_only TO 'of'",
    "SET LOCAL transaction_read_only = FALSE",
    "SET LOCAL transaction_read_only = 0",
    "SET LOCAL transaction_read_only = no",
    "SET LOCAL transaction_read_only TO DEFAULT",
    "SET LOCAL default_transaction_read_only = on",
    "SET LOCAL work_mem = '5MB'",
    "SET LOCAL application_name = 'READ ONLY'",
    "SET LOCAL a.transaction_read_only = on",
]


def test_a_text_that_makes_its_transaction_read_only() -> None:
    assert [text for text in READ_ONLY if not makes_read_only(text.encode())] == []
    assert [text for text in READ_WRITE if makes_read_only(text.encode())] == []
