"""Compares the fault proxy without a fault with a bare relay of streams, each in its own process.

``python -m bench.proxy KIND BACKEND PORT [LATENCY]`` relays to the port until its standard input ends. The
latency is in seconds, each way.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio
import anyio.abc
import anyio.to_thread
from psycopg.conninfo import make_conninfo

from bench.measure import Measurement, Sampler, Setting
from bench.peers._client import parts
from bench.report import Metric
from pgha.chaos import Proxy, Wire

_BACKENDS = ("asyncio", "trio")
_BLOCK = 1 << 16
_BYTE = b"\0"


def proxy_rows() -> list[Measurement]:
    """Return a row per event loop."""
    return [_row(backend) for backend in _BACKENDS]


def _row(backend: str) -> Measurement:
    bare = f"bare relay {backend}"
    metrics = [
        Metric(
            f"through the fault proxy ({backend}): round trips of one byte, 1 connection",
            "round trips per second",
            targets={bare: 0.5},
        ),
        Metric(
            f"through the fault proxy ({backend}): one way, 1 connection",
            "megabytes per second",
            targets={bare: 0.5},
        ),
    ]
    contestants = {
        f"pgha proxy {backend}": _sampler("proxy", backend),
        bare: _sampler("relay", backend),
        "no relay": _sampler(None, backend),
    }
    return Measurement(f"proxy-{backend}", metrics, contestants)


def _sampler(kind: str | None, backend: str) -> Sampler:
    def sample(setting: Setting) -> Sequence[float]:
        with _peer() as port, _relayed(kind, backend, port) as entrance:
            return [_round_trips(entrance, setting.seconds), _throughput(entrance, setting.seconds)]

    return sample


@contextmanager
def _peer() -> Iterator[int]:
    """Start a server that echoes single bytes and discards longer data; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket) -> None:
    buffer = bytearray(_BLOCK)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while size := connection.recv_into(buffer):
                if size == 1:
                    connection.send(_BYTE)


@contextmanager
def line(dsn: str, latency: float) -> Iterator[str]:
    """Yield the conninfo string of a proxy in its own process, ``latency`` seconds away each way."""
    with _relayed("proxy", "asyncio", parts(dsn)["port"], latency) as port:
        yield make_conninfo(dsn, host="127.0.0.1", port=port)


@contextmanager
def _relayed(kind: str | None, backend: str, port: int, latency: float = 0.0) -> Iterator[int]:
    if kind is None:
        yield port
        return
    command = [sys.executable, "-m", "bench.proxy", kind, backend, str(port), str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


@contextmanager
def _connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def _round_trips(port: int, seconds: float) -> float:
    with _connection(port) as connection:
        count, started = 0, time.perf_counter()
        end = started + seconds
        while time.perf_counter() < end:
            connection.send(_BYTE)
            assert connection.recv(_BLOCK) == _BYTE
            count += 1
        return count / (time.perf_counter() - started)


def _throughput(port: int, seconds: float) -> float:
    """Return the megabytes per second. The end of file that comes back shows that all data has arrived."""
    block = bytes(_BLOCK)
    with _connection(port) as connection:
        count, started = 0, time.perf_counter()
        end = started + seconds
        while time.perf_counter() < end:
            connection.sendall(block)
            count += 1
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(_BLOCK).strip(_BYTE) == b""
        return count * _BLOCK / 1e6 / (time.perf_counter() - started)


async def _relay(port: int, latency: float) -> None:
    """Run the simplest possible relay, which cannot delay anything."""
    assert not latency

    async def pump(source: anyio.abc.ByteStream, sink: anyio.abc.SocketStream) -> None:
        async for data in source:
            await sink.send(data)
        await sink.send_eof()

    async def relay(client: anyio.abc.SocketStream) -> None:
        server = await anyio.connect_tcp("127.0.0.1", port)
        async with client, server, anyio.create_task_group() as group:
            group.start_soon(pump, client, server)
            group.start_soon(pump, server, client)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    print(listener.extra(anyio.abc.SocketAttribute.local_port), flush=True)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, relay)
        await anyio.to_thread.run_sync(sys.stdin.read)
        group.cancel_scope.cancel()


async def _proxy(port: int, latency: float) -> None:
    async with Proxy(("127.0.0.1", port)) as proxy:
        proxy.set(up=Wire(latency=latency), down=Wire(latency=latency))
        print(proxy.port, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    kind, backend, port, latency = (*sys.argv[1:], "0")[:4]
    anyio.run(_proxy if kind == "proxy" else _relay, int(port), float(latency), backend=backend)
