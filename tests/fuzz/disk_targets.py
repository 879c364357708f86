"""Opening a disk, compared with a strict reader: docs/reference/formats/hrl.md ("Segments as files", "Fault contract")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from structlog.testing import capture_logs

from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from tests.fuzz import strict_log as log
from tests.fuzz.damage import DISK_ID, GENERATION
from tests.fuzz.log_targets import assert_clear
from tests.fuzz.small_targets import strict_dirty

DISK_BYTES_MAX = 64 << 40
OPENED_BYTES_MAX = 16 << 20
"""The largest disk that is compared byte by byte."""


@dataclass
class Expected:
    """The expected result of an open: if ``needs_resync`` is None, the log continues."""

    needs_resync: str | None
    records: list[log.Record]
    image: bytes = b""
    disk_bytes: int = 0


def _named(files: dict[str, bytes]) -> list[bytes]:
    """Return the segments by number, and the spare if it has become a segment."""
    numbered = sorted(
        (int(found[1]), raw) for name, raw in files.items() if (found := re.fullmatch(r"os\.(\d{6})\.hrl", name))
    )
    rows = [raw for _, raw in numbered]
    if "os.spare" in files:
        try:
            header = log.read_header(files["os.spare"])
        except log.BadLogError:
            pass
        else:
            if (header.disk_id, header.generation) == (DISK_ID, GENERATION):
                rows.append(files["os.spare"])
    if rows and (len(rows[-1]) < log.HEADER_BYTES or not any(rows[-1][: log.HEADER_BYTES])):
        rows.pop()
    return rows


def _segments(rows: list[bytes], disk_bytes: int) -> tuple[list[log.Segment], int]:
    """Return the generation's good segments and the disk's size after them; raise ``BadLogError`` if they are bad."""
    found: list[log.Segment] = []
    position = 0
    for raw in rows:
        header = log.read_header(raw)
        if header.generation != GENERATION:
            continue
        one = log.read_segment(raw)
        follows = not found or header.first_seq == found[-1].header.first_seq + len(found[-1].records)
        if one.corrupt or header.disk_id != DISK_ID or header.stream or not follows:
            raise log.BadLogError("LogCorrupt", "corrupt, or of another log, or a gap")
        for record in one.records:
            if record.position < position:
                raise log.BadLogError("LogCorrupt", "position")
            if record.type == log.RESIZE:
                if record.length % 512 or record.length > DISK_BYTES_MAX:
                    raise log.BadLogError("LogCorrupt", "no size of a disk")
                disk_bytes = max(disk_bytes, record.length)
            if record.type in (log.WRITE, log.ZERO, log.DISCARD) and record.offset + record.length > disk_bytes:
                raise log.BadLogError("LogCorrupt", "beyond the disk")
            position = record.position
        found.append(one)
    if not found:
        raise log.BadLogError("LogCorrupt", "no segment")
    return found, disk_bytes


def expected(files: dict[str, bytes]) -> Expected:
    """Return the expected result, or raise ``BadLogError`` if the disk must not be opened."""
    dirty = strict_dirty(files.get("os.dirty", b""))
    if dirty is None:
        return Expected("LogCorrupt", [])
    if (dirty.disk_id, dirty.generation) != (DISK_ID, GENERATION):
        return Expected("LogCorrupt", [])
    if dirty.reason:
        chunks = -(-len(files["os.img"]) // 65536)
        is_whole = len(files["os.dirty"]) >= 4096 + -(-chunks // 8)
        return Expected(dirty.reason if is_whole else "LogCorrupt", [])
    try:
        found, disk_bytes = _segments(_named(files), len(files["os.img"]))
    except log.BadLogError as bad:
        if bad.code != "LogCorrupt":
            raise
        return Expected("LogCorrupt", [])
    last = found[-1]
    if last.header.boot_id != current_boot_id() and not (last.records and last.records[-1].flags):
        return Expected("PowerLoss", [])
    image = b""
    if disk_bytes <= OPENED_BYTES_MAX:
        image = log.replay(files["os.img"].ljust(disk_bytes, b"\0"), last.records[-1:])
    return Expected(None, [record for one in found for record in one.records], image, disk_bytes)


def disk(files: dict[str, bytes], folder: Path) -> str:
    """Compare ``Disk.open`` with the strict reader."""
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    positions = PositionCounter(None)
    paths = DiskPaths(folder, "vm", "os")
    try:
        want = expected(files)
    except log.BadLogError as bad:
        want, code = Expected(None, []), bad.code
    else:
        code = ""
    try:
        try:
            with capture_logs():
                opened = Disk.open(paths, DiskOptions(positions), None)
        except RigError as error:
            assert code, error.message
            assert_clear(error, {code}, folder)
            return error.code
        try:
            assert not code, "the disk was opened, although it is bad"
            return _compare(opened, want, files, positions)
        finally:
            opened.abandon()
    finally:
        positions.close()


def _compare(opened: Disk, want: Expected, files: dict[str, bytes], positions: PositionCounter) -> str:
    folder = opened.paths.folder
    assert (opened.state.needs_resync, opened.state.tracked) == (want.needs_resync, want.needs_resync is None)
    if want.needs_resync is not None:
        for name, raw in files.items():  # kept until a resync replaces them
            if name.endswith(".hrl") and any(raw[: log.HEADER_BYTES]) and len(raw) >= log.HEADER_BYTES:
                assert (folder / name).read_bytes() == raw
        return want.needs_resync
    assert opened.size_bytes == want.disk_bytes
    if want.image:
        assert opened.read(0, opened.size_bytes) == want.image
    assert all(record.position <= positions.value for record in want.records)
    rows = [path.read_bytes() for _, path in find_segments(folder, "os")]
    kept = [log.read_segment(raw) for raw in rows if log.read_header(raw).generation == GENERATION]
    assert not any(one.torn_bytes for one in kept[:-1])
    assert kept[-1].records == []
    assert [record for one in kept for record in one.records] == want.records
    assert opened.tracking.log.next_seq == kept[-1].header.first_seq
    return "good"
