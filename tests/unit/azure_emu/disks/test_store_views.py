"""A view holds its position, and damage that its reader meets is reported by file and byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks.pins import pin, pins
from siterig.azure_emu.disks.view_provider import WATCH_S, ManagedDiskViews
from siterig.blockfs.core.errors import Code, RigError
from tests.support.stores.managed_disk import assert_same, seeded, whole


def test_a_position_is_held_until_it_is_released_and_nothing_else_is(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    views = ManagedDiskViews(tmp_path)
    view = views.open(store.folder.name, disk.position, "vm web01/os")
    assert_same(whole(view), bytes(disk.data), "the view")
    views.open(store.folder.name, disk.position, "vm web01/os").close()
    views.open(store.folder.name, disk.position, "recovery web01/point").close()
    for missing in (disk.position + 1, 1):
        with pytest.raises(RigError, match=f"has no state at position {missing}"):
            views.open(store.folder.name, missing, "vm web02/os")
    assert {each.holder for each in pins(store.folder)} == {"vm web01/os", "recovery web01/point"}
    views.release(store.folder.name, "vm web01/os")
    views.release("gone", "vm web01/os")
    assert [each.holder for each in pins(store.folder)] == ["recovery web01/point"]


def test_pins_that_a_kill_left_are_released_by_kind(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    for holder in ("vm web01/os", "vm web02/os", "vmware 1", "recovery web01/point"):
        pin(store.folder, disk.position, holder)
    (tmp_path / ".new-1").mkdir()
    views = ManagedDiskViews(tmp_path)
    views.reconcile("vm", {"vm web02/os"})
    assert {each.holder for each in pins(store.folder)} == {"vm web02/os", "vmware 1", "recovery web01/point"}
    bad = next((store.folder / "pins").iterdir())
    bad.write_text("{}")
    views.reconcile("vm", set())  # left as it is; the applier, and a scrub, name it
    with pytest.raises(RigError, match="managed disk is corrupt"):
        pins(store.folder)
    left = {"vm web02/os", "vmware 1", "recovery web01/point"}
    for holder in left:
        views.release(store.folder.name, holder)
    assert list((store.folder / "pins").iterdir()) == [bad]
    ManagedDiskViews(tmp_path / "nothing").reconcile("vm", set())


def test_a_view_that_cannot_be_opened_holds_nothing(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    (journal_file,) = (store.folder / "journal").iterdir()
    raw = bytearray(journal_file.read_bytes())
    frame = store.debug_state().frames[0]
    raw[frame.entries_at] ^= 1
    raw[frame.segment_at + 200] ^= 1
    journal_file.write_bytes(raw)
    with pytest.raises(RigError, match="index of frame 1 has a wrong checksum, and so has its segment"):
        ManagedDiskViews(tmp_path).open(store.folder.name, disk.position, "vm web01/os")
    assert pins(store.folder) == []


class Reports:
    """A vault that does not answer the first time."""

    def __init__(self) -> None:
        self.away = 1
        self.met: list[tuple[str, str, int, int]] = []

    async def damage_met(self, *, disk_id: str, path: str, offset: int, position: int) -> None:
        self.away -= 1
        if self.away >= 0:
            raise RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)
        self.met.append((disk_id, path, offset, position))

    async def vm_disk_changed(self, *, vm: str, disk: str, what: str) -> None:
        raise AssertionError(what)

    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        raise NotImplementedError


async def test_damage_met_by_a_reader_is_reported_even_if_it_closes_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    disk, store = seeded(tmp_path)
    views, reports = ManagedDiskViews(tmp_path), Reports()
    view = views.open(store.folder.name, disk.position, "mount web01/x")
    base = store.folder / "base.img"
    base.write_bytes(bytes(byte ^ 0xFF for byte in base.read_bytes()))
    nursery.start_soon(views.watch, reports)
    with structlog.testing.capture_logs():
        with pytest.raises(OSError, match="Input/output error"):
            view.pread(0, view.size_bytes)
        view.close()
        views.release(store.folder.name, "mount web01/x")
        await trio.sleep(5 * WATCH_S)
    nursery.cancel_scope.cancel()
    [(told_disk, path, _, position)] = reports.met
    assert (told_disk, path, position) == (store.folder.name, str(base), disk.position)


async def test_damage_that_a_reader_meets_is_logged_by_file_and_byte(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    disk, store = seeded(tmp_path)
    views = ManagedDiskViews(tmp_path)
    view = views.open(store.folder.name, disk.position, "vm web01/os")
    ((at, _), *_) = view.data_ranges()
    base = store.folder / "base.img"
    reports = Reports()
    raw = bytearray(base.read_bytes())
    raw = bytearray(byte ^ 0xFF for byte in raw)
    base.write_bytes(raw)
    with structlog.testing.capture_logs() as logs:
        nursery.start_soon(views.watch, reports)
        with pytest.raises(OSError, match="Input/output error"):
            view.pread(0, view.size_bytes)
        await trio.sleep(5 * WATCH_S)
        nursery.cancel_scope.cancel()
    told, waits = logs
    assert (waits["event"], len(reports.met)) == ("damage_not_reported_yet", 1)
    assert (told["event"], told["file"], told["holder"]) == ("damage_not_served", str(base), "vm web01/os")
    assert told["byte"] == told["disk_byte"] >= at
    view.close()
