"""Tests of states of a managed disk after a power loss: it is opened, has all acknowledged data, and can be used."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.pins import pin, pins, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_disk
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import failpoint
from siterig.blockfs.transfer.envelope import DataKey
from tests.crash.recording import Event, Noted, Recorder
from tests.crash.states import Crashing, State
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, Packed, SiteDisk
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import assert_same, whole

FOLDERS = ("journal", "checkpoints", "pins", "")
KEY = DataKey(uuid.UUID(int=9), bytes(range(64)))
STATES = int(os.environ.get("SITERIG_STORE_STATES", "150"))


class _Stream(list[Event]):
    """Events of one folder, in one list with the events of the other folders."""

    def __init__(self, folder: str, line: list[tuple[str, Event]]) -> None:
        super().__init__()
        self._folder = folder
        self._line = line

    def append(self, event: Event) -> None:
        self._line.append((self._folder, event))


class StoreRecorder:
    """A recorder of a managed disk; each folder has its own recorder, and names in different folders are independent."""

    def __init__(self, folder: Path) -> None:
        self.line: list[tuple[str, Event]] = []
        self._recorders = {name: Recorder(folder / name) for name in FOLDERS if name} | {"": _Top(folder)}
        for name, recorder in self._recorders.items():
            recorder.events = _Stream(name, self.line)
        self.starts = {name: recorder.start for name, recorder in self._recorders.items()}

    def note(self, **facts: int) -> None:
        self.line.append(("", Noted(facts)))

    @contextlib.contextmanager
    def recording(self) -> Any:
        with contextlib.ExitStack() as stack:
            for name in FOLDERS:  # the engine only writes to the last one
                stack.enter_context(self._recorders[name].recording())
            yield


class _Top(Recorder):
    """A recorder of the managed disk's own files, without its subfolders."""

    def __init__(self, folder: Path) -> None:
        aside = folder.with_name("only-files")
        aside.mkdir()
        for path in folder.iterdir():
            if path.is_file():
                os.link(path, aside / path.name)
        super().__init__(aside)
        self._folder, self._inode = folder, folder.stat().st_ino
        shutil.rmtree(aside)


class Story:
    """A source's parts and the managed disk that applies them, with compaction, pins, checkpoints and kills between."""

    def __init__(self, tmp_path: Path, seed: int, key: DataKey | None) -> None:
        self.rng = random.Random(seed)
        self.key = key
        (tmp_path / "site").mkdir()
        self.disk = SiteDisk(tmp_path / "site", self.rng)
        self.parts: list[Packed] = []
        self.points: list[int] = []
        disk = self.disk
        disk.scribble(10)
        disk.close_log()
        self.parts += disk.sync()
        self.points.append(disk.position)
        for number in range(8):
            disk.scribble(6)
            if number == 3:
                disk.resize(SIZE_BYTES + 5632)
            self.points.append(disk.tag(str(number)).position)
            self.parts.append(disk.close_log())
        self.folder = tmp_path / DISK_ID

    def play(self) -> StoreRecorder:
        store = ManagedDiskStore.create(self.folder, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1, key=self.key)
        recorder = StoreRecorder(self.folder)
        with recorder.recording():
            held: list[tuple[str, int]] = []
            for part in self.parts:
                if self.rng.random() < 0.5:
                    store = self._killed(store, part)
                    recorder.note(applied=store.watermark().complete_position)
                store.apply_part(*part)
                recorder.note(applied=store.watermark().complete_position)
                store.compactor.checkpoint()
                if store.oldest_position and self.rng.random() < 0.4:
                    store.compactor.compact(store.watermark().complete_position - self.rng.randrange(15))
                    recorder.note(floor=store.oldest_position)
                if store.oldest_position and self.rng.random() < 0.4:
                    position = store.watermark().complete_position
                    held.append((pin(self.folder, position, f"test {position}"), position))
                    recorder.note(pinned=position)
                if held and self.rng.random() < 0.4:
                    recorder.note(pinned=0)
                    unpin(self.folder, held.pop()[0])
                    recorder.note(pinned=held[-1][1] if held else 0)
            store.close()
        return recorder

    def _killed(self, store: ManagedDiskStore, part: Packed) -> ManagedDiskStore:
        """Kill the process at some step of a part; the next process continues, in the same boot."""
        left = self.rng.randrange(1, 8)

        def reached(_name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with contextlib.suppress(Killed), failpoint.all_armed(reached, "store."):
            store.apply_part(*part)
        store.close()
        return ManagedDiskStore.open(self.folder, key=self.key)

    def check(self, folder: Path, facts: dict[str, int], what: str) -> None:
        store = ManagedDiskStore.open(folder, key=self.key)
        mark = store.watermark()
        assert mark.complete_position >= facts.get("applied", 0), what
        assert store.oldest_position >= facts.get("floor", 0), what
        if facts.get("pinned"):
            assert facts["pinned"] in {each.position for each in pins(folder)}, what
            assert store.oldest_position <= facts["pinned"], what
        valid = [p for p in self.disk.states if any(first <= p <= last for first, last in store.valid_ranges())]
        for position in {
            p for p in (store.oldest_position, mark.complete_position, *self.rng.sample(valid, min(3, len(valid)))) if p
        }:
            assert_same(
                whole(open_disk(folder, position, self.key)), self.disk.states[position], f"{what}, position {position}"
            )
        assert list(scrub(store.folder)) == [], what
        for part in self.parts:
            store.apply_part(*part)
        last = self.points[-1]
        assert_same(whole(store.view(last)), self.disk.states[last], f"{what}, then all parts")
        store.compactor.compact(last)
        assert_same(whole(store.view(max(store.oldest_position, last))), self.disk.states[last], f"{what}, then folded")
        store.close()


def put(folder: Path, states: dict[str, State]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in FOLDERS[::-1]:
        (folder / name).mkdir(exist_ok=True)
        for file, data in states[name].items():
            (folder / name / file).write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_a_store_continues_from_every_state_after_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print(f"replay with seed {seed}")
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 60_000)
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_BYTES", 80_000)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 5)
    monkeypatch.setattr(
        "siterig.azure_emu.disks.compaction.DELETING_THREADS", 1
    )  # so the seed alone determines the order of calls
    story = Story(tmp_path, seed, KEY if seed else None)
    recorder = story.play()
    rng = random.Random(seed)
    monkeypatch.setattr("siterig.blockfs.core.boot.current_boot_id", lambda: str(uuid.UUID(int=7)))
    crashing = {name: Crashing(recorder.starts[name]) for name in FOLDERS}
    moments = set(rng.sample(range(len(recorder.line)), min(STATES // 3, len(recorder.line))))
    facts: dict[str, int] = {}
    folder = tmp_path / "after" / DISK_ID
    folder.parent.mkdir()
    for index, (name, event) in enumerate(recorder.line):
        if isinstance(event, Noted):
            facts.update(event.fact)
            continue
        crashing[name].take(event)
        if index in moments:
            for sample in range(3):
                put(folder, {each: crashing[each].sample(rng) for each in FOLDERS})
                story.check(folder, facts, f"power lost after call {index} ({event!r:.80}), sample {sample}")
