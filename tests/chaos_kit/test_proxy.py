"""The fault proxy: every byte without a fault; each fault set, changed and healed under connections."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import anyio
import anyio.abc
import psutil
import pytest
from support.common import PATIENCE, eventually, tasks, within

from pgha.chaos import ChaosError, Cut, CutHow, Direction, Proxy, Wire
from pgha.chaos._proxy import relay as relay

pytestmark = pytest.mark.anyio

Stream = anyio.abc.SocketStream
Ending = Literal["eof", "reset"]
DIRECTIONS: list[Direction] = ["up", "down"]
MEGA = 1_000_000
SHORT = 0.1
"""Seconds in which nothing must happen."""
LATE = 0.2


class Ends:
    """A proxy in front of the test's own listener, so that the test holds both ends of each connection."""

    def __init__(self, proxy: Proxy, listener: anyio.abc.Listener[Stream]) -> None:
        self.proxy, self.listener = proxy, listener

    async def client(self) -> Stream:
        return await anyio.connect_tcp("127.0.0.1", self.proxy.port)

    async def server(self) -> Stream:
        (listener,) = self.listener.listeners  # type: ignore[attr-defined]
        accepted: Stream = await listener.accept()
        return accepted

    async def connect(self) -> tuple[Stream, Stream]:
        client = await self.client()
        return client, await self.server()

    async def pair(self, direction: Direction) -> tuple[Stream, Stream]:
        """Return the sender and the receiver for that direction."""
        client, server = await self.connect()
        return (client, server) if direction == "up" else (server, client)


@asynccontextmanager
async def ends() -> AsyncGenerator[Ends]:
    """Run a proxy between two ends, and fail if it leaves a task or a socket behind."""
    before, files = tasks(), psutil.Process().num_fds()
    with within(60):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, Proxy(("127.0.0.1", port)) as proxy:
            yield Ends(proxy, listener)
    assert tasks() - before == set()
    # Closing takes a moment: asyncio closes the test's own sockets in its next iteration.
    await eventually(lambda: psutil.Process().num_fds() <= files, what="all sockets are closed")


def one(direction: Direction, wire: Wire) -> dict[str, Wire]:
    return {direction: wire}


async def exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive()
    assert len(data) == size
    return data


async def rest(stream: Stream) -> tuple[bytes, Ending]:
    """Receive all data until the end; return the data and the kind of end."""
    data = b""
    while True:
        try:
            data += await stream.receive()
        except anyio.EndOfStream:
            return data, "eof"
        except anyio.BrokenResourceError as error:
            assert isinstance(error.__cause__, ConnectionResetError)
            return data, "reset"


async def silent(*streams: Stream) -> None:
    """Check that no data comes, and that no stream ends."""
    for stream in streams:
        with anyio.move_on_after(SHORT):
            data = await stream.receive()
            pytest.fail(f"there was {data!r}")


async def flows(sender: Stream, receiver: Stream) -> None:
    data = random.randbytes(1000)
    await sender.send(data)
    assert await exactly(receiver, len(data)) == data


def drop_it(stream: Stream) -> None:
    """Make the stream's close send a reset."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def took(what: Awaitable[object]) -> float:
    began = anyio.current_time()
    await what
    return anyio.current_time() - began


# --- without a fault ----------------------------------------------------------------------------------


async def test_every_byte_both_ways_at_once() -> None:
    async with ends() as both:
        client, server = await both.connect()
        sent = {client: random.randbytes(7 * MEGA + 13), server: random.randbytes(5 * MEGA + 7)}
        got: dict[Stream, tuple[bytes, Ending]] = {}

        async def send(stream: Stream) -> None:
            draw, data = random.Random(1), sent[stream]
            while data:
                size = draw.choice([1, 100, 5000, 300_000])
                await stream.send(data[:size])
                data = data[size:]
            await stream.send_eof()

        async def receive(stream: Stream) -> None:
            got[stream] = await rest(stream)

        async with client, server, anyio.create_task_group() as group:
            for stream in (client, server):
                group.start_soon(send, stream)
                group.start_soon(receive, stream)
        assert got == {client: (sent[server], "eof"), server: (sent[client], "eof")}
        await eventually(lambda: both.proxy.connections == ())


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_a_half_close_is_one(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            await sender.send(b"question")
            await sender.send_eof()
            assert await rest(receiver) == (b"question", "eof")
            await receiver.send(b"answer")
            assert await exactly(sender, 6) == b"answer"
            await flows(receiver, sender)
            await receiver.send_eof()
            assert await rest(sender) == (b"", "eof")


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_a_reset_reaches_the_other_side_and_nobody_else(direction: Direction) -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            sender, receiver = await both.pair(direction)
            async with receiver:
                await flows(sender, receiver)
                drop_it(sender)
                await sender.aclose()
                assert await rest(receiver) == (b"", "reset")
            await flows(client, server)
            await flows(server, client)


async def test_the_end_of_a_receiver_reaches_the_sender() -> None:
    """A sender that had sent its own end before learns of the receiver's end only by sending on."""
    async with ends() as both:
        client, server = await both.connect()
        async with server:
            await client.aclose()
            assert await rest(server) == (b"", "eof")
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await server.send(bytes(1000))


async def test_memory_is_bounded_by_the_receiver() -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            await flows(client, server)  # before that, a stream of asyncio accepts any amount of data
            count = 0
            (link,) = both.proxy._links.values()

            async def send() -> None:
                nonlocal count
                while True:
                    await client.send(bytes(100_000))
                    count += 1

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                await eventually(lambda: link._lines["up"].queued >= relay._LIMIT, 30)
                await anyio.sleep(LATE)
                group.cancel_scope.cancel()
            assert relay._LIMIT <= link._lines["up"].queued < relay._LIMIT + relay._PIECE
            assert len(await exactly_all(server, count * 100_000)) >= count * 100_000


async def exactly_all(stream: Stream, least: int) -> bytes:
    parts, size = [], 0
    while size < least:
        parts.append(await stream.receive())
        size += len(parts[-1])
    return b"".join(parts)


async def test_many_connections() -> None:
    async with ends() as both:

        async def echo(server: Stream) -> None:
            async with server:
                async for data in server:
                    await server.send(data)

        async def ask(size: int) -> None:
            data = random.randbytes(size)
            async with await both.client() as client:
                await client.send(data)
                await client.send_eof()
                assert await rest(client) == (data, "eof")

        async with anyio.create_task_group() as serving:
            serving.start_soon(both.listener.serve, echo)
            async with anyio.create_task_group() as group:
                for number in range(200):
                    group.start_soon(ask, 100 * number)
            serving.cancel_scope.cancel()
        assert both.proxy.total == 200
        await eventually(lambda: both.proxy.connections == ())


async def test_what_is_known_of_connections() -> None:
    async with ends() as both:
        proxy = both.proxy
        async with await both.client() as first, await both.server() as server:
            await first.send(b"abc")
            assert await exactly(server, 3) == b"abc"
            await server.send(b"de")
            assert await exactly(first, 2) == b"de"
            (status,) = proxy.connections
            assert (status.number, status.up, status.down, proxy.total) == (0, 3, 2, 1)
            proxy.restart_count()
            async with await both.client(), await both.server():
                assert [status.number for status in proxy.connections] == [-1, 0]
                assert proxy.total == 1


# --- each fault, under a living connection ------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_latency(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            await flows(sender, receiver)
            both.proxy.set(**one(direction, Wire(latency=LATE)))
            assert await took(flows(sender, receiver)) >= LATE
            await flows(receiver, sender)
            both.proxy.set(**one(direction, Wire(latency=LATE, jitter=LATE)))
            assert await took(flows(sender, receiver)) >= LATE
            both.proxy.set(**one(direction, Wire(latency=3600)))
            await sender.send(b"abc")
            await silent(receiver)
            both.proxy.set(**one(direction, Wire()))
            assert await exactly(receiver, 3) == b"abc"


async def test_what_is_late_overlaps() -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            both.proxy.set(up=Wire(latency=LATE, jitter=LATE))

            async def send() -> None:
                for number in range(200):
                    await client.send(number.to_bytes(2, "big"))
                    await anyio.sleep(0.001)

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                data = await exactly_all(server, 400)  # would take 40 seconds if the delays added up
            assert data == b"".join(number.to_bytes(2, "big") for number in range(200))


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_bandwidth(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            both.proxy.set(**one(direction, Wire(bandwidth=100_000)))
            data = random.randbytes(40_000)
            began = anyio.current_time()
            await sender.send(data)
            assert await exactly(receiver, 40_000) == data
            assert anyio.current_time() - began >= 0.39
            await flows(receiver, sender)
            both.proxy.set(**one(direction, Wire(bandwidth=1)))
            await sender.send(data[:10_000])
            both.proxy.heal()
            assert await exactly(receiver, 10_000) == data[:10_000]


@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down"), ()])
async def test_a_drop_keeps_connections_and_heals_without_a_loss(directions: tuple[Direction, ...]) -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            await flows(client, server)
            both.proxy.drop(*directions)
            data = random.randbytes(200_000)
            pairs = {"up": (client, server), "down": (server, client)}
            for direction, (sender, receiver) in pairs.items():
                if direction in (directions or pairs):
                    await sender.send(data)
                    await silent(receiver)
                else:
                    await flows(sender, receiver)
            both.proxy.heal()
            for direction in directions or DIRECTIONS:
                assert await exactly_all(pairs[direction][1], len(data)) == data
            await flows(client, server)
            await flows(server, client)


async def test_a_drop_leaves_the_rest_of_a_wire_as_it_is() -> None:
    async with ends() as both:
        both.proxy.set(up=Wire(latency=1), down=Wire(chunk=2))
        both.proxy.drop("up")
        assert (both.proxy.up, both.proxy.down) == (Wire(latency=1, drop=True), Wire(chunk=2))
        both.proxy.heal()
        assert (both.proxy.up, both.proxy.down) == (Wire(), Wire())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_drop_holds_an_end_back(direction: Direction, how: Ending) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with receiver:
            both.proxy.drop(direction)
            await sender.send(b"abc")
            (link,) = both.proxy._links.values()
            await eventually(lambda: link._lines[direction].queued == 3)
            if how == "reset":
                drop_it(sender)
            await sender.aclose()
            await silent(receiver)
            assert len(both.proxy.connections) == 1
            both.proxy.heal()
            assert await rest(receiver) == (b"abc", how)


async def test_a_new_connection_reaches_the_server_when_the_drop_is_healed() -> None:
    async with ends() as both:
        for direction in DIRECTIONS:
            both.proxy.drop(direction)
            async with await both.client() as client:
                await client.send(b"abc")
                with anyio.move_on_after(SHORT):
                    await both.server()
                    pytest.fail("connected")
                both.proxy.heal()
                async with await both.server() as server:
                    assert await exactly(server, 3) == b"abc"
                    await flows(server, client)


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_all_connections_ended_at_once(how: Ending) -> None:
    async with ends() as both:
        pairs = [await both.connect() for _ in range(3)]
        for client, server in pairs:
            await flows(client, server)
        both.proxy.drop("down")  # does not matter: the proxy itself ends the connections
        waiting = await both.client()
        await eventually(lambda: both.proxy.total == 4)
        end = both.proxy.reset if how == "reset" else both.proxy.close_all
        end()
        assert both.proxy.connections == ()
        end()
        for stream in (waiting, *(stream for pair in pairs for stream in pair)):
            async with stream:
                assert await rest(stream) == (b"", how)
        both.proxy.heal()
        client, server = await both.connect()
        async with client, server:
            await flows(client, server)


async def test_what_a_sender_goes_on_sending_does_not_spoil_an_end_of_file() -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            await flows(client, server)
            both.proxy.close_all()
            await client.send(bytes(100_000))
            assert await rest(client) == (b"", "eof")
            both.proxy.reset()
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await client.send(bytes(100_000))


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_small_packets(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            both.proxy.set(**one(direction, Wire(chunk=1)))
            data = random.randbytes(3000)
            await sender.send(data)
            packets: list[bytes] = []
            while len(b"".join(packets)) < len(data):
                packets.append(await receiver.receive())
            assert b"".join(packets) == data
            assert len(packets) > 100, "as many as packets, unless some were read together"
            await flows(receiver, sender)
            both.proxy.heal()
            await flows(sender, receiver)


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_coalesced(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            both.proxy.set(**one(direction, Wire(coalesce=(9, 3600.0))))
            for part in (b"abc", b"def"):
                await sender.send(part)
                await silent(receiver)
            await flows(receiver, sender)
            await sender.send(b"ghi")
            assert await receiver.receive() == b"abcdefghi"
            both.proxy.set(**one(direction, Wire(coalesce=(MEGA, LATE))))
            assert await took(flows(sender, receiver)) >= LATE
            both.proxy.set(**one(direction, Wire(coalesce=(MEGA, 3600.0))))
            await sender.send(b"abc")
            await silent(receiver)
            both.proxy.heal()
            assert await exactly(receiver, 3) == b"abc"


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_a_slow_close(direction: Direction) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            both.proxy.set(**one(direction, Wire(close_delay=LATE)))
            await sender.send(b"abc")
            assert await exactly(receiver, 3) == b"abc"
            began = anyio.current_time()
            await sender.send_eof()
            assert await rest(receiver) == (b"", "eof")
            assert anyio.current_time() - began >= LATE
            await flows(receiver, sender)


async def test_refused_and_healed() -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            port = both.proxy.port
            for _ in range(2):
                both.proxy.refuse()
                both.proxy.refuse()
                for _ in range(3):
                    with pytest.raises(OSError) as caught:
                        await both.client()
                    assert isinstance(caught.value.__cause__ or caught.value, ConnectionRefusedError)
                await flows(client, server)
                both.proxy.heal()
                assert both.proxy.port == port
                more = await both.connect()
                async with more[0], more[1]:
                    await flows(*more)


async def test_mute_and_healed() -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            both.proxy.refuse()
            both.proxy.mute()
            async with await both.client() as unheard:
                await unheard.send(b"abc")
                await silent(unheard)
                with anyio.move_on_after(SHORT):
                    await both.server()
                    pytest.fail("connected")
                await flows(client, server)
                both.proxy.heal()
                async with await both.server() as late:
                    assert await exactly(late, 3) == b"abc"
                    await flows(late, unheard)


async def test_settings_at_random_lose_and_change_nothing() -> None:
    """Every byte and both ends arrive in order while settings change and megabytes stream both ways."""
    draw = random.Random(5)

    def wire() -> Wire:
        return Wire(
            latency=draw.choice([0, 0.01]),
            jitter=draw.choice([0, 0.01]),
            bandwidth=draw.choice([None, MEGA, 10 * MEGA]),
            drop=draw.random() < 0.2,
            chunk=draw.choice([None, 7, 1000]),
            coalesce=draw.choice([None, (10_000, 0.01)]),
        )

    async with ends() as both:
        client, server = await both.connect()
        sent = {client: draw.randbytes(3 * MEGA), server: draw.randbytes(3 * MEGA)}
        got: dict[Stream, tuple[bytes, Ending]] = {}

        async def send(stream: Stream) -> None:
            await stream.send(sent[stream])
            await stream.send_eof()

        async def receive(stream: Stream) -> None:
            got[stream] = await rest(stream)

        async with client, server, anyio.create_task_group() as group:
            for stream in (client, server):
                group.start_soon(send, stream)
                group.start_soon(receive, stream)
            for _ in range(60):
                stall = Cut(draw.randrange(3 * MEGA), "stall", draw.choice(DIRECTIONS))
                both.proxy.cut(draw.choice([None, stall]))
                both.proxy.set(up=draw.choice([None, wire()]), down=draw.choice([None, wire()]))
                await anyio.sleep(draw.random() / 50)
            both.proxy.heal()
        assert got == {client: (sent[server], "eof"), server: (sent[client], "eof")}


# --- cuts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize("after", [0, 1, 7, 100_000, 3 * MEGA])
async def test_a_cut_ends_both_sides_after_exactly_so_many_bytes(
    after: int, how: Ending, direction: Direction
) -> None:
    async with ends() as both:
        both.proxy.cut(Cut(after, how, direction))
        sender, receiver = await both.pair(direction)
        data = random.randbytes(after + 1000)

        told: list[Ending] = []

        async def send() -> None:
            try:
                await sender.send(data)
            except anyio.BrokenResourceError:
                told.append("reset")  # a sender is told once: here while it was sending
            told.append((await rest(sender))[1])

        async with sender, receiver, anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.sleep(SHORT if after > MEGA else 0)  # a slow receiver still gets all the bytes
            assert await rest(receiver) == (data[:after], how)
        assert told[0] == how
        both.proxy.heal()
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            await flows(sender, receiver)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("heal", [Proxy.heal, lambda proxy: proxy.cut(None)])
async def test_a_stall_at_exactly_so_many_bytes(direction: Direction, heal: Callable[[Proxy], None]) -> None:
    async with ends() as both:
        sender, receiver = await both.pair(direction)
        async with sender, receiver:
            await sender.send(b"abc")
            assert await exactly(receiver, 3) == b"abc"
            both.proxy.cut(Cut(5, "stall", direction))
            await sender.send(b"defgh")
            assert await exactly(receiver, 2) == b"de"
            await silent(receiver)
            await flows(receiver, sender)
            heal(both.proxy)
            assert await exactly(receiver, 3) == b"fgh"


async def test_a_cut_of_one_connection() -> None:
    async with ends() as both:
        for _ in range(2):
            both.proxy.restart_count()
            both.proxy.cut(Cut(10, "reset", "up", connection=1))
            pairs = [await both.connect() for _ in range(3)]
            for number, (client, server) in enumerate(pairs):
                async with client, server:
                    await client.send(bytes(1000))
                    if number == 1:
                        assert await rest(server) == (bytes(10), "reset")
                    else:
                        assert await exactly(server, 1000) == bytes(1000)
                        await flows(server, client)


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_connection_past_the_offset_is_cut_at_once(how: CutHow) -> None:
    async with ends() as both:
        client, server = await both.connect()
        async with client, server:
            await flows(client, server)
            both.proxy.cut(Cut(10, how, "down"))
            await flows(client, server)
            both.proxy.cut(Cut(10, how, "up"))
            for stream in (client, server):
                assert await rest(stream) == (b"", how)


# --- the proxy itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
async def test_cancelled_it_leaves_nothing(busy: bool) -> None:
    async with ends() as outer:
        target = outer.proxy.port
        with anyio.move_on_after(PATIENCE) as scope:
            async with Proxy(("127.0.0.1", target)) as proxy:
                if busy:
                    proxy.set(up=Wire(latency=3600), down=Wire(bandwidth=1))
                async with (
                    await anyio.connect_tcp("127.0.0.1", proxy.port) as client,
                    await outer.server() as server,
                ):
                    await client.send(bytes(1000))
                    await server.send(bytes(1000))
                    scope.cancel()
                    await anyio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(OSError):
            await anyio.connect_tcp("127.0.0.1", proxy.port)


async def test_leaving_ends_every_connection() -> None:
    async with ends() as outer:
        async with Proxy(("127.0.0.1", outer.proxy.port)) as proxy:
            client = await anyio.connect_tcp("127.0.0.1", proxy.port)
            server = await outer.server()
            await flows(client, server)
            proxy.mute()
            unheard = await anyio.connect_tcp("127.0.0.1", proxy.port)
        for stream in (client, server, unheard):
            async with stream:
                await rest(stream)


async def test_an_error_comes_out_as_itself() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Proxy(("127.0.0.1", 1)):
            raise KeyError("mine")


def gone(proxy: Proxy) -> bool:
    return proxy.connections == ()


async def test_a_target_that_is_down_or_no_host_resets() -> None:
    for target in (("127.0.0.1", 1), ("nowhere.invalid", 1)):
        async with Proxy(target) as proxy, await anyio.connect_tcp("127.0.0.1", proxy.port) as client:
            with within(30):
                assert await rest(client) == (b"", "reset")
            await eventually(partial(gone, proxy))


async def test_a_target_by_name() -> None:
    async with ends() as outer, Proxy(("localhost", outer.proxy.port)) as proxy:
        assert proxy.name == f"localhost:{outer.proxy.port}"
        assert proxy.dsn == f"host=127.0.0.1 port={proxy.port}"
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as client, await outer.server() as server:
            await flows(client, server)


async def test_a_port_of_ones_own() -> None:
    async with Proxy(("127.0.0.1", 1)) as first:
        with pytest.raises(ChaosError, match=f"^port {first.port} of 127.0.0.1 is taken$"):
            await Proxy(("127.0.0.1", 1), port=first.port).__aenter__()
        port = first.port
    async with Proxy(("127.0.0.1", 1), port=port) as second:
        assert second.port == port
        second.refuse()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            with pytest.raises(ChaosError, match=f"^port {port} of the proxy of 127.0.0.1:1 is taken"):
                second.heal()
        second.heal()


async def test_what_makes_no_sense() -> None:
    proxy = Proxy(("127.0.0.1", 1), name="n7")
    for use in (lambda: proxy.port, lambda: proxy.dsn, proxy.heal, proxy.refuse, proxy.mute):
        with pytest.raises(ChaosError, match=r"proxy of n7.*'async with'$"):
            use()
    async with proxy:
        with pytest.raises(ChaosError, match="a direction must be one of up, down, not 'left'"):
            proxy.drop("left")  # type: ignore[arg-type]
        with pytest.raises(ChaosError, match="entered before"):
            await proxy.__aenter__()
    with pytest.raises(ChaosError, match="is not running"):
        proxy.heal()
    assert repr(proxy) == "<Proxy n7 left>"
    assert proxy.connections == ()
