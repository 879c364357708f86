"""A view reads as the disk was at its position, checks every byte that it reads, and never returns a wrong byte."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.layers import base_update
from siterig.blockfs.layers.base_update import BadBlock
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import OverlayLayer, RawLayer, Source, ViewFault, ViewLayer, WritableLayer
from siterig.cext._core import lib
from siterig.cext.checksums import crc32c
from tests.support.repo.examples import examples
from tests.support.stores.views import affected, open_base, start_bytes, view_of
from tests.support.stores.volume import BLOCK_BYTES, DISK_BYTES, Change, Volume, base_source, blocks_of, changes

some = settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
WHOLE = [(0, len(blocks_of(bytes(DISK_BYTES))) * BLOCK_BYTES)]


def refused(view: ViewLayer, offset: int, length: int) -> ViewFault:
    """Read a range, expect an I/O error, and return the fault that the view recorded."""
    before = view.faults.seen()[0]
    with pytest.raises(OSError, match="Input/output error") as caught:
        view.pread(offset, length)
    assert caught.value.errno == errno.EIO
    count, last = view.faults.seen()
    assert count == before + 1
    return last[-1]


@pytest.mark.slow
@some
@given(changes, st.booleans(), st.integers(0, 14), st.lists(st.integers(0, DISK_BYTES), min_size=2, max_size=2))
def test_a_view_reads_as_the_disk_was_at_each_position(
    tmp_path: Path, made: list[Change], has_base: bool, upto: int, probe: list[int]
) -> None:
    base = start_bytes(len(made)) if has_base else None
    volume = Volume.of(made, base or bytes(DISK_BYTES))
    view = view_of(tmp_path, volume, base, upto=upto)
    want = volume.states[min(upto, len(made))]
    low, high = sorted(probe)
    assert view.pread(0, DISK_BYTES) == want
    assert view.pread(low, high - low) == want[low:high]
    for at in range(0, DISK_BYTES, BLOCK_BYTES):
        length = min(BLOCK_BYTES, DISK_BYTES - at)
        assert view.pread(at, length) == want[at : at + length]
    assert view.pread(DISK_BYTES - 5, 5000) == want[-5:] + bytes(4995)
    outside = bytearray(want)
    end = 0
    for offset, length in view.data_ranges():
        assert offset > end or offset == end == 0
        end = offset + length
        outside[offset:end] = bytes(length)
    assert not any(outside)
    assert view.faults.seen() == (0, [])
    view.close()


def test_data_ranges_come_from_the_extent_map(tmp_path: Path) -> None:
    volume = Volume.of([(True, 4096, 9000), (False, 8192, 4096), (True, 20_000, 10)])
    view = view_of(tmp_path, volume)
    assert view.data_ranges() == [(4096, 4096), (12_288, 808), (20_000, 10)]
    view.close()
    empty = ViewLayer(ExtentMap(), [], DISK_BYTES)
    assert empty.data_ranges() == []
    assert empty.pread(0, DISK_BYTES) == bytes(DISK_BYTES)


@some
@given(changes, st.integers(0, DISK_BYTES - 1))
def test_a_disk_over_a_view_reports_data_and_holes_in_whole_blocks(tmp_path: Path, made: list[Change], probe: int) -> None:
    """Programs that count in sectors, as qemu-img does, would take a sector that begins with a hole for a hole."""
    view = view_of(tmp_path, Volume.of(made))
    blocks = {at // BLOCK_BYTES for start, length in view.data_ranges() for at in range(start, start + length)}
    positions = PositionCounter(tmp_path / "position")
    state = DiskState(
        disk_id="5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42",
        size_bytes=view.size_bytes,
        kind="raw",
        generation=0,
        tracked=False,
        needs_resync=None,
    )
    options = DiskOptions(positions, can_grow=False, read_only=True)
    disk = Disk(DiskPaths(tmp_path, "", "os"), state=state, layer=cast("WritableLayer", view), options=options)

    def seek(offset: int, whence: int) -> int:
        found = int(lib.sr_disk_seek(disk.c, offset, whence))
        return DISK_BYTES if found == -errno.ENXIO else found

    reported: set[int] = set()
    at = 0
    while (start := seek(at, os.SEEK_DATA)) < DISK_BYTES:
        at = seek(start, os.SEEK_HOLE)
        assert at > start
        assert start % BLOCK_BYTES == 0
        assert at % BLOCK_BYTES == 0 or at == DISK_BYTES
        reported.update(range(start // BLOCK_BYTES, -(-at // BLOCK_BYTES)))
    assert reported == blocks
    data = min((max(start, probe) for start, length in view.data_ranges() if start + length > probe), default=DISK_BYTES)
    assert probe <= seek(probe, os.SEEK_DATA) <= data
    hole = seek(probe, os.SEEK_HOLE)
    if probe // BLOCK_BYTES in blocks:
        assert set(range(probe // BLOCK_BYTES, -(-hole // BLOCK_BYTES))) <= blocks
        assert hole == DISK_BYTES or (hole % BLOCK_BYTES == 0 and hole // BLOCK_BYTES not in blocks)
    else:
        assert hole == probe
    disk.abandon()
    positions.close()


@pytest.mark.parametrize("length", [9000, 4096, 100])
def test_every_wrong_bit_of_a_payload_is_an_error_that_names_its_piece(tmp_path: Path, length: int) -> None:
    """It is an error also if the bit itself is not read, or if a later write hides it."""
    volume = Volume.of([(True, 5000, length), (True, 5000 + length // 3, length // 3)])
    view = view_of(tmp_path, volume)
    raw = bytes(volume.raw)
    rng = random.Random(length)
    offset, _, at, piece = volume.records[0]
    assert at is not None and piece is not None
    for _ in range(20):
        byte, bit = rng.randrange(length), rng.randrange(8)
        flipped = bytearray(raw)
        flipped[at + byte] ^= 1 << bit
        (tmp_path / "volume").write_bytes(flipped)
        number = (offset + byte) // BLOCK_BYTES - offset // BLOCK_BYTES
        starts = max(offset, (offset + byte) // BLOCK_BYTES * BLOCK_BYTES)
        size = min(starts - starts % BLOCK_BYTES + BLOCK_BYTES, offset + length) - starts
        hidden = range(5000 + length // 3, 5000 + 2 * (length // 3))
        seen = [b for b in range(starts, starts + size) if b not in hidden]
        if seen:
            fault = refused(view, seen[0], 1)
            assert (fault.offset, fault.source, fault.source_offset) == (starts, 1, at + starts - offset)
            assert fault.error == errno.EIO
            assert fault.expected == volume.sums[piece + number]
            assert fault.found == crc32c(flipped[fault.source_offset : fault.source_offset + size])
            refused(view, 0, DISK_BYTES)
        else:
            assert view.pread(0, DISK_BYTES) == volume.states[-1]
    (tmp_path / "volume").write_bytes(raw)
    assert view.pread(0, DISK_BYTES) == volume.states[-1]
    view.close()


def test_a_wrong_checksum_is_an_error_and_other_blocks_are_read(tmp_path: Path) -> None:
    volume = Volume.of([(True, 0, 3 * BLOCK_BYTES)])
    volume.sums[1] ^= 0x100
    view = view_of(tmp_path, volume)
    fault = refused(view, 0, 3 * BLOCK_BYTES)
    assert (fault.offset, fault.expected ^ fault.found) == (BLOCK_BYTES, 0x100)
    assert view.pread(0, BLOCK_BYTES) == volume.states[-1][:BLOCK_BYTES]
    assert view.pread(2 * BLOCK_BYTES, BLOCK_BYTES) == volume.states[-1][2 * BLOCK_BYTES : 3 * BLOCK_BYTES]
    view.close()


def test_a_short_payload_or_checksum_table_is_an_error_not_zeros(tmp_path: Path) -> None:
    volume = Volume.of([(True, 0, 3 * BLOCK_BYTES)])
    del volume.sums[2:]
    view = view_of(tmp_path, volume)
    fault = refused(view, 0, 3 * BLOCK_BYTES)
    assert (fault.offset, fault.error) == (2 * BLOCK_BYTES, errno.ENODATA)
    os.truncate(tmp_path / "volume", 64 + 5000)
    fault = refused(view, BLOCK_BYTES, BLOCK_BYTES)
    assert (fault.offset, fault.error) == (BLOCK_BYTES, errno.EIO)
    assert view.pread(0, BLOCK_BYTES) == volume.states[-1][:BLOCK_BYTES]
    view.close()
    del volume.sums[:]
    view = view_of(tmp_path, volume)
    assert refused(view, 0, 1).error == errno.ENODATA
    view.close()


@pytest.mark.parametrize("paired", [True, False])
def test_a_table_truncated_while_a_view_is_open_is_a_read_error(tmp_path: Path, paired: bool) -> None:
    base = b"b" * DISK_BYTES
    view = view_of(tmp_path, Volume.of([(True, 0, DISK_BYTES)]), None) if not paired else view_of(tmp_path, Volume(), base)
    os.truncate(tmp_path / ("base.sums" if paired else "sums"), 0)
    fault = refused(view, 5000, 10)
    assert (fault.offset, fault.error, fault.expected) == (BLOCK_BYTES, errno.EIO, 0)
    assert refused(view, 0, DISK_BYTES).error == errno.EIO
    view.close()


@pytest.mark.parametrize("file", ["base", "base.sums"])
def test_a_wrong_bit_of_the_base_is_an_error_that_names_the_block(tmp_path: Path, file: str) -> None:
    base = b"b" * DISK_BYTES
    volume = Volume.of([(True, 5000, 100)], base)
    view = view_of(tmp_path, volume, base)
    with (tmp_path / file).open("r+b") as opened:
        if file == "base":
            opened.seek(2 * BLOCK_BYTES - 1)
            opened.write(b"c")
        else:
            opened.seek(8)
            opened.write(struct.pack("<II", 1, 2))
    fault = refused(view, BLOCK_BYTES, 10)
    assert (fault.offset, fault.source, fault.source_offset, fault.error) == (BLOCK_BYTES, 0, BLOCK_BYTES, errno.EIO)
    assert view.pread(5000, 100) == volume.states[-1][5000:5100]
    assert view.pread(2 * BLOCK_BYTES, BLOCK_BYTES) == base[:BLOCK_BYTES]
    view.close()


def test_a_block_of_the_base_is_good_if_either_checksum_matches(tmp_path: Path) -> None:
    base = b"b" * DISK_BYTES
    view = view_of(tmp_path, Volume(), base)
    with (tmp_path / "base.sums").open("r+b") as sums:
        sums.write(struct.pack("<IIII", crc32c(base[:BLOCK_BYTES]), 1, 2, crc32c(base[:BLOCK_BYTES])))
    assert view.pread(0, DISK_BYTES) == base
    view.close()


def test_faults_of_a_view_below_an_overlay_are_counted_and_kept(tmp_path: Path) -> None:
    volume = Volume.of([(True, 0, DISK_BYTES)])
    volume.sums = [sum_ ^ 1 for sum_ in volume.sums]
    view = view_of(tmp_path, volume)
    faults = view.faults
    top = OverlayLayer(view, tmp_path / "top")
    for i in range(30):
        with pytest.raises(OSError, match="Input/output error"):
            top.pread(i % 12 * BLOCK_BYTES, 1)
    top.close()
    count, last = faults.seen()
    assert count == 30
    assert [fault.offset for fault in last] == [i % 12 * BLOCK_BYTES for i in range(14, 30)]


def test_a_view_is_read_only(tmp_path: Path) -> None:
    view = view_of(tmp_path, Volume.of([(True, 0, 10)]))
    writable = RawLayer.pwrite, RawLayer.zero, RawLayer.resize
    assert [method.__name__ for method in writable if hasattr(view, method.__name__)] == []
    view.close()


@pytest.mark.parametrize("sources", [0, 1])
def test_a_map_with_an_unknown_source_makes_no_view_and_leaks_nothing(tmp_path: Path, sources: int) -> None:
    volume = Volume.of([(True, 0, 10)])
    extents = ExtentMap()
    volume.add_to(extents)
    extents.merge_pending()
    before = len(list(Path("/proc/self/fd").iterdir()))
    given_: list[Source | None] = [volume.source(tmp_path)] if sources == 0 else [volume.source(tmp_path), None]
    with pytest.raises(OSError, match="Invalid argument"):
        ViewLayer(extents, given_, DISK_BYTES)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_view_keeps_its_extents_when_the_map_changes_later(tmp_path: Path) -> None:
    volume = Volume.of([(True, 100, 5000)])
    extents = ExtentMap()
    volume.add_to(extents)
    extents.merge_pending()
    view = ViewLayer(extents, [None, volume.source(tmp_path)], DISK_BYTES)
    volume.change(0, 9000)
    volume.add_to(extents, after=1)
    extents.merge_pending()
    del extents
    assert view.pread(0, DISK_BYTES) == volume.states[1]
    view.close()


# --- the base changes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@some
@given(changes, st.integers(0, 14))
def test_views_read_the_same_at_each_step_of_a_compaction(tmp_path: Path, made: list[Change], upto: int) -> None:
    base = start_bytes(len(made))
    volume = Volume.of(made, base)
    upto = min(upto, len(made))
    target, latest = view_of(tmp_path, volume, base, upto=upto), view_of(tmp_path, volume, base)
    fd, sums_fd = open_base(tmp_path)
    ranges = affected(volume, upto)

    def check() -> None:
        assert latest.pread(0, DISK_BYTES) == volume.states[-1]
        assert target.pread(0, DISK_BYTES) == volume.states[upto]
        assert base_update.bad_blocks(fd, sums_fd, ranges) == []

    base_update.prepare_checksums(target, sums_fd, ranges)
    check()
    base_update.copy_blocks(target, fd, ranges)
    check()
    base_update.commit_checksums(sums_fd, ranges)
    check()
    folded = (tmp_path / "base").read_bytes()
    assert folded == volume.states[upto]
    sums = (tmp_path / "base.sums").read_bytes()
    assert sums == b"".join(struct.pack("<II", crc32c(block), crc32c(block)) for block in blocks_of(folded))
    target.close()
    latest.close()
    os.close(fd)
    os.close(sums_fd)


def test_a_block_of_zeros_becomes_a_hole_and_the_size_stays(tmp_path: Path) -> None:
    size = 1 << 20
    (tmp_path / "base").write_bytes(b"x" * size)
    volume = Volume.of([(True, DISK_BYTES - 100, 100)])
    view = view_of(tmp_path, volume)
    fd = os.open(tmp_path / "base", os.O_RDWR)
    os.ftruncate(fd, DISK_BYTES)
    base_update.copy_blocks(view, fd, WHOLE)
    assert os.fstat(fd).st_size == DISK_BYTES
    assert os.fstat(fd).st_blocks * 512 <= 2 * BLOCK_BYTES
    assert (tmp_path / "base").read_bytes() == volume.states[-1]
    os.close(fd)
    view.close()


def test_a_view_of_the_old_size_reads_a_base_that_grew(tmp_path: Path) -> None:
    """The checksum is of the whole block, padded with zeros, so it stays the same when the file grows."""
    base = b"b" * DISK_BYTES
    view = view_of(tmp_path, Volume(), base)
    os.truncate(tmp_path / "base", DISK_BYTES + 8192)
    assert view.pread(0, DISK_BYTES) == base
    view.close()


def test_bad_blocks_are_found_with_their_expected_checksums(tmp_path: Path) -> None:
    base = start_bytes(1)
    source = base_source(tmp_path, base)
    assert base_update.bad_blocks(source.fd, source.sums_fd, WHOLE) == []
    bad = bytearray(base)
    for at in (5000, 20_000, DISK_BYTES - 1):
        bad[at] ^= 1
    (tmp_path / "base").write_bytes(bad)
    want = [
        BadBlock(number * BLOCK_BYTES, crc32c(good), crc32c(good), crc32c(now))
        for number, (good, now) in enumerate(zip(blocks_of(base), blocks_of(bad), strict=True))
        if good != now
    ]
    assert len(want) == 3
    assert base_update.bad_blocks(source.fd, source.sums_fd, WHOLE) == want
    assert base_update.bad_blocks(source.fd, source.sums_fd, WHOLE, 2) == want[:2]
    assert base_update.bad_blocks(source.fd, source.sums_fd, [(0, BLOCK_BYTES)], 2) == []


@pytest.mark.parametrize("ranges", [[(512, 4096)], [(0, 512)]])
def test_ranges_of_partial_blocks_are_refused(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    source = base_source(tmp_path, start_bytes(1))
    with pytest.raises(OSError, match="Invalid argument"):
        base_update.bad_blocks(source.fd, source.sums_fd, ranges)


@pytest.mark.slow
def test_readers_during_compactions_see_no_wrong_byte_and_no_error(tmp_path: Path) -> None:
    """Later writes hide half of each block; the other half is read from the base, which compactions change meanwhile."""
    base = b"b" * DISK_BYTES
    halves = [(True, at, BLOCK_BYTES // 2) for at in range(0, DISK_BYTES - BLOCK_BYTES, BLOCK_BYTES)]
    hiding = Volume.of(halves, base)
    latest = view_of(tmp_path, hiding, base)
    fd, sums_fd = open_base(tmp_path)
    stop = threading.Event()
    wrong: list[str] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            at = rng.randrange(DISK_BYTES // BLOCK_BYTES) * BLOCK_BYTES
            length = rng.choice((BLOCK_BYTES, 3 * BLOCK_BYTES, 700))
            length = min(length, DISK_BYTES - at)
            try:
                if latest.pread(at, length) != hiding.states[-1][at : at + length]:
                    wrong.append(f"wrong bytes at {at}+{length}")
            except OSError as exc:
                wrong.append(f"{exc} at {at}+{length}: {latest.faults.seen()[1][-1:]}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    (tmp_path / "folded").mkdir()
    for number in range(60):
        folded = Volume.of(halves, base)
        folded.rng = random.Random(number)
        for _, offset, length in halves:
            folded.change(offset, length)
        layer = view_of(tmp_path / "folded", folded, base)
        ranges = affected(folded, len(folded.records))
        base_update.prepare_checksums(layer, sums_fd, ranges)
        base_update.copy_blocks(layer, fd, ranges)
        base_update.commit_checksums(sums_fd, ranges)
        layer.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    latest.close()


@pytest.mark.slow
@some
@given(changes, st.integers(0, 1000))
def test_stored_bytes_of_a_disk_include_its_base_and_its_own_data(
    tmp_path_factory: pytest.TempPathFactory, made: list[Change], seed: int
) -> None:
    """Programs that copy sparse files or add up used space depend on this number."""
    folder = tmp_path_factory.mktemp("stored")
    view = view_of(folder, Volume.of(made, start_bytes(seed)), start_bytes(seed))
    data_bytes = sum(length for _, length in view.data_ranges())
    assert view.stored_bytes == data_bytes
    top = OverlayLayer(view, folder / "os.top")
    state = DiskState(
        disk_id="6f1c2f5e-8a51-4d10-9a7e-0d6f5f3c2b1a",
        size_bytes=DISK_BYTES,
        kind="raw",
        generation=0,
        tracked=False,
        needs_resync=None,
    )
    positions = PositionCounter(None)
    disk = Disk(DiskPaths(folder, "web01", "os"), state=state, layer=top, options=DiskOptions(positions))
    assert disk.stored_bytes <= DISK_BYTES
    if lib.sr_disk_seek(disk.c, 0, os.SEEK_HOLE) < DISK_BYTES:
        assert disk.stored_bytes < DISK_BYTES, "with more, programs would not look for the hole"
    disk.write(0, b"x" * BLOCK_BYTES)
    assert os.fstat(top.fileno()).st_blocks * 512 >= BLOCK_BYTES
    assert disk.stored_bytes >= min(BLOCK_BYTES, DISK_BYTES - 512)
    disk.abandon()
    positions.close()
