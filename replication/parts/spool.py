"""The spool: the sync parts of each disk that are not applied yet, compressed, one file each.

Fault contract
--------------
A kill of this process loses no byte that :func:`write_part` has written, because the kernel has them.  The files are not
synchronized: a power loss can leave files that are empty, torn or missing, although the record of the part is durable.  So
a part that has to be put again from the spool is read and verified first (:func:`is_sound`), and one that is not sound is
lost, as one that is missing.  A file has its final name only when it is complete, and it counts only when the relationship
has its number (:mod:`siterig.replication.engine.disk_copy`).

Why not: two fsyncs for each part cost more than all other work on it, and would save a resync only if the host loses power
*and* the account loses the part; the power loss alone usually needs one, because the generation of the log ends.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import direct_write, host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.transfer.codec import decompress, pack, verify
from siterig.blockfs.transfer.part_index import index_segment
from siterig.blockfs.transfer.part_name import PartName
from siterig.replication.parts.byte_budget import COPIES

_PACKED = ".zst"
_NAME = re.compile(r"(\d{8,})-(\d{8,})\.sync\.hrl(\.zst)?")
"""Without ``.zst``: a part that an older version has left, not compressed."""
_UNFINISHED = ".tmp"


@dataclass(frozen=True, order=True, slots=True)
class SpooledPart:
    """A complete file in the spool."""

    generation: int
    number: int
    path: Path


def spool_folder(spool: Path, disk_id: str) -> Path:
    """Return a disk's folder in the spool; a new one is created durably."""
    folder = spool / disk_id
    if not folder.exists():
        safe_files.make_folder(folder, parents=True)
        sync_folder(spool)
    return folder


def spooled(folder: Path) -> list[SpooledPart]:
    """Return the complete sync parts in a disk's spool folder, in order; other files are ignored."""
    names = ((_NAME.fullmatch(path.name), path) for path in folder.glob("*.sync.hrl*"))
    return sorted(SpooledPart(int(name[1]), int(name[2]), path) for name, path in names if name is not None)


def write_part(folder: Path, part: PartName, packed: bytes) -> Path:
    """Write the compressed part; it has its final name when it is complete."""
    path = folder / f"{part.generation:08d}-{part.first:08d}.sync.hrl{_PACKED}"
    unfinished = path.with_name(path.name + _UNFINISHED)
    fd = safe_files.open_file(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with naming(path):
            direct_write.write_all(fd, packed)
    finally:
        os.close(fd)
    unfinished.rename(path)
    return path


def remove_unrecorded(folder: Path, generation: int, parts: int) -> None:
    """Remove what a kill has left: parts that the relationship does not count, which were never put."""
    for item in spooled(folder):
        if item.generation == generation and item.number > parts:
            item.path.unlink()
    for path in [*folder.glob(f"*{_UNFINISHED}")]:
        path.unlink()


def clear_spool(folder: Path) -> None:
    """Delete all parts of a disk that is not replicated any more; does nothing without a folder."""
    for path in folder.glob("*"):
        path.unlink(missing_ok=True)


def memory_bytes(path: Path) -> int:
    """Return the memory that a source needs until it is put."""
    return path.stat().st_size * COPIES


def read_packed(path: Path) -> bytes:
    """Return the compressed part of a source: a segment, or a file of the spool."""
    return host_calls.read_file(path) if path.suffix == _PACKED else pack(path)


def is_sound(part: PartName, path: Path) -> bool:
    """Return True if the source is this part, and every record of it is right."""
    try:
        if path.suffix == _PACKED:
            segment = decompress(part, host_calls.read_file(path))
            index_segment(segment, part, disk_size_bytes=0)
        else:
            verify(part, path)
    except RigError:
        return False
    return True
