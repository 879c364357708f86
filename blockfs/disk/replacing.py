"""Disks that a failback replaces: the writes to them since the failover, and the old disks that are kept.

Fault contract: an old disk that is to be kept durably has its second name before the new disk takes its place.  A kill in
between leaves both names; the next failback then keeps the disk under another name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.segment import CHANGES, Record, SegmentReader, scan_tail
from siterig.blockfs.contracts.control import CLOSE_IT, DownloadedDisk, KeptImage, SourceUse
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import rename_new, sync_folder
from siterig.blockfs.files.free_space import require_free_space
from siterig.blockfs.layers.layer import data_bytes
from siterig.cext.checksums import is_zero

KEPT_FOLDER = "kept"
"""Name of the folder of kept images, in the folder of a VM."""
_KEPT = re.compile(r"(?P<disk>.+)-\d{8}T\d{6}Z(-\d+)?\.img")
_COPY_BYTES = 1 << 20


def keep_image(disk: Disk) -> None:
    """Keep a disk as ``kept/NAME-TIME.img``; it blocks, so call it in a thread.

    The file of a raw disk gets a second name; a thin disk is copied.
    """
    paths = disk.paths
    folder = paths.folder / KEPT_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    link = folder / f".{paths.name}.new"
    link.unlink(missing_ok=True)
    if disk.state.kind == "raw":
        os.link(paths.file("img"), link)
    else:
        _copy(disk, link)
    now_s = disk.clock.wall_ns() // SECOND_NS
    stem = f"{paths.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now_s))}"
    number = 1
    while True:
        try:
            rename_new(link, folder / (f"{stem}.img" if number == 1 else f"{stem}-{number}.img"))
            break
        except FileExistsError:
            number += 1
    sync_folder(folder)
    sync_folder(paths.folder)


def _copy(disk: Disk, target: Path) -> None:
    """Copy all bytes of a thin disk to a sparse file, durably except for the name of the file."""
    with os.fdopen(safe_files.create_file(target, os.O_WRONLY), "wb") as file:
        file.truncate(disk.size_bytes)
        for offset in range(0, disk.size_bytes, _COPY_BYTES):
            data = disk.read(offset, min(_COPY_BYTES, disk.size_bytes - offset))
            if not is_zero(data):
                file.seek(offset)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())


def kept_images(folder: Path, disk: str | None = None) -> list[KeptImage]:
    """Return the kept images in the folder of a VM, or those of one of its disks, oldest first."""
    found = []
    for path in sorted((folder / KEPT_FOLDER).glob("*.img")):
        name = _KEPT.fullmatch(path.name)
        if name is not None and disk in (None, name["disk"]):
            try:
                status = path.lstat()
            except FileNotFoundError:  # deleted just now
                continue
            found.append(
                KeptImage(
                    file=path.name,
                    path=str(path),
                    disk=name["disk"],
                    size_bytes=status.st_size,
                    allocated_bytes=status.st_blocks * STAT_BLOCK_BYTES,
                )
            )
    return found


def delete_kept(vm: str, folder: Path, file: str) -> None:
    """Delete a kept image; raise ``KeptImageNotFound``, with the names of all kept images, if there is none."""
    known = {image.file: Path(image.path) for image in kept_images(folder)}
    if file not in known:
        raise RigError(Code.KeptImageNotFound, f"VM {vm!r} has no kept image {file!r}; it has: {', '.join(known) or 'none'}")
    known[file].unlink()
    sync_folder(folder / KEPT_FOLDER)


def check_replace(vm: str, disks: dict[str, Disk], coming: list[DownloadedDisk]) -> None:
    """Check that disks can be replaced; it blocks, so call it in a thread.

    The old and the new disk need space at the same time, and so does the flat copy of a thin disk that is to be kept.

    Raises:
        RigError: ``DiskNotFound``, ``DiskInUse``, ``NotEnoughSpace``.
    """
    needs = []
    for item in coming:
        disk = disks.get(item.name)
        if disk is None:
            raise RigError(
                Code.DiskNotFound, f"VM {vm!r} has no disk {item.name!r} to be replaced; it has: {', '.join(disks)}"
            )
        check_idle(disk)
        copied_bytes = data_bytes(disk.layer) if item.keeps_old and disk.state.kind != "raw" else 0
        needs.append((disk.paths.folder, item.data_bytes + copied_bytes))
    require_free_space(
        needs, f"VM {vm!r}", "in addition to the old disks, the returning disks (and copies of thin ones) need"
    )


def check_idle(disk: Disk) -> None:
    """Raise ``DiskInUse`` if the disk is open through the mount."""
    if disk.handles:
        raise RigError(Code.DiskInUse, f"disk {disk.paths} is in use (open handles: {disk.handles}); {CLOSE_IT}")


def source_use(disk: Disk, after: int) -> SourceUse:
    """Return the use of a disk after a position; it reads the log, so call it in a thread."""
    return SourceUse(name=disk.paths.name, written_bytes=_written_bytes(disk, after), open_handles=disk.handles)


def _records(segment: SegmentReader, *, is_newest: bool) -> Iterator[Record]:
    """Yield the records up to the bytes of an earlier use of the file, or, in the newest segment, up to an unfinished one.

    Only headers are read, but where the records of an older segment end: there the checksums decide.

    Raises:
        RigError: ``LogCorrupt``.
    """
    try:
        yield from segment.records(verify=False)
    except RigError:
        if not is_newest:
            scan_tail(segment)


def _written_bytes(disk: Disk, after: int) -> int | None:
    """Return the bytes written after a position; None if the log was abandoned or cannot be read completely."""
    if not disk.tracking.active or disk.state.needs_resync is not None:
        return disk.tracking.dirty_bytes or None
    last_position = disk.tracking.log.last_position
    if last_position <= after:
        return 0
    written = read_position = 0
    due = (0, 0)
    paths = [path for _, path in find_segments(disk.paths.folder, disk.paths.name)]
    for path in paths:
        try:
            with SegmentReader(path) as segment:
                header = segment.header
                if header.generation == due[0] and header.first_record_seq != due[1]:
                    return None  # records before it are missing
                due = (header.generation, header.first_record_seq)
                for record in _records(segment, is_newest=path == paths[-1]):
                    if record.position < read_position:
                        break  # the file is used again, and has records of its former use
                    read_position, due = record.position, (header.generation, record.seq + 1)
                    if record.position > after and record.type in CHANGES:
                        written += record.length
        except RigError:
            return None
    return min(written, disk.size_bytes) if read_position >= last_position else None
