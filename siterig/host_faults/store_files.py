"""The files of managed disks: base, journal, checkpoints and metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from siterig.azure_emu.disks.base_image import BASE
from siterig.azure_emu.disks.frames import FRONT_MAGIC, HEADER_BYTES, DiskUuid, Frame, decode_header, encode_header
from siterig.azure_emu.disks.journal import journal_file_path
from siterig.azure_emu.disks.loader import load_history
from siterig.blockfs.core.errors import RigError
from siterig.host_faults.places import (
    NEW_FOLDER,
    Choice,
    FileDamage,
    FilePlaces,
    HostFile,
    HostLayer,
    existing,
    final_name,
    forms_of,
)
from siterig.host_faults.written_bytes import SegmentWalk, WrittenBytes

_PARTS = (
    (re.compile(r"base\.\w+"), "base"),
    (re.compile(r"journal/\d{12}\.journal"), "journal"),
    (re.compile(r"checkpoints/\d{12}\.extents"), "checkpoint"),
    (re.compile(r"disk\.json|progress|pins/.+\.json"), "metadata"),
)


@dataclass(frozen=True)
class ManagedDisks(FilePlaces):
    """The managed disks of a recovery side, each in a folder that is named by its id.

    Args:
        root: the folder of all managed disks.
        name_of: returns VM and name of the disk with an id; None if they are not known.
    """

    root: Path
    name_of: Callable[[str], tuple[str, str] | None] = lambda _disk_id: None
    _segments: dict[Path, SegmentWalk] = field(default_factory=dict, init=False, compare=False)
    """The segments that are being written, by their journal."""

    @property
    def layer(self) -> HostLayer:
        return "store"

    def file_of(self, path: Path) -> HostFile | None:
        for root in forms_of(self.root):
            if path.is_relative_to(root):
                folder, _, rest = str(path.relative_to(root)).partition("/")
                return self._file_in(folder.removeprefix(NEW_FOLDER), Path(rest), path) if rest else None
        return None

    def _file_in(self, disk_id: str, inside: Path, path: Path) -> HostFile | None:
        name = str(inside.with_name(final_name(inside.name)))
        part = next((part for pattern, part in _PARTS if pattern.fullmatch(name)), None)
        if part is None or disk_id.startswith("."):
            return None
        vm, disk = self.name_of(disk_id) or ("", disk_id)
        return HostFile("store", vm, disk, part, path)

    def files(self) -> Iterator[HostFile]:
        yield from existing(self, [*self.root.glob("*/*"), *self.root.glob("*/*/*")])

    def is_link(self, file: HostFile, op: str, data: bytes) -> bool:
        return file.part == "journal" and len(data) == HEADER_BYTES and data.startswith(FRONT_MAGIC)

    def broken_link(self, file: HostFile, data: bytes, fd: int) -> bytes:
        disk_id = file.path.parent.parent.name.removeprefix(NEW_FOLDER)
        frame = decode_header(data, journal_file=int(file.path.stem), disk=DiskUuid.of(disk_id))
        return _break(fd, frame)

    def written(self, file: HostFile, op: str, pieces: Sequence[bytes | memoryview], offset: int) -> Sequence[WrittenBytes]:
        if op != "write":
            return ()
        name = final_name(file.path.name)
        if name == BASE:
            length = sum(map(len, pieces))
            return (WrittenBytes(offset, length, offset, length),)
        return self._written_to_journal(file.path, b"".join(pieces), offset) if file.part == "journal" else ()

    def _written_to_journal(self, path: Path, data: bytes, offset: int) -> Sequence[WrittenBytes]:
        """Return the blocks of the records of a segment; the rest of a frame has no copies of blocks."""
        walk = SegmentWalk.of(data, offset) or self._segments.pop(path, None)
        found = None if walk is None else walk.follow(data, offset)
        if walk is not None and found is not None:
            self._segments[path] = walk
        return found or ()

    def break_chain(self, files: Sequence[HostFile], choose: Choice) -> FileDamage | None:
        """Change the number of a frame, in its header and in the copy."""
        journals = {file.path: file for file in files if file.part == "journal"}
        frames: list[tuple[HostFile, Frame]] = []
        for folder in dict.fromkeys(path.parent.parent for path in journals):
            try:
                found = load_history(folder).journal.frames
            except RigError:  # it is broken already
                continue
            frames += [
                (file, frame)
                for frame in found
                if (file := journals.get(journal_file_path(folder, frame.journal_file))) is not None
            ]
        if not frames:
            return None
        file, frame = frames[choose(len(frames))]
        fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.pwrite(fd, _break(fd, frame), frame.start)
        finally:
            os.close(fd)
        ranges = ((frame.start, HEADER_BYTES), (frame.back_at, HEADER_BYTES))
        return FileDamage(file, f"gave frame {frame.number} the number of the next one in {file.path}", ranges)


def _break(fd: int, frame: Frame) -> bytes:
    """Return the header of a frame with another number, after its copy has it."""
    broken = frame._replace(number=frame.number + 1)
    os.pwrite(fd, encode_header(broken, back=True), frame.back_at)
    return encode_header(broken)
