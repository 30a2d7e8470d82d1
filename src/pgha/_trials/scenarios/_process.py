"""Faults of processes: backends and servers that are killed, stopped, restarted and frozen."""

from __future__ import annotations

import pgha
from pgha._trials.catalogue import scenario
from pgha._trials.field import SLOW_WRITE, Field
from pgha._trials.trial import Setup
from pgha.chaos import NodeKind, Workload

_BOTH: tuple[NodeKind, ...] = ("local", "container")


@scenario(
    1,
    "kill-a-backend",
    "A backend is killed (SIGKILL) during a write: the write is in doubt, the server recovers, and other"
    " operations continue",
    kinds=_BOTH,
)
async def kill_a_backend(field: Field) -> None:
    await field.more()
    victim = field.victim
    async with field.writing("killed", query=SLOW_WRITE, route=pgha.pin(victim.name)) as ended:
        await victim.kill_backend(await field.running(victim, "pg_sleep"))
    field.claim(ended == ["in doubt"], "verdict", f"a write whose backend was killed was reported as {ended}")
    await victim.wait_ready()
    await field.up(victim)
    await field.more()


@scenario(
    5,
    "crash-a-sibling",
    "Another client's backend is killed (SIGKILL): PostgreSQL ends all connections (57P02) and recovers",
    kinds=_BOTH,
)
async def crash_a_sibling(field: Field) -> None:
    for _ in range(2):
        await field.more()
        victim = field.victim
        async with field.sibling(victim) as pid:
            await victim.kill_backend(pid)
        await victim.wait_ready()
        await field.more()
        await field.up(victim)


@scenario(6, "stop-fast", "A fast shutdown under load, and a start", kinds=_BOTH)
async def stop_fast(field: Field) -> None:
    for _ in range(2):
        await field.more()
        await field.strike("restart", field.victim)
        await field.more()


@scenario(7, "stop-immediate", "An immediate shutdown under load, and a start with recovery", kinds=_BOTH)
async def stop_immediate(field: Field) -> None:
    for _ in range(2):
        await field.more()
        await field.strike("crash", field.victim)
        await field.more()


@scenario(
    8,
    "zombie",
    "A write's backend is frozen past its caller's deadline, then thaws and may commit: the write is in"
    " doubt, and applied at most once",
    kinds=_BOTH,
)
async def zombie(field: Field) -> None:
    await field.more()
    victim = field.victim
    query = "INSERT INTO pgha_trial (key, writer, number) SELECT %s, %s, %s FROM pg_sleep(0.4)"
    async with field.writing("zombie", query=query, timeout=1.0, route=pgha.pin(victim.name)) as ended:
        pid = await field.running(victim, "pg_sleep")
        await victim.freeze_backend(pid)
    field.claim(ended == ["in doubt"], "verdict", f"a write whose backend is frozen was reported as {ended}")
    await victim.thaw_backend(pid)
    await field.none_runs(victim, "pg_sleep")
    await field.more()


@scenario(9, "freeze-the-node", "All processes of the node that takes the writes are frozen", kinds=_BOTH)
async def freeze_the_node(field: Field) -> None:
    for _ in range(2):
        await field.more()
        victim = field.victim
        async with field.struck("freeze", victim):
            await field.more()
            await field.seen(victim, "down")
            await field.more()
        await field.up(victim)
        await field.more()


@scenario(
    0, "kill-the-node", "All processes of the node that takes the writes are killed (SIGKILL)", kinds=_BOTH
)
async def kill_the_node(field: Field) -> None:
    for _ in range(2):
        await field.more()
        victim = field.victim
        async with field.struck("kill", victim):
            await field.more()
        await field.up(victim)
        await field.more()


@scenario(17, "freeze-all", "All nodes freeze and thaw in random order: operations wait, and none fails")
async def freeze_all(field: Field) -> None:
    await field.more()
    for _ in range(2):
        order = list(field.nodes)
        field.random.shuffle(order)
        for node in order:
            await field.begin("freeze", node)
            await field.pause(0.2)
        await field.pause(0.5)
        field.random.shuffle(order)
        for node in order:
            await field.heal(node)
            await field.pause(0.1)
        await field.more()
    for node in field.nodes:
        await field.up(node)


@scenario(
    0,
    "passwords",
    "Servers that require a password are killed and frozen: no error, event or log shows the password",
    setup=Setup(password="correct horse battery staple"),
)
async def passwords(field: Field) -> None:
    await field.more()
    for kind in ("kill", "freeze"):
        victim = field.victim
        async with field.struck(kind, victim):
            await field.seen(victim, "down")
            if kind == "kill":
                await field.connection_refused(victim)
            await field.more()
            field.shown += [repr(status) for status in field.cluster.nodes.values()]
            field.shown.append(repr(field.cluster.submit("SELECT 1", route=pgha.pin(victim.name))))
        await field.up(victim)
        await field.strike("terminate", victim)
        await field.more()
    field.shown += [repr(field.cluster), repr(field.cluster.statistics()), str(vars(field.cluster))]


@scenario(
    0,
    "deadlines",
    "All nodes are frozen for longer than the callers' deadlines: every deadline is kept",
    setup=Setup(nodes=2, workload=Workload(timeout=0.3)),
    kinds=_BOTH,
)
async def deadlines(field: Field) -> None:
    await field.more()
    for node in field.nodes:
        await field.begin("freeze", node)
    await field.pause(2.0)
    for node in field.nodes:
        await field.heal(node)
    await field.more()


@scenario(
    23,
    "no-connection-left",
    "All connections break while max_connections is used up: many reconnects are refused (53300)",
    # The crowd leaves at the end: servers look after their clients only with this setting.
    setup=Setup(settings={"max_connections": "30", "client_connection_check_interval": "100ms"}),
)
async def no_connection_left(field: Field) -> None:
    await field.more()
    victim = field.victim
    ends = (
        "SELECT pg_sleep(1.5); SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = '{field.application}'; SELECT pg_sleep(0.5)"
    )
    async with field.aside(lambda: victim.execute(ends)):
        # The statement that ends the connections must have its own connection before none is left.
        await field.others_run(victim, ends)
        async with field.crowd(victim, 40):
            await field.until_refused(victim)
            await field.seen(victim, "down")
            await field.more()
    await field.up(victim)
    await field.more()
