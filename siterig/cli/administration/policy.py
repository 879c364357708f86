"""The commands ``siterig policy``: the replication policy of a protected VM."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, VmName, example, vault


def register(app: typer.Typer) -> None:
    """Add ``policy``."""
    policy = typer.Typer(no_args_is_help=True)
    policy.command("show", epilog=example("siterig policy show web01"))(show)
    policy.command("set", epilog=example("siterig policy set web01 --interval 30 --retention 12"))(set_policy)
    app.add_typer(
        policy,
        name="policy",
        help="Show and change the replication policy of a VM.",
        epilog=example("siterig policy show web01"),
    )


def show(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Show the replication policy of a protected VM."""

    async def work() -> None:
        items = {item.name: item for item in await vault(folder).items()}
        if vm not in items:
            known = ", ".join(items) or "none"
            raise RigError(Code.VmNotFound, f"VM {vm!r} is not protected; protected VMs: {known}")
        item = items[vm]
        if as_json:
            output.print_json(
                {
                    "vm": vm,
                    "policy_interval_s": item.policy_interval_s,
                    "app_consistent_every_s": item.app_consistent_every_s,
                    "recoveryPointHistoryDuration": item.recoveryPointHistoryDuration,
                }
            )
            return
        app_s = item.app_consistent_every_s
        rows = [
            (
                f"{item.policy_interval_s:g} s",
                f"{item.recoveryPointHistoryDuration} h",
                "on demand" if app_s is None else f"every {app_s:g} s",
            )
        ]
        output.print_table(("interval", "retention", "application-consistent points"), rows, empty="none")

    exit_status.run(work)


def set_policy(
    folder: Dir,
    vm: VmName,
    *,
    interval_s: Annotated[
        float | None,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            help="Replication interval: 30, 300 or 900 s as in the service; other values exist in this rig only.",
        ),
    ] = None,
    app_every_s: Annotated[
        float | None,
        typer.Option(
            "--app-consistent-every",
            metavar="SECONDS",
            help="Interval of scheduled application-consistent points; 0: none.",
        ),
    ] = None,
    history_hours: Annotated[
        int | None,
        typer.Option(
            "--retention",
            metavar="HOURS",
            help="Time for which recovery points are kept: 1 to 24 h; up to 360 h in this rig only.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change the replication policy of a VM while it replicates; all other settings stay as they are."""
    from siterig.azure_emu.vault.points import retention
    from siterig.cli.commands.operations import run_job
    from siterig.core.parsing import check_schedule, interval_notice

    async def work() -> int:
        if interval_s is None and app_every_s is None and history_hours is None:
            raise RigError(Code.BadRequest, "no option; allowed: --interval, --retention, --app-consistent-every")
        if app_every_s:
            check_schedule(app_every_s)
        notices = (
            None if interval_s is None else interval_notice(interval_s),
            None if history_hours is None else retention.remark(history_hours),
        )
        for text in filter(None, notices):
            output.notice(text)
        api = vault(folder)
        job = await api.change_policy(
            vm=vm, interval_s=interval_s, app_consistent_every_s=app_every_s, history_hours=history_hours
        )
        return await run_job(api, job, as_json=as_json)

    raise typer.Exit(exit_status.run(work))
