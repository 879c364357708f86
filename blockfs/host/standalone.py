"""A disk by itself: one image as a disk, perhaps tracked, without a host's folder around it.

Beside a tracked image lie ``NAME.disk`` (its state), ``NAME.position``, ``NAME.dirty`` and its change log; an image that is
not tracked has nothing beside it.

Fault contract
--------------
The disk's own contract is :mod:`siterig.blockfs.disk.disk`'s.  Here is decided whether the log that is found may go on:

* closed in order, and the image is still the one that was noted then (disk_identity.py): the log continues in its
  generation;
* killed: it continues too, unless the image was written to after the log was;
* anything else (power loss, rot, an image changed or mounted untracked meanwhile): replaying the log would not give the
  image.  It is kept as it is; a new generation begins with the image as it is now.

A change of the image by another program while it is mounted is reported at the end at the latest (``ImageChanged``), if it
can be noticed (:mod:`siterig.blockfs.watch.own_file`, :mod:`siterig.blockfs.watch.file_watch`); the log of that generation
does not continue.
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
from siterig.blockfs.host.tree import SingleDisk
from siterig.blockfs.images.image import Image
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.watch.file_watch import FileWatch

LOOK_S_MAX = 5.0
"""A look at loop devices and at the image's name waits for no file system longer."""
Note = Callable[[str], None]
"""Told what a user should know at once."""
_OWN_FILES = ("disk", "position", "dirty", "spare", "recycled")
# Nobody sends this log away and deletes it: it is as long as it is, and a write that it has no room for is refused.
_POLICY = LogPolicy(kept_share_max=None, when_full="refuse")
_WHY = {
    Code.ImageChanged: "the image was changed by something else",
    Code.LogCorrupt: "its file NAME.dirty is damaged or missing",
    "NotLogged": "the image was mounted without a log since",
    Code.PowerLoss: "the machine stopped while the image was mounted, and what was not flushed may be gone",
    Code.SyncFailed: "the host could not make its bytes durable",
    Code.WriteFailed: "the host failed to write the image",
}


def _unheard(_text: str) -> None:
    pass


class _Volatile(DiskState):
    """The state of a disk that leaves nothing behind."""

    @property
    def lasts(self) -> bool:
        """Not at all."""
        return False

    def save(self, path: Path) -> None:
        """Nothing is written."""


@dataclass(frozen=True, slots=True)
class EndedGeneration:
    """A log that does not go on: its generation, and why."""

    generation: int
    why: str


class StandAlone:
    """The disk of a locked image.  ``ended_generation``: the log before, if it ended with this opening.

    ``before``: the state that was noted beside the image before this opening; None if there was none.
    """

    def __init__(
        self,
        image: Image,
        paths: DiskPaths,
        state: DiskState,
        positions: PositionCounter,
        *,
        tracked: bool,
        note: Note,
        closed: ClosedNote | None = None,
    ) -> None:
        self.ended_generation: EndedGeneration | None = None
        self._tracked = tracked
        self._note = note
        self.before: DiskState | None = None
        self._image = image
        self._positions = positions
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch = FileWatch()
        try:
            # Not by its name again: that may be another file's by now.
            layer = RawLayer(image.path, size_bytes=image.size_bytes, fd=os.dup(image.fd))
            # A VHD's footer lies behind its disk, and a device has the size that it has.
            can_grow = image.format == "raw" and not image.is_device
            options = DiskOptions(
                positions, self._event_fd, _POLICY, can_grow=can_grow, watch=self._watch,
                report_changed=lambda _paths, what: note(what),
                report_log_lost=lambda _paths, what: note(f"{what}: the log ends, and no write from now on is in it"),
            )  # fmt: skip
            self.disk = Disk.over(paths, state=state, layer=layer, options=options, closed=closed)
        except BaseException:
            self._close_own()
            raise
        self.tree = SingleDisk(self.disk, self._event_fd, self._watch)

    @property
    def _guard(self) -> DiskGuard:
        if (guard := self.disk.guard) is None:
            raise AssertionError("a disk that lies on a file has a guard")
        return guard

    @property
    def log_trouble(self) -> str | None:
        """A change of the log's files by another program; None: none is known."""
        return self._guard.log_trouble

    def segments(self) -> list[Path]:
        """The files of the current log, oldest first; empty if the disk is not tracked."""
        paths, state = self.disk.paths, self.disk.state
        return _segments(paths, state.generation) if state.tracked else []

    async def look_at_the_end(self) -> None:
        """Find what can only be found by a look: a loop device that is attached to the image, and where a moved image is."""
        identity = self._guard.files.identity
        with trio.CancelScope(shield=True), trio.move_on_after(LOOK_S_MAX):
            await self._guard.look_for_loops()
            moved = await trio.to_thread.run_sync(_identity, self._image.path) != identity
            if self._guard.look_at_the_end() is None and moved:
                where = Path(f"/proc/self/fd/{self._image.fd}").readlink()
                there = await trio.to_thread.run_sync(_identity, where) == identity
                now = f"it is {where} now" if there else "it is in a file system that is no longer mounted there"
                self._note(f"{self._image.path} is not where it was: its folder was moved, or unmounted; {now}")

    def close(self) -> None:
        """Close in order, and note what the image is then.  ``DiskFull``, ``HostIoError``: that cannot be done.

        ``ImageChanged``: another program has changed the image, or taken it away, while it was open.
        """
        try:
            with _os_errors_as(f"{self._image.path}: cannot be closed in order", Code.HostIoError):
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
        """Close a disk that nobody could use, for its mount failed: beside the image is then what was there before."""
        if self.before is None and self.disk.state.tracked:
            self.abandon()
            _remove_files(self.disk.paths)
        elif self.before is not None and not self.disk.state.tracked:
            self.abandon()
            self.before.save(self.disk.paths.file("disk"))
        else:
            self.close()

    def abandon(self) -> None:
        """Release everything as a kill would."""
        self.disk.abandon()
        self._close_own()

    def _close_own(self) -> None:
        self._positions.close()
        self._watch.close()
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1


def open_disk(image: Image, name: str, *, tracked: bool, note: Note = _unheard) -> StandAlone:
    """Open an image as disk ``name``; the caller gives the image back after it has closed the disk.

    ``note``: told at once what another program does to the image.

    ``ImageUnusable``: it is a rig's, can only be read, or has the name of one of the disk's other files.  ``LogExists``: the
    files beside it are another disk's.  ``DiskStateCorrupt``, ``StateVersion``: they are unreadable.  ``FolderUnusable``,
    ``DiskFull``: there can be none.
    """
    paths = DiskPaths(image.path.parent, "", name)
    if image.path in [paths.file(suffix) for suffix in _OWN_FILES] or segment_number(name, image.path.name) is not None:
        raise RigError(
            Code.ImageUnusable,
            f"{image.path}: has the name of a file of disk {name!r}: give the disk another name with --name",
        )
    with _os_errors_as(f"{paths.folder}: cannot hold the change log of {image.path.name}", Code.FolderUnusable):
        return _open_tracked(image, paths, note) if tracked else _open_untracked(image, paths, note)


@contextlib.contextmanager
def _os_errors_as(what: str, code: Code) -> Iterator[None]:
    """An ``OSError`` of the block is reported with the file that it is about, and what that was needed for."""
    try:
        yield
    except OSError as exc:
        code = Code.DiskFull if exc.errno in FULL else code
        raise RigError(code, f"{what}: {reason(exc, what)}", recoverable=code == Code.DiskFull) from exc


def _open_untracked(image: Image, paths: DiskPaths, note: Note) -> StandAlone:
    before, ended = (None, None) if image.read_only else _end_log(image, paths)
    state = _Volatile(
        disk_id=str(uuid.uuid4()), size_bytes=image.size_bytes, kind="raw", generation=0, tracked=False, needs_resync=None,
        image=image.path.name,
    )  # fmt: skip
    alone = StandAlone(image, paths, state, PositionCounter(None), tracked=False, note=note)
    alone.before, alone.ended_generation = before, ended
    return alone


def _end_log(image: Image, paths: DiskPaths) -> tuple[DiskState | None, EndedGeneration | None]:
    """Note that what is written from now on is not in the image's log; the state before, and the log that ends."""
    try:
        state = _found_state(image, paths)
    except RigError as exc:
        if exc.code != Code.DiskStateCorrupt:
            raise
        return None, None  # anybody's file; if it was ours, it cannot go on anyway
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
        )  # fmt: skip
    return state


def _open_tracked(image: Image, paths: DiskPaths, note: Note) -> StandAlone:
    if image.read_only:
        raise RigError(Code.ImageUnusable, f"{image.path}: can only be read, so there is nothing to log")
    if image.is_device:
        raise RigError(
            Code.ImageUnusable,
            f"{image.path}: is a block device, beside which no change log can be kept; mount it without --log",
        )
    found = _found_state(image, paths)
    if found is not None:
        return _begin_tracked(image, paths, found, note)
    _refuse_foreign_files(paths)
    try:
        return _begin_tracked(image, paths, None, note)
    except BaseException:
        _remove_files(paths)
        raise


def _remove_files(paths: DiskPaths) -> None:
    """Take away all that this process made beside an image; nothing was there before."""
    for path in [paths.file(suffix) for suffix in _OWN_FILES] + [
        path for _, path in find_segments(paths.folder, paths.name)
    ]:
        path.unlink(missing_ok=True)


def _begin_tracked(image: Image, paths: DiskPaths, found: DiskState | None, note: Note) -> StandAlone:
    why = closed = None
    if found is None:
        state = DiskState(
            disk_id=str(uuid.uuid4()), size_bytes=image.size_bytes, kind="raw", generation=0, tracked=False,
            needs_resync=None,
        )  # fmt: skip
    else:
        identified = identify(paths, found)
        state, closed, why = identified.state, identified.closed, identified.why
        if state.tracked and image.size_bytes < state.size_bytes:  # after a kill, the log may tell of a growth
            why = f"the disk had {state.size_bytes} bytes, and has {image.size_bytes}"
            state = state.model_copy(update={"tracked": False, "needs_resync": Code.ImageChanged})
    if not state.tracked:
        state = state.model_copy(update={"size_bytes": image.size_bytes})
    state = state.model_copy(update={"image": image.path.name})
    state.save(paths.file("disk"))
    # What a log that was given up would go on to note, nobody here needs.
    begun = state if state.tracked else state.model_copy(update={"needs_resync": None})
    positions = PositionCounter(paths.file("position"))
    alone = StandAlone(image, paths, begun, positions, tracked=True, note=note, closed=closed)
    alone.before = found
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
    """Why a log does not continue."""
    if disk.tracking.not_continued is not None and reason == Code.LogCorrupt:
        return disk.tracking.not_continued.message
    return _WHY.get(reason, reason)


def _refuse_foreign_files(paths: DiskPaths) -> None:
    """Without a state, files with the names of ours are somebody else's, and not to be written over."""
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
        with contextlib.suppress(RigError), SegmentReader(path) as reader:  # an old log's rot is not this one's
            if reader.header.generation == generation:
                found.append(path)
    return found
