"""Make a `Request` from the arguments of a call; every mistake in them raises here, at once."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg

from pgha._core.need import PRIMARY_READ, READ, WRITE, Need
from pgha._core.statement_kind import Handling, StatementKind, frame_needed, refuse_in_batch
from pgha._errors import ConfigError, SessionRequired
from pgha._operation.key import Keyed, checked, key_from, keyed, may_be_keyed
from pgha._operation.operation import Request
from pgha._options import Options, seconds, statement_limit
from pgha._types import Fastest, Nearest, Pin, Primary, ReadRoute, SendInfo, WriteRoute
from pgha._wire.compiler import AnyParams, AnyQuery, Compiler, Statement
from pgha._wire.connect import TELL_WARNINGS
from pgha._wire.link import NO_EXTRAS, Extras


class Default(enum.Enum):
    """The default of arguments for which None means "without": use the cluster's setting."""

    DEFAULT = "default"

    def __repr__(self) -> str:
        return "..."


DEFAULT: Final = Default.DEFAULT
_PLAIN: Final = Handling.PLAIN  # see `pgha._operation.operation.DONE`
Seconds: TypeAlias = float | Default | None
OnSend: TypeAlias = Callable[[SendInfo], object]
BatchItem: TypeAlias = AnyQuery | tuple[AnyQuery, AnyParams | None]


class RequestMaker:
    """Makes requests with the cluster's defaults and node names."""

    def __init__(self, options: Options, compiler: Compiler, known: Callable[[str], bool]) -> None:
        self._options = options
        self._compiler = compiler
        self._known = known
        self._auto = options.ledger == "auto"

    def single(
        self, query: AnyQuery, params: AnyParams | None, *, read: bool, idempotent: bool = False,
        route: ReadRoute, timeout: Seconds, statement_timeout: Seconds, row_factory: Any,
        on_send: OnSend | None, idempotency_key: UUID | None = None, hash_later: bool = False,
    ) -> Request:  # fmt: skip
        need = READ if read else WRITE
        if type(route) is not Nearest:
            need = self._need(route, read=read)
        options = self._options
        statement = self._compiler.compile(query, params)
        found = statement.kind
        framed, exclusive = False, found.sets_session
        if found.handling is not _PLAIN:
            _check_alone(found, read=read)
            limited = self._limit(statement_timeout) is not None
            framed = found.handling is Handling.FRAMED or (limited and found.same_in_block)
            exclusive = True
        hush = found.may_hush and not read
        # The last word behind a statement that commits by itself is only possible in a frame.
        framed = framed or (hush and found.in_batch)
        ledger: Keyed | None = None
        if idempotency_key is not None or (self._auto and not read):
            ledger = self._keyed(idempotency_key, (statement,), read, hash_later)
            if ledger is not None and found.self_committing:
                if not found.in_batch:
                    raise psycopg.NotSupportedError(
                        f"{found.keyword} cannot have a key: it commits by itself, with the ledger's row;"
                        " leave out idempotency_key"
                    )
                # In a block, its own COMMIT fails (2D000) instead of committing the ledger's row alone.
                framed = True
        extras = NO_EXTRAS
        if framed or hush or statement_timeout is not DEFAULT:
            extras = _extras(framed, self._limit(statement_timeout), read, (found,))
        return Request(
            (statement,),
            need,
            read,
            False,
            route,
            row_factory or options.row_factory,
            idempotent,
            exclusive,
            found.self_committing,
            extras,
            options.timeout if timeout is DEFAULT else self._timeout(timeout),
            on_send,
            statement.pace,
            ledger,
        )

    def batch(
        self, items: Sequence[BatchItem], *, idempotent: bool, route: WriteRoute, timeout: Seconds,
        statement_timeout: Seconds, row_factory: Any, on_send: OnSend | None,
        idempotency_key: UUID | None = None, hash_later: bool = False,
    ) -> Request:  # fmt: skip
        need = self._need(route, read=False)
        given: object = items
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
            raise ConfigError(
                "execute_batch takes a list of statements, at least one: use execute for a single statement"
            )
        statements = [self._compile_item(item, index) for index, item in enumerate(items)]
        framed = frame_needed(one.kind for one in statements)
        return Request(
            tuple(statements),
            need,
            read=False,
            batch=True,
            route=route,
            row_factory=row_factory or self._options.row_factory,
            idempotent=idempotent,
            exclusive=framed or any(one.kind.sets_session for one in statements),
            extras=_extras(framed, self._limit(statement_timeout), False, [s.kind for s in statements]),
            timeout=self._timeout(timeout),
            on_send=on_send,
            keyed=self._keyed(idempotency_key, statements, False, hash_later)
            if idempotency_key is not None or self._auto
            else None,
        )

    def _keyed(
        self, key: UUID | None, statements: Sequence[Statement], read: bool, hash_later: bool
    ) -> Keyed | None:
        if key is not None:
            if read:
                raise ConfigError("idempotency_key is for writes: reads may be repeated without one")
            return keyed(checked(key), statements, auto=False, hash_later=hash_later)
        if not may_be_keyed(statements):
            return None
        return keyed(key_from(self._options.sources), statements, auto=True, hash_later=hash_later)

    def _compile_item(self, item: BatchItem, index: int) -> Statement:
        if isinstance(item, (tuple, list)):
            if len(item) != 2:
                raise ConfigError(
                    f"statement {index} of the batch must be a query, or a pair of query and parameters"
                )
            query, params = item
        elif item is None:
            raise ConfigError(
                f"statement {index} of the batch is None: give a query, or a pair of query and parameters"
            )
        else:
            query, params = item, None
        statement = self._compiler.compile(query, params)
        refusal = refuse_in_batch(statement.kind)
        if refusal is not None:
            raise SessionRequired(f"statement {index} of the batch: {refusal}")
        return statement

    def _need(self, route: ReadRoute, *, read: bool) -> Need:
        """Return what an operation with this route asks of its node; raise if the route is not possible."""
        need = READ if read else WRITE
        if isinstance(route, Pin):
            if not self._known(route.name):
                raise ConfigError(f"no node is called {route.name!r}: Cluster.nodes lists the names")
            return need._replace(node=route.name)
        if isinstance(route, Primary):
            return PRIMARY_READ if read else need
        if isinstance(route, Fastest):
            if not read:
                raise ConfigError(
                    "fastest() is for reads only: every node would apply a write;"
                    " use nearest(), primary() or pin(name)"
                )
        elif not isinstance(route, Nearest):
            raise ConfigError(f"route must be nearest(), primary(), pin(name) or fastest(), not {route!r}")
        return need

    def _timeout(self, given: Seconds) -> float | None:
        if given is DEFAULT:
            return self._options.timeout
        return None if given is None else seconds("timeout", given)

    def _limit(self, given: Seconds) -> float | None:
        """Return the operation's own limit, 0 for no limit, or None for the limit of the connections."""
        if given is DEFAULT:
            return None
        if given is None:
            return None if self._options.statement_timeout is None else 0.0
        return statement_limit(given)


def _check_alone(found: StatementKind, *, read: bool) -> None:
    """Raise if the statement cannot be an operation, or not a read."""
    if found.handling is Handling.REFUSED:
        raise SessionRequired(f"{found.keyword} is not possible on a shared connection: {found.hint}")
    if read and found.self_committing:
        # A read is repeated on another node, and only its own transaction is read-only.
        raise psycopg.NotSupportedError(
            f"{found.keyword} cannot be a read: it may commit by itself, and then write; use execute()"
        )


def _extras(framed: bool, limit: float | None, read: bool, found: Sequence[StatementKind]) -> Extras:
    prologue: tuple[bytes, ...] = ()
    epilogue: tuple[bytes, ...] = ()
    if limit is not None:
        prologue = (_limiting(framed, limit, found),)
        # The limit does not cover the commit. So deferred constraints are checked before it, under the limit
        # (measured: a deferred trigger ran 1.5 s under a limit of 300 ms, and committed).
        epilogue = () if read else (b"SET CONSTRAINTS ALL IMMEDIATE",)
    sent_alone = not framed and any(one.self_committing for one in found)
    if not read and not sent_alone and any(one.may_hush for one in found):
        epilogue = (*epilogue, TELL_WARNINGS)
    if not framed and not prologue and not epilogue:
        return NO_EXTRAS
    return Extras(framed=framed, prologue=prologue, epilogue=epilogue)


def _limiting(framed: bool, limit: float, found: Sequence[StatementKind]) -> bytes:
    """Return the statement that sets the limit of the operation's statements, in seconds."""
    if not framed and any(one.self_committing for one in found):
        raise psycopg.NotSupportedError(
            f"{found[0].keyword} cannot have a statement_timeout of its own, because it must be sent alone: "
            "use timeout=, or the cluster's statement_timeout"
        )
    milliseconds = round(limit * 1000)
    if any(one.keyword == "SET TRANSACTION" for one in found):
        # SET TRANSACTION must come before any query (25001), and set_config is one. SET LOCAL is not, but as
        # a segment's first statement costs a warning in the server's log.
        return b"SET LOCAL statement_timeout = %d" % milliseconds
    return b"SELECT pg_catalog.set_config('statement_timeout', '%d', true)" % milliseconds
