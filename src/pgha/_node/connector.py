"""The connections of the lanes of one access mode on one node: opening, set-up, the server's identity."""

from __future__ import annotations

import anyio
import psycopg
from psycopg.adapt import AdaptersMap

from pgha._node.callbacks import ServerFacts
from pgha._operation.operation import AccessMode
from pgha._options import NodeConfig, Options
from pgha._wire import PGconn
from pgha._wire.connect import ConnectFailed, idle, open_pgconn, set_up, system_of
from pgha._wire.link import Link


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
            system = await self._set_up(pgconn)
            return Link(pgconn, options.prepare_threshold, options.tuning.statements, self._adapters), system
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

    async def _set_up(self, pgconn: PGconn) -> int | None:
        """Run ``on_connect``; return the system identifier for a write lane, else None."""
        system = None
        options = self._options
        scope = anyio.CancelScope(deadline=anyio.current_time() + options.connect_timeout)
        try:
            with scope:
                if self._kind == "write":
                    # Before the user's on_connect, which may give up rights.
                    system = self._server.system = await system_of(pgconn)
                await set_up(pgconn, options.on_connect)
        except Exception as error:
            rejected = not isinstance(error, psycopg.OperationalError)
            raise ConnectFailed(f"on_connect failed: {error}", rejected=rejected) from error
        if scope.cancelled_caught:
            raise ConnectFailed(f"on_connect took more than {options.connect_timeout:g} s")
        if not idle(pgconn):
            # Every write would be part of that transaction: acknowledged, and lost with the lane.
            raise ConnectFailed("on_connect left a transaction open: commit it in on_connect", rejected=True)
        return system
