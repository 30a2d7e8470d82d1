"""`pgha demo --serve`: the servers alone, for the user's own programs, and keys that begin faults."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import sys
import time
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio.abc import TaskGroup

from pgha import chaos
from pgha.cli._demo import keyboard as _keys
from pgha.cli._demo.faults import HOLD, STRIKES, DemoFault, afflict, in_words
from pgha.cli._demo.servers import servers
from pgha.cli._demo.summary import Options
from pgha.cli._output import OutputClosed, write
from pgha.cli._run import ending

_INTENDED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(slots=True)
class Served:
    """The progress of the command."""

    up: bool = False
    """Whether the nodes were ready for use."""


def serve(options: Options) -> int:
    """Start masters, print their names and DSNs, and keep them running until a signal or the key q.

    Return the exit code: 0 if SIGINT, SIGTERM or the key q ended the command while the nodes were up.
    """
    served = Served()
    code = ending(options.loop, lambda: _serve(options, served), "demo", chaos.ChaosError)
    return 0 if served.up and code in _INTENDED else code


async def _serve(options: Options, served: Served) -> int:
    began = time.monotonic()
    _say(f"Starting {options.nodes} PostgreSQL servers on this machine ...")
    async with servers(options.nodes, options.port) as nodes:
        write("\n".join(f"{node.name}\t{node.dsn}" for node in nodes), sys.stdout)
        served.up = True
        _say(_advice(nodes, time.monotonic() - began))
        await _until_ended(nodes)
    return 0


def _advice(nodes: chaos.Masters, seconds: float) -> str:
    first, *others = (f"127.0.0.1:{node.port}" for node in nodes)
    return (
        f"They started in {seconds:.1f} s, replicate to each other, and run until Ctrl-C or SIGTERM.\n\n"
        f"    {shlex.quote(_psql(nodes[0]))} postgresql://postgres@{first}/postgres\n"
        f"    pgha soak postgresql://postgres@{','.join([first, *others])}/postgres\n"
    )


def _psql(node: chaos.Node) -> str:
    """Return the name of psql: the one on the path if there is one, else the servers' own."""
    own = node.bindir / "psql"
    return "psql" if shutil.which("psql") or not own.exists() else str(own)


async def _until_ended(nodes: chaos.Masters) -> None:
    """Wait until the key q is pressed, or until the reader of the DSNs closes its end of the pipe."""
    keyboard = _keys.keyboard()
    async with anyio.create_task_group() as tasks:
        if sys.stdout is not None and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            tasks.start_soon(_closed, sys.stdout.fileno())
        if keyboard is None:
            await anyio.sleep_forever()
        else:
            hand = Hand(nodes, tasks)
            with _keys.unbuffered(keyboard):
                _say(f"Keys: {hand.keys}\n")
                tasks.start_soon(_keys.listen, keyboard, hand.pressed)
                await hand.ended.wait()
        tasks.cancel_scope.cancel()


async def _closed(descriptor: int) -> None:
    # The writing end of a pipe becomes readable only when its reader has closed the other end.
    await anyio.wait_readable(descriptor)
    raise OutputClosed


@dataclass(slots=True)
class Hand:
    """Carries out the keys. Any node may be broken at any time, even all of them."""

    nodes: chaos.Masters
    tasks: TaskGroup
    ended: anyio.Event = field(default_factory=anyio.Event)
    _chosen: int = 0
    _away: set[str] = field(default_factory=set)

    @property
    def keys(self) -> str:
        return f"1-{len(self.nodes)} choose a node, k kill, f freeze, r restart, q end"

    def pressed(self, key: str) -> None:
        match key:
            case "up" | "down":
                self._choose((self._chosen + (1 if key == "down" else -1)) % len(self.nodes))
            case "k" | "f" | "r":
                self._strike(STRIKES[key])
            case "q":
                self.ended.set()
            case _ if key.isdecimal() and 1 <= int(key) <= len(self.nodes):
                self._choose(int(key) - 1)
            case _:
                _say(f"keys: {self.keys}")

    def _choose(self, number: int) -> None:
        self._chosen = number
        _say(f"{self.nodes[number].name} is chosen")

    def _strike(self, kind: DemoFault) -> None:
        node = self.nodes[self._chosen]
        if node.name in self._away:
            _say(f"{node.name} is already away: wait until it is back")
            return
        self._away.add(node.name)
        self.tasks.start_soon(self._broken, node, kind)

    async def _broken(self, node: chaos.Node, kind: DemoFault) -> None:
        began = time.monotonic()
        _say(f"{kind} {node.name}" + ("" if kind == "restart" else f" for {HOLD:g} s"))
        try:
            await afflict(node, kind, partial(anyio.sleep, HOLD), lambda: None)
        except chaos.ChaosError as error:
            # The user may have stopped or killed the server by other means.
            _say(f"{node.name}: {error}")
        else:
            _say(f"{node.name} is back after {in_words(time.monotonic() - began)}")
        self._away.discard(node.name)


def _say(text: str) -> None:
    """Print `text` on standard error. Standard output is only for the DSNs."""
    write(text, sys.stderr)
