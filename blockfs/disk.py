"""One virtual disk: a writable layer, its change log, perhaps a snapshot.

Fault contract
--------------
* A record is in the log before its bytes are on the disk; what :meth:`Disk.flush` has returned for is on stable
  storage in both.
* After kill -9 at any moment: the torn tail of the log is cut, the last records are written to the disk again, and
  the log goes on in the same generation.
* After power loss, or rot in the log, or a failed fsync: the disk opens, tracking is off, ``needs_resync`` says why.
* A failed write (disk full, ...) leaves log and disk as they were.
* The logs of a generation that cannot go on are kept until the resync that replaces it has been applied.

Shared by tasks: everything but :meth:`flush` runs to its end on the trio thread, without a checkpoint; so two
overlapping writes reach log and disk in the same order, and a cut over several disks needs no lock.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import structlog
import trio

from blockfs.changelog import RecordType, encode_tag
from blockfs.control import DiskInfo, SegmentInfo
from blockfs.disk_log import DiskLog, find_segments, recover_log
from blockfs.disk_state import DiskState
from blockfs.durable import sync_folder
from blockfs.errors import RigError
from blockfs.layers import Layer, RawLayer, TopLayer, WritableLayer
from blockfs.part import TagSeen
from blockfs.position import POWER_LOSS_JUMP, PositionCounter
from blockfs.snapshot import Snapshot

SECTOR_BYTES = 512
OpenView = Callable[[Path, int], Layer]
"""Opens managed disk ``store`` (a folder) as it was at a position, read-only."""

_log = structlog.get_logger("blockfs.disk")


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Whose disk it is, and the folder that holds its files."""

    folder: Path
    vm: str
    name: str

    def file(self, suffix: str) -> Path:
        """``NAME.suffix`` in the disk's folder."""
        return self.folder / f"{self.name}.{suffix}"

    def __str__(self) -> str:
        return f"{self.vm}/{self.name}"


class Disk:
    """See the module.  ``handles`` counts who has it open through the mount."""

    def __init__(self, place: DiskPlace, *, state: DiskState, layer: WritableLayer, positions: PositionCounter) -> None:
        self.place = place
        self.state = state
        self.handles = 0
        self.snapshot: Snapshot | None = None
        self._layer = layer
        self._positions = positions
        self._log: DiskLog | None = None
        self._sync_lock = trio.Lock()

    # --- making and opening -------------------------------------------------------------------------------------

    @staticmethod
    def make_raw(place: DiskPlace, size_bytes: int) -> None:
        """The files of a new all-zero disk; nothing is left behind if it fails."""
        if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
            raise RigError(
                "InvalidDiskSize",
                f"disk {place.name}: size is {size_bytes} bytes; it must be a positive multiple of {SECTOR_BYTES}",
            )
        path = place.file("img")
        with path.open("xb") as file:
            file.truncate(size_bytes)
        try:
            DiskState(
                disk_id=str(uuid.uuid4()), size_bytes=size_bytes, kind="raw", generation=0, tracked=False, needs_resync=None
            ).save(place.file("disk"))
        except BaseException:
            path.unlink()
            raise

    @staticmethod
    def make_top(place: DiskPlace, *, store: Path, position: int, size_bytes: int) -> None:
        """The files of a new writable disk over managed disk ``store`` at ``position``, which has that size."""
        DiskState(
            disk_id=str(uuid.uuid4()),
            size_bytes=size_bytes,
            kind="top",
            generation=0,
            tracked=False,
            needs_resync=None,
            store=str(store),
            position=position,
        ).save(place.file("disk"))

    @classmethod
    def open(cls, place: DiskPlace, positions: PositionCounter, open_view: OpenView | None) -> Disk:
        """Open what is there, recovering the log if the disk was tracked."""
        state = DiskState.load(place.file("disk"))
        place.file("snapshot").unlink(missing_ok=True)
        layer: WritableLayer
        if state.kind == "raw":
            layer = RawLayer(place.file("img"), writable=True)
        else:
            if open_view is None or state.store is None or state.position is None:
                raise RigError("NotARecoveryHost", f"disk {place} lies over a managed disk; this host has none")
            layer = TopLayer(open_view(Path(state.store), state.position), place.file("top"))
        if layer.size_bytes != state.size_bytes:
            found = layer.size_bytes
            layer.close()
            raise RigError("DiskCorrupt", f"disk {place}: file has {found} bytes; its state says {state.size_bytes}")
        disk = cls(place, state=state, layer=layer, positions=positions)
        if state.tracked:
            disk._recover()
        return disk

    def _recover(self) -> None:
        try:
            found = recover_log(
                self.place.folder,
                self.place.name,
                disk_id=self.state.disk_id,
                generation=self.state.generation,
                disk_size_bytes=self.state.size_bytes,
                positions=self._positions,
            )
        except RigError as exc:
            if exc.code not in ("PowerLoss", "LogCorrupt"):
                raise
            self._positions.advance(self._positions.value + POWER_LOSS_JUMP)
            _log.warning("log_not_continued", disk=str(self.place), reason=exc.code, message=exc.message)
            self._set(tracked=False, needs_resync=exc.code)
            return
        for record, payload in found.reapply:
            match record.type:
                case RecordType.WRITE:
                    self._layer.pwrite(record.offset, payload)
                case RecordType.ZERO | RecordType.DISCARD:
                    self._layer.zero(record.offset, record.length)
                case RecordType.RESIZE:
                    self._layer.resize(record.length)
                case RecordType.FLUSH | RecordType.TAG:
                    pass
                case _:
                    assert_never(record.type)
        self._layer.sync()
        self._log = found.log
        _log.info(
            "log_continued", disk=str(self.place), next_seq=found.log.next_seq,
            reapplied=len(found.reapply), torn_bytes=found.torn_bytes,
        )  # fmt: skip

    def _set(self, **changes: object) -> None:
        state = self.state.model_copy(update=changes)
        state.save(self.place.file("disk"))
        self.state = state

    # --- bytes --------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self.state.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer at the end of the disk."""
        length = max(min(length, self.size_bytes - offset), 0)
        return self._layer.pread(offset, length) if length else b""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Log, then write.  ``OSError`` (``EFBIG`` past the end, ``ENOSPC``, ...) leaves both as they were."""
        if offset + len(data) > self.size_bytes:
            raise OSError(errno.EFBIG, f"write of {len(data)} bytes at {offset} passes the end of disk {self.place}")
        if self.snapshot is not None:
            self.snapshot.before_write(offset, len(data))
        if self._log is not None and self._log.unsent_bytes + len(data) > self.size_bytes // 2:
            self._give_up_log("LogOverflow")
        if self._log is None:
            self._layer.pwrite(offset, data)
            return
        at = self._log.append(RecordType.WRITE, offset=offset, length=len(data), payload=data)
        try:
            self._layer.pwrite(offset, data)
        except OSError:
            self._log.undo(at)
            raise

    def released(self) -> None:
        """One who had it open has closed it."""
        self.handles -= 1

    async def flush(self) -> None:
        """Everything written before the call is on stable storage, in the log and on the disk.

        ``OSError`` if it is not: what was lost cannot be told, so the disk needs a resync.
        """
        async with self._sync_lock:
            log = self._log
            writers = log.unsynced() if log else []
            # Own descriptors: the log may be rotated, given up or replaced while the thread syncs.
            fds = [os.dup(writer.fd) for writer in writers]
            try:
                await trio.to_thread.run_sync(self._sync_files, fds)
            except OSError:
                self._give_up_log("SyncFailed")
                raise
            finally:
                for fd in fds:
                    os.close(fd)
            if log:
                log.synced(writers[:-1])

    def _sync_files(self, fds: list[int]) -> None:
        for fd in fds:
            os.fdatasync(fd)
        if len(fds) > 1:  # a rotation since the last flush made a new name
            sync_folder(self.place.folder)
        self._layer.sync()

    # --- tracking -----------------------------------------------------------------------------------------------

    @property
    def log(self) -> DiskLog:
        """The change log; ``NotTracked`` if there is none."""
        if self._log is None:
            why = f" ({self.state.needs_resync}: it needs a resync)" if self.state.needs_resync else ""
            raise RigError("NotTracked", f"disk {self.place} is not tracked{why}")
        return self._log

    def start_tracking(self, *, new_generation: bool) -> None:
        """Log every write from now on, in a new generation unless the log goes on already."""
        if self._log is not None and not new_generation:
            return
        generation = self.state.generation + 1
        numbers = [number for number, _ in find_segments(self.place.folder, self.place.name)]
        log = DiskLog(
            self.place.folder,
            self.place.name,
            disk_id=self.state.disk_id,
            generation=generation,
            disk_size_bytes=self.size_bytes,
            positions=self._positions,
            next_number=max(numbers, default=0) + 1,
        )
        self._set(tracked=True, generation=generation, needs_resync=None)
        if self._log is not None:
            self._log.close_torn()
        self._log = log

    def stop_tracking(self) -> None:
        """Stop logging and delete the logs."""
        if self._log is not None:
            self._log.close_torn()
            self._log = None
        self._set(tracked=False, needs_resync=None)
        self._delete_segments()

    def _give_up_log(self, reason: str) -> None:
        """Stop logging because of ``reason``.  The mark is durable first: no unlogged write may pass for a logged one."""
        if self._log is None:
            return
        self._set(tracked=False, needs_resync=reason)
        _log.warning("log_given_up", disk=str(self.place), reason=reason, unsent_bytes=self._log.unsent_bytes)
        self._log.close_torn()
        self._log = None

    def _delete_segments(self, *, below: int | None = None) -> None:
        """All, or those with a number below ``below``: numbers go on from one generation to the next."""
        for number, path in find_segments(self.place.folder, self.place.name):
            if below is None or number < below:
                path.unlink()

    def tag(self, tag: TagSeen) -> None:
        """Append a TAG at the tag's position and begin a new segment."""
        self.log.append(RecordType.TAG, position=tag.position, payload=encode_tag(tag))
        self.log.rotate()

    def segments(self) -> list[SegmentInfo]:
        """Closed, durable segments of the current generation."""
        return self._log.segments() if self._log else []

    def applied(self, generation: int, last_seq: int) -> None:
        """The recovery side has durably applied this much."""
        if self._log is None or generation != self.state.generation:
            return
        self._log.applied(last_seq)
        self._delete_segments(below=self._log.oldest_number)

    # --- snapshot -----------------------------------------------------------------------------------------------

    def begin_snapshot(self) -> Snapshot:
        """Begin copy-before-write; the log's next segment begins with the first record that is not in the snapshot."""
        self.log.rotate()
        self.snapshot = Snapshot(self._layer, self.place.file("snapshot"), first_seq=self.log.next_seq)
        return self.snapshot

    def end_snapshot(self) -> None:
        """Remove the snapshot, if there is one."""
        if self.snapshot is not None:
            self.snapshot.close()
            self.snapshot = None

    # --- the end ------------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """Where a disk that comes back from the recovery side is assembled."""
        return self.place.file("staging")

    def replace(self) -> None:
        """Put the staged file in place: new contents, tracking off.

        The state goes first: a kill between the two leaves the old bytes marked for resync, never the new bytes
        with the old log.
        """
        fd_layer = RawLayer(self.staging, writable=True)
        fd_layer.sync()
        if fd_layer.size_bytes != self.size_bytes:
            raise RigError(
                "InvalidDiskSize", f"{self.staging}: has {fd_layer.size_bytes} bytes; the disk has {self.size_bytes}"
            )
        if self._log is not None:
            self._log.close_torn()
            self._log = None
        self._set(tracked=False, needs_resync="DiskReplaced")
        self.staging.rename(self.place.file("img"))
        sync_folder(self.place.folder)
        self._delete_segments()
        self._layer.close()
        self._layer = fd_layer

    def info(self, mountpoint: Path) -> DiskInfo:
        """What other roles may know."""
        return DiskInfo(
            vm=self.place.vm,
            name=self.place.name,
            disk_id=self.state.disk_id,
            size_bytes=self.size_bytes,
            path=str(mountpoint / self.place.vm / f"{self.place.name}.img"),
            folder=str(self.place.folder),
            tracked=self._log is not None,
            generation=self.state.generation,
            last_seq=self._log.last_seq if self._log else 0,
            last_position=self._log.last_position if self._log else 0,
            unsent_log_bytes=self._log.unsent_bytes if self._log else 0,
            snapshot=self.snapshot is not None,
            needs_resync=self.state.needs_resync,
            open_handles=self.handles,
        )

    def close(self) -> None:
        """Close in order: the disk, then its log's clean mark, durable."""
        self.end_snapshot()
        self._layer.sync()
        if self._log is not None:
            self._log.close_clean()
        self._layer.close()

    def abandon(self) -> None:
        """Let go of everything without a sync, as a kill would."""
        self.end_snapshot()
        if self._log is not None:
            self._log.close_torn()
        self._layer.close()
