"""A store is read, folded and applied to at the same time, from several threads, and gives right answers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.pins import pin, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import Packed
from tests.support.stores.managed_disk import apply, assert_same, new_store, site, whole

pytestmark = pytest.mark.slow


class Crew:
    """Threads that each do something again and again; the first error ends all."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[random.Random], object], seed: int) -> None:
        def run() -> None:
            rng = random.Random(seed)
            try:
                while not self.over.is_set():
                    work(rng)
            except BaseException as exc:
                self.errors.append(exc)
                self.over.set()

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def finish(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_views_compactions_checkpoints_and_parts_run_concurrently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print(f"replay with seed {seed}")
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 100_000)
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_BYTES", 150_000)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 20)
    disk, store = site(tmp_path, seed), new_store(tmp_path)
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync())
    points: list[int] = [disk.position]
    parts: list[Packed] = []
    for number in range(60):
        disk.scribble(8)
        points.append(disk.tag(str(number)).position)
        parts.append(disk.close_log())

    def look(rng: random.Random) -> None:
        valid = [point for point in points if any(first <= point <= last for first, last in store.valid_ranges())]
        if not valid:
            return
        position, holder = rng.choice(valid), f"test {rng.random()}"
        try:
            pin_id = pin(store.folder, position, holder)
        except RigError as exc:
            assert exc.code == "InvalidPosition", exc.message
            return  # folded away meanwhile
        view = open_view(store.folder, position)
        for _ in range(3):
            at = rng.randrange(view.size_bytes - 1)
            length = min(rng.randrange(1, 30_000), view.size_bytes - at)
            assert_same(view.pread(at, length), disk.states[position][at : at + length], f"{position}, from {at}")
        unpin(store.folder, pin_id)
        view.close()

    def fold(rng: random.Random) -> None:
        store.compactor.checkpoint()
        reached = store.watermark().complete_position
        store.compactor.compact(reached - rng.randrange(200))

    crew = Crew()
    for each in range(2):
        crew.start(look, seed * 10 + each)
    crew.start(fold, seed * 10 + 9)
    for part in parts:
        store.apply_part(*part)
        if crew.over.is_set():
            break
    crew.finish()
    assert store.oldest_position > points[0]
    again = ManagedDiskStore.open(store.folder)
    for point in points:
        if point >= again.oldest_position:
            assert_same(whole(again.view(point)), disk.states[point], f"point {point}")
    assert list(scrub(again.folder)) == []
