"""Keyed writes, the ledger and the resolution of in-doubt writes in `pgha.blocking`, on both loops."""

from __future__ import annotations

import inspect
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from support.common import PATIENCE, unique
from support.keyed import TABLE, WRITE, ids
from support.servers import standalone
from support.threads import Backend, ask, cluster_of, crew, interrupted_when, soon

import pgha.blocking
from pgha.chaos import LocalNode, Node, proxied

DAY = 86400.0
OWN = "(SELECT system_identifier FROM pg_control_system())"
AGED = (
    f"INSERT INTO pgha.ledger SELECT {OWN}, gen_random_uuid(), '\\x00',"
    " clock_timestamp() - make_interval(secs => %s) FROM generate_series(1, %s)"
)


_LOOKING = (
    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%RowExclusiveLock%' AND pid <> pg_backend_pid()"
)


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def node(server: LocalNode) -> Iterator[LocalNode]:
    """A node with a table, and without a ledger before and after the test."""
    ask(server.execute, TABLE)
    yield server
    ask(server.execute, "DROP TABLE t")
    ask(server.execute, "DROP SCHEMA IF EXISTS pgha CASCADE")


def stored(node: Node) -> list[Any]:
    return ask(ids, node)


# Idempotency keys


def test_a_key_is_applied_once(node: LocalNode, backend: Backend) -> None:
    with cluster_of(node, backend=backend) as cluster:
        with pytest.raises(pgha.LedgerError, match="pgha ledger install"):
            cluster.execute(WRITE, ["none"], idempotency_key=pgha.new_idempotency_key())
        cluster.ledger.install()
        key = pgha.new_idempotency_key()
        assert not cluster.execute(WRITE, ["a"], idempotency_key=key).replayed
        again = cluster.execute(WRITE, ["a"], idempotency_key=key)
        assert again.replayed
        with pytest.raises(pgha.RowsLost):
            len(again)
        with pytest.raises(pgha.IdempotencyKeyReused) as caught:
            cluster.execute(WRITE, ["b"], idempotency_key=key)
        assert pgha.error_info(caught.value).outcome == "not applied"
        key = pgha.new_idempotency_key()
        batch = [(WRITE, ["c"]), (WRITE, ["d"])]
        assert [one.replayed for one in cluster.execute_batch(batch, idempotency_key=key)] == [False, False]
        assert [one.replayed for one in cluster.execute_batch(batch, idempotency_key=key)] == [True, True]
        assert stored(node) == ["a", "c", "d"]


def test_of_many_threads_with_one_key_one_applies_it(node: LocalNode, backend: Backend) -> None:
    with cluster_of(node, backend=backend) as cluster:
        cluster.ledger.install()
        keys, replayed = [pgha.new_idempotency_key() for _ in range(20)], list[bool]()

        def work() -> None:
            for number, key in enumerate(keys):
                replayed.append(cluster.execute(WRITE, [f"{number:02}"], idempotency_key=key).replayed)

        with crew() as threads:
            for _ in range(5):
                threads.start(work)
        assert (replayed.count(False), len(replayed)) == (20, 100)
        assert stored(node) == [f"{number:02}" for number in range(20)]


def test_submitted_and_in_groups(node: LocalNode, backend: Backend) -> None:
    with cluster_of(node, backend=backend) as cluster:
        cluster.ledger.install()
        keys = [pgha.new_idempotency_key() for _ in range(20)]
        sent: list[UUID | None] = []
        for turn in range(2):
            with cluster.group() as group:
                many = [
                    group.submit(
                        WRITE,
                        [f"{at:02}"],
                        idempotency_key=key,
                        on_send=lambda one: sent.append(one.idempotency_key),
                    )
                    for at, key in enumerate(keys)
                ]
            assert [one.result().replayed for one in many] == [turn == 1] * 20
        assert sent == keys * 2
        operation = cluster.submit(WRITE, ["00"], idempotency_key=keys[0])
        assert operation.result().replayed
        with pytest.raises(pgha.IdempotencyKeyReused):
            cluster.submit(WRITE, ["00"], idempotency_key=keys[1]).result()
        assert len(stored(node)) == 20


def test_bad_keys_are_raised_by_the_thread_that_calls(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster, cluster.group() as group:
        bad: Any
        for bad in ("not a uuid", str(pgha.new_idempotency_key()), 5, b"x" * 16):
            with pytest.raises(pgha.ConfigError, match="idempotency_key must be a"):
                cluster.execute("SELECT 1", idempotency_key=bad)
            with pytest.raises(pgha.ConfigError, match="idempotency_key must be a"):
                cluster.execute_batch(["SELECT 1"], idempotency_key=bad)
            for submit in (cluster.submit, group.submit):
                with pytest.raises(pgha.ConfigError, match="idempotency_key must be a"):
                    submit("SELECT 1", idempotency_key=bad)
        with pytest.raises(pgha.ConfigError, match="idempotency_key is for writes"):
            cluster.submit("SELECT 1", read=True, idempotency_key=pgha.new_idempotency_key())
        with pytest.raises(psycopg.NotSupportedError):
            cluster.execute("VACUUM", idempotency_key=pgha.new_idempotency_key())
        assert cluster.statistics().operations == 0


def test_keys_of_its_own(node: LocalNode, backend: Backend) -> None:
    with cluster_of(node, backend=backend, ledger="auto") as cluster:
        cluster.execute(WRITE, ["without"])
        cluster.ledger.install()

        def keyed() -> bool:
            cluster.execute(WRITE, ["perhaps"])
            return bool(cluster.ledger.status()[node.name].keys)

        soon(keyed, "writes have keys")
    wrong: Any = "sometimes"
    with pytest.raises(pgha.ConfigError, match="ledger must be"), cluster_of(node, ledger=wrong):
        pass


# The ledger


def test_the_face_is_that_of_the_async_one() -> None:
    for name in ("install", "status", "prune", "uninstall"):
        faces = (getattr(one, name) for one in (pgha.blocking.Ledger, pgha.Ledger))
        ours, theirs = ([*inspect.signature(one).parameters.values()] for one in faces)
        assert ours == theirs
    for name in ("execute", "execute_batch", "submit"):
        assert "idempotency_key" in inspect.signature(getattr(pgha.blocking.Cluster, name)).parameters


def test_made_looked_at_pruned_and_removed(node: LocalNode, backend: Backend) -> None:
    with cluster_of(node, backend=backend) as cluster:
        ledger = cluster.ledger
        assert not ledger.status()[node.name].installed
        for _ in range(2):
            status = ledger.install(nodes=iter([node.name]))[node.name]
            assert (status.installed, status.problem, status.keys, status.role) == (True, "", 0, "primary")
        ask(node.execute, AGED, [8 * DAY, 30])
        ask(node.execute, AGED, [6 * DAY, 20])
        assert ledger.prune() == {node.name: pgha.Pruned(node.name, 30)}
        assert ledger.prune(timedelta(days=5), nodes=[node.name])[node.name].deleted == 20
        cluster.execute(WRITE, ["a"], idempotency_key=pgha.new_idempotency_key())
        assert ledger.prune(0.0)[node.name].deleted == 0
        assert ledger.status()[node.name].keys == 1
        with pytest.raises(pgha.LedgerError, match="within the last hour"):
            ledger.uninstall()
        assert ledger.uninstall(force=True) == {node.name: True}
        assert ledger.uninstall() == {node.name: False}


def test_what_is_wrong_is_raised_by_the_thread_that_calls(server: LocalNode, backend: Backend) -> None:
    with cluster_of(server, backend=backend) as cluster:
        one_role: Any = "app"
        with pytest.raises(pgha.ConfigError, match="a list of role names"):
            cluster.ledger.install(grant_to=one_role)
        with pytest.raises(pgha.ConfigError, match="no node is called"):
            cluster.ledger.install(nodes=["nobody"])
        for age in (-1.0, float("nan"), float("inf"), timedelta.max):
            with pytest.raises(pgha.ConfigError, match="older_than"):
                cluster.ledger.prune(age)
        with pytest.raises(pgha.ConfigError, match="patience"):
            cluster.ledger.prune(patience=float("nan"))

        def broken() -> Iterator[str]:
            yield server.name
            raise ZeroDivisionError(threading.current_thread().name)

        with pytest.raises(ZeroDivisionError, match=threading.current_thread().name):
            cluster.ledger.prune(nodes=broken())
        assert not cluster.ledger.status()[server.name].installed
        ledger = cluster.ledger
    with pytest.raises(pgha.ClusterClosed):
        ledger.status()


def test_rights_are_granted(node: LocalNode, backend: Backend) -> None:
    role = unique("role")
    ask(node.execute, f"CREATE ROLE {role} LOGIN")
    dsn = psycopg.conninfo.make_conninfo(node.dsn, user=role)
    with cluster_of(node, backend=backend) as owners, pgha.blocking.open_cluster(dsn) as cluster:
        (status,) = cluster.ledger.status().values()
        with pytest.raises(pgha.LedgerError, match="may not create"):
            cluster.ledger.install()
        owners.ledger.install(grant_to=(one for one in [role]))
        (status,) = cluster.ledger.status().values()
        assert (status.problem, status.prunable) == ("", True)
        owners.ledger.uninstall()
    ask(node.execute, f"DROP ROLE {role}")


def test_an_interrupt_ends_a_prune_that_waits(node: LocalNode, backend: Backend) -> None:
    """An interrupt, such as Ctrl-C in the main thread, ends a prune that waits for another transaction."""
    with cluster_of(node, backend=backend) as cluster:
        cluster.ledger.install()
        with psycopg.connect(node.dsn) as other:
            other.execute(f"INSERT INTO pgha.ledger VALUES ({OWN}, gen_random_uuid(), '', now())")

            def looks() -> bool:
                return bool(ask(node.execute, _LOOKING)[0][0])

            with interrupted_when(lambda: soon(looks, "the prune looks for who is in its way")):
                cluster.ledger.prune(0.0, patience=600.0)
            in_the_way = cluster.ledger.prune(0.0, patience=0.1)[node.name].in_the_way
            assert in_the_way == (other.info.backend_pid,)
            other.rollback()


# In doubt, and resolved


@contextmanager
def lost_answers(backend: Backend) -> Iterator[tuple[Node, pgha.blocking.Cluster, Any]]:
    """A node, a cluster that reaches it through a proxy, and a function that calls the proxy's methods."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(standalone()) as nodes,
        portal.wrap_async_context_manager(proxied(nodes)) as proxies,
    ):
        portal.call(nodes[0].execute, TABLE)
        named = pgha.Node(proxies[0].dsn, nodes[0].name)
        with pgha.blocking.open_cluster(named, backend=backend, failover_timeout=60.0) as cluster:
            cluster.ledger.install()
            yield nodes[0], cluster, lambda name, *given: portal.call(getattr(proxies[0], name), *given)


def in_doubt(cluster: pgha.blocking.Cluster, value: str, key: UUID | None) -> pgha.CommitInDoubt:
    with pytest.raises(pgha.CommitInDoubt) as caught:
        cluster.execute(WRITE, [value], idempotency_key=key, timeout=0.3)
    assert caught.value.idempotency_key == key
    return caught.value


def test_what_was_in_doubt_is_resolved(backend: Backend) -> None:
    with lost_answers(backend) as (node, cluster, proxy):
        cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
        proxy("drop", "down")
        key = pgha.new_idempotency_key()
        applied = in_doubt(cluster, "lost answer", key)
        began = time.monotonic()
        assert cluster.resolve(applied, timeout=0.2) == "in doubt"
        assert 0.15 < time.monotonic() - began < PATIENCE
        told: list[str] = []
        with crew() as threads:
            for _ in range(3):
                threads.start(lambda: told.append(cluster.resolve(applied, timeout=60.0)))
            proxy("reset")
            proxy("heal")
        assert told == ["applied"] * 3
        assert cluster.resolve(applied) == "applied"
        assert cluster.execute(WRITE, ["lost answer"], idempotency_key=key).replayed
        assert stored(node) == ["first", "lost answer"]


def test_resolved_as_not_applied_the_key_is_used_up(backend: Backend) -> None:
    with lost_answers(backend) as (node, cluster, proxy):
        cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
        proxy("drop", "up")
        key = pgha.new_idempotency_key()
        error = in_doubt(cluster, "never arrived", key)
        proxy("reset")
        proxy("heal")
        assert cluster.resolve(error, timeout=60.0) == "not applied"
        with pytest.raises(pgha.IdempotencyKeyReused, match="resolved as not applied"):
            cluster.execute(WRITE, ["never arrived"], idempotency_key=key)
        assert stored(node) == ["first"]


def test_an_interrupt_of_resolve_changes_nothing(backend: Backend) -> None:
    with lost_answers(backend) as (_, cluster, proxy):
        cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
        proxy("drop", "down")
        error = in_doubt(cluster, "lost answer", pgha.new_idempotency_key())
        resolver = cluster._cluster._dispatcher._resolver

        def asked() -> bool:
            return any(outcome.asked for outcome in resolver._open)

        with interrupted_when(lambda: soon(asked, "somebody waits for the outcome")):
            cluster.resolve(error)
        proxy("reset")
        proxy("heal")
        assert cluster.resolve(error, timeout=60.0) == "applied"


def test_without_a_key_nobody_can_tell_once_the_connection_is_lost(backend: Backend) -> None:
    with lost_answers(backend) as (_, cluster, proxy):
        cluster.execute(WRITE, ["first"])
        proxy("drop", "down")
        error = in_doubt(cluster, "lost answer", None)
        proxy("reset")
        proxy("heal")
        assert cluster.resolve(error) == "in doubt"


def test_only_its_own_cluster_resolves_it(backend: Backend) -> None:
    with lost_answers(backend) as (node, cluster, proxy):
        cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
        proxy("drop", "down")
        error = in_doubt(cluster, "lost answer", pgha.new_idempotency_key())
        copy = pickle.loads(pickle.dumps(error))
        with pgha.blocking.open_cluster(node.dsn, backend=backend) as other:
            with pytest.raises(pgha.ConfigError, match="another cluster"):
                other.resolve(error)
            # An error unpickled in another process carries its facts, but no connection to the cluster to ask
            # for more.
            assert (copy.idempotency_key, other.resolve(copy)) == (error.idempotency_key, "in doubt")
            wrong: Any = ValueError("wrong")
            with pytest.raises(pgha.ConfigError, match="takes a CommitInDoubt"):
                other.resolve(wrong)
            with pytest.raises(pgha.ConfigError, match="timeout"):
                other.resolve(error, timeout=-1.0)
        proxy("reset")
        proxy("heal")
        assert cluster.resolve(error, timeout=60.0) == "applied"
    with pytest.raises(pgha.ClusterClosed):
        cluster.resolve(error)


def test_a_group_and_a_future_give_errors_that_can_be_resolved(backend: Backend) -> None:
    with lost_answers(backend) as (_, cluster, proxy):
        cluster.execute(WRITE, ["first"], idempotency_key=pgha.new_idempotency_key())
        proxy("drop", "down")
        with pytest.raises(ExceptionGroup) as caught, cluster.group() as group:
            group.submit(WRITE, ["lost answer"], idempotency_key=pgha.new_idempotency_key(), timeout=0.3)
        (error,) = caught.value.exceptions
        assert isinstance(error, pgha.CommitInDoubt)
        proxy("reset")
        proxy("heal")
        assert cluster.resolve(error, timeout=60.0) == "applied"
        with pytest.raises(pgha.blocking.WouldDeadlock):
            cluster.fetch("SELECT 1", on_send=lambda _: cluster.resolve(error))
        with pytest.raises(pgha.blocking.WouldDeadlock):
            cluster.fetch("SELECT 1", on_send=lambda _: cluster.ledger.status())
