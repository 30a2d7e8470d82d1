"""One proxy before each of several nodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import overload

from pgha.chaos._proxy.proxy import Proxy, Target


class Proxies(Sequence[Proxy]):
    """Proxies in the order of their nodes; `proxies[0]` and `proxies["n1"]` are the same proxy.

    Args:
        proxies: The proxies.

    Example::

        async with standalone(2) as nodes, proxied(nodes) as proxies:
            proxies["n2"].refuse()
            proxies.heal()
    """

    def __init__(self, proxies: Iterable[Proxy]) -> None:
        self._proxies = tuple(proxies)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._proxies)})"

    @overload
    def __getitem__(self, key: int | str) -> Proxy: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Proxy, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Proxy | tuple[Proxy, ...]:
        if not isinstance(key, str):
            return self._proxies[key]
        for proxy in self._proxies:
            if proxy.name == key:
                return proxy
        raise KeyError(key)

    def __len__(self) -> int:
        return len(self._proxies)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each proxy, in order."""
        return tuple(proxy.name for proxy in self._proxies)

    @property
    def dsns(self) -> tuple[str, ...]:
        """The conninfo string of each proxy, in order."""
        return tuple(proxy.dsn for proxy in self._proxies)

    def heal(self) -> None:
        """Heal every proxy, see `Proxy.heal`.

        Raises:
            ChaosError: If a proxy is not running, or its port was taken.
        """
        for proxy in self._proxies:
            proxy.heal()


@asynccontextmanager
async def proxied(nodes: Iterable[Target], *, seed: int = 0) -> AsyncGenerator[Proxies]:
    """Run a `Proxy` before each node, under the node's name.

    Leaving closes all connections at once. Cancellation of the body does the same.

    Args:
        nodes: The nodes.
        seed: The seed of the first proxy's jitter; each further proxy adds one.

    Returns:
        An async context manager that gives the `Proxies`.

    Raises:
        ChaosError: If no port is free.

    Example::

        async with standalone(2) as nodes, proxied(nodes) as proxies:
            proxies["n1"].drop("down")
    """
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(Proxy(node, seed=seed + i)) for i, node in enumerate(nodes)
        ]
        yield Proxies(proxies)
