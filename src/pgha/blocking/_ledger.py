"""`Ledger`: administration of the ledger, for threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, final

from pgha._cluster.cluster import Cluster
from pgha._ledger.schema import LedgerStatus, Pruned
from pgha.blocking._host import Host


@final
class Ledger:
    """The ledger of each node, a table that makes keyed writes exactly once; see `pgha.Ledger`.

    An interrupt (KeyboardInterrupt) of a call is raised at once: a node is either done or not begun.

    Example::

        cluster.ledger.install(grant_to=["shop"])
        cluster.ledger.prune(older_than=7 * 86400)
    """

    def __init__(self, host: Host, cluster: Cluster[Any]) -> None:
        self._host = host
        self._cluster = cluster

    def install(
        self, *, grant_to: Iterable[str] = (), nodes: Iterable[str] | None = None
    ) -> Mapping[str, LedgerStatus]:
        """Create the table on every node that lacks it, and grant roles the rights to use and prune it.

        Works as `pgha.Ledger.install`: each of the nodes must be up, or nothing is done. After an interrupt,
        a node is either done or not begun.

        Args:
            grant_to: Names of roles; none by default.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.

        Returns:
            The status of every node that was installed, by name.

        Raises:
            pgha.LedgerError: A node is unavailable, the role lacks a right, or the table has another layout.
            pgha.ConfigError: A node or role is unknown or not a name.
        """
        grants = grant_to if isinstance(grant_to, str) else list(grant_to)
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.install(grant_to=grants, nodes=names))

    def status(self) -> Mapping[str, LedgerStatus]:
        """Return the status of every node's ledger, standbys included.

        Failures of nodes never raise: `pgha.LedgerStatus.problem` reports them. An interrupt changes nothing.

        Returns:
            The status of every node, by name.

        Raises:
            pgha.ClusterClosed: The cluster is closed.
        """
        return self._host.run(lambda: self._cluster.ledger.status())

    def prune(
        self, older_than: float | timedelta = timedelta(days=7), *, nodes: Iterable[str] | None = None,
        patience: float = 10.0,
    ) -> Mapping[str, Pruned]:  # fmt: skip
        """Delete the rows whose deadline passed ``older_than`` seconds ago.

        Works as `pgha.Ledger.prune`: rows are kept for at least one hour, and nothing is deleted on a node
        whose clock differs from this machine's by more than a second. After an interrupt, committed batches
        stay deleted.

        Args:
            older_than: Age in seconds, or a timedelta; the default is 7 days.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.
            patience: Seconds to wait for old transactions that hold the ledger; the default is 10.

        Returns:
            The number of deleted rows per node, by name; see `pgha.Pruned`.

        Raises:
            pgha.LedgerError: A node is unavailable, the role lacks the right DELETE, the table has another
                layout, or the clocks differ.
            pgha.ConfigError: An argument cannot be used, or a node is unknown.
        """
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.prune(older_than, nodes=names, patience=patience))

    def uninstall(self, *, force: bool = False, nodes: Iterable[str] | None = None) -> Mapping[str, bool]:
        """Drop the table, and the schema ``pgha`` if nothing else is in it.

        Works as `pgha.Ledger.uninstall`. After an interrupt, a node is either done or not begun.

        Args:
            force: Whether to drop the table although keys were used within the last hour.
            nodes: Names of the nodes; None (the default) is all nodes. Standbys are skipped: they have their
                primary's ledger.

        Returns:
            Whether the table existed, by node.

        Raises:
            pgha.LedgerError: A node is unavailable, keys were used recently, the role lacks a right, or the
                node's clock and this machine's differ by more than a second (not with ``force``).
            pgha.ConfigError: A node is unknown.
        """
        names = _own(nodes)
        return self._host.run(lambda: self._cluster.ledger.uninstall(force=force, nodes=names))


def _own(nodes: Iterable[str] | None) -> list[str] | None:
    """Copy the names in the calling thread: the iterable may change afterwards, or be slow."""
    return None if nodes is None else list(nodes)
