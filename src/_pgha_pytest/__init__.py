"""The pytest plugin: `pgha_nodes` and its companions, found by pytest through the entry point `pytest11`.

A package of its own, since importing anything below `pgha` imports all of it, and every test run on a machine
with pgha would pay for that. So nothing here imports pgha before a fixture is used.

The nodes belong to no loop of the test's: a thread with a loop of its own, the portal, starts and ends them,
and runs the proxies. That is why the fixtures suit synchronous tests, anyio's on both backends and
pytest-asyncio's alike, and why nodes can be shared by tests with different loops.
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
    "pgha(topology='standalone', nodes=1, kind='local', scope='function', version=18, ...): the PostgreSQL"
    " servers of the fixture pgha_nodes; all other keywords are those of pgha.chaos.standalone, masters or"
    " replicas"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "what the PostgreSQL servers of pgha_nodes run in, unless a test says it: local or container"
    parser.getgroup("pgha").addoption("--pgha-nodes", choices=KINDS, default=None, help=told)
    parser.addini("pgha_nodes", told, default="local")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    kind_of(config)  # what is wrong is told before the first test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (evidence := item.stash.get(_EVIDENCE, None)) is not None:
        report.sections += evidence.sections()
    return report


@pytest.fixture(scope="session")
def pgha_portal() -> Iterator[BlockingPortal]:
    """The way into the loop that runs proxies and starts nodes, in a thread of its own.

    With it, synchronous tests use what is async: `pgha_portal.call(pgha_nodes[0].kill)`.
    """
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal(name="pgha") as portal:
        try:
            yield portal
        finally:
            # A Ctrl-C while nodes started has left that to go on: it would be waited for.
            portal.call(portal.stop, True)


def _shelf(pgha_portal: BlockingPortal) -> Iterator[Shelf]:
    with ExitStack() as stack:
        yield Shelf(pgha_portal, stack)


_shelves = [pytest.fixture(scope=scope, name=f"_pgha_{scope}")(_shelf) for scope in SCOPES]
_pgha_function, _pgha_module, _pgha_session = _shelves


@pytest.fixture
def pgha_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the nodes are to be like: the keywords of the markers `pgha`, of which the nearest wins.

    To be overridden where a fixture has a say, as one that makes certificates.
    """
    return asked(request.node)


@pytest.fixture
def pgha_nodes(
    request: pytest.FixtureRequest, pgha_options: dict[str, Any], pgha_portal: BlockingPortal
) -> Iterator[Nodes]:
    """Running servers: `Nodes`, `Masters` or `Replicas`, as the marker `pgha` says.

    Their methods can be awaited in any loop. They are killed and removed at the end; with a wider `scope`
    they are shared by its tests, and after each test all of them run again.
    """
    options = dict(pgha_options)
    scope = options.pop("scope", "function")
    if scope not in SCOPES:
        raise unusable(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")
    shelf: Shelf = request.getfixturevalue(f"_pgha_{scope}")
    nodes = shelf.nodes(options)
    evidence = request.node.stash[_EVIDENCE] = FailureReport(pgha_portal, nodes)
    try:
        yield nodes
    finally:
        evidence.keep()  # the logs go with the nodes, and what fails later is told later
        if scope != "function":
            shelf.mend(nodes)


@pytest.fixture
def pgha_servers(pgha_nodes: Nodes, pgha_portal: BlockingPortal) -> Any:
    """`pgha_nodes` for synchronous tests: every method blocks until it is done, `pgha_servers[0].kill()`."""
    return blocking(pgha_nodes, pgha_portal)


@pytest.fixture
def pgha_proxies(pgha_nodes: Nodes, pgha_portal: BlockingPortal) -> Iterator[Proxies]:
    """A proxy before each node. Their methods can be called from any loop and any thread."""
    from pgha.chaos import Proxies, proxied

    with pgha_portal.wrap_async_context_manager(proxied(pgha_nodes)) as proxies:
        yield Proxies(in_portal(proxy, pgha_portal) for proxy in proxies)


@pytest.fixture
def pgha_proxy(pgha_proxies: Proxies) -> Proxy:
    """The proxy before the first node."""
    return pgha_proxies[0]


@pytest.fixture
def pgha_injector(request: pytest.FixtureRequest, pgha_nodes: Nodes) -> Injector:
    """Performs faults on the nodes, and on the proxies if the test has them. What it did is told when the
    test fails.

    It belongs to the first loop that uses it.
    """
    from pgha.chaos import Injector

    injector = Injector(pgha_nodes, _proxies(request))
    request.node.stash[_EVIDENCE].injectors.append(injector)
    return injector


@pytest.fixture
async def pgha_cluster(request: pytest.FixtureRequest, pgha_nodes: Nodes) -> AsyncGenerator[Cluster]:
    """pgha's own cluster of the nodes, through the proxies if the test has them. For tests that anyio's
    plugin runs, on both backends.
    """
    import pgha

    places = [pgha.Node(place.dsn, place.name) for place in _proxies(request) or pgha_nodes]
    async with pgha.open_cluster(*places) as cluster:
        yield cluster


def _proxies(request: pytest.FixtureRequest) -> Proxies | None:
    """None: the test did not ask for any."""
    wanted = "pgha_proxies" in request.fixturenames
    return request.getfixturevalue("pgha_proxies") if wanted else None
