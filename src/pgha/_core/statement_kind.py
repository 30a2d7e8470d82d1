"""The handling of a statement on a pipelined lane, decided by the statement's first keywords.

A lane is one connection shared by many callers, and each of their operations is one implicit transaction. So
nothing may outlive an operation: one caller's `SET search_path` makes another caller read another schema's
table, one caller's `BEGIN` swallows acknowledged writes of others, a COPY stops the reader, a temporary table
shadows a real one.

    PLAIN      may share a segment with other statements
    FRAMED     needs a transaction block around it: 25P01 without one (PostgreSQL 18 accepts LOCK and DECLARE
               as the second statement of a segment, never as the first)
    EXCLUSIVE  may commit by itself: gets a segment of its own, without prologue (25001) and without follow-up
               (its work would stay although the follow-up failed), and nothing pipelined before or behind it.
               Never a read: after that commit, the rest of it may write
    REFUSED    changes the session, which belongs to the lane and not to the caller: needs `session()`

Only the text is examined, not the effects of functions (session advisory locks). `set_config` in the text may
change the session, so nothing is pipelined behind it; see `StatementKind.sets_session`.

The time is linear in the length of every text: a quantifier without a bound that is followed by another one
is atomic, `(?>...)`. That changes no match, because the first place that fits leaves the most text for the
rest.

A second statement in one string is left to the server, which answers 42601; so is every syntax error.

Measured on PostgreSQL 16 and 18: as first and second statement of a segment, and between BEGIN and COMMIT.
"""

import enum
import functools
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from pgha._core.session_settings import may_set_session
from pgha._core.tokens import first_word, normalised


class Handling(enum.Enum):
    """The handling of a statement on a lane; see the head of this module for the meanings."""

    PLAIN = "plain"
    FRAMED = "framed"
    EXCLUSIVE = "exclusive"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class StatementKind:
    """The classification of one statement."""

    handling: Handling
    keyword: str
    """The first keywords in upper case, for messages; empty if the text does not begin with a word."""
    self_committing: bool = False
    """Whether the statement's work, outside of a frame, may be committed although the statement failed or was
    never acknowledged."""
    in_batch: bool = False
    """Whether a statement that is refused or exclusive by itself is allowed in a framed batch (SAVEPOINT,
    CALL)."""
    same_in_block: bool = False
    """Whether a statement that commits by itself does the same inside a block, as one transaction."""
    sets_session: bool = False
    """Whether the text may change a setting of the session, by `set_config`. The change is noticed, and the
    connection closed, once nothing is in flight: so nothing may be pipelined behind the statement."""
    hint: str = ""
    """The advice to the caller, as the end of a sentence; empty for PLAIN and FRAMED."""
    may_hush: bool = False
    """Whether the text may change client_min_messages, and so suppress the server's warning that a commit did
    not wait for its synchronous standby."""


_OWN_TRANSACTION = (
    "every operation is a transaction: give several statements to execute_batch() or use transaction()"
)
_SAVEPOINT = "it needs the statements around it: use execute_batch(), transaction() or session()"
_SETTING = "the connection's settings are shared: use SET LOCAL in execute_batch(), on_connect, or session()"
_PREPARED = "statements are prepared for you (prepare_threshold); a name of your own needs session()"
_NOTIFICATIONS = "use listen(), or session()"
_COPY = "use session(), whose cursors have copy()"
_LIBRARY = "use session_preload_libraries, on_connect, or session()"
_DISCARD = "the session is shared and keeps no state of yours: use session() for a session of your own"
_HOLD = "a cursor that outlives its transaction needs session(); stream() reads a large result"
_TEMP_TABLE = "it would outlive the operation on a shared connection: add ON COMMIT DROP, or use session()"
_TEMP_OTHER = "it would outlive the operation on a shared connection: use session()"
_NOT_IN_TRANSACTION = "it cannot run inside a transaction: give it to execute() on its own"
_COMMITS = "it may commit by itself: give it to execute() on its own"


def _plain(keyword: str) -> StatementKind:
    return StatementKind(Handling.PLAIN, keyword)


def _framed(keyword: str) -> StatementKind:
    return StatementKind(Handling.FRAMED, keyword)


def _exclusive(keyword: str) -> StatementKind:
    return StatementKind(Handling.EXCLUSIVE, keyword, self_committing=True, hint=_NOT_IN_TRANSACTION)


def _exclusive_or_batch(keyword: str) -> StatementKind:
    """Return the kind of a statement that may be alone or in a framed batch.

    Some of its forms work inside a transaction, and a frame keeps those from committing; in a frame the
    other forms fail with 25001.
    """
    return StatementKind(Handling.EXCLUSIVE, keyword, self_committing=True, in_batch=True, hint=_COMMITS)


def _exclusive_or_block(keyword: str) -> StatementKind:
    return replace(_exclusive_or_batch(keyword), same_in_block=True)


def _refused(keyword: str, hint: str) -> StatementKind:
    return StatementKind(Handling.REFUSED, keyword, hint=hint)


def _only_in_batch(keyword: str) -> StatementKind:
    return StatementKind(Handling.REFUSED, keyword, in_batch=True, hint=_SAVEPOINT)


_Row = tuple[str, StatementKind]


def _each(kind_of: Callable[[str], StatementKind], *keywords: str) -> tuple[_Row, ...]:
    return tuple((rf"{keyword}\b", kind_of(keyword)) for keyword in keywords)


def _each_refused(hint: str, *keywords: str) -> tuple[_Row, ...]:
    return _each(lambda keyword: _refused(keyword, hint), *keywords)


_TEMP = r"(?:(?:LOCAL|GLOBAL) )?TEMP(?:ORARY)? "
_PG_TEMP = r'(?:PG_TEMP|"pg_temp") \.'
_NEW = r"(?:IF NOT EXISTS )?" + _PG_TEMP
_NAMED = (
    r"(?:(?:RECURSIVE |MATERIALIZED )?VIEW|FOREIGN TABLE|SEQUENCE|TYPE|DOMAIN|FUNCTION|PROCEDURE|AGGREGATE)"
)
_DROPPED = r".* ON COMMIT DROP\b"
# `INTO temp FROM x` makes a permanent table named temp. INSERT INTO and MERGE INTO make no table if INSERT
# and MERGE are keywords; if they are names, INTO does make one: `SELECT 1 AS insert INTO TEMP t`.
_AFTER_INTO = r"(?:FROM|WHERE|GROUP|HAVING|WINDOW|ORDER|LIMIT|OFFSET|FETCH|FOR|UNION|INTERSECT|EXCEPT)\b"
_NO_STATEMENT = "".join(
    rf"(?<!{before} {verb} )"
    for verb in ("INSERT", "MERGE")
    for before in (r"\(", r"\)", "ANALYZE", "ANALYSE", "VERBOSE")
)
_INTO_TEMP = (
    rf".*?(?<= ){_NO_STATEMENT}INTO "
    rf'(?:{_TEMP}(?:TABLE )?(?!{_AFTER_INTO})[A-Z_"\x80-\xff]|(?:TABLE )?{_PG_TEMP})'
)
_EXPLAINED = r"EXPLAIN (?>.*?\bANALY[SZ]E\b(?! (?:OFF|FALSE|0)\b))"
_EXPLAINED_TEMP = rf"{_EXPLAINED}(?>.*? CREATE (?:{_TEMP}TABLE\b|(?:TABLE|MATERIALIZED VIEW) {_NEW}))"

# Patterns over the normalised statement (see _normalised), anchored at its start. The first pattern that
# matches decides; a statement without a match is PLAIN. Each pattern begins with a literal keyword, which is
# the key in _ROWS.
_TABLE: Final[tuple[_Row, ...]] = (
    # Transaction control. COMMIT PREPARED acts on a transaction that belongs to no session any more.
    *_each(_exclusive, "COMMIT PREPARED", "ROLLBACK PREPARED"),
    (r"ROLLBACK (?:WORK |TRANSACTION )?TO\b", _only_in_batch("ROLLBACK TO")),
    *_each(_only_in_batch, "SAVEPOINT", "RELEASE"),
    *_each_refused(_OWN_TRANSACTION, "BEGIN", "START TRANSACTION", "COMMIT", "END", "ROLLBACK", "ABORT"),
    *_each_refused(_OWN_TRANSACTION, "PREPARE TRANSACTION"),
    # The session's settings. `SET local.x = 1` sets the parameter x of a class named local, for the session.
    (r"SET LOCAL\b(?! \.)", _plain("SET LOCAL")),
    (r"SET TRANSACTION\b(?! \.)", _plain("SET TRANSACTION")),
    (r"SET CONSTRAINTS\b(?! \.)", _plain("SET CONSTRAINTS")),
    *_each_refused(_SETTING, "SET", "RESET"),
    *_each_refused(_DISCARD, "DISCARD"),
    *_each_refused(_LIBRARY, "LOAD"),
    # The session's names: prepared statements, channels, cursors that outlive their transaction.
    *_each_refused(_PREPARED, "PREPARE", "EXECUTE", "DEALLOCATE"),
    *_each_refused(_NOTIFICATIONS, "LISTEN", "UNLISTEN"),
    (r"DECLARE (?:(?!FOR )\S+ )+CURSOR WITH HOLD\b", _refused("DECLARE WITH HOLD", _HOLD)),
    *_each(_framed, "DECLARE", "LOCK"),
    # COPY uses another protocol.
    *_each_refused(_COPY, "COPY"),
    # The session's own schema. EXPLAIN ANALYZE runs, and so creates, what it explains.
    (rf"CREATE {_TEMP}TABLE\b{_DROPPED}", _plain("CREATE TEMPORARY TABLE")),
    (rf"CREATE {_TEMP}TABLE\b", _refused("CREATE TEMPORARY TABLE", _TEMP_TABLE)),
    (rf"CREATE (?:OR REPLACE )?{_TEMP}(?:RECURSIVE )?VIEW\b", _refused("CREATE TEMPORARY VIEW", _TEMP_OTHER)),
    (rf"CREATE {_TEMP}SEQUENCE\b", _refused("CREATE TEMPORARY SEQUENCE", _TEMP_OTHER)),
    (rf"CREATE TABLE {_NEW}{_DROPPED}", _plain("CREATE TABLE")),
    (rf"CREATE TABLE {_NEW}", _refused("CREATE TABLE in pg_temp", _TEMP_TABLE)),
    (rf"CREATE (?:OR REPLACE )?{_NAMED} {_NEW}", _refused("CREATE in pg_temp", _TEMP_OTHER)),
    (rf"SELECT{_INTO_TEMP}", _refused("SELECT INTO TEMPORARY", _TEMP_OTHER)),
    (rf"WITH{_INTO_TEMP}", _refused("SELECT INTO TEMPORARY", _TEMP_OTHER)),
    (rf"{_EXPLAINED}{_INTO_TEMP}", _refused("SELECT INTO TEMPORARY", _TEMP_OTHER)),
    (rf"{_EXPLAINED_TEMP}{_DROPPED}", _plain("EXPLAIN")),
    (_EXPLAINED_TEMP, _refused("CREATE TEMPORARY TABLE", _TEMP_TABLE)),
    # Statements that may commit by themselves (REPACK: PostgreSQL 19, according to its documentation).
    *_each(_exclusive_or_batch, "CALL", "DO", "CLUSTER", "REINDEX", "REPACK"),
    # ANALYZE commits after each table: of a list, of a partitioned table, of the whole database. The text of
    # `ANALYZE t` does not tell whether t is partitioned.
    *_each(_exclusive_or_block, "ANALYZE", "ANALYSE"),
    *_each(_exclusive_or_batch, "CREATE SUBSCRIPTION", "DROP SUBSCRIPTION"),
    (r"ALTER SUBSCRIPTION \S+ (?:SET|ADD|DROP|REFRESH)\b", _exclusive_or_batch("ALTER SUBSCRIPTION")),
    *_each(_exclusive, "VACUUM", "CREATE DATABASE", "DROP DATABASE", "CREATE TABLESPACE", "DROP TABLESPACE"),
    *_each(_exclusive, "ALTER SYSTEM", "DROP INDEX CONCURRENTLY"),
    (r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY\b", _exclusive("CREATE INDEX CONCURRENTLY")),
    (
        r"ALTER DATABASE \S+ (?:SET )?TABLESPACE\b(?! (?:TO\b|=|\.))",
        _exclusive("ALTER DATABASE SET TABLESPACE"),
    ),
    (r"ALTER TABLE (?>.*? DETACH PARTITION ).* CONCURRENTLY\b", _exclusive("DETACH PARTITION CONCURRENTLY")),
)

_Rule = tuple[re.Pattern[bytes], StatementKind]


def _indexed(table: Iterable[_Row]) -> dict[bytes, tuple[_Row, ...]]:
    """Return the rows by their first keyword; rows of one keyword stay in the order of the table."""
    rows: dict[bytes, tuple[_Row, ...]] = {}
    for pattern, kind in table:
        head = re.match(r"[A-Z]+", pattern)
        assert head is not None, pattern
        rows[head[0].encode()] = (*rows.get(head[0].encode(), ()), (pattern, kind))
    return rows


_ROWS: Final = _indexed(_TABLE)


@functools.cache
def _rules(keyword: bytes) -> tuple[_Rule, ...]:
    """Return the rules of one keyword, compiled when a statement first begins with that keyword.

    Most programs use a few of these keywords, and compiling all took a tenth of the time of `import pgha`.
    """
    return tuple((re.compile(pattern.encode("latin-1"), re.DOTALL), kind) for pattern, kind in _ROWS[keyword])


# Patterns without which a query is not normalised. Normalising takes half a microsecond per token: a long
# list of values, normalised whenever the text contains "temp", would stop the event loop.
_INTO_CLUE: Final = re.compile(rb"INTO\s*(?:(?:TABLE|LOCAL|GLOBAL)\s*)?(?:TEMP|\"?PG_TEMP|U&|/\*|--)")
_CLUES: Final = {b"SELECT": _INTO_CLUE, b"WITH": _INTO_CLUE, b"EXPLAIN": re.compile(rb"TEMP")}
# Statements that are normalised to their end. Of all others, the first tokens decide.
_TO_THE_END: Final = frozenset(_CLUES)
# Of these the end decides too, if they begin so.
_LONG: Final = {b"CREATE": re.compile(rf"CREATE (?:{_TEMP}TABLE\b|TABLE {_NEW})".encode("latin-1"))}
_HEAD_TOKENS: Final = 32
_FREQUENT = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "EXPLAIN", "")
_KNOWN: Final = {word.encode(): _plain(word) for word in _FREQUENT}

_HUSHING: Final = (b"CLIENT_MIN_MESSAGES", b"SET_CONFIG", b"PG_SETTINGS")
"""Names of which one is in every text that changes client_min_messages itself, not by a function of the user.
The name of the setting may be a parameter of set_config, or of an UPDATE of pg_settings."""
_READ_ONLY_MODE: Final = re.compile(rb"SET (?:LOCAL )?TRANSACTION .*\bREAD ONLY\b", re.DOTALL)
_READ_ONLY_SETTING: Final = re.compile(
    rb'SET LOCAL "?TRANSACTION_READ_ONLY"? (?:=|TO) (.*)', re.DOTALL | re.IGNORECASE
)
_LITERAL: Final = re.compile(rb"'([^']*)")
_NOT_ON: Final = (b"F", b"N", b"OF", b"0", b"DEFAULT")
"""Beginnings of the values that mean false: PostgreSQL takes any unambiguous prefix."""

_CACHED_LENGTH: Final = 4096
_KEYWORD_LENGTH: Final = 32


def classify_statement(query: bytes) -> StatementKind:
    """Return the kind of `query`, a single statement as sent to the server. Never raises."""
    # Longer texts are seldom sent twice and would take much memory in the cache.
    return _cached(query) if len(query) <= _CACHED_LENGTH else _decide(query)


def frame_needed(kinds: Iterable[StatementKind]) -> bool:
    """Return whether a batch of these must be sent as BEGIN ... COMMIT, not as one implicit transaction.

    CALL and DO are framed to protect the batch: a COMMIT inside them would commit half of the batch if they
    are the first statement of a segment (on PostgreSQL 16 at any place in the segment); inside a transaction
    block that COMMIT fails with 2D000.
    """
    return any(one.handling is Handling.FRAMED or one.in_batch for one in kinds)


def refuse_in_batch(kind: StatementKind) -> str | None:
    """Return the reason why this statement cannot be part of a batch, or None if it can."""
    if kind.in_batch or kind.handling in (Handling.PLAIN, Handling.FRAMED):
        return None
    return f"{kind.keyword} cannot be part of a batch: {kind.hint}"


def makes_read_only(query: bytes) -> bool:
    """Return whether this SET LOCAL or SET TRANSACTION makes its transaction read-only."""
    statement = b" ".join(itertools.islice(normalised(query, first_word(query)[0]), _HEAD_TOKENS))
    if _READ_ONLY_MODE.match(statement):
        return True
    found = _READ_ONLY_SETTING.match(statement)
    if found is None:
        return False
    value = found[1]
    if value.startswith(b"'") and (literal := _LITERAL.search(query)):
        value = literal[1].upper()
    return not value.startswith(_NOT_ON)


def _decide(query: bytes) -> StatementKind:
    # libpq takes a C string: the text behind a NUL never reaches the server.
    text = query.partition(b"\0")[0]
    start, word = first_word(text)
    upper = text.upper()
    kind = _by_rules(text, upper, start, word)
    # A frame is needed to have the last word behind a DO, and a DO that commits by itself fails in a frame.
    names = _HUSHING[:1] if kind.self_committing else _HUSHING
    if any(name in upper for name in names):
        kind = replace(kind, may_hush=True)
    return replace(kind, sets_session=True) if may_set_session(text, upper, start) else kind


def _by_rules(text: bytes, upper: bytes, start: int, word: bytes) -> StatementKind:
    clue = _CLUES.get(word)
    if word not in _ROWS or (clue and not clue.search(upper)):
        return _no_rule(word)
    tokens = normalised(text, start)
    statement = b" ".join(tokens if word in _TO_THE_END else itertools.islice(tokens, _HEAD_TOKENS))
    if word in _LONG and _LONG[word].match(statement):
        statement = b" ".join((statement, *tokens))
    matching = (kind for pattern, kind in _rules(word) if pattern.match(statement))
    return next(matching, None) or _no_rule(word)


_cached = functools.lru_cache(maxsize=1024)(_decide)


def _no_rule(word: bytes) -> StatementKind:
    return _KNOWN.get(word) or _plain(word[:_KEYWORD_LENGTH].decode("ascii", "replace"))
