"""A stand-alone disk: one image as a disk, perhaps tracked, without the folder of a disk host.

Next to a tracked image are ``NAME.disk`` (its state), ``NAME.position``, ``NAME.dirty`` and its change log.  An image that
is not tracked has no files next to it.

Fault contract
--------------
:mod:`siterig.blockfs.disk.disk` states the contract of the disk itself.  This module decides whether an existing log may
continue:

* the disk was closed cleanly, and the image is still the one of the note (disk_identity.py): the log continues in its
  generation;
* the process was killed: the log continues as well, unless the image was written to after the log;
* otherwise (power loss, corruption, an image that was changed or mounted untracked meanwhile) a replay of the log would not
  give the image.  The log is kept as it is, and a new generation begins with the image as it is now.

A change of the image by another program while it is mounted is reported when the disk is closed at the latest
(``ImageChanged``), if it can be noticed (:mod:`siterig.blockfs.watch.own_file`, :mod:`siterig.blockfs.watch.file_watch`);
the log of that generation does not continue.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments, segment_number
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_guard import DiskGuard
from siterig.blockfs.disk.disk_identity import identify
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import ClosedNote, DiskState
from siterig.blockfs.files.os_errors import FULL, reason
from siterig.blockfs.host.disk_tree import SingleDisk
from siterig.blockfs.images.image_file import Image
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.watch.file_watch import FileWatch

LOOK_S_MAX = 5.0
"""Time limit in seconds for the final check of loop devices and of the image's name: a file system may hang."""
ReportChange = Callable[[str], None]
"""Reports to the user at once that another program has changed something."""
_OWN_FILES = ("disk", "position", "dirty", "spare", "recycled")
# This log is not sent anywhere and then deleted: it has no limit, and a write fails if there is no space for its record.
_POLICY = LogPolicy(kept_share_max=None, when_full="refuse")
_WHY = {
    Code.ImageChanged: "the image was changed by another program",
    Code.LogCorrupt: "its file NAME.dirty is damaged or missing",
    "NotLogged": "the image was mounted without a log since",
    Code.PowerLoss: "the machine stopped while the image was mounted, and what was not flushed may be gone",
    Code.SyncFailed: "the host could not make its bytes durable",
    Code.WriteFailed: "the host failed to write the image",
}


def _unheard(_text: str) -> None:
    pass


class _Volatile(DiskState):
    """The state of a disk that leaves no file."""

    @property
    def lasts(self) -> bool:
        return False

    def save(self, path: Path) -> None:
        """Do nothing: this state is not written to a file."""


@dataclass(frozen=True, slots=True)
class EndedGeneration:
    """A log that does not continue: its generation, and the reason."""

    generation: int
    why: str


class StandAlone:
    """The disk of a locked image.

    Attributes:
        disk: the disk.
        tree: a tree with this one disk, for a mount.
        watch: the watch of the image's file and of its log; ``tree.run_maintenance`` runs it.
        ended_generation: the log that ended with this opening; None if none did.
        before: the state that was stored next to the image before this opening; None if there was none.
    """

    def __init__(
        self,
        image: Image,
        paths: DiskPaths,
        state: DiskState,
        positions: PositionCounter,
        *,
        tracked: bool,
        report: ReportChange,
        closed: ClosedNote | None = None,
    ) -> None:
        self.ended_generation: EndedGeneration | None = None
        self._tracked = tracked
        self._report = report
        self.before: DiskState | None = None
        self._image = image
        self._positions = positions
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch = FileWatch()
        try:
            # Not by its name again: the name may belong to another file now.
            layer = RawLayer(image.path, size_bytes=image.size_bytes, fd=os.dup(image.fd))
            # In a VHD the footer follows the disk, and a device has a fixed size.
            can_grow = image.format == "raw" and not image.is_device
            options = DiskOptions(
                positions,
                self._event_fd,
                _POLICY,
                can_grow=can_grow,
                watch=self.watch,
                report_changed=lambda _paths, what: report(what),
                report_log_lost=lambda _paths, what: report(f"{what}: the log ends, and no write from now on is in it"),
            )
            self.disk = Disk.over(paths, state=state, layer=layer, options=options, closed=closed)
        except BaseException:
            self._close_own()
            raise
        self.tree = SingleDisk(self.disk, self._event_fd, self.watch)

    @property
    def _guard(self) -> DiskGuard:
        if (guard := self.disk.guard) is None:
            raise AssertionError("a disk that lies on a file has a guard")
        return guard

    @property
    def log_trouble(self) -> str | None:
        """The change that another program made to the log's files; None if none is known."""
        return self._guard.log_trouble

    def segments(self) -> list[Path]:
        """Return the files of the current log, oldest first; an empty list if the disk is not tracked."""
        paths, state = self.disk.paths, self.disk.state
        return _segments(paths, state.generation) if state.tracked else []

    async def look_at_the_end(self) -> None:
        """Check before the close for changes without an event: a loop device on the image, and an image that was moved."""
        identity = self._guard.files.identity
        with trio.CancelScope(shield=True), trio.move_on_after(LOOK_S_MAX):
            await self._guard.look_for_loops()
            moved = await trio.to_thread.run_sync(_identity, self._image.path) != identity
            if self._guard.look_at_the_end() is None and moved:
                where = Path(f"/proc/self/fd/{self._image.fd}").readlink()
                there = await trio.to_thread.run_sync(_identity, where) == identity
                now = f"it is {where} now" if there else "it is in a file system that is no longer mounted there"
                self._report(f"{self._image.path} is not where it was: its folder was moved, or unmounted; {now}")

    def close(self) -> None:
        """Close the disk cleanly, and store a note of the image as it is then.

        Raises:
            RigError: ``DiskFull``, ``HostIoError`` if that fails; ``ImageChanged`` if another program changed the image, or
                took it away, while it was open.
        """
        try:
            with _os_errors_as(f"{self._image.path}: cannot be closed cleanly", Code.HostIoError):
                self.disk.close()
        except RigError:
            if self.disk.file_trouble is None:
                raise
        finally:
            self.abandon()
        if (trouble := self.disk.file_trouble) is not None:
            log = "; its change log does not have that" if self._tracked else ""
            raise RigError(Code.ImageChanged, f"{trouble}{log}")

    def withdraw(self) -> None:
        """Close a disk whose mount failed, and restore the files next to the image as they were before."""
        if self.before is None and self.disk.state.tracked:
            self.abandon()
            _remove_files(self.disk.paths)
        elif self.before is not None and not self.disk.state.tracked:
            self.abandon()
            self.before.save(self.disk.paths.file("disk"))
        else:
            self.close()

    def abandon(self) -> None:
        """Release everything without a sync, as a kill does."""
        self.disk.abandon()
        self._close_own()

    def _close_own(self) -> None:
        self._positions.close()
        self.watch.close()
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1


def open_disk(image: Image, name: str, *, tracked: bool, report: ReportChange = _unheard) -> StandAlone:
    """Open an image as a stand-alone disk.

    Args:
        image: the locked image; the caller closes it after the disk.
        name: the name of the disk.
        tracked: keep a change log next to the image.
        report: called at once with a change that another program makes to the image.

    Raises:
        RigError: ``ImageUnusable`` if the image belongs to a rig, is read-only, or has the name of one of the disk's other
            files; ``LogExists`` if the files next to it belong to another disk; ``DiskStateCorrupt``, ``StateVersion`` if
            they cannot be read; ``FolderUnusable``, ``DiskFull`` if they cannot be created.
    """
    paths = DiskPaths(image.path.parent, "", name)
    if image.path in [paths.file(suffix) for suffix in _OWN_FILES] or segment_number(name, image.path.name) is not None:
        raise RigError(
            Code.ImageUnusable,
            f"{image.path}: has the name of a file of disk {name!r}: give the disk another name with --name",
        )
    with _os_errors_as(f"{paths.folder}: cannot hold the change log of {image.path.name}", Code.FolderUnusable):
        return _open_tracked(image, paths, report) if tracked else _open_untracked(image, paths, report)


@contextlib.contextmanager
def _os_errors_as(what: str, code: Code) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``RigError`` that names the file, and the purpose ``what``."""
    try:
        yield
    except OSError as exc:
        code = Code.DiskFull if exc.errno in FULL else code
        raise RigError(code, f"{what}: {reason(exc, what)}", recoverable=code == Code.DiskFull) from exc


def _open_untracked(image: Image, paths: DiskPaths, report: ReportChange) -> StandAlone:
    before, ended = (None, None) if image.read_only else _end_log(image, paths)
    state = _Volatile(
        disk_id=str(uuid.uuid4()),
        size_bytes=image.size_bytes,
        kind="raw",
        generation=0,
        tracked=False,
        needs_resync=None,
        image=image.path.name,
    )
    alone = StandAlone(image, paths, state, PositionCounter(None), tracked=False, report=report)
    alone.before, alone.ended_generation = before, ended
    return alone


def _end_log(image: Image, paths: DiskPaths) -> tuple[DiskState | None, EndedGeneration | None]:
    """Record that writes from now on are not in the image's log; return the state before, and the log that ends."""
    try:
        state = _found_state(image, paths)
    except RigError as exc:
        if exc.code != Code.DiskStateCorrupt:
            raise
        return None, None  # perhaps a file of another program; if it was ours, that log cannot continue anyway
    if state is None or not state.tracked:
        return None, None
    state.model_copy(update={"tracked": False, "needs_resync": "NotLogged"}).save(paths.file("disk"))
    return state, EndedGeneration(state.generation, "this mount does not log what is written")


def _found_state(image: Image, paths: DiskPaths) -> DiskState | None:
    path = paths.file("disk")
    try:
        state = DiskState.load(path)
    except FileNotFoundError:
        return None
    if state.image is None:
        raise RigError(
            Code.ImageUnusable, f"{image.path}: is a disk of a rig (see {path.name}); it can be mounted with --read-only"
        )
    if state.image != image.path.name:
        raise RigError(
            Code.LogExists, f"{path}: belongs to image {state.image}; give the disk of {image.path.name} another name"
        )
    return state


def _open_tracked(image: Image, paths: DiskPaths, report: ReportChange) -> StandAlone:
    if image.read_only:
        raise RigError(Code.ImageUnusable, f"{image.path}: can only be read, so there is nothing to log")
    if image.is_device:
        raise RigError(
            Code.ImageUnusable,
            f"{image.path}: is a block device: there is no folder next to it for a change log; mount it without --log",
        )
    found = _found_state(image, paths)
    if found is not None:
        return _begin_tracked(image, paths, found, report)
    _refuse_foreign_files(paths)
    try:
        return _begin_tracked(image, paths, None, report)
    except BaseException:
        _remove_files(paths)
        raise


def _remove_files(paths: DiskPaths) -> None:
    """Delete all files that this process created next to an image; there were none before."""
    for path in [paths.file(suffix) for suffix in _OWN_FILES] + [
        path for _, path in find_segments(paths.folder, paths.name)
    ]:
        path.unlink(missing_ok=True)


def _begin_tracked(image: Image, paths: DiskPaths, old_state: DiskState | None, report: ReportChange) -> StandAlone:
    why = closed = None
    if old_state is None:
        state = DiskState(
            disk_id=str(uuid.uuid4()),
            size_bytes=image.size_bytes,
            kind="raw",
            generation=0,
            tracked=False,
            needs_resync=None,
        )
    else:
        identified = identify(paths, old_state)
        state, closed, why = identified.state, identified.closed, identified.why
        if state.tracked and image.size_bytes < state.size_bytes:  # after a kill, the log may have the record of a growth
            why = f"the disk had {state.size_bytes} bytes, and has {image.size_bytes}"
            state = state.model_copy(update={"tracked": False, "needs_resync": Code.ImageChanged})
    if not state.tracked:
        state = state.model_copy(update={"size_bytes": image.size_bytes})
    state = state.model_copy(update={"image": image.path.name})
    state.save(paths.file("disk"))
    # A stand-alone disk does not need the dirty bitmap of an abandoned log.
    begun = state if state.tracked else state.model_copy(update={"needs_resync": None})
    positions = PositionCounter(paths.file("position"))
    alone = StandAlone(image, paths, begun, positions, tracked=True, report=report, closed=closed)
    alone.before = old_state
    if alone.disk.tracking.active:
        return alone
    reason = state.needs_resync or alone.disk.state.needs_resync
    try:
        alone.disk.tracking.start(new_generation=True)
    except BaseException:
        alone.abandon()
        raise
    if state.needs_resync == Code.LogCorrupt:  # noted when it was found
        why = "a file of it was deleted, renamed, replaced or damaged"
    if reason is not None:
        alone.ended_generation = EndedGeneration(state.generation, why or _why(alone.disk, reason))
    return alone


def _why(disk: Disk, reason: str) -> str:
    """Return why a log does not continue."""
    if disk.tracking.not_continued is not None and reason == Code.LogCorrupt:
        return disk.tracking.not_continued.message
    return _WHY.get(reason, reason)


def _refuse_foreign_files(paths: DiskPaths) -> None:
    """Raise ``LogExists`` if files with the disk's names exist without a state: they belong to something else."""
    ours = [paths.file(suffix) for suffix in _OWN_FILES] + [path for _, path in find_segments(paths.folder, paths.name)]
    for path in ours:
        if os.path.lexists(path):
            raise RigError(
                Code.LogExists,
                f"{path}: is there, but no {paths.file('disk').name} that names its disk; move it away, or give the disk "
                "another name",
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _segments(paths: DiskPaths, generation: int) -> list[Path]:
    found = []
    for _, path in find_segments(paths.folder, paths.name):
        with contextlib.suppress(RigError), SegmentReader(path) as reader:  # corruption of an old log does not matter here
            if reader.header.generation == generation:
                found.append(path)
    return found
