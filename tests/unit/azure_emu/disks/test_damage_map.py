"""A damage map follows damage until it is overwritten, however much there is."""

from __future__ import annotations

import random

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks import damage_map as module
from siterig.azure_emu.disks.damage_map import REPORTED_MAX, DamageMap

SIZE = 200


def damage(position: int) -> Damage:
    return Damage(path="p", offset=7, what="w", first_position=position)


@pytest.mark.parametrize("seed", range(5))
def test_a_range_is_damaged_until_its_last_byte_is_overwritten(seed: int) -> None:
    print(f"replay with seed {seed}")
    rng = random.Random(seed)
    found = DamageMap()
    owner: list[int | None] = [None] * SIZE
    expected: list[tuple[int, int | None]] = []
    for position in range(1, 80):
        start = rng.randrange(SIZE)
        stop = min(SIZE, start + rng.randrange(1, 40))
        found.overwrite(start, stop, position)
        gone = {each for each in owner[start:stop] if each is not None}
        owner[start:stop] = [None] * (stop - start)
        for each in gone - set(owner):
            if each is not None:
                expected[each] = expected[each][0], position - 1
        if rng.random() < 0.5:
            found.add("kind", start, stop, damage(position))
            owner[start:stop] = [len(expected)] * (stop - start)
            expected.append((position, None))
    assert [(each.first_position, each.last_position) for _, each in found.report(0)] == expected
    left = [(at, at + 1) for at in range(SIZE) if owner[at] is not None]
    assert [at for offset, length in found.ranges() for at in range(offset, offset + length)] == [at for at, _ in left]
    assert found.has_current == bool(left)


def test_ranges_after_the_limit_of_a_kind_are_one_row() -> None:
    found = DamageMap()
    for n in range(1000):
        found.add("some", n * 10, n * 10 + 4, damage(5))
    found.add("other", 20_000, 20_001, damage(6))
    for n in range(999):
        found.overwrite(n * 10, n * 10 + 9, 10 + n)
    rows = [each for _, each in found.report(0)]
    assert len(rows) == REPORTED_MAX + 2
    assert [row.last_position for row in rows] == [*range(9, 9 + REPORTED_MAX), None, None]
    more = 1000 - REPORTED_MAX
    assert (
        rows[-2].what
        == f"and {more} more ranges from here on, {4 * more} bytes in all, at some of these positions; the first: w"
    )
    found.overwrite(0, 10_000, 3000)
    assert [each.last_position for _, each in found.report(0)][-2:] == [2999, None]


def test_damage_that_no_valid_position_shows_has_no_positions() -> None:
    found = DamageMap()
    found.add("some", 0, 4, damage(5))
    found.add("not needed", 8, 12, damage(5), is_current=False)
    found.overwrite(0, 4, 10)
    assert [(each.first_position, each.last_position) for _, each in found.report(9)] == [(5, 9), (None, None)]
    assert [(each.first_position, each.last_position) for _, each in found.report(10)] == [(None, None), (None, None)]


def test_ranges_that_are_not_followed_stay_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANGES_MAX", 3)
    found = DamageMap()
    for n in range(5):
        found.add("some", n * 10, n * 10 + 4, damage(5))
    assert not found.complete
    found.overwrite(0, 100, 7)
    assert [each.last_position for _, each in found.report(0)] == [6, 6, 6, None, None]
