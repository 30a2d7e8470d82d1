"""A cluster's dispatcher with nodes and lanes in memory; a test plays the servers and the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from psycopg.rows import tuple_row

from pgha._core.need import PRIMARY_READ, READ, WRITE, AccessMode
from pgha._core.pipeline import Doing
from pgha._core.server_status import ServerStatus
from pgha._core.statement_kind import classify_statement
from pgha._dispatch.dispatcher import Dispatcher
from pgha._node.lane import Lane
from pgha._node.monitor import Ping
from pgha._node.node import ManagedNode
from pgha._operation.key import Keyed, new_idempotency_key
from pgha._operation.operation import Operation, Request
from pgha._options import REAL, Options, Tuning, parse_nodes
from pgha._types import Nearest, Pin, Primary, nearest
from pgha._wire.compiler import Statement, own_adapters
from support.fake_link import FakeLink


def _perform(call: Callable[[], object]) -> None:
    call()


class InMemory:
    """See the head of this file. Make it inside an event loop."""

    def __init__(self, names: str = "a", *, tuning: Tuning | None = None, **options: Any) -> None:
        self.now = 100.0
        sources = replace(REAL, clock=lambda: self.now, cpu=lambda: 0.0, draw=lambda: 0.5)
        options.setdefault("failover_timeout", 30.0)
        self.options = Options(tuning=tuning or Tuning(), sources=sources, **options)
        self.nodes: dict[str, ManagedNode] = {}
        self.dispatcher = Dispatcher(self.options, self.nodes)
        adapters = own_adapters()
        for name in names:
            (config,) = parse_nodes([f"host={name} dbname=x"])
            node = ManagedNode(config, self.options, adapters, self.dispatcher, lambda: self.now)
            node.name = name
            self.nodes[name] = node
            node.health.answered(self.now, ServerStatus(system=7), 0.0001)
            node.server.system = 7
        self.dispatcher.reroute()

    def open(self, name: str, kind: AccessMode) -> tuple[Lane, FakeLink]:
        """Add an open lane to a node."""
        node, link = self.nodes[name], FakeLink()
        lanes = node.sets[kind]
        lane = Lane(
            link, name, kind, self.dispatcher, lanes._bounds, self.options.sources, node.server,
            node.server.system,
        )  # fmt: skip
        lanes.lanes.append(lane)
        self.dispatcher.door.enter(self.dispatcher.lanes_changed, node)
        return lane, link

    def make(
        self, text: str, *, read: bool = False, route: Nearest | Pin | Primary | None = None,
        keyed: bool = False, exclusive: bool = False, **more: Any,
    ) -> Operation[Any]:  # fmt: skip
        """Return an operation of one statement, not started."""
        query = text.encode()
        statement = Statement(query, None, (), None, classify_statement(query))
        key = Keyed(new_idempotency_key(), b"0" * 16, False, 0) if keyed else None
        need = READ if read else WRITE
        if isinstance(route, Pin):
            need = need._replace(node=route.name)
        elif read and isinstance(route, Primary):
            need = PRIMARY_READ
        request = Request(
            (statement,), need, read, False, route or nearest(), tuple_row, keyed=key,
            exclusive=exclusive, **more,
        )  # fmt: skip
        return Operation(self.dispatcher, request, self.now)

    def start(self, text: str, **more: Any) -> Operation[Any]:
        """Start an operation of one statement."""
        operation = self.make(text, **more)
        self.dispatcher.start(operation)
        return operation

    def answer(self, lane: Lane, link: FakeLink, count: int | None = None) -> None:
        """Have the server answer what was written, or the first ``count`` segments of it."""
        for _ in range(link.unanswered if count is None else count):
            link.answer()
        lane._readable()
        if lane.pipeline.cancelling:
            self.dispatcher.door.enter(lane._watch._delivered, True)

    def wait(self, seconds: float, step: float = 0.02) -> None:
        """Let time pass, with what is due by time."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.due()
            for node in self.nodes.values():
                self.dispatcher.door.enter(node._tick_now, None)

    def due(self) -> None:
        """Call the timers that are due."""
        for call in self.dispatcher.times._timers.due(self.now):
            self.dispatcher.door.enter(_perform, call)

    def ping(self, name: str, timeline: int = 1) -> None:
        """Have a node answer a ping, as a primary of this timeline."""
        status = ServerStatus(system=7, timeline=timeline)
        ping = Ping(status, 180000, self.now, self.now + 0.0001, self.now)
        self.dispatcher.door.enter(self.nodes[name].alive, ping)

    def fall(self, name: str, reason: str = "no answer to a ping") -> None:
        """Have a node stop answering, with all its lanes."""
        node = self.nodes[name]
        self.dispatcher.door.enter(lambda why: node.dead(why, rejected=False, silent=True), reason)

    def abort(self, lane: Lane, reason: str) -> None:
        """Have pgha close a lane."""
        self.dispatcher.door.enter(lane.abort, reason)

    def inspected(self, lane: Lane, doing: Doing) -> None:
        """Have the server say what the backend of a lane does."""
        head = lane.pipeline.slots[0]
        self.dispatcher.door.enter(partial(lane._watch._inspected, head), doing)

    def cancel_ended(self, lane: Lane) -> None:
        """Have the connection of a cancel request end."""
        self.dispatcher.door.enter(lane._watch._delivered, True)

    def close(self) -> None:
        """Close the pipes of all links."""
        for node in self.nodes.values():
            for lanes in node.sets.values():
                for lane in lanes.lanes:
                    lane.link.finish()
