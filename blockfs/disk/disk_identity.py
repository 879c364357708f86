"""Checks at the opening that a tracked disk is still in the state that its change log describes.

This covers the disks of a rig and stand-alone images alike.  The check compares the disk's files
(:mod:`siterig.blockfs.watch.file_stamps`), and the first and last records of its log, with a note of the last clean close.

Fault contract: the note of a clean close (``closed``) is durably removed before a byte of the disk is changed, and is
written only after log and disk are durable.  So a kill at any moment leaves a state without a note, never a note that
does not match the disk.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import LogExtent, find_segments
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_state import ClosedNote, DiskState, OpenedNote
from siterig.blockfs.layers import overlay_map
from siterig.blockfs.watch.file_stamps import KILL_GRACE_S, DigestBudget, FileStamp, durable_stamp, inode_of, why_changed
from siterig.cext._core import lib

_log = structlog.get_logger("siterig.blockfs.disk.disk_identity")


def own_files(paths: DiskPaths, state: DiskState) -> list[Path]:
    """Return the files that hold the bytes of a disk; the first takes the writes."""
    if state.image is not None:
        return [paths.folder / state.image]
    if state.kind == "raw":
        return [paths.file("img")]
    return [paths.file(suffix) for suffix in ("top", "top.present", "top.durable")]


def check_files_there(paths: DiskPaths, state: DiskState) -> None:
    """Raise ``DiskCorrupt`` if a file is missing or truncated that the opening would create empty."""
    if state.kind == "raw":
        return  # its file is never created at an opening; those of an overlay are, and a power loss may lose them
    map_bytes = -(-state.size_bytes // lib.SR_BLOCK_BYTES // 8)
    noted = state.closed is not None or _noted_by_killed(paths) is not None
    if not noted and not overlay_map.vouch_for(paths.file("top"), map_bytes):
        return
    for path, wanted in zip(own_files(paths, state), (state.size_bytes, map_bytes, 0), strict=True):
        if not path.exists():
            raise RigError(Code.DiskCorrupt, f"{path}: is missing; disk {paths} has blocks in it")
        if (found := path.stat().st_size) < wanted:
            raise RigError(Code.DiskCorrupt, f"{path}: has {found} bytes; disk {paths} needs {wanted}")


def _noted_by_killed(paths: DiskPaths) -> dirty_bitmap.DirtyFile | None:
    """Return the dirty file of a process that was killed in this boot; None if there is none, or the power was lost."""
    try:
        found = dirty_bitmap.read(paths.file("dirty"))
    except RigError:
        return None  # the opening reports it
    return found if found.boot_id == boot.current_boot_id() else None


def newest_segment(paths: DiskPaths) -> int:
    """Return the number of the newest segment that a killed process had begun; 0 if it is unknown."""
    found = _noted_by_killed(paths)
    return found.newest_segment if found is not None else 0


def noted_reason(paths: DiskPaths, state: DiskState) -> str | None:
    """Return the reason why the log was abandoned when its process ended; None if it was not.

    The reason is ``LogCorrupt`` or ``PowerLoss`` if the dirty file does not show it.
    """
    try:
        found = dirty_bitmap.read(paths.file("dirty"))
    except RigError as exc:
        _log.info("dirty_file_unusable", disk=str(paths), reason=exc.code, message=exc.message)
        return Code.LogCorrupt
    if (found.disk_id, found.generation) != (state.disk_id, state.generation):
        return Code.LogCorrupt  # a kill came while a log began: the notes of the one before are lost
    if found.reason is not None and paths.file("dirty").stat().st_size < dirty_bitmap.file_bytes(state.size_bytes):
        _log.info("dirty_file_unusable", disk=str(paths), reason="it was truncated")
        return Code.LogCorrupt
    return found.reason if found.reason is None or found.complete else Code.PowerLoss


@dataclass(frozen=True, slots=True)
class Identified:
    """Result of :func:`identify`.

    Attributes:
        state: the state of the disk, durably without the note of the last clean close.
        closed: that note; None if there was none.
        why: why the disk does not match its log (the state has ``ImageChanged`` then); None if it does, or has no log.
    """

    state: DiskState
    closed: ClosedNote | None
    why: str | None


def identify(paths: DiskPaths, state: DiskState) -> Identified:
    """Check whether the files of a tracked disk are unchanged; call it before any of them is opened for writing."""
    closed, why = state.closed, _why_another(paths, state) if state.tracked else None
    if why is not None:
        state = state.model_copy(update={"tracked": False, "needs_resync": Code.ImageChanged})
    if closed is not None or why is not None:
        state = state.model_copy(update={"closed": None})
        state.save(paths.file("disk"))
    return Identified(state, closed, why)


def _why_another(paths: DiskPaths, state: DiskState) -> str | None:
    if state.closed is None:
        return _since_kill(paths, state)
    wanted = {path.name for path in own_files(paths, state)}
    stamps = [stamp for stamp in state.closed.files if stamp.file in wanted]
    return next((why for stamp in stamps if (why := why_changed(paths.folder / stamp.file, stamp)) is not None), None)


def _since_kill(paths: DiskPaths, state: DiskState) -> str | None:
    path, noted = own_files(paths, state)[0], _noted_by_killed(paths)
    if noted is None or not path.exists():
        return None
    found, opened = path.stat(), state.opened
    if opened is not None and inode_of(paths.file("dirty").stat()) == opened.dirty_inode and inode_of(found) != opened.inode:
        return f"{path} was replaced after the process that logged it was killed"
    if state.promoting:  # the blocks that are copied from the backing are in no log
        return None
    own_ns = max([noted.mtime_ns, opened.mtime_ns if opened else 0, *_log_mtimes_ns(paths)])
    if own_ns and found.st_mtime_ns > own_ns + KILL_GRACE_S * 1e9:
        return f"{path} was written to after the process that logged it was killed"
    return None


def _log_mtimes_ns(paths: DiskPaths) -> list[int]:
    segments = [path for _, path in find_segments(paths.folder, paths.name)]
    found = []
    for path in (*segments, paths.file("spare")):  # the spare is the newest segment if a kill came before it got its name
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_mtime_ns)
    return found


def opened_note(paths: DiskPaths, fd: int) -> OpenedNote:
    """Return the note that is saved when the log of a disk continues; ``fd`` is the open file that takes the writes."""
    return OpenedNote(inode=inode_of(os.fstat(fd)), dirty_inode=inode_of(paths.file("dirty").stat()))


def closed_note(
    paths: DiskPaths, state: DiskState, log: LogExtent, known: list[FileStamp], budget: DigestBudget
) -> ClosedNote:
    """Return the note that is saved at a clean close, when everything is durable.

    Args:
        paths: the names of the disk's files.
        state: the state of the disk.
        log: the extent of its log.
        known: stamps of the clean close before; their digests are used again for unchanged files.
        budget: limits the bytes that are read for digests.
    """
    old = {stamp.file: stamp for stamp in known}
    files = [durable_stamp(path, old.get(path.name), budget) for path in own_files(paths, state)]
    return ClosedNote(files=files, log=log)
