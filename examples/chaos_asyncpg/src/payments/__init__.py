"""Payments booked in PostgreSQL over asyncpg, without pgha.

The module handles a broken connection in three ways, of which one is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from uuid import UUID

import asyncpg

TABLES = """
CREATE TABLE loose_payment (id uuid NOT NULL, account text NOT NULL, cents int NOT NULL);
CREATE TABLE payment (id uuid PRIMARY KEY, account text NOT NULL, cents int NOT NULL);
"""
_BROKEN = (
    OSError,  # refused, reset, timed out
    asyncpg.InterfaceError,  # the connection was closed before the statement
    asyncpg.InternalClientError,  # the connection was closed between two statements
    asyncpg.PostgresConnectionError,  # the connection was closed in the middle of a statement
    asyncpg.exceptions.OperatorInterventionError,  # the server shuts down or starts
)


class Unknown(Exception):
    """Time is up, and the outcome of the payment is unknown.

    `book` may be called again with the same id.
    """


class NaiveLedger:
    """A ledger that books again when the connection breaks.

    The defect: a broken connection does not prove that nothing was booked. If only the answer was lost, the
    payment is booked twice.
    """

    table: ClassVar[str] = "loose_payment"
    insert: ClassVar[str] = "INSERT INTO loose_payment (id, account, cents) VALUES ($1, $2, $3)"

    def __init__(self, pool: asyncpg.Pool[Any], *, patience: float = 20.0, timeout: float = 1.0) -> None:
        self._pool, self._patience, self._timeout = pool, patience, timeout

    async def book(self, payment: UUID, account: str, cents: int) -> None:
        """Book a payment, and return when it is booked.

        Args:
            payment: The id of the payment.
            account: The account.
            cents: The amount in cents.

        Raises:
            Unknown: After `patience` seconds. Other errors of asyncpg are raised unchanged.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._until_booked(payment, account, cents)
        except TimeoutError as error:
            raise Unknown(f"payment {payment}: outcome unknown after {self._patience} s") from error

    async def _until_booked(self, *payment: object) -> None:
        pause = 0.01
        while True:
            try:
                return await self._book_once(*payment)
            except _BROKEN:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.2)

    async def _book_once(self, *payment: object) -> None:
        async with self._pool.acquire(timeout=self._timeout) as connection:
            try:
                await connection.execute(self.insert, *payment, timeout=self._timeout)
            except _BROKEN:
                # Returned to the pool as it is, the connection would wait for a server that may be silent.
                connection.terminate()
                raise


class GuardedLedger(NaiveLedger):
    """The same ledger with a primary key on the payment's id.

    No payment is booked twice. But when the answer was lost, the second attempt fails because of the first
    one, and the caller is told that a booked payment has failed.
    """

    table = "payment"
    insert = "INSERT INTO payment (id, account, cents) VALUES ($1, $2, $3)"


class Ledger(NaiveLedger):
    """The repaired ledger: booking the same id again is not an error and changes nothing."""

    table = "payment"
    insert = "INSERT INTO payment (id, account, cents) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING"


@asynccontextmanager
async def open_pool(url: str) -> AsyncGenerator[asyncpg.Pool[Any]]:
    """Open a pool of at most four connections to the server.

    At the end, the pool does not wait for statements that were sent.
    """
    pool = await asyncpg.create_pool(url, min_size=1, max_size=4, timeout=1.0)
    try:
        yield pool
    finally:
        pool.terminate()
