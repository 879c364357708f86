"""A kill at every step of what changes a managed disk's store loses nothing, and leaves nothing half done."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks import view as view_module
from siterig.azure_emu.disks.pins import pin, pins, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers, reset_disk
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import ViewLayer
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.faults.some_steps import some_steps
from tests.support.stores.killed_store import Killed, Life, forget_syncs
from tests.support.stores.managed_disk import apply, assert_same, new_store, site, whole

Act = Callable[[ManagedDiskStore], object]


@pytest.fixture(autouse=True)
def small_journal_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several journal files, several slices of a fold, checkpoints after a few records."""
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 100_000)
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_BYTES", 150_000)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 10)
    forget_syncs(monkeypatch)


def killer(kill_at: int) -> Callable[[str], None]:
    """Return an action for failpoints: it raises at the ``kill_at``-th one, from 0."""
    left = [kill_at]

    def step(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return step


def steps_of(tmp_path: Path, make: Callable[[], ManagedDiskStore], act: Act) -> list[str]:
    """All steps of ``act``; the store is as ``make`` leaves it, in a copy."""
    names: list[str] = []
    store = make()
    with failpoint.all_armed(names.append, "store."):
        act(store)
    store.close()
    return names


def survives(tmp_path: Path, life: Life, prepare: Act, act: Act, *, least: int, expected: set[str]) -> None:
    """Kill ``act`` after each of its steps; what is there afterwards is right, and it can be done again.

    What opens the store then is killed as well: after its first step, then after its second, until it has no more.
    A run takes some of the steps; ``SITERIG_ALL_STEPS=1`` takes all.
    """
    ready = tmp_path / "ready"
    store = new_store(tmp_path)
    prepare(store)
    store.close()
    store.folder.rename(ready)
    folder = tmp_path / DISK_ID

    def opened() -> ManagedDiskStore:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ready, folder)
        return ManagedDiskStore.open(folder)

    names = steps_of(tmp_path, opened, act)
    assert expected <= set(names)
    for kill_at in some_steps(names):
        store = opened()
        mark = store.watermark().complete_position
        what = f"killed after step {kill_at} ({names[kill_at]})"
        with failpoint.all_armed(killer(kill_at), "store."), pytest.raises(Killed):
            act(store)
        for step in itertools.count():
            try:
                with failpoint.all_armed(killer(step), "store."):
                    again = ManagedDiskStore.open(folder)
            except Killed:
                continue
            break
        assert again.watermark().complete_position >= mark, what
        life.check(again, what, least)
        act(again)
        life.check(again, f"{what}, then done again", least)
        again.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_failpoint_of_a_compaction(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    life = Life(tmp_path, seed)
    target = life.valid[-15]

    def fold(store: ManagedDiskStore) -> None:
        assert store.compactor.compact(target) <= target

    def all_parts(store: ManagedDiskStore) -> None:
        apply(store, life.parts)
        store.compactor.checkpoint()

    expected = {
        "store.compaction.announced",
        "store.base.announced",
        "store.base.noted",
        "store.base.copied",
        "store.base.synced",
        "store.base.concluded",
        "store.compaction.mapped",
        "store.compaction.counted",
        "store.compaction.journal_file_deleted",
        "store.compaction.done",
    }
    survives(tmp_path, life, all_parts, fold, least=target, expected=expected)


@pytest.mark.slow
def test_compacted_journal_files_that_a_kill_leaves_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 30_000)
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_BYTES", 1 << 30)
    life = Life(tmp_path, 2)
    store = new_store(tmp_path)
    apply(store, life.parts)

    with failpoint.armed("store.compaction.counted", failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(life.valid[-15])
    folded = store.debug_state().compacted
    journal_files = sorted((store.folder / "journal").iterdir())
    doomed = [path for path, following in pairwise(journal_files) if int(following.stem) <= folded + 1]
    assert len(doomed) >= 3
    ready = tmp_path / "ready"
    store.folder.rename(ready)
    for left in (set(doomed[::2]), set(doomed[1::2]), {doomed[0]}, {doomed[-1]}):
        shutil.rmtree(store.folder, ignore_errors=True)
        shutil.copytree(ready, store.folder)
        for path in set(doomed) - left:
            path.unlink()
        what = f"with {sorted(path.stem for path in left)} of {[path.stem for path in journal_files]}"
        assert_same(whole(open_view(store.folder, life.valid[-1])), life.disk.states[life.valid[-1]], what)
        again = ManagedDiskStore.open(store.folder)
        assert not any(path.exists() for path in doomed), what
        life.check(again, what, life.valid[-15])
        again.close()


@pytest.mark.slow
def test_a_kill_at_any_failpoint_of_applying_and_of_checkpoints(tmp_path: Path) -> None:
    life = Life(tmp_path, 11)
    half = len(life.parts) - 5

    def most(store: ManagedDiskStore) -> None:
        apply(store, life.parts[:half])
        store.compactor.checkpoint()
        store.compactor.compact(store.watermark().complete_position)

    def rest(store: ManagedDiskStore) -> None:
        apply(store, life.parts[half:])
        store.compactor.checkpoint()

    store = new_store(tmp_path)
    most(store)
    floor = store.oldest_position
    store.delete()
    expected = {
        "store.append.begun",
        "store.append.followed",
        "store.append.written",
        "store.append.synced",
        "store.journal_file.created",
        "store.journal_file.synced",
        "store.checkpoint.saved",
    }
    survives(tmp_path, life, most, rest, least=floor, expected=expected)


def test_an_initial_sync_part_whose_blocks_a_power_loss_tore_is_redone(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    parts = disk.sync()

    for part in parts:
        with failpoint.armed("store.base.copied", failpoint.raises(Killed)), pytest.raises(Killed):
            store.apply_part(*part)
        with (store.folder / "base.img").open("r+b") as base:
            base.write(b"torn" * 2000)
        store = ManagedDiskStore.open(store.folder)
        if part[0].first > 1:
            with (store.folder / "base.img").open("r+b") as base:
                base.write(bytes(disk.data[:8000]))
        store.apply_part(*part)
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "the seed")


def test_a_block_that_a_power_loss_tore_in_a_compaction_is_redone(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    apply(store, disk.sync())
    disk.write(4096 + 100, b"part of a block")
    disk.tag("point")
    apply(store, [disk.close_log()])

    with failpoint.armed("store.base.copied", failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(disk.position)
    with (store.folder / "base.img").open("r+b") as base:
        base.seek(4096)
        base.write(bytes(2000))
    again = ManagedDiskStore.open(store.folder)
    assert again.oldest_position == disk.position
    assert_same(whole(again.view(disk.position)), bytes(disk.data), "after the fold")
    assert list(scrub(again.folder)) == []


def test_a_kill_at_any_failpoint_of_a_reset_leaves_the_old_disk_or_the_new(tmp_path: Path) -> None:
    life = Life(tmp_path, 5)
    names: list[str] = []
    for kill_at in range(99):
        left = [kill_at]

        def step(name: str, left: list[int] = left) -> None:
            names.append(name)
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        shutil.rmtree(tmp_path / DISK_ID, ignore_errors=True)
        store = new_store(tmp_path)
        apply(store, life.parts)
        mark = store.watermark()
        store.close()
        killed = True
        try:
            with failpoint.all_armed(step, "store."):
                reset_disk(store.folder, created_ns=2)
            killed = False
        except Killed:
            pass
        discard_leftovers(tmp_path)
        after = ManagedDiskStore.open(store.folder)
        assert after.watermark() in (mark, after.watermark().model_copy(update={"generation": 0}))
        assert (after.watermark() == mark) == (killed and names[-1] != "store.reset.renamed")
        if not killed:
            break
    assert {"store.create.meta", "store.reset.aside", "store.reset.renamed"} <= set(names)
    assert kill_at < 99


def test_the_oldest_position_never_passes_a_pin(tmp_path: Path) -> None:
    life = Life(tmp_path, 4)
    store = new_store(tmp_path)
    apply(store, life.parts)
    low, high = life.valid[20], life.valid[-10]
    first, second = pin(store.folder, high, "vm web01/os"), pin(store.folder, low, "recovery web01/point")
    assert pin(store.folder, low, "recovery web01/point") == second
    assert [each.position for each in pins(store.folder)] == [low, high]
    view = open_view(store.folder, low)
    assert store.compactor.compact(1 << 62) <= low
    assert_same(whole(open_view(store.folder, low)), life.disk.states[low], "the lower pin")
    unpin(store.folder, second)
    unpin(store.folder, second)
    floor = store.compactor.compact(1 << 62)
    assert low < floor <= high
    assert_same(whole(open_view(store.folder, high)), life.disk.states[high], "the higher pin")
    for refused in (lambda: open_view(store.folder, low), lambda: pin(store.folder, low, "late")):
        with pytest.raises(Exception, match=f"has no state at position {low}: valid positions are {floor} to "):
            refused()
    unpin(store.folder, first)
    assert store.compactor.compact(1 << 62) == store.watermark().complete_position
    life.check(store, "all folded", store.oldest_position)
    view.close()


def test_a_position_below_a_planned_compaction_cannot_be_pinned_or_opened(tmp_path: Path) -> None:
    life = Life(tmp_path, 4)
    store = new_store(tmp_path)
    apply(store, life.parts)
    low = life.valid[2]
    view, then = open_view(store.folder, life.valid[-1]), life.disk.states[life.valid[-1]]

    def step(name: str) -> None:
        assert_same(view.pread(0, len(then)), then, f"a view behind the target, at {name}")
        if name != "store.compaction.done":
            for refused in (lambda: open_view(store.folder, low), lambda: pin(store.folder, low, "late")):
                with pytest.raises(Exception, match=f"has no state at position {low}"):
                    refused()

    with failpoint.all_armed(step, "store."):
        store.compactor.compact(life.valid[-5])
    view.close()


def test_compaction_frees_space_and_keeps_later_positions(tmp_path: Path) -> None:
    life = Life(tmp_path, 8)
    store = new_store(tmp_path)
    apply(store, life.parts)
    before = len(list((store.folder / "journal").iterdir()))
    target = store.compactor.compact(life.valid[-10])
    assert len(list((store.folder / "journal").iterdir())) < before
    assert store.valid_ranges()[0][0] == target
    life.check(store, "after the fold", target)
    again = ManagedDiskStore.open(store.folder)
    assert (again.oldest_position, again.watermark()) == (target, store.watermark())
    assert [tag.name for tag in again.tags()] == [tag.name for tag in store.tags() if tag.position > target]
    life.disk.scribble(5)
    life.disk.tag("later")
    apply(again, [life.disk.close_log()])
    assert_same(whole(again.view(life.disk.position)), bytes(life.disk.data), "what came after")


def test_a_view_that_a_compaction_overtakes_during_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(tmp_path, 4)
    store = new_store(tmp_path)
    apply(store, life.parts)
    early, late = life.valid[3], life.valid[-1]
    built = view_module.build_view

    def overtaken(*arguments: object) -> ViewLayer:
        view = built(*arguments)  # type: ignore[arg-type]
        store.compactor.compact(late)
        return view

    monkeypatch.setattr(view_module, "build_view", overtaken)
    with pytest.raises(RigError, match=f"has no state at position {early}: valid positions are "):
        open_view(store.folder, early)


@pytest.mark.slow
def test_a_failed_compaction_is_finished_before_the_next(tmp_path: Path) -> None:
    life = Life(tmp_path, 7)
    store = new_store(tmp_path)
    apply(store, life.parts)
    seen: set[str] = set()

    def step(name: str) -> None:
        if name not in seen:
            seen.add(name)
            raise OSError(28, "No space left on device")

    for upto in life.valid[20::6]:
        while True:
            try:
                with failpoint.all_armed(step, "store."):
                    store.compactor.compact(upto)
            except RigError as exc:
                assert (exc.code, exc.recoverable) == ("DiskFull", True)
                position = life.valid[-1]
                assert_same(whole(store.view(position)), life.disk.states[position], "while a fold has failed")
            else:
                break
        life.check(store, f"folded up to {upto}", max(upto, store.oldest_position))
    assert {
        "store.compaction.announced",
        "store.base.copied",
        "store.compaction.counted",
        "store.compaction.journal_file_deleted",
    } <= seen
