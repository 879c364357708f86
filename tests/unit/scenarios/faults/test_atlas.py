"""The fault atlas never lets the last intact copy of a block be destroyed."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.scenarios.faults.atlas import ATLAS_BLOCK_BYTES, BlockRanges, FaultAtlas
from tests.support.repo.examples import examples

COPIES = ["disk", "log", "store"]
BLOCKS = 24
RANGES = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 8))


@settings(max_examples=examples(200))
@given(st.lists(st.tuples(st.booleans(), st.integers(0, BLOCKS), st.integers(0, BLOCKS)), max_size=40))
def test_ranges_of_blocks_are_a_set(changes: list[tuple[bool, int, int]]) -> None:
    ranges, model = BlockRanges(), set[int]()
    for is_added, start, end in changes:
        if is_added:
            ranges.add(start, end)
            model |= set(range(start, end))
        else:
            ranges.remove(start, end)
            model -= set(range(start, end))
        held = ranges.within(0, BLOCKS + 1)
        assert {block for from_, upto in held for block in range(from_, upto)} == model
        assert all(one[1] < other[0] for one, other in pairwise(held)), "ranges touch"
        assert {block for from_, upto in ranges.within(5, 11) for block in range(from_, upto)} == model & set(range(5, 11))


@settings(max_examples=examples(200))
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "write", "destroy"]), st.sampled_from(COPIES), RANGES, st.integers(0, 4095)),
        max_size=60,
    )
)
def test_the_last_intact_copy_is_never_destroyed(steps: list[tuple[str, str, tuple[int, int], int]]) -> None:
    atlas = FaultAtlas()
    atlas.add_copy("disk", "vm/d", 0, BLOCKS * ATLAS_BLOCK_BYTES)
    model: dict[int, set[str]] = {block: {"disk"} for block in range(BLOCKS)}
    for step, copy, (first, count), rest in steps:
        start, length = first * ATLAS_BLOCK_BYTES + rest, count * ATLAS_BLOCK_BYTES - rest
        touched = [block for block in range(first, first + count) if block < BLOCKS]
        length = min(length, BLOCKS * ATLAS_BLOCK_BYTES - start)
        if step == "add":
            atlas.add_copy(copy, "vm/d", start, length)
            for block in touched[1 if rest else 0 :]:
                model[block].add(copy)
        elif step == "write":
            atlas.note_write(copy, "vm/d", start, length)
            model |= {block: {copy} for block in touched}
        else:
            allowed = all(model[block] - {copy} or copy not in model[block] for block in touched)
            assert atlas.try_destroy(copy, "vm/d", start, length) == allowed
            if allowed:
                for block in touched:
                    model[block].discard(copy)
        for block in range(BLOCKS):
            assert atlas.intact_copies("vm/d", block * ATLAS_BLOCK_BYTES) == sorted(model[block])
            assert model[block]


def test_nothing_of_an_unknown_disk_may_be_destroyed() -> None:
    assert not FaultAtlas().try_destroy("disk", "vm/d", 0, 4096)
    assert FaultAtlas().intact_copies("vm/d", 0) == []
