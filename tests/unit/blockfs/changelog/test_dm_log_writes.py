"""dm-log-writes: export and import lose nothing, refuse unsupported records, and survive each flipped bit."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from siterig.blockfs.changelog.dm_log_writes import DISCARD_BYTES_MAX, DmLogReader, DmLogWriter, EntryFlag
from siterig.blockfs.changelog.exchange import export_log, import_log
from siterig.blockfs.changelog.replay import Replay, check
from siterig.blockfs.changelog.segment import RecordType, SegmentReader
from siterig.blockfs.changelog.tags import decode_tag
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import RawLayer
from tests.support.disks.log_row import DISK_BYTES, START, LogRow, Op, operations
from tests.support.repo.examples import examples

SECTOR = 512


def played(log: Path, start: bytes, *, to_mark: bytes | None = None) -> bytes:
    """Return the bytes that ``replay-log`` makes of a log."""
    data = bytearray(start)
    with DmLogReader(log) as reader:
        for entry in reader.entries():
            if entry.flags & EntryFlag.MARK and entry.mark == to_mark:
                break
            new = reader.data(entry, 0, entry.length) if entry.has_data else bytes(entry.length)
            data[entry.offset : entry.offset + entry.length] = new
    return bytes(data)


def replayed(folder: Path, paths: list[Path], start: bytes) -> bytes:
    image = folder / "image"
    image.write_bytes(start)
    onto = RawLayer(image, writable=True)
    Replay(check(paths), onto).run()
    onto.close()
    return image.read_bytes()


def row_of(folder: Path, ops: list[Op]) -> LogRow:
    row = LogRow(folder)
    for index, op in enumerate(ops):
        if index % 5 == 0:
            row.rotate()
        if index % 3 == 0:
            row.tag(f"mark {index}")
        row.do(op)
    row.close()
    return row


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(operations(SECTOR))
def test_export_and_import_give_the_same_disk_at_the_end_and_each_mark(ops: list[Op]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = row_of(folder, ops)
        out = folder / "out"
        assert export_log(check(row.paths), out).widened == 0
        assert played(out, START) == bytes(row.data)
        for mark, position in row.tags.items():
            assert played(out, START, to_mark=mark.encode()) == row.states[position]
        made = import_log(out, folder, "back", size_bytes=DISK_BYTES)
        assert replayed(folder, made.paths, START) == bytes(row.data)
        again = folder / "again"
        export_log(check(made.paths), again)
        assert entries(again) == entries(out)
        assert not list(folder.glob("*.tmp")) + list(folder.glob(".*"))


def entries(log: Path) -> list[tuple[int, int, int, bytes, bytes]]:
    with DmLogReader(log) as reader:
        return [
            (e.flags, e.offset, e.length, e.mark, reader.data(e, 0, e.length) if e.has_data else b"")
            for e in reader.entries()
        ]


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(operations(1))
def test_with_a_base_records_of_partial_sectors_become_whole_sectors(ops: list[Op]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = row_of(folder, ops)
        base = folder / "base"
        base.write_bytes(START)
        out = folder / "out"
        export_log(check(row.paths), out, base=base)
        assert played(out, START) == bytes(row.data)
        for mark, position in row.tags.items():
            assert played(out, START, to_mark=mark.encode()) == row.states[position]
        assert base.read_bytes() == START
        assert sorted(path.name for path in folder.iterdir() if path.suffix != ".hrl") == ["base", "out"]


def test_a_record_of_a_partial_sector_needs_a_base(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(0, bytes(SECTOR))
    row.write(513, b"abc")
    row.close()
    with pytest.raises(RigError) as failed:
        export_log(check(row.paths), tmp_path / "out")
    assert (failed.value.code, failed.value.message) == (
        "LogUnaligned",
        f"{row.paths[0]}: record 2 (WRITE of 3 bytes at 513) does not fill whole sectors of 512 bytes: "
        "give the disk as it was before the log with --base",
    )
    assert list(tmp_path.iterdir()) == row.paths


def test_an_exported_log_has_the_layout_of_the_kernel(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(1024, b"\xaa" * 1024)
    row.do((RecordType.FLUSH, 0, 0, 0))
    row.do((RecordType.DISCARD, 4096, 512, 0))
    row.tag("mymark")
    row.close()
    export_log(check(row.paths), tmp_path / "out")
    raw = (tmp_path / "out").read_bytes()
    assert len(raw) == 512 * (1 + 3 + 1 + 1 + 1)
    assert struct.unpack_from("<QQQI", raw) == (0x6A736677736872, 1, 4, 512)
    assert struct.unpack_from("<QQQQ", raw, 512) == (2, 2, 0, 0)
    assert raw[1024:2048] == b"\xaa" * 1024
    assert struct.unpack_from("<QQQQ", raw, 2048) == (0, 0, 1, 0)
    assert struct.unpack_from("<QQQQ", raw, 2560) == (8, 1, 4, 0)
    assert struct.unpack_from("<QQQQ", raw, 3072) == (0, 0, 8, 6)
    assert raw[3104:] == b"mymark".ljust(480, b"\0")


def test_long_discards_and_zeros_are_split_as_replay_log_needs_it(tmp_path: Path) -> None:
    writer = DmLogWriter(tmp_path / "out")
    writer.discard(512, 2 * DISCARD_BYTES_MAX + 512)
    writer.zero(0, (16 << 20) + 512)
    writer.finish()
    with DmLogReader(tmp_path / "out") as reader:
        found = [(int(e.flags), e.offset, e.length) for e in reader.entries()]
    assert found == [
        (4, 512, DISCARD_BYTES_MAX),
        (4, 512 + DISCARD_BYTES_MAX, DISCARD_BYTES_MAX),
        (4, 512 + 2 * DISCARD_BYTES_MAX, 512),
        (0, 0, 16 << 20),
        (0, 16 << 20, 512),
    ]
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20  # zeros are holes


def dm_log(folder: Path) -> Path:
    """Write a log with large sectors, an entry with FLUSH, FUA and METADATA, and an entry after those that are counted."""
    size = 1024
    pieces = [struct.pack("<QQQI", 0x6A736677736872, 1, 4, size)]
    pieces.append(struct.pack("<QQQQ", 3, 2, EntryFlag.FLUSH | EntryFlag.FUA | EntryFlag.METADATA, 0))
    pieces += [b"\x11" * size, b"\x22" * size]
    pieces.append(struct.pack("<QQQQ", 0, 1, 0, 0))
    pieces.append(bytes(size))
    pieces.append(struct.pack("<QQQQ", 3, 1, EntryFlag.DISCARD, 0))
    pieces.append(struct.pack("<QQQQ", 0, 0, EntryFlag.MARK, 3) + b"end")
    pieces.append(struct.pack("<QQQQ", 9, 9, 99, 9) + b"not counted")
    log = folder / "log"
    log.write_bytes(b"".join(piece.ljust(size, b"\0") for piece in pieces))
    return log


def test_flags_and_other_sector_sizes_are_imported(tmp_path: Path) -> None:
    made = import_log(dm_log(tmp_path), tmp_path, "os")
    assert (made.entries, made.records, made.fua, made.disk_size_bytes) == (4, 5, 1, 5 * 1024)
    with SegmentReader(made.paths[0]) as reader:
        records = list(reader.records())
        assert [(r.type.name, r.offset, r.length) for r in records] == [
            ("FLUSH", 0, 0),
            ("WRITE", 3072, 2048),
            ("ZERO", 0, 1024),
            ("DISCARD", 3072, 1024),
            ("TAG", 0, 0),
        ]
        tag = decode_tag(reader.payload(records[4]))
    assert (tag.name, tag.kind, tag.position) == ("end", "CrashConsistent", 5)
    assert replayed(tmp_path, made.paths, b"\xff" * 5120) == bytes(1024) + b"\xff" * 2048 + bytes(1024) + b"\x22" * 1024


@pytest.mark.slow
def test_each_flipped_bit_gives_an_error_or_a_valid_log(tmp_path: Path) -> None:
    log = dm_log(tmp_path)
    good = log.read_bytes()
    untouched = entries(log)
    refused = 0
    entry_at = (1024, 4096, 6144, 7168)
    for at in [*range(28), *(start + i for start in entry_at for i in range(33))]:
        for bit in range(8):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            log.write_bytes(bad)
            try:
                found = entries(log)
            except RigError as error:
                assert error.code in ("DmLogCorrupt", "LogVersion")
                refused += 1
                continue
            assert at >= 16, "a wrong magic number or version is always found"
            assert len(found) <= 6
            folder = tmp_path / "made"
            folder.mkdir()
            made = import_log(log, folder, "os")
            assert sum(path.stat().st_size for path in made.paths) < 100_000
            if found == untouched:
                assert made.records == 5
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    assert refused > 500


def test_a_log_without_all_counted_entries_is_refused(tmp_path: Path) -> None:
    log = dm_log(tmp_path)
    good = log.read_bytes()
    whole = 8 * 1024
    for size in [*range(0, whole, 97), whole - 1]:
        log.write_bytes(good[:size])
        with pytest.raises(RigError):
            entries(log)
    log.write_bytes(good[:whole])
    assert len(entries(log)) == 4


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 1, "magic is 0x1; a dm-log-writes log begins with 0x6a736677736872"),
        (16, 9, "entry 4 at byte 8192: flags 0x63 are unknown; known are 0x1f"),
        (1024 + 8, 1 << 40, "entry 0 at byte 1024: 1125899906842624 bytes of data run past the end of the file"),
        (1024, 1 << 62, "entry 0 at byte 1024: 2 sectors at 4611686018427387904 are beyond any disk"),
        (4096 + 8, 0, "entry 1 at byte 4096: is a write of nothing"),
        (7168 + 24, 993, "entry 3 at byte 7168: mark of 993 bytes; at most 992"),
        (7168 + 8, 1, "entry 3 at byte 7168: MARK has flags 0x8 and 1 sectors; it has none but its own"),
        (4096 + 32, 1, "entry 1 at byte 4096: is not followed by zeros"),
    ],
)
def test_impossible_values_are_refused_with_entry_and_offset(tmp_path: Path, at: int, value: int, message: str) -> None:
    log = dm_log(tmp_path)
    raw = bytearray(log.read_bytes())
    struct.pack_into("<Q", raw, at, value)
    log.write_bytes(raw)
    with pytest.raises(RigError) as failed:
        entries(log)
    assert failed.value.message == f"{log}: dm-log-writes log is corrupt: {message}"


def test_an_unnamed_tag_is_marked_by_its_id_a_long_name_is_refused(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.tag("")
    row.tag("ä" * 239 + "b")
    row.close()
    export_log(check(row.paths), tmp_path / "out")
    marks = [mark for _, _, _, mark, _ in entries(tmp_path / "out")]
    assert (len(marks[0]), marks[1]) == (36, ("ä" * 239 + "b").encode())
    row.tag("x" * 480)
    row.close()
    with pytest.raises(
        RigError, match="record 3 is a tag whose name has 480 bytes; a mark has at most 479, none of them zero"
    ):
        export_log(check(row.paths), tmp_path / "more")


def test_an_import_is_split_into_consecutive_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.blockfs.changelog.exchange.SEGMENT_BYTES_MAX", 4096)
    monkeypatch.setattr("siterig.blockfs.changelog.exchange.PIECE_BYTES_MAX", 1024)
    row = LogRow(tmp_path)
    row.write(0, bytes(range(256)) * 40)
    row.close()
    export_log(check(row.paths), tmp_path / "out")
    made = import_log(tmp_path / "out", tmp_path, "back")
    assert [path.name for path in made.paths] == ["back.000001.hrl", "back.000002.hrl", "back.000003.hrl"]
    assert made.records == 10
    assert replayed(tmp_path, made.paths, START) == bytes(row.data)


def test_existing_files_are_kept_and_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(0, b"x" * 512)
    row.close()
    with pytest.raises(RigError, match="exists already"):
        export_log(check(row.paths), row.paths[0])
    with pytest.raises(RigError, match="has change logs already"):
        import_log(dm_log(tmp_path), tmp_path, "os")
    with pytest.raises(RigError, match="writes to byte 5120 of the disk; --size is 512 bytes"):
        import_log(dm_log(tmp_path), tmp_path, "new", size_bytes=512)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "os.000001.hrl"]


def test_an_exported_log_gets_its_name_only_when_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        if not (tmp_path / "out").exists():
            synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr("siterig.blockfs.changelog.dm_log_writes.os.fsync", watched)
    writer = DmLogWriter(tmp_path / "out")
    writer.write(0, b"x" * 512)
    writer.finish()
    assert synced == [3 * 512]


def test_an_import_that_fails_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = dm_log(tmp_path)

    def full(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("siterig.blockfs.changelog.exchange.sync_folder", full)
    with pytest.raises(OSError, match="No space"):
        import_log(log, tmp_path, "os")
    assert list(tmp_path.iterdir()) == [log]
