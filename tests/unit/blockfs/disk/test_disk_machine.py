"""Hypothesis runs sequences of operations on a disk and on a byte array, and compares them after each operation."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.snapshot import Snapshot
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Layer, ViewLayer
from siterig.cext._core import lib
from tests.support.disks.disk_model import replay
from tests.support.repo.examples import examples
from tests.support.stores.one_key import CIPHER, KEY_ID, make_encrypted
from tests.support.stores.volume import Volume, base_source

pytestmark = pytest.mark.slow

SIZE = 300 * 1024 + 512
"""This size is not a multiple of a block, of a snapshot chunk, or of the blocks that one byte of a map describes."""
GROWN_MAX = 2 * SIZE
OFFSETS = st.integers(0, GROWN_MAX) | st.integers(0, GROWN_MAX // 4096).map(lambda block: block * 4096)
LENGTHS = st.integers(0, 9000) | st.sampled_from([512, 4096, 65536, 100_000])


class DiskMachine(RuleBasedStateMachine):
    """``model`` has the bytes that the disk must have, ``start`` those at the beginning of the log's present generation."""

    @initialize(over_a_view=st.booleans(), encrypted=st.booleans())
    def make(self, over_a_view: bool, encrypted: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="siterig-machine-"))
        self.positions = PositionCounter(self.folder / "position")
        # The log is never abandoned: this test is not about abandoned logs.
        self.of_host = DiskOptions(self.positions, policy=LogPolicy(kept_share_max=None), snapshot_share_max=10.0)
        self.paths = DiskPaths(self.folder, "web01", "os")
        self.fresh = itertools.count(1)
        self.model = bytearray(SIZE)
        if over_a_view:
            self.base = os.urandom(100_000)
            self.volume = Volume(states=[self.base.ljust(SIZE, b"\0")])
            if encrypted:  # all of it is the base: the ranges of encrypted changes are those of lines
                self.model[8192:108_192] = self.base
                self.base = CIPHER.encrypt(self.model, 0)
            else:
                self.volume.change(90_000, 50_000)
                self.volume.change(8192, 808, is_write=False)
                self.model[:] = self.volume.states[-1]
            key_id = KEY_ID if encrypted else None
            make_over_managed_disk(self.paths, managed_disk="below", position=1, size_bytes=SIZE, key_id=key_id)
        else:
            (make_encrypted if encrypted else make_raw)(self.paths, SIZE)
        self.disk = self.opened()
        self.start = bytes(self.model)
        self.disk.tracking.start(new_generation=False)
        self.snapshot: tuple[Snapshot, bytes, int] | None = None

    def key_id(self, _managed_disk: str) -> str | None:
        return KEY_ID

    def cipher(self, _managed_disk: str, _key_id: str) -> DiskCipher:
        return CIPHER

    async def prepare(self, managed_disk: str, *, is_needed: bool = False) -> None:
        pass

    def open(self, _managed_disk: str, _position: int, _holder: str, *, stored: bool = False) -> Layer:
        """Open the view; this class stands for :class:`siterig.blockfs.disk.views.Views`."""
        extents = ExtentMap()
        extents.add_base([(0, len(self.base))])
        self.volume.add_to(extents)
        extents.merge_pending()
        return ViewLayer(extents, [base_source(self.folder, self.base), self.volume.source(self.folder)], SIZE)

    def release(self, _managed_disk: str, _holder: str) -> None:
        pass

    def reconcile(self, _kind: str, _holders: Collection[str]) -> None:
        pass

    def opened(self) -> Disk:
        return Disk.open(self.paths, self.of_host, self)

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.abandon()
            self.positions.close()
            shutil.rmtree(self.folder)

    # --- operations that change the disk ----------------------------------------------------------------------------------

    @rule(offset=OFFSETS, length=LENGTHS)
    def write(self, offset: int, length: int) -> None:
        data = (next(self.fresh).to_bytes(4, "little") * (length // 4 + 1))[:length]
        inside = min(length, len(self.model) - offset)
        if length and inside <= 0:
            try:
                self.disk.write(offset, data)
            except OSError:
                return
            raise AssertionError("a write past the end was taken")
        assert self.disk.write(offset, data) == max(inside, 0)
        self.model[offset : offset + inside] = data[:inside]

    @rule(offset=OFFSETS, length=LENGTHS, discard=st.booleans())
    def zero(self, offset: int, length: int, discard: bool) -> None:
        self.disk.zero(offset, length, discard=discard)
        inside = max(min(length, len(self.model) - offset), 0)
        self.model[offset : offset + inside] = bytes(inside)

    @precondition(lambda self: len(self.model) < GROWN_MAX - 200 * 512)
    @rule(sectors=st.integers(0, 200), by_request=st.booleans())
    def grow(self, sectors: int, by_request: bool) -> None:
        size_bytes = len(self.model) + sectors * 512
        if by_request:
            assert lib.sr_disk_reach(self.disk.c, size_bytes) == 0
        else:
            self.disk.resize(size_bytes)
        self.model.extend(bytes(sectors * 512))

    @rule()
    def note_events(self) -> None:
        self.disk.note_events()
        assert self.disk.state.size_bytes == len(self.model)

    # --- operations that do not change it -----------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.disk.flush_now()

    @rule()
    def maintain(self) -> None:
        self.disk.tracking.maintain()

    @rule()
    def tag(self) -> None:
        position = self.positions.draw()
        before = bytes(self.model)
        self.disk.tracking.tag(TagSeen(tag_id="t", kind="CrashConsistent", name="n", position=position, time_ns=0))
        assert replay(self.start, self.disk, upto=position) == before

    @rule()
    def apply_all(self) -> None:
        """Trim the log as after the recovery side applied all closed segments."""
        segments = self.disk.tracking.segments()
        if segments:
            self.start = replay(self.start, self.disk, upto=segments[-1].complete_position)
            self.disk.tracking.trim(self.disk.state.generation, segments[-1].last_seq)

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def begin_snapshot(self) -> None:
        self.snapshot = (self.disk.begin_snapshot(), bytes(self.model), 0)

    @precondition(lambda self: self.snapshot is not None)
    @rule(upto=OFFSETS)
    def read_and_release_snapshot(self, upto: int) -> None:
        assert self.snapshot is not None
        snapshot, was, released = self.snapshot
        assert snapshot.pread(released, len(was) - released) == was[released:]
        ranges = snapshot.data_ranges
        holes = zip([0, *(at + length for at, length in ranges)], [*(at for at, _ in ranges), len(was)], strict=True)
        assert not any(any(was[start:end]) for start, end in holes)
        snapshot.release(upto)
        self.snapshot = (snapshot, was, max(released, min(upto, len(was)) // 65536 * 65536))

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def end_snapshot(self) -> None:
        self.disk.end_snapshot()
        self.snapshot = None

    @rule(orderly=st.booleans())
    def open_again(self, orderly: bool) -> None:
        next_seq = self.disk.tracking.log.next_seq
        if orderly:
            self.disk.close()
        else:
            self.disk.abandon()
        self.snapshot = None
        self.disk = self.opened()
        assert (self.disk.state.generation, self.disk.state.needs_resync) == (self.disk.state.generation, None)
        assert self.disk.tracking.log.next_seq >= next_seq

    @rule()
    def begin_a_new_generation(self) -> None:
        self.disk.tracking.start(new_generation=True)
        self.disk.tracking.trim(self.disk.state.generation, 0)  # the old generation is no longer needed
        self.start = bytes(self.model)

    @rule()
    def hydrate_a_step(self) -> None:
        """Hydrate one step, which changes no byte of the disk and logs nothing."""
        next_seq = self.disk.tracking.log.next_seq
        self.disk.hydration.begin()
        self.disk.hydration.hydrate(1)
        self.disk.hydration.flush()
        assert self.disk.tracking.log.next_seq == next_seq

    @rule(limit=st.integers(1, 5))
    def hydrate_and_detach(self, limit: int) -> None:
        self.disk.hydration.begin()
        if any(self.disk.hydration.hydrate(1) for _ in range(limit)):
            self.disk.hydration.flush()
            if self.disk.state.promoting and self.disk.hydration.convert_to_raw():
                self.disk.hydration.detach_backing()

    # --- invariants --------------------------------------------------------------------------------------

    @invariant()
    def the_disk_reads_as_the_model(self) -> None:
        if hasattr(self, "disk"):
            assert self.disk.size_bytes == len(self.model)
            assert self.disk.read(0, GROWN_MAX) == self.model

    @invariant()
    def replaying_the_log_gives_the_disk(self) -> None:
        if hasattr(self, "disk"):
            assert replay(self.start, self.disk) == self.model

    @invariant()
    def reported_holes_are_zeros(self) -> None:
        if hasattr(self, "disk"):
            at = 0
            for offset, length in self.disk.layer.data_ranges():
                assert not any(self.model[at:offset])
                at = offset + length
            assert not any(self.model[at:])


TestDiskMachine = DiskMachine.TestCase
TestDiskMachine.settings = settings(max_examples=examples(40), stateful_step_count=25)
