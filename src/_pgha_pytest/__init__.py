"""The pytest plugin: `pgha_nodes` and its companions, which pytest finds through the entry point `pytest11`.

The plugin is a package of its own, because importing anything below `pgha` imports all of it, and every test
run on a machine with pgha would pay for that. So nothing here imports pgha before a fixture is used.

The nodes do not belong to the event loop of a test: a thread with a loop of its own, the portal, starts and
ends them, and runs the proxies. For this reason the fixtures suit synchronous tests, anyio's tests on both
backends, and pytest-asyncio's tests, and tests with different loops can share nodes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from _pgha_pytest._evidence import FailureReport
from _pgha_pytest._hop import blocking, in_portal
from _pgha_pytest._options import KINDS, SCOPES, asked, kind_of, unusable
from _pgha_pytest._shelf import Shelf

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from pgha import Cluster
    from pgha.chaos import Injector, Nodes, Proxies, Proxy

_EVIDENCE = pytest.StashKey[FailureReport]()
_MARKER = (
    "pgha(topology='standalone', nodes=1, kind='local', scope='function', version=18, ...): describe the"
    " PostgreSQL servers of the fixture pgha_nodes; all other keywords are those of pgha.chaos.standalone,"
    " masters or replicas"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--pgha-nodes` and the setting `pgha_nodes`."""
    told = "environment of the PostgreSQL servers of pgha_nodes, if a test names none: local or container"
    parser.getgroup("pgha").addoption("--pgha-nodes", choices=KINDS, default=None, help=told)
    parser.addini("pgha_nodes", told, default="local")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `pgha`, and check the configured kind of nodes."""
    config.addinivalue_line("markers", _MARKER)
    kind_of(config)  # reports a wrong value before the first test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the faults and the ends of the servers' logs to the report of a failed test."""
    report = yield
    if report.failed and (evidence := item.stash.get(_EVIDENCE, None)) is not None:
        report.sections += evidence.sections()
    return report


@pytest.fixture(scope="session")
def pgha_portal() -> Iterator[BlockingPortal]:
    """Provide access to the event loop that runs proxies and starts nodes, in a thread of its own.

    With the portal, synchronous tests call async methods: `pgha_portal.call(pgha_nodes[0].kill)`.

    Returns:
        A `BlockingPortal` of anyio, the same for the whole session.
    """
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal(name="pgha") as portal:
        try:
            yield portal
        finally:
            # After a Ctrl-C while nodes started, their start still runs here: cancel it instead of waiting.
            portal.call(portal.stop, True)


def _shelf(pgha_portal: BlockingPortal) -> Iterator[Shelf]:
    with ExitStack() as stack:
        yield Shelf(pgha_portal, stack)


_shelves = [pytest.fixture(scope=scope, name=f"_pgha_{scope}")(_shelf) for scope in SCOPES]
_pgha_function, _pgha_module, _pgha_session = _shelves


@pytest.fixture
def pgha_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Provide the options of the nodes: the keywords of the markers `pgha`, of which the nearest wins.

    Override this fixture if another fixture decides about the options, for example one that makes
    certificates.

    Returns:
        The keywords.
    """
    return asked(request.node)


@pytest.fixture
def pgha_nodes(
    request: pytest.FixtureRequest, pgha_options: dict[str, Any], pgha_portal: BlockingPortal
) -> Iterator[Nodes]:
    """Provide running servers, as the marker `pgha` describes them.

    The methods of the nodes can be awaited in any event loop. The nodes are killed and removed at the end of
    the test. With a wider `scope`, the tests in that scope share them, and after each test all of them run
    again.

    Returns:
        `Nodes`, `Masters` or `Replicas`.
    """
    options = dict(pgha_options)
    scope = options.pop("scope", "function")
    if scope not in SCOPES:
        raise unusable(f"scope must be one of {', '.join(SCOPES)}, not {scope!r}")
    shelf: Shelf = request.getfixturevalue(f"_pgha_{scope}")
    nodes = shelf.nodes(options)
    evidence = request.node.stash[_EVIDENCE] = FailureReport(pgha_portal, nodes)
    try:
        yield nodes
    finally:
        evidence.keep()  # the logs are removed with the nodes, and a later failure needs them
        if scope != "function":
            shelf.mend(nodes)


@pytest.fixture
def pgha_servers(pgha_nodes: Nodes, pgha_portal: BlockingPortal) -> Any:
    """Provide `pgha_nodes` for synchronous tests: every method blocks until it is done.

    Example: `pgha_servers[0].kill()`.

    Returns:
        An object with the attributes and methods of the nodes.
    """
    return blocking(pgha_nodes, pgha_portal)


@pytest.fixture
def pgha_proxies(pgha_nodes: Nodes, pgha_portal: BlockingPortal) -> Iterator[Proxies]:
    """Provide a proxy before each node.

    The methods of the proxies can be called from any event loop and any thread.

    Returns:
        The `Proxies`, in the order of the nodes.
    """
    from pgha.chaos import Proxies, proxied

    with pgha_portal.wrap_async_context_manager(proxied(pgha_nodes)) as proxies:
        yield Proxies(in_portal(proxy, pgha_portal) for proxy in proxies)


@pytest.fixture
def pgha_proxy(pgha_proxies: Proxies) -> Proxy:
    """Provide the proxy before the first node.

    Returns:
        The `Proxy`.
    """
    return pgha_proxies[0]


@pytest.fixture
def pgha_injector(request: pytest.FixtureRequest, pgha_nodes: Nodes) -> Injector:
    """Provide an injector of faults into the nodes, and into the proxies if the test uses them.

    If the test fails, its report lists the faults. The injector belongs to the first event loop that uses it.

    Returns:
        The `Injector`.
    """
    from pgha.chaos import Injector

    injector = Injector(pgha_nodes, _proxies(request))
    request.node.stash[_EVIDENCE].injectors.append(injector)
    return injector


@pytest.fixture
async def pgha_cluster(request: pytest.FixtureRequest, pgha_nodes: Nodes) -> AsyncGenerator[Cluster]:
    """Provide a `pgha.Cluster` of the nodes, through the proxies if the test uses them.

    This fixture is for tests that anyio's plugin runs, on both backends. The cluster is closed at the end of
    the test, also if the test is cancelled.

    Returns:
        The open cluster.
    """
    import pgha

    places = [pgha.Node(place.dsn, place.name) for place in _proxies(request) or pgha_nodes]
    async with pgha.open_cluster(*places) as cluster:
        yield cluster


def _proxies(request: pytest.FixtureRequest) -> Proxies | None:
    """Return the proxies, or None if the test did not ask for any."""
    wanted = "pgha_proxies" in request.fixturenames
    return request.getfixturevalue("pgha_proxies") if wanted else None
