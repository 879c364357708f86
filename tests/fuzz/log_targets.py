"""Each reader of change logs is compared with the strict one: both must accept the same records.

Every function gets bytes and an empty folder, and returns the outcome for the statistics.  It raises AssertionError if
the two readers differ.  Exceptions of a reader other than ``RigError`` are not caught.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import zstandard

from siterig.blockfs.changelog import segment as segment_module
from siterig.blockfs.changelog.replay import CheckedLog, FileSummary, Replay, check, verify
from siterig.blockfs.changelog.segment import Record, SegmentReader, scan_tail
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.bundle import BundleName, decode
from siterig.blockfs.transfer.codec import unpack
from siterig.blockfs.transfer.part_index import SegmentEntry, decode_entries, index_segment
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext.checksums import crc32c
from tests.fuzz import strict_log as log
from tests.fuzz.damage import DISK_BYTES, DISK_ID, GENERATION

LOG_CODES = {"LogCorrupt", "LogVersion", "LogGap", "LogMismatch"}
IMAGE_BYTES_MAX = 1 << 20
"""The largest image that is replayed; a damaged size may make an image larger."""


def plain(record: Record, payload: bytes) -> tuple[object, ...]:
    """Return a record in the form in which both readers are compared."""
    return (
        int(record.type),
        record.flags,
        record.seq,
        record.position,
        record.time_ns,
        record.offset,
        record.length,
        payload,
        record.end,
    )


def strict_plain(record: log.Record) -> tuple[object, ...]:
    return (
        record.type,
        record.flags,
        record.seq,
        record.position,
        record.time_ns,
        record.offset,
        record.length,
        record.payload,
        record.end,
    )


def assert_clear(error: RigError, codes: set[str], *names: Path) -> None:
    """Check that the error has one of the codes, and that its message names a file and fits on a line."""
    assert error.code in codes, (error.code, error.message)
    assert not names or any(str(name) in error.message for name in names), error.message
    assert len(error.message) < 1000, error.message
    assert error.message.isprintable(), error.message


@contextmanager
def bounded_work(size_bytes: int) -> Iterator[None]:
    """Check that checksums are computed over at most a small multiple of the bytes of the file."""
    done = 0

    def counted(data: bytes | memoryview, crc: int = 0) -> int:
        nonlocal done
        done += len(data)
        assert done <= 64 * size_bytes + 65536, f"checksums over {done} bytes of a file of {size_bytes}"
        return crc32c(data, crc)

    with mock.patch.object(segment_module, "crc32c", counted):
        yield


# --- one segment ----------------------------------------------------------------------------------------------------


def segment(raw: bytes, folder: Path) -> str:
    """Compare ``SegmentReader`` and ``scan_tail`` of a file with the strict reader."""
    path = folder / "os.000001.hrl"
    path.write_bytes(raw)
    try:
        want = log.read_segment(raw)
    except log.BadLogError as bad:
        return _refused_header(path, bad)
    with SegmentReader(path) as reader, bounded_work(len(raw)):
        _same_header(reader, want.header)
        got, error = _read_strictly(reader)
        assert got == [strict_plain(record) for record in want.records]
        assert (error is None) == (want.torn_bytes == 0)
        if error is not None:
            assert_clear(error, {"LogCorrupt"}, path)
            assert f"at byte {want.end}:" in error.message
    with SegmentReader(path) as reader, bounded_work(len(raw)):
        try:
            scan = scan_tail(reader)
        except RigError as error:
            assert want.corrupt, error.message
            assert_clear(error, {"LogCorrupt"}, path)
            assert f"at byte {want.end}:" in error.message
            return "corrupt"
        assert not want.corrupt
        assert (len(scan.records), scan.end, scan.torn_bytes) == (len(want.records), want.end, want.torn_bytes)
    return "torn" if want.torn_bytes else "good"


def _refused_header(path: Path, bad: log.BadLogError) -> str:
    try:
        SegmentReader(path).close()
    except RigError as error:
        assert_clear(error, {bad.code}, path)
        assert bad.at is None or f"at byte {bad.at}:" in error.message
        return bad.code
    raise AssertionError(f"taken for a segment: {bad}")


def _same_header(reader: SegmentReader, want: log.Header) -> None:
    got = reader.header
    assert (got.disk_id, got.generation, got.first_seq, got.boot_id, got.created_ns, got.disk_size_bytes) == (
        want.disk_id,
        want.generation,
        want.first_seq,
        want.boot_id,
        want.created_ns,
        want.disk_size_bytes,
    )
    assert got.stream == ("log", "sync")[want.stream]
    assert got.key_id == (str(uuid.UUID(bytes=want.key_id)) if any(want.key_id) else None)


def _read_strictly(reader: SegmentReader) -> tuple[list[tuple[object, ...]], RigError | None]:
    got = []
    try:
        for record in reader.records():
            got.append(plain(record, reader.stored_payload(record)))
    except RigError as error:
        return got, error
    return got, None


# --- a row of segments ----------------------------------------------------------------------------------------------


def _ordered(files: list[bytes]) -> list[log.Segment | log.BadLogError]:
    """Sort like ``replay.in_order``: by generation and first record; an incomplete header, as a kill leaves it, is last."""
    read: list[tuple[tuple[object, ...], log.Segment | log.BadLogError]] = []
    for number, raw in enumerate(files):
        try:
            one = log.read_segment(raw)
        except log.BadLogError as bad:
            read.append(((True, number), bad))
        else:
            header = one.header
            key = (False, header.generation, 1 - header.stream, header.first_seq, len(raw) > log.HEADER_BYTES, number)
            read.append((key, one))
    return [one for _, one in sorted(read, key=lambda pair: pair[0])]


def _strict_row(files: list[bytes]) -> list[log.Record] | None:
    """Return the records of good consecutive segments, or None if they are bad."""
    segments = _ordered(files)
    stubs = sum(len(raw) < log.HEADER_BYTES or not any(raw[: log.HEADER_BYTES]) for raw in files)
    bad = sum(isinstance(one, log.BadLogError) for one in segments)
    if bad > stubs or stubs > 1 or stubs == len(files):
        return None
    good = [one for one in segments if isinstance(one, log.Segment)]
    if stubs and good[-1].torn:
        return None
    try:
        return log.read_row(good)
    except log.BadLogError:
        return None


def row(files: list[bytes], folder: Path) -> str:
    """Compare ``replay.check``, ``verify`` and ``Replay`` of segments with the strict reader."""
    paths = [folder / f"os.{number:06d}.hrl" for number in range(1, len(files) + 1)]
    for path, raw in zip(paths, files, strict=True):
        path.write_bytes(raw)
    want = _strict_row(files)
    with bounded_work(sum(map(len, files))):
        results = [result for _, result in verify(paths)]
        assert len(results) == len(paths)
    for result in results:
        if isinstance(result, RigError):
            assert_clear(result, LOG_CODES, *paths)
    try:
        checked = check(paths)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, LOG_CODES, *paths)
        assert any(isinstance(result, RigError) for result in results)
        return error.code
    assert want is not None, "the reader accepted a bad log"
    assert all(isinstance(result, FileSummary) for result in results)
    got = [plain(record, reader.stored_payload(record)) for reader, record in checked.records()]
    assert got == [strict_plain(record) for record in want]
    if any(isinstance(one, log.Segment) and any(one.header.key_id) for one in _ordered(files)):
        return _not_replayed(checked, want, folder, paths)
    return _replayed(checked, want, folder)


def _not_replayed(checked: CheckedLog, records: list[log.Record], folder: Path, paths: list[Path]) -> str:
    """Check that encrypted data are not written to an image."""
    if max(checked.size_bytes_before, checked.size_bytes_after) > IMAGE_BYTES_MAX:
        return "good, large"
    image = folder / "image"
    image.write_bytes(bytes(checked.size_bytes_before))
    onto = RawLayer(image, writable=True)
    try:
        Replay(checked, onto).run()
    except RigError as error:
        assert_clear(error, {"KeyMissing"}, *paths)
        assert any(record.type == log.WRITE for record in records)
        return "encrypted"
    finally:
        onto.close()
    assert not any(record.type == log.WRITE for record in records)
    return "good"


def _replayed(checked: CheckedLog, records: list[log.Record], folder: Path) -> str:
    if max(checked.size_bytes_before, checked.size_bytes_after) > IMAGE_BYTES_MAX:
        return "good, large"
    image = folder / "image"
    start = bytes(at * 7 % 251 for at in range(checked.size_bytes_before))
    image.write_bytes(start)
    onto = RawLayer(image, writable=True)
    try:
        Replay(checked, onto).run()
    finally:
        onto.close()
    grown = max((r.offset + r.length for r in records if r.type in (log.WRITE, log.ZERO, log.DISCARD)), default=0)
    start = start.ljust(grown, b"\0")  # the header of a later segment may have a larger disk size
    assert image.read_bytes().ljust(grown, b"\0") == log.replay(start, records)
    return "good"


# --- parts --------------------------------------------------------------------


def _strict_part(part: PartName, data: bytes) -> bytes | None:
    """Return the segment of a part; None if it is not one whole zstd frame with its size, or has another name."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    frame = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj()
    try:
        size = zstandard.frame_content_size(data)
        if size < 0 or size > 1 << 30:
            return None
        raw = frame.decompress(data)
    except zstandard.ZstdError:
        return None
    if not frame.eof or frame.unused_data or len(raw) != size:
        return None
    try:
        found = log.read_segment(raw, of_disk=False)
    except log.BadLogError:
        return None
    header, first = found.header, found.header.first_seq
    last = first if header.stream else first + len(found.records) - 1
    named = PartName(header.disk_id, header.generation, "sync" if header.stream else "log", first, last)
    return raw if not found.torn_bytes and named == part else None


def index(raw: bytes, _folder: Path) -> str:
    """Compare ``index_segment``, for the segment's right name and a disk of ``DISK_BYTES``, with the strict reader."""
    try:
        want = log.read_segment(raw, of_disk=False)
    except log.BadLogError:
        return _refused_index(raw, PartName(DISK_ID, GENERATION, "log", 1, 1), {"PartCorrupt"}, None)
    header = want.header
    last = header.first_seq if header.stream else header.first_seq + len(want.records) - 1
    name = PartName(header.disk_id, header.generation, "sync" if header.stream else "log", header.first_seq, last)
    if want.torn_bytes:
        return _refused_index(raw, name, {"PartCorrupt"}, f"at byte {want.end}:")
    size = _size_behind(want)
    if size is None:
        return _refused_index(raw, name, {"PartRefused"}, None)
    found = index_segment(raw, name, DISK_BYTES)
    assert [
        (entry.type, entry.position, entry.time_ns, entry.offset, entry.length) for entry in decode_entries(found.entries)
    ] == [
        (record.type, record.position, record.time_ns, record.offset, record.length)
        for record in want.records
        if record.type == log.RESIZE or (record.type in log.CHANGES and record.length)
    ]
    for entry in decode_entries(found.entries):
        if entry.type == log.WRITE:
            _assert_pieces(entry, raw, found.pieces)
    assert (found.records, found.size_bytes_after) == (len(want.records), size)
    assert (found.first_position, found.position) == (want.records[0].position, want.records[-1].position)
    ends = [record.offset for record in want.records if record.type == log.TAG and header.stream and _is_sync_end(record)]
    assert found.sync_end_seq == (ends[-1] if ends else None)
    assert len(found.tags) == sum(record.type == log.TAG for record in want.records) - len(ends)
    return "good"


def _refused_index(raw: bytes, name: PartName, codes: set[str], says: str | None) -> str:
    try:
        index_segment(raw, name, DISK_BYTES)
    except RigError as error:
        assert_clear(error, codes, Path(name.blob()))
        assert says is None or says in error.message, error.message
        return error.code
    raise AssertionError("the reader accepted a bad part")


def _size_behind(segment: log.Segment) -> int | None:
    """Return the disk's size after the segment, or None if the segment does not fit a disk of ``DISK_BYTES``."""
    size = segment.header.disk_size_bytes if segment.header.stream else DISK_BYTES
    if size < DISK_BYTES or size % 512 or not segment.records:
        return None
    for record in segment.records:
        if record.type == log.RESIZE and (record.length < size or record.length % 512):
            return None
        if record.type in log.CHANGES and record.offset + record.length > size:
            return None
        size = record.length if record.type == log.RESIZE else size
    return size


def _is_sync_end(record: log.Record) -> bool:
    return bool(json.loads(record.payload)["name"] == "sync-end")


def _assert_pieces(entry: SegmentEntry, raw: bytes, pieces: bytes) -> None:
    done, number = 0, entry.first_piece
    while done < entry.length:
        size = min(4096 - (entry.offset + done) % 4096, entry.length - done)
        at = entry.payload_at + done
        assert log.crc32c(raw[at : at + size]) == int.from_bytes(pieces[4 * number : 4 * number + 4], "little")
        done, number = done + size, number + 1


def part(name: PartName, data: bytes, folder: Path) -> str:
    """Compare ``codec.unpack`` of a blob with the strict reader."""
    into = folder / "incoming"
    want = _strict_part(name, data)
    try:
        with bounded_work(len(data) + 8 * DISK_BYTES):
            unpack(name, data, into)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"PartCorrupt"}, Path(name.blob()))
        assert not into.exists()
        return error.code
    assert want is not None, "the reader accepted a bad part"
    assert into.read_bytes() == want
    return "good"


# --- bundles: docs/reference/formats/bundle.md ------------------------------------------------------------------------


ENTRY = struct.Struct("<16sIB3sQQII")


def _strict_bundle(raw: bytes) -> dict[str, bytes] | None:
    """Return the sections of a bundle by the names of their parts, or None if it is invalid."""
    if len(raw) < 16 or raw[:12] != b"SRIGBNDL\1\0\x30\0" or len(raw) > 4 << 20:
        return None
    count = int.from_bytes(raw[12:16], "little")
    end = 16 + 48 * count
    if not 1 <= count <= 512 or len(raw) < end + 4 or raw[end : end + 4] != struct.pack("<I", log.crc32c(raw[:end])):
        return None
    found: dict[str, bytes] = {}
    at = end + 4
    for number in range(count):
        disk, generation, stream, zeros, first, last, offset, length = struct.unpack_from(
            "<16sIB3sQQII", raw, 16 + 48 * number
        )
        if generation > 99999999 or stream > 1 or any(zeros) or not 1 <= first <= last < 1 << 63 or offset != at:
            return None
        if length == 0 or (stream == 0 and first != last):
            return None
        name = f"{uuid.UUID(bytes=disk)}/{generation:08d}/{('sync', 'log')[stream]}/{first:020d}-{last:020d}.hrl.zst"
        if name in found:
            return None
        found[name] = raw[at : at + length]
        at += length
    return found if at == len(raw) else None


def bundle(raw: bytes, _folder: Path) -> str:
    """Read the index of a bundle with both readers."""
    name, want = BundleName("0" * 32), _strict_bundle(raw)
    try:
        got = decode(name, raw)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"BundleCorrupt"})
        assert name.blob() in error.message
        return "BundleCorrupt"
    assert {part.blob(): raw[place.offset : place.offset + place.length] for part, place in got.items()} == want
    assert all(PartName.parse(part.blob()) == part for part in got)
    return "good"
