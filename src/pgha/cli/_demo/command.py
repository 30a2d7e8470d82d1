"""`pgha demo`: real servers, a workload, faults, and the outcome of every operation."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TextIO

import anyio

import pgha
from pgha import chaos
from pgha.cli._demo.check import judge
from pgha.cli._demo.faults import Saboteur, plan
from pgha.cli._demo.keyboard import keyboard
from pgha.cli._demo.servers import servers
from pgha.cli._demo.summary import Options, Summary
from pgha.cli._demo.view import JsonView, PlainView, View
from pgha.cli._demo.workload import READERS, TABLES, WRITERS, Recorder, applied, fill, work
from pgha.cli._run import ending

_TIMEOUT = 10.0
"""Seconds for one operation.

An operation takes as long only if pgha fails, and is then counted as an error.
"""


def run(options: Options, *, json: bool, plain: bool = False) -> int:
    """Run the demo, and return the exit code.

    No processes or files are left behind, whatever ends the demo.
    """
    view = JsonView() if json else _view(options, plain)
    return ending(options.loop, lambda: _demo(options, view), "demo", chaos.ChaosError)


def _view(options: Options, plain: bool) -> View:
    """Return the live view for a terminal that can move its cursor, else the view in lines of text."""
    if plain or sys.stdout is None or not sys.stdout.isatty():
        return PlainView()
    from rich.console import Console  # 0.1 s, which only a terminal needs

    from pgha.cli._demo.live import LiveView

    console = Console(highlight=False, markup=False, emoji=False)
    return LiveView(options, console, keyboard()) if console.is_interactive else PlainView()


async def _demo(options: Options, view: View) -> int:
    async with view.shown():
        summary = await watched(options, view)
    view.result(summary)
    return 0 if summary.good else 1


async def watched(options: Options, view: View) -> Summary:
    """Run the demo and report it to `view`; the servers are removed afterwards."""
    began = time.monotonic()
    view.stage(f"Starting {options.nodes} PostgreSQL servers on this machine")
    async with servers(options.nodes, options.port, view.progress) as nodes:
        await nodes.create(TABLES)
        names = ", ".join(nodes.names)
        view.note(f"{names} started in {time.monotonic() - began:.1f} s and replicate to each other.")
        recorder = Recorder(options.seconds)
        saboteur = Saboteur(nodes, recorder, view)
        with log_counted(recorder):
            statistics = await _load(nodes, recorder, saboteur, view, options)
        verdict = judge(recorder.writes.history(), await applied(nodes))
    for violation in verdict.others:
        recorder.complain(str(violation))
    retried, replayed = statistics.retried, statistics.replayed
    return Summary(options, recorder, retried, tuple(saboteur.done), verdict, replayed)


async def _load(
    nodes: chaos.Masters, recorder: Recorder, saboteur: Saboteur, view: View, options: Options
) -> pgha.Statistics:
    """Run the workload under faults, heal all faults, and return the cluster's statistics."""
    named = [pgha.Node(node.dsn, name=node.name) for node in nodes]
    async with pgha.open_cluster(*named, min_ready=len(named), timeout=_TIMEOUT) as cluster:
        await fill(cluster, nodes)
        view.note(
            f"{READERS} tasks read and {WRITERS} tasks write for {options.seconds} s, under faults"
            f" (seed {options.seed}, {options.loop})."
        )
        async with cluster.events() as events, anyio.create_task_group() as watchers:
            recorder.begin()
            view.load(cluster, nodes, recorder, saboteur)
            watchers.start_soon(_tell_changes, events, recorder, view)
            watchers.start_soon(_tell_seconds, cluster, recorder, view)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(saboteur.run, cluster, plan(Random(options.seed), options.seconds))
                await work(cluster, recorder)
                saboteur.stop()
            watchers.cancel_scope.cancel()
            view.stage("The faults are over. Waiting for replication, then checking every node")
        return cluster.statistics()


@contextmanager
def log_counted(recorder: Recorder) -> Iterator[None]:
    """Count the errors that pgha logs: each is a defect, even if no caller saw an error."""

    class Counting(logging.StreamHandler[TextIO]):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            recorder.complain(f"pgha logged: {record.getMessage()}")

    logger, handler = logging.getLogger("pgha"), Counting(sys.stderr)
    # What pgha warns of is what the demo does to its servers.
    handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


async def _tell_changes(events: AsyncIterable[pgha.Event], recorder: Recorder, view: View) -> None:
    async for event in events:
        if isinstance(event, pgha.NodeStateChanged):
            view.changed(event.at - recorder.started, event)


async def _tell_seconds(cluster: pgha.Cluster, recorder: Recorder, view: View) -> None:
    for second in range(1, int(recorder.seconds) + 1):
        await anyio.sleep(second - recorder.elapsed)
        view.second(recorder.second(), cluster.nodes)
