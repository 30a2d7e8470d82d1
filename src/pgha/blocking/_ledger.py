"""The ledger, for threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, final

from pgha._cluster.cluster import Cluster
from pgha._ledger.schema import LedgerStatus, Pruned
from pgha.blocking._host import Host


@final
class Ledger:
    """The ledger of each node: a table ``pgha.ledger`` that makes keyed writes exactly once: `pgha.Ledger`.

    An interrupt (Ctrl-C) of a call comes out at once: a node is done, or not begun.
    """

    def __init__(self, host: Host, cluster: Cluster[Any]) -> None:
        self._host = host
        self._cluster = cluster

    def install(
        self, *, grant_to: Iterable[str] = (), nodes: Iterable[str] | None = None
    ) -> Mapping[str, LedgerStatus]:
        """Make it where it is not, and grant ``grant_to`` (names of roles) the rights: `pgha.Ledger.install`.

        Of ``nodes``, by default all, each must be up, or nothing is done. Raises `pgha.LedgerError` for what
        is in the way. Gives every node's status afterwards.
        """
        grants = grant_to if isinstance(grant_to, str) else list(grant_to)
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.install(grant_to=grants, nodes=names))

    def status(self) -> Mapping[str, LedgerStatus]:
        """Every node's ledger, standbys included. Never raises for what nodes do: `pgha.LedgerStatus`."""
        return self._host.run(lambda: self._cluster.ledger.status())

    def prune(
        self, older_than: float | timedelta = timedelta(days=7), *, nodes: Iterable[str] | None = None,
        patience: float = 10.0,
    ) -> Mapping[str, Pruned]:  # fmt: skip
        """Delete the rows whose deadline passed ``older_than`` (seconds, or a timedelta) ago.

        Never less than an hour is kept. An old transaction that is in the way is waited for, ``patience``
        seconds. Raises `pgha.LedgerError` for what is in the way.
        """
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.prune(older_than, nodes=names, patience=patience))

    def uninstall(self, *, force: bool = False, nodes: Iterable[str] | None = None) -> Mapping[str, bool]:
        """Remove it; whether it was there: `pgha.Ledger.uninstall`.

        Keys that were used within the last hour are a `pgha.LedgerError`, unless by ``force``.
        """
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.uninstall(force=force, nodes=names))


def _own(nodes: Iterable[str] | None) -> list[str] | None:
    """In the thread that calls: what it gave may be changed afterwards, or be slow to tell."""
    return None if nodes is None else list(nodes)
