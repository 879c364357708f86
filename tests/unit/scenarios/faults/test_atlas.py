"""The fault atlas: regions of a disk come in pairs, and no block may be damaged on both sides."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.scenarios.faults.atlas import ATLAS_REGION_BYTES, FaultAtlas, region_of
from tests.support.repo.examples import examples

BLOCK_BYTES = 4096
SEEDS = st.integers(0, 1 << 62)
DISKS = st.sampled_from(["web01/os", "web01/data", "db/data"])
OFFSETS = st.one_of(st.integers(0, 1 << 32), st.integers(0, 1 << 46))
LENGTHS = st.one_of(st.integers(1, 64 << 10), st.integers(1, 64 << 20))


@settings(max_examples=examples(200))
@given(OFFSETS)
def test_regions_tile_a_disk_and_are_numbered_one_after_the_other(offset: int) -> None:
    number, begin, end = region_of(offset)
    assert begin <= offset < end
    assert region_of(begin) == region_of(end - 1) == (number, begin, end)
    assert region_of(end)[:2] == (number + 1, end)
    size = end - begin
    assert begin % size == 0
    assert size % ATLAS_REGION_BYTES == 0
    assert size == ATLAS_REGION_BYTES if end <= 1 << 30 else begin // size in range(512, 1024)


@settings(max_examples=examples(200))
@given(SEEDS, DISKS, OFFSETS)
def test_a_pair_has_one_region_of_each_kind(seed: int, disk: str, offset: int) -> None:
    atlas, (number, begin, end) = FaultAtlas(seed), region_of(offset)
    other = end if number % 2 == 0 else begin - 1
    assert {atlas.kind_of(disk, offset), atlas.kind_of(disk, other)} == {"site", "copies"}


@settings(max_examples=examples(200))
@given(SEEDS, DISKS, OFFSETS, LENGTHS)
def test_no_block_may_be_damaged_on_both_sides(seed: int, disk: str, start: int, length: int) -> None:
    atlas = FaultAtlas(seed)
    parts = {kind: list(atlas.within(kind, disk, start, length)) for kind in ("site", "copies")}
    tiles = sorted(part for found in parts.values() for part in found)
    assert sum(count for _, count in tiles) == length
    for begin, count in tiles:
        assert begin == start
        start += count
    blocks = [
        {block for begin, count in found for block in {begin // BLOCK_BYTES, (begin + count - 1) // BLOCK_BYTES}}
        for found in parts.values()
    ]
    assert not blocks[0] & blocks[1], "a block of which one part is in a region of each kind"


def test_seed_and_disk_decide() -> None:
    kinds = {
        "".join(FaultAtlas(seed).kind_of(disk, at << 20)[0] for at in range(64))
        for seed in (1, 2)
        for disk in ("web01/os", "web01/data")
    }
    assert len(kinds) == 4
    assert {"".join(pair) for text in kinds for pair in zip(text[::2], text[1::2], strict=True)} == {"sc", "cs"}
