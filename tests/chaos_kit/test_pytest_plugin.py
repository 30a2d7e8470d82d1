"""The pytest plugin in separate test runs: its fixtures in tests of all kinds, and its report of failures."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker  # noqa: F401 - otherwise `pytester` unloads a part of it, and there are two `http.cookiejar`
import pytest
from support.common import demand_engine

pytest_plugins = ["pytester"]

PATIENCE = 120.0


@pytest.fixture(autouse=True)
def servers(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder for the runs' servers, outside pytest's own folder, which only root can enter."""
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config -ra\nfilterwarnings = error\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        monkeypatch.setenv("TMPDIR", folder)
        yield path
        assert [one.name for one in path.iterdir() if one.name.startswith("pgha-")] == []


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    # Hypothesis takes a third of the time of a run.
    return pytester.runpytest_subprocess("-p", "no:hypothesispytest", *options, timeout=PATIENCE)


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    source = """
        import sys

        def test_nothing_is_imported():
            assert not {"pgha", "psycopg"} & set(sys.modules)
    """
    pytester.makepyfile(source)
    pytester.runpytest_subprocess(timeout=PATIENCE).assert_outcomes(passed=1)
    told = pytester.runpytest_subprocess("-p", "no:hypothesispytest", "--fixtures").stdout.str()
    for name in ("nodes", "servers", "proxies", "proxy", "injector", "cluster", "options"):
        assert f"pgha_{name} -- " in told
    assert "pgha_portal [session scope] -- " in told


def test_async_tests_on_both_loops(pytester: pytest.Pytester) -> None:
    source = """
        import pytest
        from pgha.chaos import Schedule, Step

        pytestmark = [pytest.mark.anyio, pytest.mark.pgha(topology="masters", nodes=2)]

        async def test_cluster(pgha_cluster, pgha_nodes):
            assert list(pgha_cluster.nodes) == ["n1", "n2"] == list(pgha_nodes.names)
            await pgha_nodes.create("CREATE TABLE item (id int)")
            await pgha_cluster.execute("INSERT INTO item VALUES (1)")
            await pgha_nodes.wait_replicated()
            await pgha_nodes[0].kill()
            assert await pgha_cluster.fetch_value("SELECT count(*) FROM item") == 1

        async def test_proxies(pgha_injector, pgha_proxies, pgha_proxy, pgha_nodes, pgha_cluster):
            assert pgha_proxy is pgha_proxies["n1"]
            assert pgha_proxies.names == pgha_nodes.names
            assert pgha_proxies.dsns != pgha_nodes.dsns
            assert await pgha_cluster.fetch_value("SELECT 1") == 1
            assert sum(proxy.total for proxy in pgha_proxies) > 0
            steps = (Step(0.0, "drop_down", 0, 0.2), Step(0.05, "kill", 0, 0.2), Step(0.1, "reset", 1))
            done = await pgha_injector.run(Schedule(steps))
            assert [one.skipped for one in done] == ["", "", ""]
            assert await pgha_cluster.fetch_value("SELECT 2") == 2
    """
    run(pytester, source).assert_outcomes(passed=4)


def test_synchronous_tests_and_plain_asyncio(pytester: pytest.Pytester) -> None:
    source = """
        import asyncio
        import psycopg
        import pytest
        from pgha.chaos import ChaosError, Schedule, Step

        def test_one_node(pgha_servers, pgha_proxy):
            assert pgha_servers["n1"].execute("SELECT 1") == [(1,)]
            with psycopg.connect(pgha_proxy.dsn) as connection:
                pgha_servers[0].stop("immediate")
                assert not pgha_servers[0].running
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            with pytest.raises(ChaosError, match="not running"):
                pgha_servers[0].freeze()
            pgha_servers[0].start(timeout=60)
            pgha_proxy.refuse()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(pgha_proxy.dsn)

        @pytest.mark.pgha(topology="replicas", nodes=2)
        def test_roles(pgha_servers):
            assert len(pgha_servers) == 2
            pgha_servers.primary.execute("CREATE TABLE item (id int)")
            pgha_servers.wait_replicated()
            standby, = pgha_servers.standbys
            pgha_servers.primary.kill()
            pgha_servers.promote(standby)
            assert [node.name for node in pgha_servers.strays] == ["n1"]
            with psycopg.connect(standby.dsn) as connection:
                connection.execute("INSERT INTO item VALUES (1)")

        def test_a_schedule_beside_it(pgha_portal, pgha_injector, pgha_proxies):
            schedule = Schedule((Step(0.0, "refuse", 0, 0.2), Step(0.1, "freeze", 0, 0.1)))
            done = pgha_portal.start_task_soon(pgha_injector.run, schedule).result()
            assert [one.skipped for one in done] == ["", ""]

        def test_asyncio(pgha_nodes, pgha_injector, pgha_proxies):
            async def main():
                await pgha_injector.strike("freeze", "n1")
                assert pgha_nodes[0].frozen
                await pgha_injector.heal()
                assert await pgha_nodes[0].execute("SELECT 1") == [(1,)]

            asyncio.run(main())
    """
    run(pytester, source).assert_outcomes(passed=4)


def test_what_is_asked_for(pytester: pytest.Pytester) -> None:
    """The nearest marker wins, keyword by keyword, and a fixture overrides all markers."""
    source = """
        import pytest

        pytestmark = pytest.mark.pgha(nodes=2, settings={"max_connections": "33"})

        def test_of_the_module(pgha_servers):
            assert pgha_servers.execute("SHOW max_connections") == {"n1": [("33",)], "n2": [("33",)]}

        @pytest.mark.pgha(nodes=1, version=16)
        class TestOfAClass:
            def test_nearer(self, pgha_servers):
                assert len(pgha_servers) == 1
                assert pgha_servers[0].version == 16
                assert pgha_servers[0].execute("SHOW max_connections") == [("33",)]

        class TestWithAFixture:
            @pytest.fixture
            def pgha_options(self, pgha_options):
                assert pgha_options["kind"] == "local"
                return pgha_options | {"nodes": 1, "settings": {"work_mem": "5MB"}}

            def test_overridden(self, pgha_servers):
                assert pgha_servers[0].execute("SHOW work_mem") == [("5MB",)]

        def by_version(version):
            return pytest.param(version, marks=pytest.mark.pgha(nodes=1, version=version))

        @pytest.mark.parametrize("version", [by_version(16), by_version(18)])
        def test_by_parameters(version, pgha_nodes):
            assert pgha_nodes[0].version == version
    """
    run(pytester, source).assert_outcomes(passed=5)


def test_shared_nodes(pytester: pytest.Pytester) -> None:
    """Tests that ask for the same nodes share them; each test finds them whole again."""
    source = """
        import pytest

        pytestmark = pytest.mark.pgha(scope="module")
        ports = set()

        def test_first(pgha_servers):
            ports.add(pgha_servers[0].port)
            pgha_servers[0].execute("CREATE TABLE item (id int)")
            pgha_servers[0].kill()

        @pytest.mark.anyio
        async def test_second(pgha_nodes):
            ports.add(pgha_nodes[0].port)
            await pgha_nodes[0].execute("INSERT INTO item VALUES (1)")
            await pgha_nodes[0].freeze()

        @pytest.mark.pgha(nodes=2)
        def test_others(pgha_servers):
            assert pgha_servers[0].port not in ports
            assert len(pgha_servers) == 2

        def test_last(pgha_servers):
            assert ports == {pgha_servers[0].port}
            assert pgha_servers[0].execute("SELECT count(*) FROM item") == [(2,)]
    """
    run(pytester, source).assert_outcomes(passed=5)


def test_what_is_told_of_a_failure(pytester: pytest.Pytester) -> None:
    source = """
        import pytest

        @pytest.fixture
        def late(pgha_nodes):
            yield
            raise RuntimeError("at the end")

        def test_fails(pgha_servers, pgha_injector, pgha_portal):
            pgha_portal.call(pgha_injector.strike, "kill", 0)
            with pytest.raises(Exception, match="lasts on n1"):
                pgha_portal.call(pgha_injector.strike, "freeze", 0)
            pgha_portal.call(pgha_injector.heal)
            pgha_servers[0].execute("DO $$ BEGIN RAISE WARNING 'first words'; END $$")
            assert False

        def test_fails_late(pgha_servers, late):
            pgha_servers[0].execute("DO $$ BEGIN RAISE WARNING 'second words'; END $$")

        def test_passes(pgha_servers):
            pgha_servers[0].execute("DO $$ BEGIN RAISE WARNING 'no words'; END $$")
    """
    result = run(pytester, source, "-rA", "-p", "no:randomly")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.re_match_lines([r"[ ]+\d+\.\d{3} s  kill n1, healed after \d+\.\d{3} s"])
    result.stdout.re_match_lines([r"[ ]+\d+\.\d{3} s  freeze n1, skipped: kill lasts on n1"])
    told = result.stdout.str()
    assert told.count("pgha: faults") == 1
    assert told.count("pgha: the end of the log of n1") == 2
    assert told.count("WARNING:  first words") == told.count("WARNING:  second words") == 1
    assert "no words" not in told.partition("pgha: the end of the log")[2]


MISTAKES = {
    "kind='local', version=12": "pgha: no PostgreSQL 12 found*pgha?chaos?*",
    "kind='local', colour='red'": "pgha: standalone: got an unexpected keyword argument 'colour'",
    "topology='ring'": "pgha: topology must be one of standalone, masters, replicas, not 'ring'",
    "topology='replicas', nodes=1": "pgha: a primary needs at least one standby, not 0*",
    "scope='class'": "pgha: scope must be one of function, module, session, not 'class'",
    "'masters'": "pgha: the marker pgha takes keywords only, not ('masters',)",
    "": "pgha: no container engine answers at *",
}


def test_one_line_says_what_is_wrong(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/none.sock")
    tests = [
        f"@pytest.mark.pgha({marker})\ndef test_{i}(pgha_nodes): pass" for i, marker in enumerate(MISTAKES)
    ]
    result = run(pytester, "\n".join(["import pytest", *tests]), "--pgha-nodes", "container")
    result.assert_outcomes(errors=len(MISTAKES))
    expected = [
        line for i, told in enumerate(MISTAKES.values()) for line in (f"*ERROR at setup of test_{i} *", told)
    ]
    result.stdout.fnmatch_lines([*expected, "*short test summary*"], consecutive=True)


@pytest.mark.thorough
def test_containers(pytester: pytest.Pytester) -> None:
    demand_engine()
    pytester.makeini("[pytest]\npgha_nodes = container\n")
    source = """
        import pytest

        @pytest.mark.anyio
        async def test_as_configured(pgha_nodes):
            assert pgha_nodes[0].kind == "container"
            await pgha_nodes[0].freeze()
            await pgha_nodes[0].thaw()
            assert await pgha_nodes[0].execute("SELECT 1") == [(1,)]

        @pytest.mark.pgha(kind="local")
        def test_the_marker_knows_better(pgha_nodes):
            assert pgha_nodes[0].kind == "local"
    """
    run(pytester, source).assert_outcomes(passed=3)


def test_a_kind_that_there_is_not(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npgha_nodes = virtual\n")
    result = run(pytester, "def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pgha_nodes must be local or container, not 'virtual'"])


def test_ctrl_c_while_nodes_start(pytester: pytest.Pytester) -> None:
    """The start that goes on in the other thread is cancelled, and not waited for."""
    source = """
        import os
        import signal
        from contextlib import asynccontextmanager

        import anyio
        import pytest
        from pgha import chaos

        @asynccontextmanager
        async def endless(n):
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await anyio.sleep_forever()
            finally:
                print("cancelled")
            yield

        @pytest.mark.pgha(kind=None)
        def test_it(monkeypatch, request):
            def standalone(n, kind): return endless(n)
            monkeypatch.setattr(chaos, "standalone", standalone)
            request.getfixturevalue("pgha_nodes")
    """
    result = run(pytester, source, "-s")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "cancelled" in result.stdout.str()
