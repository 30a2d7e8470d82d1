"""The connections of the lanes of one access mode on one node: opening, set-up, the server's identity."""

from __future__ import annotations

import logging

import anyio
import psycopg
from psycopg.adapt import AdaptersMap

from pgha._node.callbacks import ServerFacts
from pgha._operation.operation import AccessMode
from pgha._options import NodeConfig, Options
from pgha._telemetry.log import say
from pgha._wire import OK, PGconn
from pgha._wire.connect import (
    TELL_WARNINGS,
    ConnectFailed,
    idle,
    listening,
    open_pgconn,
    run_simple,
    set_up,
    system_of,
)
from pgha._wire.link import Link

logger = logging.getLogger("pgha.node")


class Connector:
    """Opens links, ready for a lane."""

    def __init__(
        self, kind: AccessMode, config: NodeConfig, options: Options, server: ServerFacts,
        adapters: AdaptersMap,
    ) -> None:  # fmt: skip
        self._kind: AccessMode = kind
        self._config = config
        self._options = options
        self._server = server
        self._adapters = adapters

    async def connect(self) -> tuple[Link, int | None]:
        """Open and set up a connection.

        Cancellation closes the connection.

        Returns:
            The link, and the system identifier of its server: None for reads, or if the server does not tell.

        Raises:
            ConnectFailed: The connection could not be opened or set up within ``connect_timeout`` for each.
        """
        options = self._options
        pgconn = await open_pgconn(
            self._config,
            options.connect_timeout,
            application_name=self._config.application_name(options.application_name),
            options=self._settings(),
        )
        try:
            system, listens = await self._set_up(pgconn)
            threshold, limit = options.prepare_threshold, options.tuning.statements
            return Link(
                pgconn, threshold, limit, self._adapters, listens=listens, reads=self._kind == "read"
            ), system
        except OSError as error:
            pgconn.finish()
            raise ConnectFailed(f"no descriptor for the connection: {error}") from error
        except BaseException:
            pgconn.finish()
            raise

    def _settings(self) -> str:
        options = self._options
        settings = [self._config.params.get("options", "")]
        if self._kind == "read":
            settings.append("-c default_transaction_read_only=on")
        else:
            # A setting of the role or the database may suppress the warning that a commit is not replicated.
            settings.append("-c client_min_messages=warning")
        if options.statement_timeout is not None:
            settings.append(f"-c statement_timeout={round(options.statement_timeout * 1000)}")
        return " ".join(filter(None, settings))

    async def _set_up(self, pgconn: PGconn) -> tuple[int | None, bool]:
        """Read the system identifier (on a write connection), and run ``on_connect``.

        Returns:
            The system identifier, and whether ``on_connect`` made the session listen for notifications.
        """
        timeout = self._options.connect_timeout
        system, listens = None, False
        step = "reading the system identifier"
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + timeout) as scope:
                if self._kind == "write":
                    # Before the user's on_connect, which may give up rights.
                    system = self._server.system = await system_of(pgconn)
                if self._options.on_connect is not None:
                    step = "on_connect"
                    await set_up(pgconn, self._options.on_connect)
                    listens = await self._examine(pgconn)
        except ConnectFailed:
            raise
        except Exception as error:
            rejected = not isinstance(error, psycopg.OperationalError)
            raise ConnectFailed(f"{step} failed: {error}", rejected=rejected) from error
        if scope.cancelled_caught:
            raise ConnectFailed(f"{step} took more than {timeout:g} s")
        return system, listens

    async def _examine(self, pgconn: PGconn) -> bool:
        """Check the session that ``on_connect`` left; return whether the session listens."""
        if pgconn.status != OK:
            raise ConnectFailed(
                "the connection ended during on_connect (COPY ends it, and a call that is cancelled)"
            )
        if not idle(pgconn):
            # Every write would be part of that transaction: acknowledged, and lost with the lane.
            raise ConnectFailed("on_connect left a transaction open: commit it in on_connect", rejected=True)
        if self._kind == "write":
            await run_simple(pgconn, TELL_WARNINGS)
        listens = await listening(pgconn)
        if listens and not self._server.listening_told:
            self._server.listening_told = True
            message = "%s: on_connect ran LISTEN: pgha delivers no notifications, and drops them"
            say(logger, logging.WARNING, message, self._config.name)
        return listens
