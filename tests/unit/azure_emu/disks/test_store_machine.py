"""Any sequence of what happens to a managed disk's store, beside byte arrays: it gives back what the disk was."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.pins import pin, pins, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.layer import Layer
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, Packed, SiteDisk
from tests.support.repo.examples import examples
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import assert_same

pytestmark = pytest.mark.slow


class StoreMachine(RuleBasedStateMachine):
    """``disk``: the source; ``todo``: parts that were not applied yet, as a cache account would hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        (self.folder / "site").mkdir()
        self.patches = [
            mock.patch("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 60_000),
            mock.patch("siterig.azure_emu.disks.history.SLICE_BYTES", 80_000),
            mock.patch.object(checkpoints, "RECORDS_MIN", 5),
        ]
        for patch in self.patches:
            patch.start()
        self.failpoints = failpoint.all_armed(self.reached, "store.")
        self.failpoints.__enter__()
        self.kill_at = -1
        self.fresh = itertools.count()
        self.views: list[tuple[Layer, int]] = []
        self.held: list[tuple[int, str]] = []
        self.snapshots: list[int] = []

    @initialize(seed=st.integers(0, 1 << 32))
    def make(self, seed: int) -> None:
        self.disk = SiteDisk(self.folder / "site", random.Random(seed))
        self.store = ManagedDiskStore.create(self.folder / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
        self.disk.scribble(10)
        self.disk.close_log()
        self.todo: list[Packed] = self.disk.sync()
        self.snapshots.append(self.disk.position)
        self.valid: set[int] = {self.disk.position}
        """Positions at which the disk's state is known to the log or a snapshot."""
        self.generation = 1

    def reached(self, _name: str) -> None:
        if self.kill_at >= 0:
            self.kill_at -= 1
            if self.kill_at < 0:
                raise Killed

    def reopen(self, kill_at: int = -1) -> None:
        """Open the disk again; the opening may be killed, too."""
        discard_leftovers(self.folder)
        for self.kill_at in (kill_at, -1):
            try:
                self.store = ManagedDiskStore.open(self.folder / DISK_ID)
            except Killed:
                continue
            break
        self.kill_at = -1

    def attempt(self, act: object, kills: tuple[int, int]) -> None:
        """Do it, or be killed after some step; then the store is opened again, perhaps after another kill."""
        self.kill_at, in_opening = kills
        try:
            act()  # type: ignore[operator]
        except Killed:
            self.reopen(in_opening)
        finally:
            self.kill_at = -1

    kills = st.tuples(*[st.one_of(st.just(-1), st.integers(0, 12))] * 2)

    # --- the source ---------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 12))
    def write(self, count: int) -> None:
        before = self.disk.position
        self.disk.scribble(count)
        self.valid |= {position for position in self.disk.states if position > before}

    @rule(sectors=st.integers(1, 40))
    def grow(self, sectors: int) -> None:
        if len(self.disk.data) < 2 * SIZE_BYTES:
            self.disk.resize(len(self.disk.data) + sectors * 512)
            self.valid.add(self.disk.position)

    @rule(name=st.text("abc", min_size=1, max_size=3))
    def point(self, name: str) -> None:
        self.disk.tag(name)
        self.valid.add(self.disk.position)
        self.todo.append(self.disk.close_log())

    @precondition(lambda self: not self.todo and self.store.watermark().sync_complete)
    @rule(lost=st.integers(0, 5), cut=st.booleans())
    def resync(self, lost: int, cut: bool) -> None:
        disk = self.disk
        disk.scribble(lost)
        reached = self.store.watermark().complete_position
        self.valid = {position for position in self.valid if position <= reached}
        disk.new_generation()
        disk.scribble(2)
        disk.close_log()
        view = self.store.latest_view()
        old = view.pread(0, view.size_bytes)
        view.close()
        parts = disk.sync(against=old)
        if cut and len(parts) > 1:
            for part in parts[:-1]:
                self.store.apply_part(*part)
            disk.new_generation()
            disk.scribble(2)
            disk.close_log()
            view = self.store.latest_view()
            old = view.pread(0, view.size_bytes)
            view.close()
            parts = disk.sync(against=old)
        self.todo += parts
        self.valid.add(disk.position)

    # --- the store ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.todo)
    @rule(count=st.integers(1, 8), kills=kills)
    def apply(self, count: int, kills: tuple[int, int]) -> None:
        def act() -> None:
            for part in self.todo[:count]:
                self.store.apply_part(*part)

        self.attempt(act, kills)
        self.todo = [part for part in self.todo if self.store.classify(part[0]) != "applied"]

    @rule(back=st.integers(0, 40), kills=kills)
    def fold(self, back: int, kills: tuple[int, int]) -> None:
        upto = self.store.watermark().complete_position - back
        before = self.store.oldest_position
        self.attempt(lambda: self.store.compactor.compact(upto), kills)
        assert self.store.oldest_position >= before
        assert self.store.oldest_position <= max(upto, before)
        assert all(self.store.oldest_position <= position for position, _ in self.held)
        if self.store.oldest_position:
            self.valid.add(self.store.oldest_position)

    @rule(kills=kills)
    def checkpoint(self, kills: tuple[int, int]) -> None:
        self.attempt(self.store.compactor.checkpoint, kills)

    @rule()
    def kill(self) -> None:
        self.reopen()

    def readable(self) -> list[int]:
        ranges = self.store.valid_ranges()
        known = self.valid & self.disk.states.keys()
        return sorted(p for p in known if any(first <= p <= last for first, last in ranges))

    @precondition(lambda self: self.readable())
    @rule(choice=st.integers(0, 1 << 16))
    def hold(self, choice: int) -> None:
        position = self.readable()[choice % len(self.readable())]
        self.held.append((position, pin(self.store.folder, position, f"test {next(self.fresh)}")))
        self.views.append((open_view(self.store.folder, position), position))

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 1 << 16))
    def release(self, choice: int) -> None:
        position, pin_id = self.held.pop(choice % len(self.held))
        unpin(self.store.folder, pin_id)
        (view,) = [view for view, at in self.views if at == position][:1]
        self.views.remove((view, position))
        view.close()

    @rule()
    def scrub(self) -> None:
        assert list(scrub(self.store.folder)) == []

    @rule(choice=st.integers(0, 1 << 16))
    def look(self, choice: int) -> None:
        """Any position: as the disk was, or refused."""
        position = self.disk.position - choice % 200
        ranges = self.store.valid_ranges()
        if any(first <= position <= last for first, last in ranges):
            known = [p for p in self.valid & self.disk.states.keys() if p <= position]
            if known:
                self.compare(open_view(self.store.folder, position), max(known), f"position {position}")
        else:
            with suppress(RigError):
                open_view(self.store.folder, position)
                raise AssertionError(f"position {position} was opened; valid are {ranges}")

    def compare(self, view: Layer, position: int, what: str, *, close: bool = True) -> None:
        state = self.disk.states[position]
        assert_same(view.pread(0, view.size_bytes), state, what)
        if close:
            view.close()

    @invariant()
    def what_is_open_stays_as_it_was(self) -> None:
        for view, position in self.views:
            self.compare(view, position, f"open view at {position}", close=False)
        if self.held:
            assert {each.position for each in pins(self.store.folder)} == {position for position, _ in self.held}

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            for part in self.todo:
                self.store.apply_part(*part)
            for position in self.readable():
                self.compare(open_view(self.store.folder, position), position, f"position {position} in the end")
            assert list(scrub(self.store.folder)) == []
        for view, _ in self.views:
            view.close()
        self.failpoints.__exit__(None, None, None)
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
