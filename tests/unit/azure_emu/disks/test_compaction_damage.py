"""Compaction of a payload that became bad at any step: its block stays unreadable, and no older content is served for it."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.disks import base_image
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.layers.layer import Layer
from tests.support.disks.disk_history import SIZE_BYTES, SiteDisk
from tests.support.io_faults import READ, io_verdict
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import apply, assert_same, new_store

BLOCK = 4096
WHOLE, PART = 4, 20
"""Blocks that the log writes to: the middle one of a write of three blocks, and a block that is written in part."""


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the delays before a bad block is read again; return them."""
    slept: list[float] = []
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep_thread", slept.append)
    return slept


class Rotten:
    """A store that is full, and has a log of two parts; in the first, payloads are bad.

    ``target``: the end of that part; ``last``: of the other, that writes elsewhere, also close by.
    """

    def __init__(self, tmp_path: Path, bad: set[int]) -> None:
        self.bad = bad
        self.disk = SiteDisk(tmp_path, random.Random(5))
        disk, store = self.disk, new_store(tmp_path)
        disk.write(0, disk.rng.randbytes(SIZE_BYTES))
        disk.close_log()
        apply(store, disk.sync())
        disk.write((WHOLE - 1) * BLOCK, disk.rng.randbytes(3 * BLOCK))
        disk.write(PART * BLOCK + 100, disk.rng.randbytes(50))
        disk.write(30 * BLOCK + 512, disk.rng.randbytes(2 * BLOCK))
        disk.zero(40 * BLOCK, 2 * BLOCK)
        disk.write(50 * BLOCK, disk.rng.randbytes(BLOCK))
        self.target = disk.tag("target").position
        apply(store, [disk.close_log()])
        disk.write((WHOLE + 1) * BLOCK + 7, disk.rng.randbytes(20))
        disk.write(51 * BLOCK, disk.rng.randbytes(BLOCK))
        self.last = disk.tag("last").position
        apply(store, [disk.close_log()])
        store.close()
        self.folder = store.folder
        (journal_file,) = (self.folder / "journal").iterdir()
        raw = bytearray(journal_file.read_bytes())
        for block in bad:
            at = block * BLOCK + (0 if block == WHOLE else 100)
            raw[raw.index(disk.states[self.target][at : at + 50]) + 30] ^= 0x10
        journal_file.write_bytes(raw)

    def check(self, view: Layer, position: int, what: str) -> None:
        """All reads as it was, but for the bad blocks, which do not read."""
        state = self.disk.states[position]
        for at in range(0, len(state), BLOCK):
            try:
                data = view.pread(at, BLOCK)
            except OSError as exc:
                assert (exc.errno, at // BLOCK in self.bad) == (errno.EIO, True), f"{what}, block {at // BLOCK}"
            else:
                assert at // BLOCK not in self.bad, f"{what}: block {at // BLOCK} is served"
                assert_same(data, state[at : at + BLOCK], f"{what}, block {at // BLOCK}")

    def check_all(self, what: str) -> None:
        for position in (self.target, self.last):
            view = open_view(self.folder, position)
            self.check(view, position, f"{what}, position {position}")
            view.close()


def refusals(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that met an unreadable block, as they do."""
    met: list[str] = []

    def watched(name: str) -> Callable[..., None]:
        real = getattr(base_image, name)

        def act(*args: Any) -> None:
            try:
                real(*args)
            except OSError:
                met.append(name)
                raise

        return act

    for name in ("prepare_checksums", "copy_blocks"):
        monkeypatch.setattr(base_image, name, watched(name))
    return met


CASES = [({WHOLE}, ["copy_blocks"]), ({PART}, ["prepare_checksums"]), ({WHOLE, PART}, ["prepare_checksums"])]


@pytest.mark.parametrize(("bad", "meets"), CASES)
def test_a_bad_payload_is_never_served_during_its_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int], meets: list[str]
) -> None:
    made = Rotten(tmp_path, bad)
    met = refusals(monkeypatch)
    store = ManagedDiskStore.open(made.folder)
    views = {position: open_view(made.folder, position) for position in (made.target, made.last)}
    steps = []

    def step(name: str) -> None:
        steps.append(name)
        made.check_all(f"at {name}")
        for position, view in views.items():
            made.check(view, position, f"an open view of {position} at {name}")

    with failpoint.all_armed(step, "store."):
        assert store.compactor.compact(made.target) == made.target
    assert met == meets
    assert {"store.base.announced", "store.base.copied", "store.base.concluded", "store.compaction.counted"} <= set(steps)
    made.check_all("folded")
    found = [(damage.path, damage.first_position) for damage in scrub(store.folder) if damage.first_position is not None]
    assert found == [(str(made.folder / base_image.BASE), made.target)] * len(bad)
    for view in views.values():
        view.close()
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [bad for bad, _ in CASES])
def test_a_kill_during_compaction_of_a_bad_payload_does_not_hide_it(tmp_path: Path, bad: set[int]) -> None:
    made = Rotten(tmp_path, bad)
    ready = tmp_path / "ready"
    made.folder.rename(ready)
    for kill_at in range(99):
        shutil.rmtree(made.folder, ignore_errors=True)
        shutil.copytree(ready, made.folder)
        names: list[str] = []

        def step(name: str, names: list[str] = names, kill_at: int = kill_at) -> None:
            names.append(name)
            if len(names) > kill_at:
                raise Killed

        store, killed = ManagedDiskStore.open(made.folder), True
        try:
            with failpoint.all_armed(step, "store."):
                store.compactor.compact(made.target)
            killed = False
        except Killed:
            made.check_all(f"killed after {names[-1]}")
        again = ManagedDiskStore.open(made.folder)
        made.check_all(f"opened after {names[-1]}")
        assert again.compactor.compact(made.target) == made.target
        made.check_all(f"folded after {names[-1]}")
        again.close()
        if not killed:
            break
    assert kill_at > 8


def test_a_payload_that_is_unreadable_for_a_moment_is_read_again(tmp_path: Path, looks: list[float]) -> None:
    made = Rotten(tmp_path, set())

    def trouble(operation: int, path: str, _offset: int, _size: int) -> int:
        return -errno.EIO if operation == READ and path.endswith(".journal") and not looks else 0

    store = ManagedDiskStore.open(made.folder)
    with io_verdict(trouble):
        store.compactor.compact(made.target)
    assert looks == [base_image.REREAD_DELAY_S]
    made.check_all("folded")
    assert list(scrub(store.folder)) == []
    store.close()


def test_overwriting_a_block_that_compaction_left_unreadable_makes_it_readable(tmp_path: Path) -> None:
    made = Rotten(tmp_path, {WHOLE, PART})
    disk, store = made.disk, ManagedDiskStore.open(made.folder)
    store.compactor.compact(made.target)
    for block in made.bad:
        disk.write(block * BLOCK, disk.rng.randbytes(BLOCK))
    point = disk.tag("later").position
    apply(store, [disk.close_log()])
    made.bad = set()
    for what in ("applied", "folded"):
        view = open_view(made.folder, point)
        made.check(view, point, what)
        view.close()
        store.compactor.compact(point)
    assert {damage.first_position for damage in scrub(store.folder)} == {None}  # still bad, of no position
    store.close()
