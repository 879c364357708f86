"""Lives of a disk: recorded random operations between opening and end, with the facts known about the disk.

A life ends with a clean close, a kill or a power loss; the next life begins with the files that it left.
"""

from __future__ import annotations

import contextlib
import errno
import random
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.layers.disk_cipher import LINE_BYTES, DiskCipher
from siterig.blockfs.layers.layer import Layer, RawLayer
from siterig.cext._core import lib
from tests.crash.recording import Recorder
from tests.crash.states import DISK, LOG, State, group_of
from tests.support.disks.disk_model import replay_files
from tests.support.stores.one_key import KEY_ID, OneKey, make_encrypted

NAME = "os"
DISK_BYTES = 192 << 10
DISK_BYTES_MAX = 224 << 10
Phase = Literal["opening", "open", "closing", "closed"]


@dataclass(frozen=True, slots=True)
class Known:
    """Facts known about a disk at one moment.

    ``versions`` are the disk's contents, oldest first.  ``sure`` is the index of the newest version that is certainly
    durable, ``acked`` of the newest that is acknowledged; at most one version follows, from the running operation.  The
    list is shared, and grows.
    ``remote`` is the copy on the recovery side, with all records up to ``remote_seq`` of generation ``generation``.
    ``sure_seq`` is the newest record of that generation for which a flush has returned.
    ``turning``: an operation runs that begins or ends tracking.  ``faulty``: an operation runs that fails on purpose.
    ``torn``: the life began with files from a power loss.
    """

    phase: Phase
    versions: list[bytes]
    sure: int
    acked: int
    tracked: bool
    generation: int
    next_seq: int
    remote: bytes
    remote_seq: int
    position: int
    sure_seq: int = 0
    abandoned: str | None = None
    turning: bool = False
    faulty: bool = False
    torn: bool = False

    @property
    def possible(self) -> list[bytes]:
        """The possible contents if every issued operation took effect: acknowledged, perhaps with the running operation."""
        return self.versions[self.acked : self.acked + (3 if self.faulty else 2)]

    @property
    def unsure(self) -> list[bytes]:
        """All possible contents after a power loss, in which an older version may have survived."""
        return self.versions[self.sure : self.acked] + self.possible


class FileViews(OneKey):
    """Views of a managed disk, for which a file stands, with its bytes as they are stored."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def open(self, _managed_disk: str, _position: int, _holder: str, *, stored: bool = False) -> Layer:
        assert self._file is not None
        return RawLayer(self._file)

    def release(self, managed_disk: str, holder: str) -> None:
        pass

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        pass


class World:
    """A disk in ``folder``, of kind ``raw`` or ``top`` (an overlay over ``below``, a file in another folder).

    With a cipher the disk is encrypted, and so is ``below``.
    """

    def __init__(self, folder: Path, below: Path | None, cipher: DiskCipher | None = None) -> None:
        self.folder = folder
        self.cipher = cipher
        self.paths = DiskPaths(folder, "", NAME)
        self._below = below

    def make(self) -> bytes:
        """Create the files of a new disk, and return its contents."""
        if self._below is None:
            (make_raw if self.cipher is None else make_encrypted)(self.paths, DISK_BYTES)
            return bytes(DISK_BYTES)
        start = self._below.read_bytes()
        key_id = None if self.cipher is None else KEY_ID
        make_over_managed_disk(self.paths, managed_disk="below", position=1, size_bytes=len(start), key_id=key_id)
        return start if self.cipher is None else self.cipher.decrypt(start, 0)

    def open(self) -> tuple[Disk, PositionCounter]:
        """Open the disk as the disk host does."""
        positions = PositionCounter(self.folder / "position")
        try:
            return Disk.open(self.paths, DiskOptions(positions), FileViews(self._below)), positions
        except BaseException:
            positions.close()
            raise

    def put(self, state: State) -> None:
        """Replace the folder's files by those that a crash left."""
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in state.items():
            (self.folder / name).write_bytes(data)


class Life:
    """A life from its opening on; the recorder may know earlier lives."""

    def __init__(self, world: World, recorder: Recorder, known: Known, rng: random.Random) -> None:
        self.recorder = recorder
        self._world = world
        self._rng = rng
        self._known = known
        self._data = bytearray(known.versions[known.acked])
        self._sync_failed = False

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, operations: int) -> None:
        """Open the disk, operate, and perhaps close it; then release everything as a kill would."""
        with self.recorder.recording():
            self._tell(phase="opening")
            disk, positions = self._world.open()
            try:
                self._opened(disk, positions)
                for _ in range(operations):
                    self._operate(disk, positions)
                if self._rng.random() < 0.4:
                    self._close(disk, positions)
                else:
                    disk.abandon()
            finally:
                disk.abandon()
                if self._known.phase != "closed":
                    positions.close()

    def _tell(self, **changes: object) -> None:
        self._known = replace(self._known, **changes)  # type: ignore[arg-type]
        self.recorder.note(self._known)

    def _opened(self, disk: Disk, positions: PositionCounter) -> None:
        known = self._known
        self._data[:] = disk.read(0, disk.size_bytes)
        known.versions.append(bytes(self._data))
        self._tell(
            phase="open",
            acked=len(known.versions) - 1,
            tracked=disk.tracking.active,
            generation=disk.state.generation,
            next_seq=disk.tracking.log.next_seq if disk.tracking.active else 0,
            abandoned=disk.state.needs_resync,
            position=positions.value,
            torn=False,
        )

    def _close(self, disk: Disk, positions: PositionCounter) -> None:
        self._tell(phase="closing")
        try:
            disk.close()
        except OSError:
            assert self._sync_failed
            return
        positions.close()
        self._tell(phase="closed", sure=self._known.acked)

    # --- operations -----------------------------------------------------------------------------------------------

    def _operate(self, disk: Disk, positions: PositionCounter) -> None:
        steps: list[tuple[int, Callable[[Disk], None]]] = [
            (40, self._write),
            (6, self._zero),
            (2, self._resize),
            (12, self._flush),
            (6, self._maintain),
            (6, self._cut),
            (4, self._applied),
            (2, self._snapshot),
            (1, self._fail_write),
            (1, self._fail_sync),
            (2, self._stop_tracking),
        ]
        if disk.state.kind == "top":
            steps.append((8, self._promote))
        if not disk.tracking.active:
            steps.append((30, self._start_tracking))
        else:
            steps.append((1, self._start_tracking))
        (step,) = self._rng.choices([step for _, step in steps], [weight for weight, _ in steps])
        step(disk)
        abandoned = disk.state.needs_resync if not disk.tracking.active else None
        self._tell(
            acked=len(self._known.versions) - 1,
            tracked=disk.tracking.active,
            abandoned=abandoned,
            generation=disk.state.generation,
            next_seq=disk.tracking.log.next_seq if disk.tracking.active else 0,
            position=positions.value,
            turning=False,
            faulty=False,
        )

    def _will_be(self, change: Callable[[bytearray], None]) -> None:
        """Add the version of the disk that the beginning operation makes."""
        change(self._data)
        self._known.versions.append(bytes(self._data))
        self.recorder.note(self._known)

    def _range(self) -> tuple[int, int]:
        size, rng = len(self._data), self._rng
        align = rng.choice([1, 512, 4096])
        hot = rng.random() < 0.5
        offset = rng.randrange(0, min(16_384, size) if hot else size) // align * align
        length = max(rng.randrange(1, rng.choice([600, 9000])) // align * align, align if align > 1 else 1)
        return offset, min(length, size - offset)

    def _write(self, disk: Disk) -> None:
        offset, length = self._range()
        data = self._rng.randbytes(length)
        self._will_be(lambda now: now.__setitem__(slice(offset, offset + length), data))
        assert disk.write(offset, data) == length

    def _zero(self, disk: Disk) -> None:
        offset, length = self._range()
        if self._world.cipher is not None:  # the edges are writes of their own: docs/reference/formats/disk.md
            offset -= offset % LINE_BYTES
            length += -length % LINE_BYTES
        self._will_be(lambda now: now.__setitem__(slice(offset, offset + length), bytes(length)))
        disk.zero(offset, length, discard=self._rng.random() < 0.5)

    def _resize(self, disk: Disk) -> None:
        grown = min(512 * self._rng.randrange(1, 20), DISK_BYTES_MAX - len(self._data))
        if grown > 0:
            self._will_be(lambda now: now.extend(bytes(grown)))
            disk.resize(len(self._data))

    def _flush(self, disk: Disk) -> None:
        try:
            disk.flush_now()
        except OSError:  # after one failed flush every flush fails
            assert self._sync_failed
        else:
            assert not self._sync_failed
            self._tell(sure=self._known.acked, sure_seq=disk.tracking.log.last_seq if disk.tracking.active else 0)

    def _maintain(self, disk: Disk) -> None:
        disk.tracking.maintain()

    def _cut(self, disk: Disk) -> None:
        if disk.tracking.active:
            tag_id = str(uuid.UUID(int=self._rng.getrandbits(128)))
            disk.tracking.tag(TagSeen(tag_id=tag_id, kind="CrashConsistent", name="test", position=1, time_ns=1))
            if self._rng.random() < 0.5:
                self._flush(disk)

    def _applied(self, disk: Disk) -> None:
        """Let the recovery side take the oldest segments, and then report that to the disk."""
        segments = disk.tracking.segments()
        if not segments:
            return
        taken = segments[: self._rng.randrange(len(segments)) + 1]
        fresh = [segment for segment in taken if segment.last_seq > self._known.remote_seq]
        remote = replay_files(self._known.remote, [Path(segment.path) for segment in fresh], cipher=self._world.cipher)
        self._tell(remote=remote, remote_seq=max(self._known.remote_seq, taken[-1].last_seq))
        disk.tracking.trim(disk.state.generation, taken[-1].last_seq)

    def _snapshot(self, disk: Disk) -> None:
        if disk.snapshot is not None:
            disk.end_snapshot()
        elif disk.tracking.active:
            disk.begin_snapshot()

    def _fail_write(self, disk: Disk) -> None:
        """Fill the host's disk before or during a write: log and disk must agree."""
        offset, length = self._range()
        data, before = self._rng.randbytes(length), bytes(self._data)
        paths = self._rng.choice([LOG, DISK])
        # A line that the host's disk takes in part, twice, has undefined bytes: docs/reference/formats/disk.md.
        least = 0 if self._world.cipher is None else min(LINE_BYTES, length - 1)
        taken = self._rng.choice([0, self._rng.randrange(least, length)])
        self._will_be(lambda now: now.__setitem__(slice(offset, offset + length), data))
        self._tell(faulty=True)

        def full(operation: int, name: str, size: int) -> int:
            if operation != lib.SR_IO_WRITE or group_of(name) != paths:
                return 0
            return min(taken, size) or -errno.ENOSPC

        self.recorder.verdict = full
        done = 0
        try:
            with contextlib.suppress(OSError):
                done = disk.write(offset, data)
        finally:
            self.recorder.verdict = None
        self._data[:] = before
        self._data[offset : offset + done] = data[:done]
        self._known.versions.append(bytes(self._data))
        self._tell(acked=len(self._known.versions) - 1)

    def _fail_sync(self, disk: Disk) -> None:
        paths = self._rng.choice([LOG, DISK])
        if not disk.tracking.active:
            return
        self._tell(faulty=True)
        self.recorder.verdict = lambda operation, name, _size: (
            -errno.EIO if operation == lib.SR_IO_SYNC and group_of(name) == paths else 0
        )
        try:
            disk.flush_now()
        except OSError:
            self._sync_failed = True
        finally:
            self.recorder.verdict = None

    def _promote(self, disk: Disk) -> None:
        """Hydrate in some steps, perhaps to the end; no byte changes."""
        disk.hydration.begin()
        full = any(disk.hydration.hydrate(1) for _ in range(self._rng.randrange(1, 5)))
        if full or self._rng.random() < 0.5:
            try:
                disk.hydration.flush()
            except OSError:  # as a flush may
                assert self._sync_failed
                return
            assert not self._sync_failed
        if full and disk.hydration.convert_to_raw():
            disk.hydration.detach_backing()

    def _start_tracking(self, disk: Disk) -> None:
        """Start tracking, and copy the disk to the recovery side as soon as the log runs."""
        self._tell(turning=True)
        disk.tracking.start(new_generation=True)
        self._tell(remote=bytes(self._data), remote_seq=0, sure_seq=0)

    def _stop_tracking(self, disk: Disk) -> None:
        self._tell(turning=True)
        disk.end_snapshot()
        disk.tracking.stop()
