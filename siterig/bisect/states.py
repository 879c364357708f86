"""The states that ``siterig bisect`` checks: the disks of a VM at a position, mounted on the recovery side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from siterig.azure_emu.contracts.recovery_side import Change, RecoverySide
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.bisect.search import ChangeGroup
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.guests import loop_devices
from siterig.core.parsing import parse_point


def make_label() -> str:
    """Return a name for the states of the search of this process."""
    return f"bisect-{SYSTEM_CLOCK.utc():%H%M%S}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class BisectState:
    """The disks at a position: read-only ``images`` by disk name, and the recovery point there, if there is one."""

    name: str
    position: int
    time_ns: int | None
    images: dict[str, Path]
    point: RecoveryPoint | None = None


class States(Protocol):
    """Opens states of one VM, and lists the changes between them."""

    async def open_point(self, text: str) -> BisectState:
        """Open a state by a selector: ``latest``, the id of a point, ``@POSITION``, a time, and so on."""
        ...

    async def open(self, position: int, time_ns: int | None) -> BisectState:
        """Open the state at a position; raise ``InvalidPosition`` if there is none."""
        ...

    async def close(self, state: BisectState) -> None:
        """Close a state; ``LeftBehind`` names its users if it is in use."""
        ...

    async def writable(self, state: BisectState) -> dict[str, Path]:
        """Return images of a writable copy, which lasts until :meth:`discard`; there is one copy at a time."""
        ...

    async def discard(self) -> None:
        """Remove the copy if there is one; ``LeftBehind`` names its users if it is in use."""
        ...

    async def steps(self, after: int, upto: int) -> list[ChangeGroup]:
        """Return groups of positions, as :class:`siterig.bisect.search.History` does."""
        ...

    async def changes(self, after: int, upto: int) -> list[tuple[str, Change]]:
        """Return changes with ``after < position <= upto``, each with its disk; at most the first ``CHANGES_MAX``."""
        ...

    async def points_around(self, position: int) -> tuple[RecoveryPoint | None, RecoveryPoint | None]:
        """Return the newest recovery point before the position, and the oldest one at or after it."""
        ...


class MountedStates(States):
    """States of a rig; ``label`` (:func:`make_label`) separates the states of one search from those of others.

    The vault removes them and the copies when ``process`` ends.  With ``keep`` states that are not closed stay.
    """

    def __init__(
        self,
        vault: VaultApi,
        recovery: RecoverySide,
        azure: DiskHostControl,
        vm: str,
        label: str,
        *,
        process: HostProcess,
        keep: bool,
    ) -> None:
        self._vault, self._recovery, self._azure = vault, recovery, azure
        self._vm, self._label, self._process, self._keep = vm, label, process, keep
        self._disk_ids: dict[str, str] = {}
        self._opened = 0
        self._copy: dict[str, Path] = {}

    async def open_point(self, text: str) -> BisectState:
        return await self._mount(None, point=parse_point(text))

    async def open(self, position: int, time_ns: int | None) -> BisectState:
        return await self._mount(time_ns, position=position)

    async def _mount(self, time_ns: int | None, *, point: str | None = None, position: int | None = None) -> BisectState:
        self._opened += 1
        name = f"{self._label}-{self._opened}"
        found = await self._vault.mount_point(
            vm=self._vm, point=point, position=position, name=name, process=None if self._keep else self._process
        )
        if found.broken is not None:
            raise RigError(
                Code.InvalidPosition, f"VM {self._vm!r}: position {found.position} cannot be opened: {found.broken}"
            )
        if not self._disk_ids:
            (info,) = [info for info in await self._azure.list_mounted_points(vm=self._vm) if info.name == name]
            self._disk_ids = {disk.name: disk.disk_id for disk in info.disks}
        there = found.recovery_point
        return BisectState(
            name=name,
            position=found.position,
            time_ns=there.time_ns if there is not None else time_ns,
            images={disk.name: Path(disk.path) for disk in found.disks},
            point=there,
        )

    async def close(self, state: BisectState) -> None:
        try:
            await self._vault.unmount_point(vm=self._vm, name=state.name)
        except RigError as error:
            if error.code != Code.RecoveryInUse:
                raise
            raise await resources_in_use(state.images, error) from error

    async def writable(self, state: BisectState) -> dict[str, Path]:
        # A VM of its own on the recovery side, whose disks lie over the state.
        made = await self._vault.open_copy(vm=self._vm, name=self._label, position=state.position, process=self._process)
        self._copy = {disk.name: Path(disk.path) for disk in made.disks}
        return self._copy

    async def discard(self) -> None:
        try:
            await self._vault.remove_copy(vm=self._vm, name=self._label)
        except RigError as error:
            if error.code != Code.DiskInUse:
                raise
            raise await resources_in_use(self._copy, error) from error
        self._copy = {}

    async def steps(self, after: int, upto: int) -> list[ChangeGroup]:
        found: dict[int, ChangeGroup] = {}
        for disk_id in self._disk_ids.values():
            for step in await self._recovery.change_steps(disk_id=disk_id, after=after, upto=upto):
                known = found.get(step.position)
                count = step.count if known is None else max(known.count, step.count)
                found[step.position] = ChangeGroup(step.position, step.time_ns, count)
        return [found[position] for position in sorted(found)]

    async def changes(self, after: int, upto: int) -> list[tuple[str, Change]]:
        found: list[tuple[str, Change]] = []
        for name, disk_id in self._disk_ids.items():
            rows = await self._recovery.changes(disk_id=disk_id, after=after, upto=upto, limit=CHANGES_MAX)
            found += [(name, row) for row in rows]
        return sorted(found, key=lambda each: each[1].position)[:CHANGES_MAX]

    async def points_around(self, position: int) -> tuple[RecoveryPoint | None, RecoveryPoint | None]:
        points = sorted(await self._vault.points(vm=self._vm), key=lambda point: point.position)
        before = [point for point in points if point.position < position]
        after = [point for point in points if point.position >= position]
        return before[-1] if before else None, after[0] if after else None


CHANGES_MAX = 100
"""The most changes that are returned; all changes that one resync sent have the same position."""


async def check_released(images: dict[str, Path]) -> None:
    """Raise ``LeftBehind`` if loop devices use the images."""
    for image in images.values():
        if await loop_devices.loops(image):
            raise await resources_in_use(images, RigError(Code.LeftBehind, f"CMD left a loop device on {image}"))


async def resources_in_use(images: dict[str, Path], error: RigError) -> RigError:
    """Return ``LeftBehind`` with the users of the images, or ``error`` if there are none."""
    found = []
    for image in images.values():
        for use in await loop_devices.uses(image):
            if use.loop is not None:
                found.append(use.loop + "".join(f", mounted at {where}" for where in use.mountpoints) + f", over {image}")
            found += [f"process {name}, with {image} open" for name in use.processes]
    if not found:
        return error
    return RigError(
        Code.LeftBehind, f"CMD left resources in use: {'; '.join(found)}; it must remove everything that it creates"
    )
