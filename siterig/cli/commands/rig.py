"""The rig itself: doctor, up, down, status."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import trio
import typer

from siterig.azure_emu.vault.model.api import ManagedDisk, ProtectedItem, Vm
from siterig.blockfs.changelog.disk_log import KEPT_SHARE_MAX, WhenFull
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.disk.snapshot import STORE_SHARE_MAX
from siterig.cli import doctor as checks
from siterig.cli import exits, show, sites
from siterig.cli.commands.options import (
    QUEUE,
    THREADS,
    Dir,
    FuseQueue,
    FuseThreads,
    Json,
    PortableFuse,
    example,
    front_end_of,
    running,
)
from siterig.cli.tables import Line
from siterig.core import limits
from siterig.core.control import RigStatus
from siterig.core.layout import Layout
from siterig.rpc import services
from siterig.supervisor import launch

WATCH_S = 1.0
VAULT_ANSWER_S = 1.5
"""For each list of the vault: the state of the roles does not wait for it."""


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog=example("siterig doctor"))(doctor)
    app.command(epilog=example("siterig up --dir ~/rig"))(up)
    app.command(epilog=example("siterig down"))(down)
    app.command(epilog=example("siterig status --watch"))(status)


def doctor(
    folder: Dir,
    tests: Annotated[bool, typer.Option("--tests", help="Also what only the tests of siterig itself need.")] = False,
    as_json: Json = False,
) -> None:
    """Check this machine: what the rig needs, whether it is there, and what to do if not."""

    async def work() -> bool:
        found = await trio.to_thread.run_sync(checks.checks, Layout.of(folder).root)
        if tests:
            found += await trio.to_thread.run_sync(checks.test_checks)
        if as_json:
            rows = [{"name": c.name, "ok": c.ok, "found": c.found, "remedy": None if c.ok else c.remedy} for c in found]
            show.print_json(rows)
        else:
            marks = [("ok" if c.ok else "MISSING", c.name, c.found if c.ok else f"{c.found}; {c.remedy}") for c in found]
            show.print_table(("state", "check", "found"), marks, empty="nothing to check")
        return all(check.ok for check in found)

    if not exits.run(work):
        raise typer.Exit(exits.ENVIRONMENT)


def up(
    folder: Dir,
    *,
    quick_retries: Annotated[
        bool,
        typer.Option("--quick-retries", help="Failed replication is tried again after seconds, not minutes (rig only)."),
    ] = False,
    portable_fuse: PortableFuse = False,
    fuse_threads: FuseThreads = THREADS,
    fuse_queue: FuseQueue = QUEUE,
    log_share_max: Annotated[
        str,
        typer.Option(limits.LOG_SHARE_OPTION, metavar="SHARE", help="A log longer than this share of its disk is given up."),
    ] = str(KEPT_SHARE_MAX),
    when_log_full: Annotated[
        WhenFull,
        typer.Option(limits.LOG_FULL_OPTION, help="Without room for a log: refuse the write, or give the log up."),
    ] = "refuse",
    snapshot_share_max: Annotated[
        str,
        typer.Option(limits.SNAPSHOT_SHARE_OPTION, metavar="SHARE", help="A snapshot may take this share of its disk."),
    ] = str(STORE_SHARE_MAX),
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True, help="End the rig when stdin closes.")] = False,
    as_json: Json = False,
) -> None:
    """Start the rig, and return when every role is ready."""

    async def work() -> None:
        layout = Layout.of(folder)
        said = zip(limits.OPTIONS, (log_share_max, when_log_full, snapshot_share_max), strict=True)
        allowed = limits.Limits.parse(dict(said))
        front_end = front_end_of(fuse_threads, fuse_queue, portable=portable_fuse)

        def announce(role: str, state: str) -> None:
            show.progress(f"{role}: {state}")

        launched = await launch.up(
            layout,
            until_eof=until_eof,
            quick_retries=quick_retries,
            front_end=front_end,
            limits=allowed,
            announce=announce,
        )
        if as_json:
            show.print_json_line({"folder": str(layout.root), "source_disks": str(layout.site_mount)})
        else:
            show.line(f"the rig is up: state in {layout.root}, source disks in {layout.site_mount}")
        if until_eof:
            try:
                await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
            finally:
                await launched.end()

    exits.run(work)


def down(folder: Dir, as_json: Json = False) -> None:
    """End the rig and give back its mounts and loop devices, also those left behind by a kill.

    The state stays: siterig up goes on from it.
    """

    async def work() -> None:
        layout = Layout.of(folder)
        done = await launch.down(layout)
        if as_json:
            show.print_json({"folder": str(layout.root), "done": done})
            return
        for text in done:
            show.progress(text)
        show.line(f"the rig in {layout.root} is down")

    exits.run(work)


def _drawn(rig: RigStatus, vms: list[Vm], items: list[ProtectedItem]) -> list[Line]:
    """Narrow tables, and below each a line for everything that needs words: why a role is not ready, what a VM lacks."""
    lines: list[Line] = [f"rig in {rig.folder}, supervisor {rig.pid}", ""]
    lines += show.table(
        ("role", "state", "pid", "restarts"), [(r.name, r.state, r.pid or "-", r.restarts) for r in rig.roles]
    )
    lines += [f"site {name} is lost: siterig site restore {name} brings it back" for name in sites.lost(rig.roles)]
    for role in rig.roles:
        if role.detail:
            lines += show.detail(role.name, role.detail)
        for wait in role.waits:
            lines += show.detail(role.name, _wait_text(wait))
    if vms:
        lines += ["", *show.table(("VM", "side", "state"), [(vm.name, vm.side, vm.state) for vm in vms])]
    if items:
        columns = ("protected", "state", "health", "RPO", "applied", "point", "active")
        lines += ["", *show.table(columns, [_item_row(item) for item in items])]
        for item in items:
            for problem in _problems(item):
                lines += show.detail(item.name, problem)
    return lines


def _wait_text(wait: Wait) -> str:
    disk = "" if wait.disk is None else f"/{wait.disk}"
    of = f" ({wait.vm}{disk})" if wait.vm is not None else f" (disk {wait.disk})" if wait.disk is not None else ""
    return f"waiting for {show.age(wait.since_ns)}{of}: {wait.reason} ({wait.code})"


def _item_row(item: ProtectedItem) -> tuple[str, ...]:
    times = (item.lastRpoInSeconds, item.applied_lag_s, item.newest_point_age_s)
    shown = ("-" if seconds is None else f"{seconds:.0f} s" for seconds in times)
    return (item.name, item.protectionState, item.replicationHealth, *shown, item.activeLocation)


def _problems(item: ProtectedItem) -> list[str]:
    resync = [f"resync required: {item.resynchronizationRequired}"] if item.resynchronizationRequired else []
    return resync + [f"{error.summaryMessage} ({error.errorCode})" for error in item.healthErrors]


async def _vault_state(layout: Layout) -> tuple[list[Vm], list[ProtectedItem], list[ManagedDisk], str | None]:
    """The vault's lists, or why there are none: the status of the roles is wanted most when one is missing."""
    vault = services.vault(layout)
    vms: list[Vm] = []
    items: list[ProtectedItem] = []
    managed: list[ManagedDisk] = []
    problems: list[str] = []

    async def look(what: str, fill: Callable[[], Awaitable[None]]) -> None:
        problem = f"the vault did not give the list of {what} within {VAULT_ANSWER_S:g} s (RoleUnavailable)"
        with trio.move_on_after(VAULT_ANSWER_S):
            try:
                await fill()
            except RigError as error:
                problem = f"{error.message} ({error.code})"
            else:
                return
        problems.append(problem)

    async def list_vms() -> None:
        vms.extend(await vault.list_vms())

    async def list_items() -> None:
        items.extend(await vault.items())

    async def list_managed() -> None:
        managed.extend(await vault.managed_disks())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, "VMs", list_vms)
        nursery.start_soon(look, "protected items", list_items)
        nursery.start_soon(look, "managed disks", list_managed)
    return vms, items, managed, problems[0] if problems else None


def _named(rig: RigStatus, managed: list[ManagedDisk]) -> RigStatus:
    """The same, with VM and name of each disk that a role knows by the managed disk's id only."""
    known = {disk.disk_id: disk for disk in managed}

    def named(wait: Wait) -> Wait:
        disk = known.get(wait.disk or "")
        return wait if disk is None else wait.model_copy(update={"vm": disk.vm, "disk": disk.name})

    roles = [role.model_copy(update={"waits": [named(wait) for wait in role.waits]}) for role in rig.roles]
    return rig.model_copy(update={"roles": roles})


async def _look(layout: Layout) -> tuple[RigStatus, list[Vm], list[ProtectedItem], str | None]:
    """All that ``status`` shows, asked for at the same time: a role that hangs must not delay the rest."""
    found: dict[str, Any] = {}

    async def ask_supervisor() -> None:
        found["rig"] = await services.supervisor(layout).status()

    async def ask_vault() -> None:
        found["vault"] = await _vault_state(layout)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_supervisor)
        nursery.start_soon(ask_vault)
    vms, items, managed, problem = found["vault"]
    return _named(found["rig"], managed), vms, items, problem


def status(
    folder: Dir,
    watch: Annotated[bool, typer.Option("--watch", help="Draw again every second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show the rig's roles, VMs and protected items; exit status 1 if a role is not ready or does not answer."""

    async def work() -> bool:
        layout = running(folder)
        rig, vms, items, problem = await _look(layout)
        if as_json:
            show.print_json({**rig.model_dump(), "vms": vms, "items": items})
        elif watch:
            with show.Drawing(sys.stdout) as drawing:
                while True:
                    drawing.draw(_drawn(rig, vms, items))
                    await trio.sleep(WATCH_S)
                    rig, vms, items, problem = await _look(layout)
        else:
            show.print_lines(_drawn(rig, vms, items))
        if problem is not None:
            show.notice(problem)
        return problem is None and all(role.state == "ready" for role in rig.roles)

    if not exits.run(work):
        raise typer.Exit(exits.FAILED)
