"""A tracked disk needs a resync only if another program changed its files while it was not open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.watch.file_stamps import KILL_GRACE_S
from tests.crash.crash_workload import FileViews
from tests.fuzz.small_damage import seal_dirty, seal_state

SIZE = 1 << 20
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


class Lives:
    """A disk in its own folder, which is opened several times."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        self.root = folder
        self.below = folder.parent / "below"
        self.paths = DiskPaths(folder, "", "os")
        if kind == "raw":
            make_raw(self.paths, SIZE)
        else:
            self.below.write_bytes(os.urandom(SIZE))
            make_over_managed_disk(self.paths, managed_disk="below", position=1, size_bytes=SIZE)
        self.life(lambda disk: disk.tracking.start(new_generation=True))
        self.life(lambda disk: disk.write(4096, os.urandom(100_000)))

    @property
    def file(self) -> Path:
        return self.paths.file(DiskState.load(self.paths.file("disk")).kind.replace("raw", "img"))

    def open(self) -> tuple[Disk, PositionCounter]:
        positions = PositionCounter(self.paths.folder / "position")
        options = DiskOptions(positions, policy=LogPolicy(kept_share_max=None))
        return Disk.open(self.paths, options, FileViews(self.below)), positions

    def life(self, work: Callable[[Disk], object] = lambda _disk: None, *, killed: bool = False) -> str | None:
        """Open the disk, run ``work``, close or kill it, and return its ``needs_resync`` after the opening."""
        disk, positions = self.open()
        found = disk.state.needs_resync
        work(disk)
        (disk.abandon if killed else disk.close)()
        positions.close()
        return found


@pytest.fixture(params=["raw", "top"])
def lives(request: pytest.FixtureRequest, tmp_path: Path) -> Lives:
    return Lives(tmp_path / "web01", str(request.param))


def edit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"OFFLINE-EDIT")


def edit_unseen(path: Path) -> None:
    found = path.stat()
    edit(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    edit_unseen(path.with_name("copy"))
    path.with_name("copy").rename(path)


def zero_it(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, SIZE)


def grow(path: Path) -> None:
    os.truncate(path, 2 * SIZE)


@pytest.mark.parametrize("deed", [edit, edit_unseen, replace_by_another, zero_it, grow], ids=lambda deed: deed.__name__)
def test_a_disk_that_was_changed_while_it_was_down_needs_a_resync(lives: Lives, deed: Callable[[Path], None]) -> None:
    deed(lives.file)
    assert lives.life() == "ImageChanged"
    assert lives.life() == "ImageChanged", "until the resync"
    lives.life(lambda disk: disk.tracking.start(new_generation=True))
    assert lives.life() is None


def test_a_disk_file_that_grew_by_part_of_a_sector_can_be_opened(lives: Lives) -> None:
    if lives.file.suffix == ".top":
        return
    os.truncate(lives.file, SIZE + 1000)
    assert lives.life(lambda disk: disk.read(0, 512)) == "ImageChanged"
    assert lives.life() == "ImageChanged"


@pytest.mark.parametrize("suffix", ["top.present", "top.durable"])
def test_a_map_that_was_changed_while_the_disk_was_down_is_noticed(tmp_path: Path, suffix: str) -> None:
    lives = Lives(tmp_path / "web01", "top")
    path = lives.paths.file(suffix)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    try:
        assert lives.life() == "ImageChanged"
    except RigError as error:
        assert error.code == "DiskCorrupt"


@pytest.mark.parametrize("suffix", ["top", "top.present", "top.durable"])
@pytest.mark.parametrize("deed", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["unlink", "empty"])
def test_a_missing_file_of_an_overlay_is_not_replaced_by_an_empty_one(
    tmp_path: Path, suffix: str, deed: Callable[[Path], None]
) -> None:
    lives = Lives(tmp_path / "web01", "top")
    deed(lives.paths.file(suffix))
    with pytest.raises(RigError, match=rf"os\.{suffix}") as failed:
        lives.open()
    assert failed.value.code == "DiskCorrupt"


@pytest.mark.parametrize("killed", [False, True])
def test_a_hydrated_disk_that_was_changed_while_down_needs_a_resync(tmp_path: Path, killed: bool) -> None:
    lives = Lives(tmp_path / "web01", "top")

    def hydrate_all(disk: Disk) -> None:
        disk.hydration.begin()
        while not disk.hydration.hydrate(SIZE):
            pass
        disk.hydration.flush()
        assert disk.hydration.convert_to_raw()
        disk.hydration.detach_backing()

    lives.life(hydrate_all, killed=killed)
    assert lives.life(killed=killed) is None
    edit(lives.paths.file("img"))
    make_younger(lives.paths.file("img"))
    assert lives.life() == "ImageChanged"


# ---- the same disk


def touch(path: Path) -> None:
    path.touch()


def change_rights(path: Path) -> None:
    path.chmod(0o640)


def read_it(path: Path) -> None:
    path.read_bytes()


def copy_with_new_times(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def nothing(_path: Path) -> None:
    pass


@pytest.mark.parametrize(
    "deed", [nothing, touch, change_rights, read_it, copy_with_new_times], ids=lambda deed: deed.__name__
)
def test_a_disk_whose_bytes_are_the_same_continues_its_log(
    lives: Lives, deed: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    deed(lives.file)
    assert lives.life(lambda disk: disk.write(0, b"x")) is None
    monkeypatch.setattr(boot, "current_boot_id", lambda: OTHER_BOOT)
    deed(lives.file)
    assert lives.life() is None, "after a reboot, too"


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("keep_times", [False, True])
def test_a_disk_in_a_copied_folder_continues_its_log(lives: Lives, keep_times: bool, killed: bool) -> None:
    lives.life(lambda disk: disk.write(0, b"x"), killed=killed)
    copy = shutil.copytree(
        lives.root, lives.root.with_name("copy"), copy_function=shutil.copy2 if keep_times else shutil.copy
    )
    lives.paths = DiskPaths(copy, "", "os")
    assert lives.life(lambda disk: disk.write(0, b"y")) is None
    assert lives.life() is None


def test_a_disk_in_a_moved_folder_continues_its_log(lives: Lives) -> None:
    lives.paths = DiskPaths(lives.root.rename(lives.root.with_name("moved")), "", "os")
    assert lives.life() is None


def test_a_disk_without_a_log_may_be_changed_by_other_programs(lives: Lives) -> None:
    lives.life(lambda disk: disk.tracking.stop())
    edit(lives.file)
    assert lives.life() is None


# ---- after a kill


def make_younger(path: Path, by_s: float = KILL_GRACE_S + 60) -> None:
    when_ns = path.stat().st_mtime_ns + int(by_s * 1e9)
    os.utime(path, ns=(when_ns, when_ns))


def test_no_number_of_kills_needs_a_resync(lives: Lives) -> None:
    for _ in range(8):
        assert lives.life(lambda disk: disk.write(512, os.urandom(512)), killed=True) is None
    assert lives.life() is None


def test_a_disk_that_was_changed_long_after_a_kill_needs_a_resync(lives: Lives) -> None:
    lives.life(lambda disk: disk.write(0, b"x"), killed=True)
    edit(lives.file)
    make_younger(lives.file)
    assert lives.life() == "ImageChanged"


def test_a_disk_that_was_replaced_after_a_kill_needs_a_resync(lives: Lives) -> None:
    lives.life(lambda disk: disk.write(0, b"x"), killed=True)
    replace_by_another(lives.file)
    assert lives.life() == "ImageChanged"


def test_a_clock_that_was_set_back_before_a_kill_needs_no_resync(lives: Lives) -> None:
    def flush_then(disk: Disk) -> None:
        disk.write(0, b"x")
        make_younger(lives.file, 3600)  # as if the clock had been an hour ahead at this write
        disk.flush_now()

    lives.life(flush_then, killed=True)
    assert lives.life() is None


def test_hydration_long_after_the_last_guest_write_needs_no_resync(tmp_path: Path) -> None:
    lives = Lives(tmp_path / "web01", "top")

    def some(disk: Disk) -> None:
        disk.hydration.begin()
        disk.hydration.hydrate(1)

    lives.life(some, killed=True)
    make_younger(lives.file)
    assert lives.life(killed=True) is None

    def rest(disk: Disk) -> None:
        while not disk.hydration.hydrate(SIZE):
            pass
        disk.hydration.flush()
        make_younger(lives.file)
        assert disk.hydration.convert_to_raw()

    lives.life(rest, killed=True)
    assert lives.life() is None


# ---- the log


def segments(lives: Lives) -> list[Path]:
    return [path for _, path in find_segments(lives.paths.folder, "os")]


def tagged(disk: Disk) -> None:
    """Write three tagged segments."""
    for number in range(3):
        disk.write(number * 4096, b"w" * 4096)
        disk.tracking.maintain()
        disk.tracking.tag(TagSeen(tag_id=OTHER_BOOT, kind="CrashConsistent", name="t", position=1, time_ns=1))


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_segment_that_was_deleted_while_the_disk_was_down_is_noticed(lives: Lives, which: int, killed: bool) -> None:
    lives.life(tagged, killed=killed)
    if killed and which == 0:
        return  # the disk does not know how far its log was applied; the agent reports LogGap
    segments(lives)[which].unlink()
    assert lives.life() == "LogCorrupt"


def test_a_segment_that_was_replaced_by_an_older_copy_is_noticed(lives: Lives) -> None:
    newest = segments(lives)[-1]
    older = newest.read_bytes()
    with newest.open("r+b") as file:
        file.truncate(len(older) - 64)  # as it was before the mark of the clean end
    assert lives.life() == "LogCorrupt"


# ---- older formats


def test_state_and_dirty_files_of_older_formats_are_read(lives: Lives) -> None:
    path = lives.paths.file("disk")
    state = DiskState.load(path)
    body = state.model_dump(exclude={"closed", "opened", "managed_disk", "key"})
    body["store"] = None if state.managed_disk is None else f"/rig/azure/disks/{state.managed_disk}"
    path.write_bytes(seal_state(body, version=1))
    raw = bytearray(lives.paths.file("dirty").read_bytes())
    raw[8:10], raw[68:4096] = b"\1\0", bytes(4028)
    lives.paths.file("dirty").write_bytes(seal_dirty(bytes(raw)))
    assert dirty_bitmap.read(lives.paths.file("dirty")).newest_segment == 0
    assert lives.life() is None
    again = DiskState.load(path)
    assert (again.closed is not None, again.managed_disk) == (True, state.managed_disk)


# ---- a host


async def test_a_host_lists_a_disk_that_was_changed_while_it_was_down(tmp_path: Path) -> None:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    for name in ("a", "b"):
        await host.create_disk(vm="web01", name=name, size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    host.disk("web01", "b").write(0, b"x")
    host.close()
    edit(tmp_path / "disks/web01/a.img")
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    assert {info.name: info.needs_resync for info in await host.list_disks()} == {"a": "ImageChanged", "b": None}
    host.close()


async def test_a_disk_that_cannot_be_closed_cleanly_does_not_stop_others(tmp_path: Path) -> None:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    for name in ("a", "b"):
        await host.create_disk(vm="web01", name=name, size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    (tmp_path / "disks/web01/a.img").unlink()
    host.close()
    assert DiskState.load(tmp_path / "disks/web01/a.disk").needs_resync == "ImageChanged"
    assert DiskState.load(tmp_path / "disks/web01/b.disk").closed is not None
