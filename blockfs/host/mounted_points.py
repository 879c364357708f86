"""Recovery points that are mounted: read-only disks in ``recovery/VM/NAME`` of a recovery host's mount.

Each mounted point has a small file, ``root/VM/NAME.json``, with the ids of its managed disks and its position.  So it is
opened again after a restart of the host.

Fault contract: the file is written before the views are opened, and the views hold their positions; the file is deleted
last.  A kill at any moment therefore leaves a file that records the intent: the next start opens the point again, and
:meth:`MountedPoints.close` removes everything that exists of it.  A point that cannot be opened again fails alone, with its
reason, and can only be closed.  So does a point of which something could not be removed.  Positions are held by name:
opening and closing one name wait for each other, until the one before has held or released all positions.  Nothing here
writes to a managed disk.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import structlog
import trio
from pydantic import Field, ValidationError

from siterig.blockfs.contracts.control import CLOSE_IT, MountedPointDisk, MountedPointInfo, MountedPointSource
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.file_attributes import PastState
from siterig.blockfs.disk.views import Views, open_counted
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.checked_document import (
    CheckedDocument,
    CorruptDocumentError,
    UnknownFormatError,
    validation_problem,
)
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file
from siterig.blockfs.host.host_folder import RECOVERY_FOLDER
from siterig.blockfs.images import vhd
from siterig.blockfs.layers.layer import Layer, WritableLayer

RELEASE_S = 2.0
"""The kernel reports the last close of a file shortly after the program that closed it has continued."""

OPENED_AT_ONCE = 8
"""Disks of one state that are opened in parallel, so that making their pins durable is one wait and not many."""

_FORMAT = 3
_OLD_FORMATS = (1, 2)
"""1: without sector sizes; 1 and 2: each disk with ``store``, the path of its folder, which is not used any more."""
_DOCUMENT = CheckedDocument(_FORMAT, _OLD_FORMATS, body_key="recovery")
_NAME = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@.+_:-]{0,126}")
_log = structlog.get_logger("siterig.blockfs.host.mounted_points")


class MountRecord(WireModel):
    """The content of the file of a mounted point."""

    vm: str
    name: str
    position: int = Field(ge=0, lt=1 << 63)
    disks: list[MountedPointSource]
    time_ns: int | None = Field(default=None, ge=0, lt=1 << 63)

    def save(self, path: Path) -> None:
        """Write the file atomically and durably."""
        _DOCUMENT.save(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> MountRecord:
        """Read the file.

        Raises:
            RigError: ``RecoveryNoteCorrupt``, ``StateVersion``; the message names the file.
        """
        try:
            version, body = _DOCUMENT.decode(read_small_file(path))
            if version in _OLD_FORMATS:
                return _from_format_2(_OldMountRecord.model_validate(body, strict=True))
            return cls.model_validate(body, strict=True)
        except UnknownFormatError as exc:
            raise RigError(Code.StateVersion, f"{path}: mount record {exc}") from exc
        except (FileTooLongError, CorruptDocumentError) as exc:
            why = str(exc)
        except ValidationError as exc:
            why = validation_problem(exc)
        except OSError as exc:
            why = f"cannot be read: {reason(exc, path)}"
        raise RigError(Code.RecoveryNoteCorrupt, f"{path}: mount record is corrupt: {why}")


class _OldSource(MountedPointSource):
    store: str = Field(pattern=r"^[^\x00-\x1f\x7f]+$")


class _OldMountRecord(MountRecord):
    disks: list[_OldSource]  # type: ignore[assignment]


def _from_format_2(old: _OldMountRecord) -> MountRecord:
    disks = [MountedPointSource(name=disk.name, disk_id=disk.disk_id, sector_bytes=disk.sector_bytes) for disk in old.disks]
    return MountRecord(vm=old.vm, name=old.name, position=old.position, disks=disks, time_ns=old.time_ns)


@dataclass
class _Mounted:
    record: MountRecord
    disks: dict[str, Disk] = field(default_factory=dict)
    broken: str | None = None
    waits: bool = False
    """True if it is broken because of a key, or for another reason that may pass."""


class MountedPoints:
    """The mounted points of one host.  Use it on one trio thread."""

    def __init__(self, root: Path, where: Path, *, views: Views, options: DiskOptions) -> None:
        """Open all mounted points that have a file.

        Args:
            root: the folder of their files.
            where: the mountpoint of the host.
            views: opens views of managed disks.
            options: the options of the disks, which are read-only.
        """
        self._root = root
        self._where = where
        self._views = views
        self._options = options
        self._mounted: dict[str, dict[str, _Mounted]] = {}
        self._locks = KeyedLock()
        for path in sorted(root.glob("*/*.json")):
            self._reopen(path)
        noted = [mounted for states in self._mounted.values() for mounted in states.values()]
        if all(mounted.record.disks for mounted in noted):  # else there are pins whose holder cannot be read
            views.reconcile(RECOVERY_FOLDER, {_holder(mounted.record) for mounted in noted})

    def _reopen(self, path: Path) -> None:
        record, why = self._read(path)
        mounted = _Mounted(record, broken=why)
        if why is None:
            try:
                mounted.disks = self._disks(record)
            except (RigError, OSError) as exc:
                mounted.broken, mounted.waits = str(exc), _may_pass(exc)
        if mounted.broken is not None:
            _log.error("mounted_point_not_opened", vm=record.vm, name=record.name, error=mounted.broken)
        self._mounted.setdefault(record.vm, {})[record.name] = mounted

    def _read(self, path: Path) -> tuple[MountRecord, str | None]:
        """Return the record in a file and None, or a record with the name only and the reason why the file is unusable."""
        try:
            record = MountRecord.load(path)
        except RigError as exc:
            why = exc.message
        else:
            if path == self._file(record.vm, record.name):
                return record, None
            why = f"{path}: is of {record.vm!r:.80}/{record.name!r:.140}"
        return MountRecord(vm=path.parent.name, name=path.stem, position=0, disks=[]), why

    def _file(self, vm: str, name: str) -> Path:
        return self._root / vm / f"{name}.json"

    # --- the tree -----------------------------------------------------------------------------------------------

    def folders(self, within: str) -> Collection[str]:
        """Return the names of the folders in a folder of the mount."""
        if not within:
            return (RECOVERY_FOLDER,) if self._mounted else ()
        first, _, vm = within.partition("/")
        if first != RECOVERY_FOLDER:
            return ()
        return list(self._mounted) if not vm else list(self._mounted.get(vm, ()))

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        """Return the disks in a folder of the mount by name; None if there is no such folder."""
        path = folder.split("/")
        if path[0] != RECOVERY_FOLDER or not self._mounted or len(path) > 3:
            return None
        if len(path) == 1:
            return {}
        states = self._mounted.get(path[1])
        if states is None or len(path) == 2:
            return None if states is None else {}
        return states[path[2]].disks if path[2] in states else None

    def kept_in(self, folder: str) -> Path:
        """Return the path on the host that changes whenever a name in this folder of the mount appears or disappears."""
        _, _, path = folder.partition("/")
        vm, _, name = path.partition("/")
        return self._file(vm, name) if name else self._root / vm

    # --- open and close -----------------------------------------------------------------------------------------

    async def open(
        self, *, vm: str, name: str, position: int, disks: list[MountedPointSource], time_ns: int | None = None
    ) -> MountedPointInfo:
        """Mount a state, as ``DiskHostControl.open_mounted_point`` describes."""
        if not _NAME.fullmatch(name):
            raise RigError(
                Code.InvalidName,
                f"mounted point is named {name!r}; allowed: 1 to 127 letters, digits and '@.+_:-', not '.+_:-' first",
            )
        async with self._locks.hold(f"{vm}/{name}"):
            mounted_point = self._mounted.get(vm, {}).get(name)
            if mounted_point is not None:
                if mounted_point.broken is None and (mounted_point.record.position, mounted_point.record.disks) == (
                    position,
                    disks,
                ):
                    return self._info(mounted_point)
                why = (
                    f"cannot be opened: {mounted_point.broken}"
                    if mounted_point.broken
                    else f"is position {mounted_point.record.position}"
                )
                raise RigError(
                    Code.RecoveryExists, f"{RECOVERY_FOLDER}/{vm}/{name} is there already and {why}; unmount it first"
                )
            for disk in disks:
                await self._views.prepare(disk.disk_id)
            record = MountRecord(vm=vm, name=name, position=position, disks=disks, time_ns=time_ns)
            mounted = self._mounted.setdefault(vm, {})[name] = _Mounted(record, broken="it is not open completely")
            try:
                # In a thread: opening a view may read much, and requests on other disks must not wait for it.
                mounted.disks = await trio.to_thread.run_sync(self._begin, record)
            except BaseException:
                await self._forget(mounted)
                raise
            mounted.broken = None
            return self._info(mounted)

    async def open_waiting(self) -> None:
        """Open each point that could not be opened because of a key, if the key can be had now."""
        for mounted in [each for states in self._mounted.values() for each in states.values() if each.waits]:
            record = mounted.record
            async with self._locks.hold(f"{record.vm}/{record.name}"):
                if not mounted.waits:
                    continue  # it was closed meanwhile
                try:
                    for disk in record.disks:
                        await self._views.prepare(disk.disk_id)
                    mounted.disks = await trio.to_thread.run_sync(self._disks, record)
                except (RigError, OSError) as exc:
                    mounted.broken, mounted.waits = str(exc), _may_pass(exc)
                else:
                    mounted.broken, mounted.waits = None, False
                    _log.info("mounted_point_opened_later", vm=record.vm, name=record.name)

    def _begin(self, record: MountRecord) -> dict[str, Disk]:
        path = self._file(record.vm, record.name)
        safe_files.make_folder(path.parent, parents=True)
        sync_folder(self._root)  # also if the folder existed: a kill may have come before its sync
        sync_folder(self._root.parent)
        record.save(path)
        return self._disks(record)

    def _opened(self, record: MountRecord) -> list[Layer]:
        """Open the views of all disks, or none, in parallel: most of the time is spent waiting for the host's disk."""
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            opening = [
                pool.submit(open_counted, self._views, disk.disk_id, record.position, _holder(record))
                for disk in record.disks
            ]
        try:
            return [view.result() for view in opening]
        except BaseException:
            for view in opening:
                if view.exception() is None:
                    view.result().close()
            raise

    def _disks(self, record: MountRecord) -> dict[str, Disk]:
        folder = f"{RECOVERY_FOLDER}/{record.vm}/{record.name}"
        # A state without a time gets the time at which it was mounted, so that no two look alike.
        time_ns = self._file(record.vm, record.name).stat().st_mtime_ns if record.time_ns is None else record.time_ns
        past = PastState(record.position, time_ns)
        disks = {}
        for source, view in zip(record.disks, self._opened(record), strict=True):
            state = DiskState(
                disk_id=source.disk_id,
                size_bytes=view.size_bytes,
                kind="raw",
                generation=0,
                tracked=False,
                needs_resync=None,
                sector_bytes=source.sector_bytes,
            )
            # The layer gets no write: the options make the disk read-only, and no handle of it is writable.
            layer = cast("WritableLayer", view)
            disks[source.name] = Disk(
                DiskPaths(self._root / record.vm, folder, source.name),
                state=state,
                layer=layer,
                options=self._options,
                past=past,
            )
        return disks

    async def close(self, *, vm: str, name: str) -> None:
        """Unmount a state, as ``DiskHostControl.close_mounted_point`` describes."""
        async with self._locks.hold(f"{vm}/{name}"):
            mounted = self._mounted.get(vm, {}).get(name)
            if mounted is None:
                return
            clock = self._options.clock.real
            with clock.move_on_after(RELEASE_S):
                while any(disk.handles for disk in mounted.disks.values()):
                    await clock.sleep(0.01)
            for disk in mounted.disks.values():
                if disk.handles:
                    raise RigError(Code.RecoveryInUse, f"{disk.paths} is in use (open handles: {disk.handles}); {CLOSE_IT}")
            for disk in mounted.disks.values():
                disk.abandon()
            mounted.disks, mounted.broken, mounted.waits = {}, "it was not unmounted completely", False
            await self._forget(mounted)

    async def _forget(self, mounted: _Mounted) -> None:
        """Release the pins of a point without open disks, and forget it; if that fails, it can be closed again."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._release, mounted.record)
        states = self._mounted[mounted.record.vm]
        del states[mounted.record.name]
        if not states:
            del self._mounted[mounted.record.vm]

    def _release(self, record: MountRecord) -> None:
        """Release the positions, then delete the file: the file records which positions are held."""
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            releasing = [pool.submit(self._views.release, disk.disk_id, _holder(record)) for disk in record.disks]
        for each in releasing:
            each.result()
        path = self._file(record.vm, record.name)
        if path.parent.is_dir():  # otherwise there was no space for it
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def infos(self, vm: str | None) -> list[MountedPointInfo]:
        """Return all mounted points, or those of a VM."""
        wanted = self._mounted if vm is None else {vm: self._mounted.get(vm, {})}
        return [self._info(mounted) for states in wanted.values() for mounted in states.values()]

    def _info(self, mounted: _Mounted) -> MountedPointInfo:
        record = mounted.record
        folder = self._where / RECOVERY_FOLDER / record.vm / record.name
        disks = [
            MountedPointDisk(
                name=name,
                disk_id=disk.state.disk_id,
                size_bytes=disk.size_bytes,
                path=str(folder / f"{name}.img"),
                vhd_path=str(folder / f"{name}.vhd") if vhd.can_be_vhd(disk.size_bytes) else None,
                open_handles=disk.handles,
                sector_bytes=disk.state.sector_bytes,
            )
            for name, disk in mounted.disks.items()
        ]
        return MountedPointInfo(vm=record.vm, name=record.name, position=record.position, disks=disks, broken=mounted.broken)

    def end(self) -> None:
        """Close all files; the next start opens the points again."""
        for states in self._mounted.values():
            for mounted in states.values():
                for disk in mounted.disks.values():
                    disk.abandon()
        self._mounted.clear()


def _may_pass(exc: RigError | OSError) -> bool:
    return isinstance(exc, RigError) and (exc.recoverable or exc.code in (Code.KeyRevoked, Code.KeyMissing))


def _holder(record: MountRecord) -> str:
    return f"{RECOVERY_FOLDER} {record.vm}/{record.name}"
