"""The rig itself: doctor, up, down, status."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.azure_emu.vault.model.resync_window import OFFICIAL_WINDOW, OPTION, ResyncWindow
from siterig.blockfs.contracts.shares import KEPT_SHARE_MAX, STORE_SHARE_MAX, WhenFull
from siterig.blockfs.contracts.upload_limits import PER_HOST, PER_VM
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import completion, exit_status, fault_director, light_commands, output
from siterig.cli.commands.options import (
    QUEUE,
    THREADS,
    AccountAuthority,
    Dir,
    FuseQueue,
    FuseThreads,
    Json,
    PortableFuse,
    example,
    fuse_options_of,
    seed_option,
)
from siterig.cli.light_commands import running
from siterig.core import limits, upload_options
from siterig.core.paths import Layout

if TYPE_CHECKING:
    from siterig.accounts.account_choice import AccountChoice


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog=example("siterig doctor"))(doctor)
    app.command(epilog=example("siterig up --dir ~/rig"))(up)
    app.command(epilog=example("siterig down"))(down)
    app.command(epilog=example("siterig status web01 --watch"))(status)


def doctor(
    folder: Dir,
    tests: Annotated[bool, typer.Option("--tests", help="Check also the needs of the tests of siterig itself.")] = False,
    as_json: Json = False,
) -> None:
    """Check that this machine has everything that a rig needs, and print remedies."""

    import trio

    from siterig.cli import doctor as checks

    async def work() -> bool:
        found = await trio.to_thread.run_sync(checks.checks, Layout.of(folder).root)
        if tests:
            found += await trio.to_thread.run_sync(checks.test_checks)
        if as_json:
            rows = [{"name": c.name, "ok": c.ok, "found": c.found, "remedy": None if c.ok else c.remedy} for c in found]
            output.print_json(rows)
        else:
            marks = [("ok" if c.ok else "MISSING", c.name, c.found if c.ok else f"{c.found}; {c.remedy}") for c in found]
            output.print_table(("state", "check", "found"), marks, empty="nothing to check")
        return all(check.ok for check in found)

    if not exit_status.run(work):
        raise typer.Exit(ExitStatus.ENVIRONMENT)


def up(
    folder: Dir,
    *,
    quick_retries: Annotated[
        bool,
        typer.Option("--quick-retries", help="Retry failed replication after seconds instead of minutes (rig only)."),
    ] = False,
    portable_fuse: PortableFuse = False,
    fuse_threads: FuseThreads = THREADS,
    fuse_queue: FuseQueue = QUEUE,
    log_share_max: Annotated[
        str,
        typer.Option(
            limits.LOG_SHARE_OPTION,
            metavar="SHARE",
            help="Maximum change-log size as a share of the disk; a longer log is abandoned, and a resync is needed.",
        ),
    ] = str(KEPT_SHARE_MAX),
    when_log_full: Annotated[
        WhenFull,
        typer.Option(
            limits.LOG_FULL_OPTION, help="When the host has no space for a log: refuse the write, or abandon the log."
        ),
    ] = "refuse",
    snapshot_share_max: Annotated[
        str,
        typer.Option(
            limits.SNAPSHOT_SHARE_OPTION,
            metavar="SHARE",
            help="Maximum size of the old data of a snapshot, as a share of the disk.",
        ),
    ] = str(STORE_SHARE_MAX),
    resync_window: Annotated[
        str,
        typer.Option(
            OPTION,
            metavar="HH:MM-HH:MM|never",
            help="Hours of the day in which a resync that is due begins by itself.",
        ),
    ] = OFFICIAL_WINDOW,
    uploads_per_host: Annotated[
        str,
        typer.Option(
            upload_options.PER_HOST_OPTION, metavar="N", help="Uploads in flight of all VMs, to the storage account."
        ),
    ] = str(PER_HOST),
    uploads_per_vm: Annotated[
        str, typer.Option(upload_options.PER_VM_OPTION, metavar="N", help="Uploads in flight of each VM.")
    ] = str(PER_VM),
    account: Annotated[
        str | None,
        typer.Option(
            "--account",
            metavar="FILE|env:NAME",
            help="Use a storage account of yours: a file of mode 0600, or an environment variable, has its secret.",
        ),
    ] = None,
    account_container: Annotated[
        str, typer.Option("--account-container", metavar="NAME", help="Container of that account; default: siterig.")
    ] = "",
    account_authority: AccountAuthority = None,
    faults: Annotated[
        Path | None,
        typer.Option("--faults", metavar="FILE", help="Arm the rules of this TOML file when every role is ready."),
    ] = None,
    seed: Annotated[
        int | None,
        seed_option("Seed of the random choices of these rules."),
    ] = None,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True, help="End the rig when stdin closes.")] = False,
    as_json: Json = False,
) -> None:
    """Start the rig, and return when every role is ready."""
    import trio

    from siterig.supervisor import launch

    async def work() -> None:
        layout = Layout.of(folder)
        limit_words = zip(limits.OPTIONS, (log_share_max, when_log_full, snapshot_share_max), strict=True)
        allowed = limits.Limits.parse(dict(limit_words))
        window = ResyncWindow.parse(resync_window)
        upload_values = zip(upload_options.OPTIONS, (uploads_per_host, uploads_per_vm), strict=True)
        uploads = upload_options.parse_upload_limits(dict(upload_values))
        fuse_options = fuse_options_of(fuse_threads, fuse_queue, portable=portable_fuse)
        if faults is None and seed is not None:
            raise RigError(Code.BadRequest, f"--seed {seed}: is the seed of fault rules; name their file with --faults")
        choice = _account_choice(account, account_container, account_authority)
        rules = None if faults is None else fault_director.rules_of_file(faults, seed)

        def announce(role: str, state: str) -> None:
            output.progress(f"{role}: {state}")

        launched = await launch.up(
            layout,
            until_eof=until_eof,
            quick_retries=quick_retries,
            fuse_options=fuse_options,
            limits=allowed,
            resync_window=window,
            uploads=uploads,
            account=choice,
            announce=announce,
        )
        armed = None
        if rules is not None:
            try:
                armed = await fault_director.arm(layout, *rules)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await launched.end()
                raise
        if as_json:
            document = {"folder": str(layout.root), "source_disks": str(layout.site_mount)}
            output.print_json_line(document if armed is None else document | {"seed": armed.seed})
        else:
            output.line(f"the rig is up: state in {layout.root}, source disks in {layout.site_mount}")
            if armed is not None:
                count = len(armed.rules)
                output.line(f"{count} fault rule{'s are' if count != 1 else ' is'} armed, seed {armed.seed}")
        if until_eof:
            try:
                await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
            finally:
                await launched.end()

    exit_status.run(work)


def _account_choice(source: str | None, container: str, authority: Path | None) -> AccountChoice | None:
    """Return the storage account that the options name; ``BadRequest`` if they do not fit together."""
    if source is None:
        name = "--account-container" if container else "--account-authority"
        if container or authority is not None:
            raise RigError(Code.BadRequest, f"{name}: belongs to --account FILE|env:NAME, which is missing")
        return None
    from siterig.accounts.account_choice import AccountChoice
    from siterig.azure_emu.user_account.secret import parse_secret
    from siterig.azure_emu.user_account.source import read_authority, read_source

    secret = parse_secret(read_source(source), container)
    return AccountChoice(secret, None if authority is None else read_authority(authority))


def down(
    folder: Dir,
    remove_blobs: Annotated[
        bool,
        typer.Option("--remove-blobs", help="Delete the rig's blobs, and no others, from your storage account."),
    ] = False,
    as_json: Json = False,
) -> None:
    """End the rig and release its mounts and loop devices, also those that remain after a kill.

    The state stays: siterig up continues with it.
    """

    from siterig.supervisor import launch

    async def work() -> None:
        layout = Layout.of(folder)
        has_account = layout.user_account.exists()
        if remove_blobs and not has_account:
            text = f"--remove-blobs: the rig in {layout.root} uses Azurite, or does not exist; it has no blobs elsewhere"
            raise RigError(Code.BadRequest, text)
        done = await launch.down(layout)
        removed = None
        if remove_blobs:
            from siterig.accounts import rig_account

            removed = await rig_account.remove_blobs(layout)
        if as_json:
            document = {"folder": str(layout.root), "done": done}
            output.print_json(document if removed is None else document | {"removed_blobs": removed})
            return
        for text in done:
            output.progress(text)
        output.line(f"the rig in {layout.root} is down")
        if removed is not None:
            output.line(f"{removed} blob{'s' if removed != 1 else ''} of the rig deleted from the storage account")
        elif has_account:
            output.line("its blobs stay in the storage account: siterig down --remove-blobs deletes them")

    exit_status.run(work)


def status(
    folder: Dir,
    vm: Annotated[
        str | None,
        typer.Argument(metavar="[VM]", help="Show everything about this protected VM.", autocompletion=completion.vms),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the status until Ctrl-C, again when something has changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show roles, VMs and protected items of the rig, or everything about one VM; the exit status is the health."""

    if watch:
        exit_status.run(lambda: _watch(folder, vm, as_json=as_json))
    if vm is None:
        light_commands.status(folder, as_json=as_json)
    else:
        _status_of_vm(folder, vm, as_json=as_json)


async def _watch(folder: Path, vm: str | None, *, as_json: bool) -> None:
    """Show the state until cancelled."""
    from siterig.cli.views import watching

    await watching.watch(folder, vm, as_json=as_json)


def _status_of_vm(folder: Path, vm: str, *, as_json: bool) -> None:
    """Show one VM, and exit with the status of its health."""

    async def work() -> ExitStatus:
        from siterig.cli.views import vm_view
        from siterig.rpc import directory

        found = await directory.observation(running(folder)).vm_status(vm=vm)
        if as_json:
            output.print_json(found)
        else:
            output.print_lines(vm_view.lines_of(found))
        return exit_status.of_health([found.item.replicationHealth])

    ended = exit_status.run(work)
    if ended is not ExitStatus.OK:
        raise typer.Exit(ended)
