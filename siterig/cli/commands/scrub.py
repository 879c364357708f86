"""Scrubbing managed disks: every byte of the recovery side's store is read and compared with its checksum."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Annotated

import trio
import typer

from siterig.azure_emu.contracts.recovery_side import Damage, RecoverySide
from siterig.azure_emu.contracts.reports import DamageReports
from siterig.azure_emu.scrub.scrubber import scrub as scrub_store
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import ManagedDisk, RecoveryPoint
from siterig.blockfs.core import short_ids
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, vault
from siterig.cli.light_commands import running
from siterig.core.parsing import format_size
from siterig.core.paths import Layout, check_format
from siterig.rpc import directory

Which = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[VM[/NAME]]...",
        help="Check only the managed disks of this VM or disk. Default: all.",
        autocompletion=completion.vms_and_disks,
    ),
]


@dataclass(frozen=True, slots=True)
class _Store:
    """The folder of a managed disk; ``disk`` is None if the vault does not know it or is not up."""

    folder: Path
    disk: ManagedDisk | None

    @property
    def title(self) -> str:
        return self.folder.name if self.disk is None else f"{self.disk.vm}/{self.disk.name}"


def scrub(
    folder: Dir,
    which: Which = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild metadata that can be derived from other data; the rig must be up.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every byte of managed disks and report corrupt data; change nothing without --repair.

    The rig may be up or down. If it is down, a managed disk is selected by its id.
    """

    async def work() -> int:
        layout = running(folder) if repair else Layout.of(folder)
        check_format(layout)
        api = _vault(folder)
        stores = _chosen(await _stores(layout, api), which or [])
        scrubbed = [(store, await _scrub(store)) for store in stores]
        damaged = [(store, damages) for store, damages in scrubbed if damages is not None]
        if repair:
            recovery = directory.recovery_side(layout)
            damaged = [(store, await _repair(recovery, store, damages) if damages else []) for store, damages in damaged]
        if api is not None:
            await _report(directory.damage_reports(layout), damaged)
        points = await _points(api, [store for store, damages in damaged if damages])
        if as_json:
            output.print_json([_json(store, damages, points) for store, damages in damaged])
        else:
            for store, damages in damaged:
                _print(store, damages, points)
            if not repair and any(damages for _, damages in damaged):
                output.notice("siterig disk scrub --repair rebuilds metadata that can be derived from other data")
            if not damaged:
                output.line("no managed disks: siterig protect")
        return ExitStatus.FAILED if any(damages for _, damages in damaged) else ExitStatus.OK

    raise typer.Exit(exit_status.run(work))


def _vault(folder: Path) -> VaultApi | None:
    try:
        running(folder)
    except RigError as error:
        if error.code != Code.NotUp:
            raise
        return None
    return vault(folder)


async def _stores(layout: Layout, api: VaultApi | None) -> list[_Store]:
    known = {} if api is None else {disk.disk_id: disk for disk in await api.managed_disks()}
    folders = layout.managed_disks.iterdir() if layout.managed_disks.is_dir() else ()
    stores = [_Store(path, known.get(path.name)) for path in folders if path.is_dir() and not path.name.startswith(".")]
    return sorted(stores, key=lambda store: store.title)


def _chosen(stores: list[_Store], which: list[str]) -> list[_Store]:
    if not which:
        return stores
    ids = [store.folder.name for store in stores]
    chosen: set[str] = set()
    for text in which:
        named = {store.folder.name for store in stores if text in (store.title, store.title.partition("/")[0])}
        begun = None if named else short_ids.find("managed disk", text, ids)
        if not named and begun is None:
            there = ", ".join(store.title for store in stores) or "none"
            raise RigError(Code.DiskNotFound, f"there is no managed disk of {text!r}; there are: {there}")
        chosen |= named or {str(begun)}
    return [store for store in stores if store.folder.name in chosen]


async def _scrub(store: _Store) -> list[Damage] | None:
    """Return the damage; None if the managed disk was deleted meanwhile."""
    with output.bar(store.title, used_bytes(store.folder)) as advance:
        try:
            # Ctrl-C does not wait for its end: it changes nothing.
            return await trio.to_thread.run_sync(lambda: list(scrub_store(store.folder, advance)), abandon_on_cancel=True)
        except RigError as error:
            if error.code != Code.DiskNotFound:
                raise
            return None


async def _repair(recovery: RecoverySide, store: _Store, damages: list[Damage]) -> list[Damage]:
    """Repair a managed disk, and return the damage that remains."""
    try:
        await recovery.repair(disk_id=store.folder.name)
    except RigError as error:
        output.notice(f"{store.title}: nothing can be repaired: {error.message} ({error.code})")
        return damages
    left = await _scrub(store) or []
    output.notice(f"{store.title}: {max(len(damages) - len(left), 0)} of {len(damages)} repaired")
    return left


def used_bytes(folder: Path) -> int:
    """Return the bytes of all its files; a file that a compaction deletes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            total += status.st_blocks * STAT_BLOCK_BYTES if S_ISREG(status.st_mode) else 0
    return total


async def _report(reports: DamageReports, damaged: list[tuple[_Store, list[Damage]]]) -> None:
    """Report the damage to the vault, which keeps it for the health of the VMs."""
    try:
        for store, damages in damaged:
            if store.disk is not None:
                await reports.scrubbed(disk_id=store.disk.disk_id, damages=damages)
    except RigError as error:
        output.notice(f"the result was not reported to the vault: {error.message} ({error.code})")


async def _points(api: VaultApi | None, stores: list[_Store]) -> dict[str, list[RecoveryPoint]]:
    """Return the recovery points of each VM that has damage."""
    vms = {store.disk.vm for store in stores if store.disk is not None}
    return {} if api is None else {vm: await api.points(vm=vm) for vm in sorted(vms)}


def _affected_points(damage: Damage, store: _Store, points: dict[str, list[RecoveryPoint]]) -> list[RecoveryPoint]:
    first, last = damage.first_position, damage.last_position
    if first is None or store.disk is None:
        return []
    of_vm = points.get(store.disk.vm, [])
    return [point for point in of_vm if first <= point.position and (last is None or point.position <= last)]


def _json(store: _Store, damages: list[Damage], points: dict[str, list[RecoveryPoint]]) -> dict[str, object]:
    disk = store.disk
    return {
        "disk_id": store.folder.name,
        "vm": None if disk is None else disk.vm,
        "name": None if disk is None else disk.name,
        "damages": [
            {**damage.model_dump(), "points": [point.id for point in _affected_points(damage, store, points)]}
            for damage in damages
        ],
    }


def _print(store: _Store, damages: list[Damage], points: dict[str, list[RecoveryPoint]]) -> None:
    if not damages:
        output.line(f"{store.title}: no damage, {format_size(used_bytes(store.folder))}")
        return
    rows = []
    for damage in damages:
        affected = "-" if damage.first_position is None else f"from {damage.first_position}"
        if damage.last_position is not None:
            affected += f" to {damage.last_position}"
        points_of = _affected_points(damage, store, points)
        file = Path(damage.path).relative_to(store.folder)
        rows.append((file, damage.offset, damage.what, affected, len(points_of) if store.disk is not None else "?"))
    output.line(f"{store.title}: {len(damages)} damaged, in {store.folder}")
    output.print_table(("file", "byte", "what", "affected positions", "points"), rows, empty="")
    affecting = [damage for damage in damages if damage.first_position is not None]
    if store.disk is not None and any(damage.last_position is None for damage in affecting):
        output.notice(f"siterig resync {store.disk.vm} sends the unreadable data again, while the source exists")
    elif affecting:
        output.notice(f"{store.title}: only older states are damaged; the damage is removed when they are compacted")
