"""The outcome of an attempt (*applied / not applied / in doubt*) from recorded facts.

The acknowledgement of a segment is its Sync. The other evidence, in the order in which it is considered:

======================================  ===========  ===================================================
evidence                                outcome      reason
======================================  ===========  ===================================================
nothing was handed to libpq             not applied  the server was never asked
unreplicated                            in doubt     the segment was committed, but the server warned that
                                                     the wait for its synchronous standby was broken off
framed: COMMIT                          applied      the COMMIT's own CommandComplete
framed: ROLLBACK                        not applied  the block had failed
Sync                                    applied      without an error
after a FATAL                           not applied  a genuine FATAL answered an earlier segment of the
                                                     connection: the server never began with this one
commits by itself                       in doubt     CALL, VACUUM: a part may have been committed
without the V field                     in doubt     the error comes from a pooler, or from libpq
40003 and class 08                      in doubt     the meaning of these codes, in a FATAL or without
                                                     the Sync
FATAL after the last CommandComplete    in doubt     the FATAL came before or after the commit
PANIC of a frame's COMMIT               in doubt     the commit record may be on disk
ERROR, or FATAL before the end          not applied  the transaction was aborted
its Sync was never handed               not applied  only a Sync commits (or the COMMIT of a frame)
the connection ended without these      in doubt
======================================  ===========  ===================================================

Functions, `dblink` and `postgres_fdw` raise 40003 and class 08 too, as a plain ERROR about a connection of
their own: the ERROR aborts the transaction, and the Sync is answered. So these codes leave a doubt only in a
FATAL, or if the Sync was not answered.

`pgha._core.next_step` decides what follows.

Sources: PostgreSQL's protocol documentation (pipelining, error fields), measurements; every line has a test.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


class Outcome(enum.Enum):
    """The effect of a segment: applied, not applied, or unknown."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    IN_DOUBT = "in doubt"


class Handed(enum.IntEnum):
    """The part of a segment that was handed to libpq."""

    NOTHING = 0
    PART = 1
    """Statements, but not the Sync that would commit them."""
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class ServerError:
    """The error that answered a statement."""

    sqlstate: str
    severity: str
    """ERROR, FATAL or PANIC: the V field, which is never localized; empty if the error has none."""
    reused: bool = False
    """Whether the statement had been prepared by an earlier segment."""

    @property
    def genuine(self) -> bool:
        """Whether the error comes from a PostgreSQL server (has a V field), not from a pooler or libpq."""
        return self.severity != ""

    @property
    def fatal(self) -> bool:
        """Whether the error ends the connection."""
        return self.severity in ("FATAL", "PANIC")

    @property
    def broken_connection(self) -> bool:
        """Whether the code (40003 or class 08) is about a broken connection; see `Facts.tells_of_loss`."""
        return self.sqlstate == "40003" or self.sqlstate.startswith("08")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts recorded about one segment on one connection."""

    handed: Handed = Handed.WHOLE
    synced: bool = False
    error: ServerError | None = None
    completed: int = 0
    """The number of CommandCompletes received, those of hidden statements included."""
    statements: int = 1
    """The number of CommandCompletes expected."""
    framed: bool = False
    commit_tag: str | None = None
    """The tag of the COMMIT's CommandComplete, if the segment is framed."""
    self_committing: bool = False
    unreplicated: bool = False
    """Whether the server warned that the commit's wait for a synchronous standby was broken off: the write is
    committed, and is lost if that standby takes over."""
    at_ledger: bool = False
    """Whether the error answered the ledger's statement, which stands before the user's statements."""
    after_fatal: bool = False
    """Whether a genuine FATAL answered an earlier segment, so that the server never began with this one."""

    @property
    def ended(self) -> bool:
        """Whether the segment's error came with the end of the connection: a FATAL, or without its Sync."""
        return self.error is not None and (self.error.fatal or not self.synced)

    @property
    def tells_of_loss(self) -> bool:
        """Whether the error's code says that this connection is broken, and the outcome unknown."""
        return self.error is not None and self.error.broken_connection and self.ended


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the table at the head of this file."""

    evidence: str
    holds: Callable[[Facts], bool]
    proves: Outcome


def _fatal_at_the_end(facts: Facts) -> bool:
    return facts.error is not None and facts.error.fatal and facts.completed >= facts.statements


def _commit_panicked(facts: Facts) -> bool:
    """Return whether the COMMIT caused a PANIC: its record may be on disk, and recovery will find it."""
    panicked = facts.error is not None and facts.error.severity == "PANIC"
    return panicked and facts.framed and facts.completed >= facts.statements - 1


RULES: tuple[Rule, ...] = (
    Rule("nothing was handed to libpq", lambda f: f.handed is Handed.NOTHING, Outcome.NOT_APPLIED),
    Rule("unreplicated", lambda f: f.unreplicated, Outcome.IN_DOUBT),
    Rule("framed: COMMIT", lambda f: f.framed and f.commit_tag == "COMMIT", Outcome.APPLIED),
    Rule(
        "framed: ROLLBACK",
        lambda f: f.framed and f.commit_tag is not None and f.commit_tag != "COMMIT",
        Outcome.NOT_APPLIED,
    ),
    Rule("Sync", lambda f: f.synced and f.error is None and not f.framed, Outcome.APPLIED),
    Rule("after a FATAL", lambda f: f.after_fatal and f.error is None, Outcome.NOT_APPLIED),
    Rule("commits by itself", lambda f: f.self_committing and not f.framed, Outcome.IN_DOUBT),
    Rule("without the V field", lambda f: f.error is not None and not f.error.genuine, Outcome.IN_DOUBT),
    Rule("40003 and class 08", lambda f: f.tells_of_loss, Outcome.IN_DOUBT),
    Rule("FATAL after the last CommandComplete", _fatal_at_the_end, Outcome.IN_DOUBT),
    Rule("PANIC of a frame's COMMIT", _commit_panicked, Outcome.IN_DOUBT),
    Rule("ERROR, or FATAL before the end", lambda f: f.error is not None, Outcome.NOT_APPLIED),
    Rule(
        "its Sync was never handed",
        lambda f: f.handed is Handed.PART and not f.framed,
        Outcome.NOT_APPLIED,
    ),
)
"""The rules in the order in which they are considered; the first that holds decides."""


def outcome(facts: Facts, rules: Iterable[Rule] = RULES) -> Outcome:
    """Return the outcome of a segment: what the first rule that holds proves, or *in doubt* if none holds."""
    return next((rule.proves for rule in rules if rule.holds(facts)), Outcome.IN_DOUBT)


GaveUp = Literal["cancelled", "timeout"]
