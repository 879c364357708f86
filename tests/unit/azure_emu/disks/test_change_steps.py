"""Groups of changes are few, and a search over smaller and smaller ranges finds every position."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import ChangeStep
from siterig.azure_emu.disks import change_steps as module
from siterig.azure_emu.disks.change_steps import change_steps
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.queries import change_list
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk


def make_history(tmp_path: Path, seed: int) -> tuple[Path, list[int]]:
    """A managed disk's folder, and positions that can be asked for: a seed, logs, a resync, more logs."""
    disk = SiteDisk(tmp_path, random.Random(seed))
    disk.scribble(10)
    folder = tmp_path / DISK_ID
    store = ManagedDiskStore.create(folder, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
    parts = disk.sync()
    valid = [disk.position]
    for generation in range(2):
        for _ in range(6):
            disk.scribble(disk.rng.choice([1, 3, 40]))
            valid.append(disk.tag("t").position)
            parts.append(disk.close_log())
        if generation == 0:
            before = bytes(disk.data)
            disk.new_generation()
            disk.scribble(20)
            parts += disk.sync(before)
            valid.append(disk.position)
    for part, data in parts:
        store.apply_part(part, data)
    store.close()
    return folder, valid


def found_by_halving(folder: Path, after: int, upto: int) -> set[int]:
    """Every single position, by asking for less and less."""
    steps = change_steps(load_history(folder), after, upto)
    if all(step.count == 1 for step in steps):
        return {step.position for step in steps}
    assert len(steps) > 1, (after, upto, steps)
    found: set[int] = set()
    for step in steps:
        found |= found_by_halving(folder, after, step.position)
        after = step.position
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("few", [False, True])
def test_every_position_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, few: bool) -> None:
    folder, valid = make_history(tmp_path, seed)
    if few:
        monkeypatch.setattr(module, "READ_ENTRIES_MAX", 10)
        monkeypatch.setattr(module, "READ_FRAMES_MAX", 3)
        monkeypatch.setattr(module, "STEPS_MAX", 3)
    loaded = load_history(folder)
    dice = random.Random(seed)
    for _ in range(15):
        after, upto = sorted(dice.sample(valid, 2))
        expected = {change.position for change in change_list(loaded, after, upto, 1 << 30)}
        steps = change_steps(loaded, after, upto)
        assert [step.position for step in steps] == sorted({step.position for step in steps})
        assert all(after < step.position <= upto for step in steps)
        if not few:
            assert {step.position for step in steps} == expected
            assert {step.count for step in steps} <= {1}
        assert found_by_halving(folder, after, upto) == expected


def test_a_long_range_is_read_from_frame_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, valid = make_history(tmp_path, 1)
    monkeypatch.setattr(module, "READ_ENTRIES_MAX", 10)
    monkeypatch.setattr(module, "READ_FRAMES_MAX", 2)
    loaded = load_history(folder)
    frames = [frame for frame in loaded.history.frames if frame.part.stream == "log" and frame.entries > 1]
    read: list[int] = []

    def steps_of(_loaded: object, span: module._FrameRange) -> list[ChangeStep]:
        read.append(span.frame.number)
        return []

    monkeypatch.setattr(module, "_positions_in", steps_of)
    steps = change_steps(loaded, valid[0], valid[-1])
    assert {(step.position, step.count) for step in steps} >= {(frame.position, frame.entries) for frame in frames}
    assert set(read).isdisjoint(frame.number for frame in frames)


def test_invalid_positions_are_refused(tmp_path: Path) -> None:
    folder, valid = make_history(tmp_path, 2)
    with pytest.raises(RigError, match="has no state at position 1: valid positions are"):
        change_steps(load_history(folder), 1, valid[-1])
    with pytest.raises(RigError, match="has no state at position"):
        change_steps(load_history(folder), valid[0], valid[-1] + 1)
    assert change_steps(load_history(folder), valid[-1], valid[-1]) == []
