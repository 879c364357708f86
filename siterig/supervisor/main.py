"""The supervisor's process: ``python -m siterig.core.quick_start siterig.supervisor.main DIR [OPTION ...] REPORT_FD``.

:mod:`siterig.supervisor.launch` starts it.  It outlives that process (unless ``--until-eof``) and holds the rig's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from siterig.blockfs.clocks.clock_page import ClockPage, ensure_page
from siterig.blockfs.clocks.controlled_clock import ControlledClock
from siterig.blockfs.clocks.imposed_faults import ImposedClockFaults
from siterig.blockfs.core.errors import RigError
from siterig.core import fuse_options, limits, quick_start, upload_options
from siterig.core.failures import unwrap_rig_error
from siterig.core.fault_contract import DIRECTOR, LAYERS_OF_ROLE
from siterig.core.lock import take_lock
from siterig.core.paths import PRIVATE_UMASK, Layout, check_format, create
from siterig.core.process_setup import allow_many_files, forbid_core_dumps
from siterig.rpc import directory
from siterig.rpc.contract import error_body
from siterig.supervisor import cleanup
from siterig.supervisor.forker import Forker
from siterig.supervisor.identities import ensure_identities
from siterig.supervisor.launch import QUICK_RETRIES, RESYNC_WINDOW, UNTIL_EOF
from siterig.supervisor.process_log import log_to_stderr
from siterig.supervisor.supervisor import RoleSpec, Supervisor

ROLES: dict[str, tuple[str, ...]] = {
    "azurite": (),
    "site": (),
    "azure": (),
    "vault": (),
    "applier": ("azurite",),
    "agent": ("azurite", "site"),
    DIRECTOR: (),
}
"""Each role, and the roles that must be ready before its first start.  For other roles it waits when it calls them."""


_HOST_OPTIONS = (*fuse_options.OPTIONS, *limits.OPTIONS)
ON_DEMAND = (DIRECTOR,)
"""Roles that the first command which needs them starts, and not ``up``: a rig without faults has no process for them."""
WITH_PROGRAM = ("azurite",)
"""Roles whose work is done by a program that they start."""
OPTIONS = {
    "site": _HOST_OPTIONS,
    "azure": _HOST_OPTIONS,
    "agent": (QUICK_RETRIES, *upload_options.OPTIONS),
    "vault": (RESYNC_WINDOW,),
}
"""The options of the rig that a role receives; each is one word, some with a value after ``=``."""


def role_specs(layout: Layout, options: list[str]) -> list[RoleSpec]:
    """Return the roles of replication from Hyper-V to Azure without VMM; with an account of a user there is no Azurite."""
    root = str(layout.root)
    absent = ("azurite",) if layout.user_account.exists() else ()

    def options_of(role: str) -> list[str]:
        return [option for option in options if option.partition("=")[0] in OPTIONS.get(role, ())]

    return [
        RoleSpec(
            name,
            (*quick_start.command(f"siterig.roles.{name}"), root, *options_of(name)),
            tuple(need for need in needs if need not in absent),
            answers_checks=True,
            has_program=name in WITH_PROGRAM,
            asks_for_rules=name in LAYERS_OF_ROLE,
            on_demand=name in ON_DEMAND,
        )
        for name, needs in ROLES.items()
        if name not in absent
    ]


async def _end_at_eof(cancel: Callable[[], None]) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some():
            pass
    cancel()


async def _end_on_signal(cancel: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            cancel()


def _clock(layout: Layout) -> ControlledClock:
    """Return the rig's clock, right for this boot of the machine."""
    ensure_page(layout.clock)
    with ClockPage(layout.clock) as page:
        page.settle_after_reboot()
        ImposedClockFaults(page, layout.clock_faults).lift()  # rules end with the rig
    return ControlledClock(layout.clock, "supervisor")


async def _supervise(
    layout: Layout, clock: ControlledClock, report: Callable[[dict[str, object]], None], options: list[str]
) -> None:
    specs = role_specs(layout, options)
    vault = directory.role_reports(layout, "supervisor")
    started = [spec for spec in specs if not spec.on_demand]
    forker = Forker(layout, options, [quick_start.parse(spec.command)[0] for spec in started])
    starts = directory.role_starts(layout, "supervisor")
    director = directory.faults(layout, "supervisor")
    for path in layout.fault_files:  # the rules of a rig that was up before have ended with it
        path.unlink(missing_ok=True)
    supervisor = Supervisor(
        layout,
        specs,
        start=forker.start,
        announce=lambda role, state: report({"role": role, "state": state}),
        report=lambda roles: vault.report_roles(roles=roles),
        start_faults=lambda role: starts.role_starts(role=role),
        end_faults=director.clear_faults,
        director=DIRECTOR,
        clock=clock,
    )
    for line in await cleanup.clear(layout):
        structlog.get_logger().info("leftover_removed", action=line)
    with contextlib.closing(forker):
        await _run(supervisor, clock, report, options)


async def _run(
    supervisor: Supervisor, clock: ControlledClock, report: Callable[[dict[str, object]], None], options: list[str]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        await nursery.start(_end_on_signal, nursery.cancel_scope.cancel)
        if UNTIL_EOF in options:
            nursery.start_soon(_end_at_eof, nursery.cancel_scope.cancel)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await supervisor.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(run)
        report({"up": True})


def main() -> None:
    """Lock the rig, release everything that a killed rig left, and supervise."""
    layout, options, report_fd = Layout(Path(sys.argv[1])), sys.argv[2:-1], int(sys.argv[-1])
    os.set_inheritable(report_fd, False)
    os.umask(PRIVATE_UMASK)
    log_to_stderr(layout.log("").parent)

    def report(what: dict[str, object]) -> None:
        # The process that started the rig may have ended; the rig is up nevertheless.
        with contextlib.suppress(BrokenPipeError):
            os.write(report_fd, json.dumps(what).encode() + b"\n")

    try:
        allow_many_files()
        forbid_core_dumps(holds_keys=False)
        check_format(layout)
        take_lock(layout.lock)  # held to the end of this process: the next holder finds no process of this rig
        create(layout)
        clock = _clock(layout)
        log_to_stderr(layout.log("").parent, clock)
        ensure_identities(layout, clock)
        trio.run(_supervise, layout, clock, report, options)
    except (RigError, ExceptionGroup) as error:
        failure = unwrap_rig_error(error)
        if failure is None:
            raise
        structlog.get_logger().error("supervisor_failed", code=failure.code, reason=failure.message)
        report({"error": error_body(failure)})
        sys.exit(1)


if __name__ == "__main__":
    main()
