"""The extent map is compared with a model that knows, for each byte, the record that wrote it last."""

from __future__ import annotations

import random
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.extent_map import BASE, EXTENT_BYTES, GONE, ZEROS, Extent, ExtentMap
from tests.support.repo.examples import examples
from tests.support.stores.volume import BLOCK_BYTES, DISK_BYTES, Change, Volume, changes

Owner = int | None
"""The owner of a byte: the position of the record that wrote it last, 0 for the base, None if nothing wrote it."""

many = settings(max_examples=examples(150), deadline=None)
base_blocks = st.sets(st.integers(0, DISK_BYTES // BLOCK_BYTES - 1), max_size=6)
ROW = struct.Struct("<QQQQiHH")


def owners(volume: Volume, base: set[int], after: int, upto: int) -> list[Owner]:
    found: list[Owner] = [0 if at // BLOCK_BYTES in base else None for at in range(DISK_BYTES)]
    for position, (offset, length, _, _) in enumerate(volume.records, start=1):
        if after < position <= upto:
            found[offset : offset + length] = [position] * length
    return found


def expected_at(volume: Volume, owner: Owner, at: int) -> tuple[int, int, int, int, int] | None:
    """Return where a byte must be: source, offset in it, piece number, and the begin and end of that piece on the disk."""
    if owner is None:
        return None
    block = at - at % BLOCK_BYTES
    if owner == 0:
        return BASE, at, at // BLOCK_BYTES, block, block + BLOCK_BYTES
    offset, length, payload_at, piece = volume.records[owner - 1]
    if payload_at is None or piece is None:
        return ZEROS, 0, 0, 0, 0
    number = piece + at // BLOCK_BYTES - offset // BLOCK_BYTES
    return 1, payload_at + at - offset, number, max(offset, block), min(offset + length, block + BLOCK_BYTES)


def assert_is(extents: ExtentMap, volume: Volume, want: list[Owner]) -> None:
    """Check that each byte is found in its source and piece, and how much of the piece lies outside the extent."""
    at = 0
    for row in extents.extents():
        assert at <= row.start < row.end
        assert all(owner is None for owner in want[at : row.start])
        at = row.end
        if row.source == ZEROS:
            assert (row.source_offset, row.first_piece, row.before, row.after) == (0, 0, 0, 0)
        for edge in sorted({row.start, row.end - 1, *range(row.start, row.end, 997)}):
            wanted = expected_at(volume, want[edge], edge)
            assert wanted is not None
            if row.source == ZEROS:
                assert wanted[0] == ZEROS
                continue
            piece = row.first_piece + edge // BLOCK_BYTES - row.start // BLOCK_BYTES
            assert (row.source, row.source_offset + edge - row.start, piece) == wanted[:3]
            start, end = wanted[3:]
            if edge == row.start:
                assert row.start - row.before == start
            if edge == row.end - 1:
                assert row.end + row.after == end
        kind = [0 if volume_kind(volume, owner) == ZEROS else owner for owner in want[row.start : row.end]]
        assert len(set(kind)) == 1, "an extent has one owner"
    assert all(owner is None for owner in want[at:])


def volume_kind(volume: Volume, owner: Owner) -> int:
    return ZEROS if owner and volume.records[owner - 1][2] is None else 1


def base_ranges(blocks: set[int]) -> list[tuple[int, int]]:
    return [(block * BLOCK_BYTES, BLOCK_BYTES) for block in blocks]


@pytest.mark.slow
@many
@given(changes, base_blocks, st.lists(st.integers(0, 14), max_size=3), st.integers(0, 5), st.integers(0, 14))
def test_each_byte_is_found_where_it_was_written_last(
    made: list[Change], base: set[int], cuts: list[int], after: int, upto: int
) -> None:
    """It does not matter how the changes are split into batches."""
    volume = Volume.of(made)
    extents = ExtentMap()
    bounds = sorted({after, upto, *(cut for cut in cuts if after < cut < upto)}) if after < upto else []
    for number, (low, high) in enumerate(pairwise(bounds)):
        volume.add_to(extents, after=low, upto=high)
        if number % 2:
            extents.merge_pending()
    extents.add_base(base_ranges(base))
    extents.merge_pending()
    assert_is(extents, volume, owners(volume, base, after, upto))


@pytest.mark.slow
@many
@given(changes, base_blocks)
def test_a_dumped_map_is_loaded_and_the_base_is_added_again(made: list[Change], base: set[int]) -> None:
    volume = Volume.of(made)
    extents = ExtentMap()
    volume.add_to(extents)
    extents.add_base(base_ranges(base))
    extents.merge_pending()
    dumped = extents.dump()
    assert len(dumped) == sum(row.source != BASE for row in extents.extents()) * EXTENT_BYTES
    again = ExtentMap.load(dumped, 2)
    assert again.dump() == dumped
    again.add_base(base_ranges(base))
    again.merge_pending()
    assert again.extents() == extents.extents()


@pytest.mark.slow
@many
@given(changes)
def test_a_checkpoint_and_later_changes_give_the_same_map(made: list[Change]) -> None:
    volume = Volume.of(made)
    half = len(made) // 2
    first, whole = ExtentMap(), ExtentMap()
    volume.add_to(first, upto=half)
    first.merge_pending()
    second = ExtentMap.load(first.dump(), 2)
    volume.add_to(second, after=half)
    volume.add_to(whole)
    second.merge_pending()
    whole.merge_pending()
    assert second.extents() == whole.extents()


@pytest.mark.slow
@many
@given(changes, base_blocks)
def test_ranges_and_touched_return_exactly_the_right_bytes(made: list[Change], base: set[int]) -> None:
    volume = Volume.of(made)
    extents = ExtentMap()
    volume.add_to(extents)
    extents.add_base(base_ranges(base))
    extents.merge_pending()
    want = owners(volume, base, 0, len(made))
    zeroed = {owner for owner in range(1, len(made) + 1) if volume_kind(volume, owner) == ZEROS}
    assert_ranges(extents.ranges(), [owner is not None and owner not in zeroed for owner in want])
    assert_ranges(extents.touched(), [owner is not None for owner in want])
    touched = {at // BLOCK_BYTES for at, owner in enumerate(want) if owner is not None}
    wide = [at // BLOCK_BYTES in touched for at in range(DISK_BYTES + BLOCK_BYTES - DISK_BYTES % BLOCK_BYTES)]
    assert_ranges(extents.touched(BLOCK_BYTES), wide)


def assert_ranges(ranges: list[tuple[int, int]], flags: list[bool]) -> None:
    found = [False] * len(flags)
    end = -1
    for offset, length in ranges:
        assert offset > end, "ranges that touch are joined"
        end = offset + length
        found[offset:end] = [True] * length
    assert found == flags


def test_a_resize_changes_no_extent_and_returns_the_size() -> None:
    volume = Volume.of([(True, 0, 100)])
    extents = ExtentMap()
    resize = struct.pack("<QQQQQII", 2, 0, 0, DISK_BYTES * 2, 0, 0, RecordType.RESIZE)
    rows = bytes(volume.entries) + resize
    assert extents.add(1, rows, segment_at=0, piece_at=0) == DISK_BYTES * 2
    assert extents.add(1, rows, segment_at=0, piece_at=0, upto=1) == 0
    extents.merge_pending()
    assert extents.extents() == [Extent(0, 100, 64, 0, 1, 0, 0)]


def test_offsets_count_from_the_start_of_the_segment_and_its_pieces() -> None:
    volume = Volume.of([(True, 5000, 9000)])
    extents = ExtentMap()
    extents.add(3, volume.entries, segment_at=1000, piece_at=500)
    extents.merge_pending()
    assert extents.extents() == [Extent(5000, 14_000, 1064, 500, 3, 0, 0)]
    assert extents.used(5) == [3]


def test_a_base_that_grew_within_a_block_is_one_extent() -> None:
    extents = ExtentMap()
    for length, want in ((5000, Extent(0, 5000, 0, 0, BASE, 0, 3192)), (8192, Extent(0, 8192, 0, 0, BASE, 0, 0))):
        extents.add_base([(0, length)])
        extents.merge_pending()
        assert extents.extents() == [want]


def test_sources_can_be_renumbered_and_removed() -> None:
    extents = ExtentMap()
    for source in (1, 2, 3):
        extents.add(source, Volume.of([(True, source * 8192, 4096)]).entries, segment_at=0, piece_at=0)
    extents.add_base([(0, 4096)])
    extents.merge_pending()
    extents.retarget([0, 2, GONE, 1])
    assert [(row.start, row.source) for row in extents.extents()] == [(0, 0), (8192, 2), (24_576, 1)]
    with pytest.raises(RigError, match="the source of an extent is invalid; allowed: 0 to "):
        extents.retarget([0, 1])
    assert len(extents) == 3


@pytest.mark.parametrize("count", [0, 1, 47, 49])
def test_an_index_that_is_not_a_whole_number_of_entries_is_refused(count: int) -> None:
    extents = ExtentMap()
    if count % 48 == 0:
        assert extents.add(1, b"", segment_at=0, piece_at=0) == 0
        extents.merge_pending()
        assert extents.extents() == [] == extents.ranges() == extents.touched()
        assert extents.dump() == b"" and len(ExtentMap.load(b"", 1)) == 0
        return
    with pytest.raises(RigError, match=f"index: {count} bytes; allowed: a multiple of 48"):
        extents.add(1, bytes(count), segment_at=0, piece_at=0)


@pytest.mark.parametrize(
    ("kind", "offset", "length"),
    [
        (RecordType.WRITE, 0, 0),
        (RecordType.ZERO, 0, 0),
        (RecordType.WRITE, (1 << 63) - 1, 1),
        (RecordType.ZERO, 1, (1 << 63) - 1),
        (RecordType.DISCARD, (1 << 64) - 1, 2),
        (RecordType.FLUSH, 0, 1),
        (RecordType.TAG, 0, 1),
        (0, 0, 1),
        (7, 0, 1),
        (RecordType.RESIZE, 0, 1 << 63),
    ],
)
def test_an_impossible_entry_is_refused_and_nothing_is_added(kind: int, offset: int, length: int) -> None:
    volume = Volume.of([(True, 0, 4096)])
    extents = ExtentMap()
    bad = struct.pack("<QQQQQII", 2, 0, offset, length, 0, 0, kind)
    with pytest.raises(RigError) as caught:
        extents.add(1, bytes(volume.entries) + bad, segment_at=0, piece_at=0)
    assert (caught.value.code, caught.value.message) == (
        "ExtentsCorrupt",
        "an entry of an index is invalid; allowed: at least one byte, and numbers below 2^63",
    )
    extents.merge_pending()
    assert len(extents) == 0


@pytest.mark.parametrize("source", [0, -1, -2])
def test_a_change_cannot_have_the_base_as_its_source(source: int) -> None:
    with pytest.raises(RigError, match="an entry of an index is invalid"):
        ExtentMap().add(source, Volume.of([(True, 0, 1)]).entries, segment_at=0, piece_at=0)


@pytest.mark.parametrize("given_", [(512, 4096), (0, 0), (1 << 62, 4096), (0, 1 << 63)])
def test_an_impossible_range_of_the_base_is_refused(given_: tuple[int, int]) -> None:
    with pytest.raises(
        RigError, match="a range of the base is invalid; allowed: at least one byte, from a multiple of 4096"
    ):
        ExtentMap().add_base([given_])


GOOD = [(0, 4096, 64, 0, 1, 0, 0), (4096, 5000, 0, 0, -1, 0, 0), (5000, 6000, 9000, 7, 2, 904, 2192)]


@pytest.mark.parametrize(
    ("index", "row"),
    [
        (0, (0, 0, 64, 0, 1, 0, 0)),
        (0, (9, 8, 64, 0, 1, 0, 0)),
        (0, (0, 5000, 64, 0, 1, 0, 0)),
        (0, (0, 4096, 64, 0, 0, 0, 0)),
        (0, (0, 4096, 64, 0, 3, 0, 0)),
        (0, (0, 4096, 64, 0, -2, 0, 0)),
        (0, (0, 4096, 64, 0, 1, 1, 0)),
        (0, (0, 4096, 64, 0, 1, 0, 1)),
        (1, (4095, 5000, 0, 0, -1, 0, 0)),
        (1, (4096, 5000, 1, 0, -1, 0, 0)),
        (1, (4096, 5000, 0, 1, -1, 0, 0)),
        (1, (4096, 5000, 0, 0, -1, 1, 0)),
        (1, (4096, 5000, 0, 0, -1, 0, 1)),
        (2, (5000, 6000, 9000, 7, 2, 905, 0)),
        (2, (5000, 6000, 9000, 7, 2, 0, 2193)),
        (2, (5000, 6000, 903, 7, 2, 904, 0)),
        (2, (5000, 1 << 63, 9000, 7, 2, 0, 0)),
        (2, (5000, 6000, (1 << 63) - 999, 7, 2, 0, 0)),
        (2, (5000, 6000, 9000, 1 << 63, 2, 0, 0)),
    ],
)
def test_an_impossible_extent_is_refused_with_its_number(index: int, row: tuple[int, ...]) -> None:
    rows: list[tuple[int, ...]] = [*GOOD]
    assert len(ExtentMap.load(b"".join(ROW.pack(*one) for one in rows), 3)) == 3
    rows[index] = row
    with pytest.raises(RigError) as caught:
        ExtentMap.load(b"".join(ROW.pack(*one) for one in rows), 3)
    assert caught.value.code == "ExtentsCorrupt"
    bad = index if rows[index][0] != 0 or rows[index][1] != 5000 else 1
    assert caught.value.message == f"extent {bad} of 3 is invalid: {Extent(*rows[bad])}; allowed: sources 0 to 2, no overlap"


def test_extents_that_end_within_a_row_are_refused() -> None:
    with pytest.raises(RigError, match="extents: 79 bytes; allowed: a multiple of 40"):
        ExtentMap.load(bytes(79), 2)


def test_damaged_extents_are_refused_or_give_a_map_that_works() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"replay with seed {seed}")
    rng = random.Random(seed)
    good = b"".join(ROW.pack(*one) for one in GOOD)
    taken = 0
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            extents = ExtentMap.load(bad, 3)
        except RigError as exc:
            assert exc.code == "ExtentsCorrupt"
            continue
        taken += 1
        extents.add_base([(0, 1 << 20)])
        extents.add(1, Volume.of([(True, rng.randrange(9000), 5000)]).entries, segment_at=0, piece_at=0)
        extents.merge_pending()
        ends = [0, *(edge for row in extents.extents() for edge in (row.start, row.end))]
        assert ends == sorted(ends)
    assert taken


def test_many_changes_at_once_give_the_same_map_as_one_by_one() -> None:
    """There are so many changes that they are sorted while they are added."""
    rng = random.Random(5)
    made = [(rng.random() < 0.9, rng.randrange(DISK_BYTES - 9000), rng.randrange(1, 9000)) for _ in range(400)]
    volume = Volume.of(made)
    at_once, singly = ExtentMap(), ExtentMap()
    volume.add_to(at_once)
    at_once.merge_pending()
    for position in range(len(made)):
        volume.add_to(singly, after=position, upto=position + 1)
        singly.merge_pending()
    assert at_once.extents() == singly.extents()
    assert_is(at_once, volume, owners(volume, set(), 0, len(made)))
