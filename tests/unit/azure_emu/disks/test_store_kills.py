"""Kills at every system call of a change of a managed disk, and of the next opening, lose nothing.

test_store_steps raises exceptions at failpoints; this module kills separate processes.  A run takes some of the calls;
``SITERIG_ALL_STEPS=1`` takes all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.pins import pin, pins, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers, reset_disk
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import boot
from siterig.blockfs.transfer.part_name import Watermark
from tests.support.disks.disk_history import DISK_ID
from tests.support.process_kills import calls_of, copy_of, every_kill, every_real_kill, some_kills, state_of
from tests.support.stores.killed_store import Life, forget_syncs
from tests.support.stores.managed_disk import apply, assert_same, new_store, whole

pytestmark = pytest.mark.slow

SEED = 3
BOOT = "00000000-0000-4000-8000-00000000000{}"


@pytest.fixture(autouse=True)
def small_journal_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three journal files, checkpoints after a few records, and folds that take a few parts at a time."""
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 300_000)
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_BYTES", 400_000)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 10)
    monkeypatch.setattr(boot, "current_boot_id", lambda: BOOT.format(0))
    forget_syncs(monkeypatch)


class Scene:
    """A store, closed, with the first ``applied`` parts of a life in it (all, all but the last ...: as a slice ends)."""

    def __init__(self, tmp_path: Path, applied: int | None) -> None:
        self.life = Life(tmp_path, SEED)
        self.parts = self.life.parts
        self.folder = tmp_path / DISK_ID
        self.ready = tmp_path / "ready"
        self.left = tmp_path / "left"
        store = new_store(tmp_path)
        apply(store, self.parts[:applied])
        self.mark = store.watermark().complete_position
        valid = sorted(set(self.life.valid))
        self.low, self.target = valid[len(valid) // 3], valid[-24]
        self.looked_at = {self.low, self.target, *valid[:: len(valid) // 4], valid[-1]}
        store.close()
        self.folder.rename(self.ready)

    def check(self, store: ManagedDiskStore, what: str) -> Watermark:
        """All that was acknowledged is there, no position reads otherwise, nothing is damaged."""
        mark = store.watermark()
        assert mark.complete_position >= self.mark, what
        assert store.oldest_position <= self.target, what
        for position in self.looked_at:
            if store.oldest_position <= position <= mark.complete_position:
                state = self.life.disk.states[position]
                assert_same(whole(open_view(store.folder, position)), state, f"{what}, position {position}")
        assert list(scrub(store.folder)) == [], what
        return mark


@dataclass(frozen=True)
class Change:
    """A change that is killed and repeated, the number of parts that are applied before, and some of its calls."""

    act: Callable[[Scene, ManagedDiskStore], object]
    applied: int | None
    calls: set[str]


def pin_and_release(scene: Scene, store: ManagedDiskStore) -> None:
    made = pin(store.folder, scene.low, "vm web01/os")
    assert [(each.pin_id, each.position) for each in pins(store.folder)] == [(made, scene.low)]
    unpin(store.folder, made)
    assert pins(store.folder) == []


CHANGES = {
    "seed": Change(
        lambda scene, store: apply(
            store, [part for part in scene.parts if (part[0].stream, part[0].generation) == ("sync", 1)]
        ),
        0,
        {"rename .progress.tmp", "ftruncate base.img", "write base.img", "rename .base.map.tmp"},
    ),
    "apply": Change(lambda scene, store: apply(store, scene.parts[-2:]), -2, {"pwritev 0", "pwrite 0", "fdatasync 0"}),
    "fold": Change(
        lambda scene, store: store.compactor.compact(scene.target),
        None,
        {"write base.img", "write base.sums", "rename .intent.tmp", "unlink 0"},
    ),
    "checkpoint": Change(lambda _, store: store.compactor.checkpoint(), None, {"write .0", "rename .0"}),
    "pin": Change(pin_and_release, None, {"rename .", "unlink "}),
}


def opened(folder: Path) -> Callable[[], object]:
    return lambda: ManagedDiskStore.open(folder).close()


@pytest.mark.parametrize(("name", "rebooted"), [*((name, 0) for name in CHANGES), ("apply", 1), ("fold", 1)])
def test_a_kill_at_any_call_of_a_change_and_of_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rebooted: int
) -> None:
    change = CHANGES[name]
    scene = Scene(tmp_path, change.applied)
    folder = scene.folder

    def act(folder: Path) -> Callable[[], object]:
        store = ManagedDiskStore.open(folder)
        return lambda: change.act(scene, store)

    copy_of(scene.ready, folder)
    called = calls_of(folder, act)
    assert all(any(call.startswith(some) for call in called) for some in change.calls), called
    openings: set[tuple[str, ...]] = set()
    for killed in some_kills(scene.ready, folder, act):
        what = f"{name} {killed}"
        copy_of(folder, scene.left)
        with monkeypatch.context() as patch:
            patch.setattr(boot, "current_boot_id", lambda: BOOT.format(rebooted))
            opening = tuple(calls_of(folder, opened))
            store = ManagedDiskStore.open(folder)
            mark = scene.check(store, what)
            change.act(scene, store)
            scene.check(store, f"{what}, then done again")
            store.close()
            if opening in openings:
                continue  # another kill left the same to be taken up
            openings.add(opening)
            for killed_again in some_kills(scene.left, folder, opened):
                store = ManagedDiskStore.open(folder)
                assert scene.check(store, f"{what}, then its opening {killed_again}") == mark
                store.close()
    assert min(map(len, openings)) > 1  # it syncs what there is


@pytest.mark.parametrize("name", ["apply", "fold", "checkpoint"])
def test_a_killed_process_leaves_the_same_states_as_every_kill_shows(tmp_path: Path, name: str) -> None:
    change = CHANGES[name]
    scene = Scene(tmp_path, change.applied)

    def act(folder: Path) -> Callable[[], object]:
        store = ManagedDiskStore.open(folder)
        return lambda: change.act(scene, store)

    killed = [(call, state_of(scene.folder)) for call in every_real_kill(scene.ready, scene.folder, act)]
    assert [(call, state_of(scene.folder)) for call in every_kill(scene.ready, scene.folder, act)] == killed


def test_a_kill_at_any_call_of_a_reset_and_of_its_clean_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, None)
    disks, ready, left = tmp_path / "disks", tmp_path / "ready-disks", tmp_path / "left-disks"
    ready.mkdir()
    scene.ready.rename(ready / DISK_ID)

    def reset(disks: Path) -> Callable[[], object]:
        return lambda: reset_disk(disks / DISK_ID, created_ns=2)

    def start(disks: Path) -> ManagedDiskStore:
        discard_leftovers(disks)
        return ManagedDiskStore.open(disks / DISK_ID)

    openings: set[tuple[str, ...]] = set()
    found: set[int] = set()
    for killed in every_kill(ready, disks, reset):
        copy_of(disks, left)
        opening = tuple(calls_of(disks, lambda disks: lambda: start(disks).close()))
        store = start(disks)
        mark = store.watermark()
        found.add(mark.complete_position)
        assert mark.complete_position in (0, scene.mark), killed
        if mark.complete_position:
            scene.check(store, killed)
        store.close()
        store = reset_disk(disks / DISK_ID, created_ns=3)
        assert store.watermark().complete_position == 0, killed
        apply(store, scene.parts)
        scene.check(store, f"{killed}, then done again")
        store.close()
        if opening not in openings:
            openings.add(opening)
            for killed_again in every_kill(left, disks, lambda disks: lambda: start(disks).close()):
                store = start(disks)
                assert store.watermark() == mark, f"{killed}, then its start {killed_again}"
                store.close()
    assert found == {0, scene.mark}
