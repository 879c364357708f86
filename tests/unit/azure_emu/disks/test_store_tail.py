"""The end of a journal: what a kill or a power loss tore there is cut, and what counts is never taken for that."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from siterig.azure_emu.disks.frames import HEADER_BYTES, Frame
from siterig.azure_emu.disks.io_errors import pread_past_bad_sectors
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.metadata import PROGRESS, Progress, read_meta, write_meta
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import DISK_ID
from tests.support.stores.killed_store import Killed, Life
from tests.support.stores.managed_disk import apply, assert_same, new_store, whole

BOOT = "00000000-0000-4000-8000-00000000000{}"


class Tail:
    """A store whose last part is the last of a life: where its last two frames are, in the newest journal file."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 1 << 30)
        self.folder = tmp_path / DISK_ID
        self.reboot(0)
        self.life = Life(tmp_path, 6)
        store = new_store(tmp_path)
        apply(store, self.life.parts)
        self.before, self.last = store.debug_state().frames[-2:]
        store.close()
        self.path = self.folder / f"journal/{self.last.journal_file:012d}.journal"
        self.good = self.path.read_bytes()
        self._progress = (self.folder / PROGRESS).read_bytes()

    def reboot(self, number: int) -> None:
        self._monkeypatch.setattr(boot, "current_boot_id", lambda: BOOT.format(number))

    def put_back(self) -> None:
        """All is as it was when the power was lost."""
        self.path.write_bytes(self.good)
        (self.folder / PROGRESS).write_bytes(self._progress)

    def flip(self, *places: int) -> None:
        raw = bytearray(self.path.read_bytes())
        for at in places:
            raw[at] ^= 1
        self.path.write_bytes(raw)

    def hurt_headers(self, frame: Frame) -> None:
        """In front and behind."""
        self.flip(frame.start + 9, frame.back_at + 20)

    def open(self) -> ManagedDiskStore:
        store = ManagedDiskStore.open(self.folder)
        self.life.check(store, "opened", store.oldest_position)
        return store

    def refused(self) -> str:
        """Why; and it is left as it is."""
        was = self.path.read_bytes() if self.path.exists() else None
        with pytest.raises(RigError) as caught:
            ManagedDiskStore.open(self.folder)
        assert was == (self.path.read_bytes() if self.path.exists() else None)
        assert caught.value.code == "StoreCorrupt"
        prefix = f"{self.path}: managed disk is corrupt: "
        assert caught.value.message.startswith(prefix)
        return caught.value.message.removeprefix(prefix)


@pytest.fixture
def tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tail:
    return Tail(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("rebooted", [0, 1], ids=["killed", "power-lost"])
def test_a_frame_that_the_file_ends_in_never_counted(tail: Tail, rebooted: int) -> None:
    last = tail.last
    for length in (last.start + 1, last.segment_at - 1, last.segment_at, last.entries_at + 3, last.back_at, last.end - 1):
        tail.put_back()
        tail.path.write_bytes(tail.good[:length])
        tail.reboot(rebooted)
        earlier = tail.before.position
        assert_same(whole(open_view(tail.folder, earlier)), tail.life.disk.states[earlier], f"cut to {length}")
        store = tail.open()
        assert tail.path.stat().st_size == last.start
        assert store.classify(tail.life.parts[-1][0]) == "next"
        apply(store, tail.life.parts[-1:])
        assert tail.path.read_bytes() == tail.good
        store.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["headers", "segment", "zeros"])
def test_a_torn_last_frame_is_truncated_after_a_power_loss(tail: Tail, what: str) -> None:
    match what:
        case "headers":
            tail.hurt_headers(tail.last)
        case "segment":
            tail.flip(tail.last.segment_at + 300)
        case _:
            tail.path.write_bytes(tail.good[: tail.last.start] + bytes(tail.last.end - tail.last.start))
    tail.reboot(1)
    store = tail.open()
    assert tail.path.stat().st_size == tail.last.start
    assert store.watermark().complete_position == tail.before.position
    apply(store, tail.life.parts[-1:])
    assert tail.path.read_bytes() == tail.good


@pytest.mark.slow
def test_a_last_frame_with_an_intact_segment_is_repaired_after_a_power_loss(tail: Tail) -> None:
    last = tail.last
    for at in (last.start + 9, last.entries_at + 1, last.tags_at + 1, last.back_at + 20):
        tail.put_back()
        tail.flip(at)
        tail.reboot(1)
        store = tail.open()
        assert store.watermark().complete_position == last.position, at
        assert tail.path.read_bytes() == tail.good, at
        store.close()


def test_the_header_of_the_last_frame_is_repaired_after_a_kill(tail: Tail) -> None:
    for header, level in ((bytes(HEADER_BYTES), "info"), (b"x" * HEADER_BYTES, "warning")):
        start = tail.last.start
        tail.path.write_bytes(tail.good[:start] + header + tail.good[start + HEADER_BYTES :])
        with capture_logs() as logs:
            store = ManagedDiskStore.open(tail.folder)
        assert store.watermark().complete_position == tail.last.position
        assert tail.path.read_bytes() == tail.good
        assert [(line["event"], line["log_level"]) for line in logs] == [("frame_repaired", level)]
        store.close()


def test_a_header_that_is_written_while_it_is_looked_at_is_no_damage(tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    early = [True]

    def pread(fd: int, length: int, offset: int) -> bytes:
        if (length, offset) == (HEADER_BYTES, tail.last.start) and early:
            early.clear()
            return bytes(HEADER_BYTES)
        return pread_past_bad_sectors(fd, length, offset)

    monkeypatch.setattr("siterig.azure_emu.disks.journal.pread_past_bad_sectors", pread)
    loaded = load_history(tail.folder)
    assert (loaded.journal.repaired, loaded.journal.broken, early) == ([], None, [])
    assert loaded.history.watermark().complete_position == tail.last.position


def test_in_the_boot_in_which_it_was_written_a_bad_last_frame_is_rot(tail: Tail) -> None:
    tail.hurt_headers(tail.last)
    assert tail.refused() == f"byte {tail.last.start}: frame header checksum does not match"
    tail.put_back()
    tail.flip(tail.last.segment_at + 300)
    store = ManagedDiskStore.open(tail.folder)
    assert store.watermark().complete_position == tail.last.position
    assert [damage.path for damage in scrub(store.folder)] == [str(tail.path)]


@pytest.mark.parametrize("later", [1, 2], ids=["same-boot", "another-boot"])
def test_a_frame_that_was_counted_in_a_boot_is_never_torn(tail: Tail, later: int) -> None:
    tail.reboot(1)
    tail.open().close()
    tail.reboot(later)
    last = tail.last
    tail.hurt_headers(last)
    assert tail.refused() == f"byte {last.start}: frame header checksum does not match"
    tail.path.write_bytes(tail.good[: last.start] + bytes(last.end - last.start))
    assert tail.refused() == f"byte {last.start}: no frame begins here"
    tail.path.write_bytes(tail.good[: last.end - 1])
    whole_bytes = last.end - last.start
    assert tail.refused() == f"byte {last.start}: the file ends after {whole_bytes - 1} bytes of a frame of {whole_bytes}"
    tail.path.write_bytes(tail.good[: last.start])
    assert tail.refused() == f"byte {last.start}: it ends before frame {last.number}, which was there"
    tail.path.unlink()
    assert tail.refused() == f"byte 0: it ends before frame {last.journal_file}, which was there"
    tail.path.write_bytes(tail.good)
    tail.flip(last.segment_at + 300)
    store = ManagedDiskStore.open(tail.folder)
    assert store.watermark().complete_position == last.position


@pytest.mark.slow
def test_the_frame_before_a_torn_one_is_never_taken_for_torn_itself(tail: Tail) -> None:
    for later in (1, 2):
        tail.put_back()
        tail.flip(tail.last.segment_at + 300)
        tail.reboot(1)
        tail.open().close()
        assert tail.path.stat().st_size == tail.last.start
        tail.reboot(later)
        tail.hurt_headers(tail.before)
        assert tail.refused() == f"byte {tail.before.start}: frame header checksum does not match"


def test_only_the_last_frame_can_be_torn(tail: Tail) -> None:
    tail.reboot(1)
    tail.hurt_headers(tail.before)
    assert tail.refused() == f"byte {tail.before.start}: frame header checksum does not match"


@pytest.mark.slow
def test_frames_of_this_boot_after_those_of_another_are_not_torn(tail: Tail) -> None:
    tail.path.write_bytes(tail.good[: tail.last.start])
    tail.reboot(1)
    store = tail.open()
    apply(store, tail.life.parts[-1:])
    store.close()
    tail.hurt_headers(tail.last)
    assert tail.refused() == f"byte {tail.last.start}: frame header checksum does not match"
    tail.reboot(2)  # now the power may have been lost while it was written
    assert tail.open().watermark().complete_position == tail.before.position


def test_compacted_frames_must_not_go_missing(tail: Tail) -> None:
    store = tail.open()
    store.compactor.compact(tail.last.position)
    store.close()
    tail.path.write_bytes(tail.good[: tail.last.start])
    assert tail.refused() == f"byte {tail.last.start}: it ends before frame {tail.last.number}, which was there"


@pytest.mark.parametrize("killed_before", [1, 2])
def test_a_kill_during_truncation_leaves_the_torn_frame_to_the_next_opening(
    tail: Tail, monkeypatch: pytest.MonkeyPatch, killed_before: int
) -> None:
    tail.flip(tail.last.segment_at + 300)
    tail.reboot(1)
    writes = 0

    def counting(path: Path, model: Progress) -> None:
        nonlocal writes
        writes += 1
        if writes == killed_before:
            raise Killed
        write_meta(path, model)

    with monkeypatch.context() as patch:
        patch.setattr("siterig.azure_emu.disks.store.write_meta", counting)
        with pytest.raises(Killed):
            ManagedDiskStore.open(tail.folder)
    tail.open().close()
    assert tail.path.stat().st_size == tail.last.start
    opened = read_meta(tail.folder / PROGRESS, Progress).opened
    assert (opened.boot, opened.frame) == (BOOT.format(1), tail.before.number)
    tail.hurt_headers(tail.before)
    assert tail.refused() == f"byte {tail.before.start}: frame header checksum does not match"
