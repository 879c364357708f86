"""The command ``siterig verify``: both sides of a VM are compared while replication runs."""

from __future__ import annotations

from typing import Annotated

import trio
import typer

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339
from siterig.blockfs.core.errors import ExitStatus, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, VmName, example, vault
from siterig.core.parsing import format_size

POLL_S = 0.25
STOP_S = 10.0
"""The time that Ctrl-C gives the site to stop a verification."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("siterig verify web01"))(verify)


def verify(
    folder: Dir,
    vm: VmName,
    every: Annotated[
        float | None,
        typer.Option("--every", metavar="SECONDS", min=1.0, help="Verify again and again, until Ctrl-C or a difference."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare both sides of a VM by checksums, at one position, while replication runs; no data is sent.

    Exit status 1 if something differs.
    """

    async def work() -> int:
        api = vault(folder)
        while True:
            begun_s = SYSTEM_CLOCK.trio_time_s()
            found = await _verify(api, vm)
            _print(found, as_json=as_json)
            if found.differing_bytes:
                return ExitStatus.FAILED
            if every is None:
                return ExitStatus.OK
            await SYSTEM_CLOCK.sleep_until(begun_s + every)

    raise typer.Exit(exit_status.run(work))


async def _verify(api: VaultApi, vm: str) -> Verification:
    """Verify with a progress bar; Ctrl-C stops the work at the site as well."""
    with output.bar(f"{vm}: verify", None) as advance:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, api, vm, advance)
                found = await api.verify(vm=vm)
                nursery.cancel_scope.cancel()
        except (trio.Cancelled, KeyboardInterrupt):
            with trio.move_on_after(STOP_S, shield=True):
                await _stop(api, vm)
            raise
    return found


async def _watch(api: VaultApi, vm: str, advance: output.BarAdvance) -> None:
    shown_bytes = 0
    while True:
        await SYSTEM_CLOCK.sleep(POLL_S)
        try:
            progress = await api.progress(vm=vm)
        except RigError:
            continue  # the verification itself reports what matters
        if progress.phase == "Verification":
            done_bytes = sum(disk.done_bytes for disk in progress.disks)
            advance(done_bytes - shown_bytes, sum(disk.total_bytes for disk in progress.disks))
            shown_bytes = done_bytes


async def _stop(api: VaultApi, vm: str) -> None:
    try:
        await api.stop_verification(vm=vm)
    except RigError as error:
        output.notice(f"the verification may continue: {error.message} ({error.code})")


def _print(result: Verification, *, as_json: bool) -> None:
    if as_json:
        # One line: with --every there is one document for each verification.
        output.print_json_line(
            {
                "vm": result.vm,
                "position": result.position,
                "time": rfc3339(result.time_ns),
                "differing_bytes": result.differing_bytes,
                "disks": [disk.model_dump() for disk in result.disks],
            }
        )
        return
    size = format_size(sum(disk.size_bytes for disk in result.disks))
    data = format_size(sum(disk.data_bytes for disk in result.disks))
    count = f"{len(result.disks)} disk" + ("" if len(result.disks) == 1 else "s")
    what = f"{count} of {size}, {data} of data"
    if not result.differing_bytes:
        output.line(f"{result.vm}: both sides are equal at position {result.position} ({what})")
        return
    rows = [(disk.name, each.offset, each.length) for disk in result.disks for each in disk.differing]
    output.line(f"{result.vm}: {result.differing_bytes} bytes differ at position {result.position} ({what})")
    output.print_table(("disk", "offset", "length"), rows, empty="")
    output.notice(f"siterig resync {result.vm} sends what differs")
