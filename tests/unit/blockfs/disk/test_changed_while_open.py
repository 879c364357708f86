"""Changes of an open disk's file by other programs are noticed at once, and no lost byte is read as zero."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.standalone import StandAlone, open_disk
from siterig.blockfs.images.image_file import Image, open_image
from siterig.blockfs.watch import file_watch
from siterig.blockfs.watch.file_watch import FileWatch
from siterig.blockfs.watch.inotify import libc
from siterig.cext._core import lib
from tests.crash.crash_workload import FileViews

SIZE = 1 << 20


class Opened:
    """A tracked disk, and the changes that were reported for it at once."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.reported: list[str] = []
        self.watch = FileWatch()
        self.positions = PositionCounter(folder / "position")
        self.paths = DiskPaths(folder, "", "os")
        if kind == "raw":
            make_raw(self.paths, SIZE)
        else:
            (folder / "below").write_bytes(os.urandom(SIZE))
            make_over_managed_disk(self.paths, managed_disk="below", position=1, size_bytes=SIZE)
        options = DiskOptions(
            self.positions,
            policy=LogPolicy(kept_share_max=None),
            watch=self.watch,
            report_changed=lambda _paths, what: self.reported.append(what),
        )
        self.disk = Disk.open(self.paths, options, FileViews(folder / "below"))
        self.disk.tracking.start(new_generation=False)
        self.path = self.disk.layer.path
        self.disk.write(0, os.urandom(SIZE))
        self.look()

    def look(self) -> None:
        """Look at all events that the kernel has reported."""
        self.watch.look()

    def refuses(self, work: Callable[[], object]) -> bool:
        with pytest.raises(OSError, match="Input/output error") as failed:
            work()
        return failed.value.errno == errno.EIO


@pytest.fixture(scope="module", autouse=True)
def inotify() -> None:
    """Skip the tests if other programs of this user have taken all inotify instances."""
    watch = FileWatch()
    with Path(__file__).open("rb") as file:
        watch.add(file.fileno(), __file__, Idle())
    taken = watch.watches
    watch.close()
    if not taken:
        pytest.skip("no inotify instance is free (/proc/sys/fs/inotify/max_user_instances)")


class Idle:
    """A disk that must never be reported as changed."""

    changes = 0

    def check_files(self) -> str | None:
        return None

    def check_log(self) -> str | None:
        return None

    def changed_by_another(self, what: str) -> None:
        raise AssertionError(what)

    async def look_for_loops(self) -> None:
        raise AssertionError("nothing was opened")


@pytest.fixture(params=["raw", "top"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path, str(request.param))
    yield opened
    opened.disk.abandon()
    opened.watch.close()
    opened.positions.close()


# ---- lost bytes


def test_truncated_bytes_are_never_read_as_zeros(opened: Opened) -> None:
    whole = opened.disk.read(0, SIZE)
    os.truncate(opened.path, SIZE // 2)
    assert opened.refuses(lambda: opened.disk.read(SIZE // 2, 512))
    assert opened.refuses(lambda: opened.disk.read(SIZE // 2 - 512, 1024)), "the end of the file is within the range"
    assert opened.disk.read(0, SIZE // 2) == whole[: SIZE // 2]
    assert opened.refuses(lambda: lib_seek(opened.disk, SIZE // 2, os.SEEK_DATA)), "a copy would skip this range as a hole"
    assert opened.refuses(lambda: lib_seek(opened.disk, 0, os.SEEK_HOLE))


def lib_seek(disk: Disk, offset: int, whence: int) -> int:
    found = int(lib.sr_disk_seek(disk.c, offset, whence))
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return found


def test_no_write_after_a_truncation_makes_lost_bytes_a_hole(opened: Opened) -> None:
    os.truncate(opened.path, SIZE // 4)
    assert opened.refuses(lambda: opened.disk.write(SIZE - 512, b"x" * 512))
    assert opened.refuses(lambda: opened.disk.zero(SIZE - 8192, 8192))
    assert opened.path.stat().st_size == SIZE // 4
    assert opened.refuses(lambda: opened.disk.read(SIZE // 2, 512))
    assert opened.refuses(opened.disk.flush_now)


def test_a_snapshot_does_not_return_zeros_for_truncated_bytes(opened: Opened) -> None:
    opened.disk.tracking.maintain()
    snapshot = opened.disk.begin_snapshot()
    os.truncate(opened.path, SIZE // 2)
    with pytest.raises(RigError, match="byte 524288 cannot be read"):
        snapshot.pread(SIZE // 2, 4096)


@pytest.mark.parametrize("offset", [0, SIZE // 2, SIZE - 8192, SIZE - 4097])
def test_the_first_write_after_a_truncation_is_refused_at_any_offset(opened: Opened, offset: int) -> None:
    opened.disk.write(0, b"now the file is known to be whole")
    os.truncate(opened.path, 0)
    assert opened.refuses(lambda: opened.disk.write(offset, b"x"))
    assert opened.path.stat().st_size == 0


def test_a_truncation_within_the_last_page_is_found_by_a_write_to_it(opened: Opened) -> None:
    opened.disk.write(0, b"now the file is known to be whole")
    os.truncate(opened.path, SIZE - 1024)
    assert opened.refuses(lambda: opened.disk.write(SIZE - 512, b"x"))
    assert opened.path.stat().st_size == SIZE - 1024


def test_a_truncation_after_growth_is_found_at_the_new_end(opened: Opened) -> None:
    opened.disk.resize(2 * SIZE)
    opened.disk.write(0, b"now the file is known to be whole")
    os.truncate(opened.path, SIZE + 4096)
    assert opened.refuses(lambda: opened.disk.write(2 * SIZE - 8192, b"x"))
    assert opened.path.stat().st_size == SIZE + 4096


def test_writes_and_flushes_fail_soon_after_the_file_is_deleted(opened: Opened) -> None:
    opened.path.unlink()
    assert opened.refuses(lambda: [opened.disk.write(0, b"lost") for _ in range(lib.SR_WRITES_UNLOOKED_MAX + 1)])
    assert opened.refuses(opened.disk.flush_now)
    assert len(opened.disk.read(0, SIZE)) == SIZE, "the bytes of the deleted file can still be read"


@pytest.mark.parametrize("deed", ["cut", "unlink"])
def test_the_first_request_that_finds_lost_bytes_ends_the_log(opened: Opened, deed: str) -> None:
    if deed == "cut":
        os.truncate(opened.path, 0)
        assert opened.refuses(lambda: opened.disk.read(0, 512))
    else:
        opened.path.unlink()
        assert opened.refuses(opened.disk.flush_now)
    opened.disk.note_events()
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "ImageChanged")
    assert opened.disk.tracking.dirty_bytes == SIZE, "all bytes may have changed"


# ---- changes that are noticed at once


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def unlink_and_create_again(path: Path) -> None:
    path.unlink()
    path.write_bytes(bytes(SIZE))


def cut(path: Path) -> None:
    os.truncate(path, 512)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    os.truncate(path, 2 * SIZE)


def truncate_and_lengthen_again(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, SIZE)


def write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"somebody else")


def write_unseen(path: Path) -> None:
    found = path.stat()
    write(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def unlink_a_hard_link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)
    path.unlink()


DEEDS: dict[Callable[[Path], None], str] = {
    Path.unlink: "was deleted, or renamed, while its disk was open: what was written since is lost",
    replace: "was replaced by another file while its disk was open: what was written since is lost",
    unlink_and_create_again: "was replaced by another file while its disk was open: what was written since is lost",
    cut: "was truncated by another program: the last 1048064 bytes of its disk are lost",
    empty: "was truncated by another program: the last 1048576 bytes of its disk are lost",
    grow: "was made longer by another program, by 1048576 bytes",
    truncate_and_lengthen_again: "was written to by another program",
    write: "by another program",
    write_unseen: "by another program",
    rename: "elsewhere",
    unlink_a_hard_link: "a file with another name (a hard link)",
}


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_a_change_by_another_program_is_noticed_at_once(opened: Opened, deed: Callable[[Path], None]) -> None:
    deed(opened.path)
    opened.look()
    assert DEEDS[deed] in opened.reported[0]
    assert (len(opened.reported), opened.disk.state.needs_resync) == (1, "ImageChanged")
    assert DiskState.load(opened.paths.file("disk")).needs_resync == "ImageChanged"


@pytest.mark.parametrize("suffix", ["top.present", "top.durable"])
def test_a_replaced_map_is_noticed_at_the_end(opened: Opened, suffix: str) -> None:
    path = opened.paths.file(suffix)
    if not path.exists():
        return
    replace(path)
    opened.disk.close()
    assert f"os.{suffix} was replaced by another file" in opened.reported[0]


def read_it(path: Path) -> None:
    path.read_bytes()


def change_rights(path: Path) -> None:
    path.chmod(0o640)


def touch(path: Path) -> None:
    path.touch()


def link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)
    path.with_name("other").unlink()


def open_to_write(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))  # like a program that then finds the file locked


def touch_and_open_to_write(path: Path) -> None:
    path.touch()
    open_to_write(path)
    open_to_write(path)


@pytest.mark.parametrize(
    "deed", [read_it, change_rights, touch, link, open_to_write, touch_and_open_to_write], ids=lambda deed: deed.__name__
)
def test_an_operation_that_changes_no_byte_is_not_reported(opened: Opened, deed: Callable[[Path], None]) -> None:
    deed(opened.path)
    opened.look()
    opened.disk.write(0, b"more")
    opened.look()
    opened.disk.flush_now()
    opened.disk.close()
    assert (opened.reported, opened.disk.state.needs_resync) == ([], None)


@pytest.mark.real_disk
def test_a_change_through_a_memory_map_is_noticed_at_the_next_event(opened: Opened) -> None:
    with opened.path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapped:
        mapped[:8] = bytes(byte ^ 0xFF for byte in mapped[:8])
        mapped.flush()
    opened.look()
    assert opened.reported == [f"{opened.path} was written to by another program"]


def test_the_disks_own_changes_are_not_reported(opened: Opened) -> None:
    for number in range(50):
        opened.disk.write(number * 700, b"x" * 600)
        opened.disk.zero(number * 900, 100, discard=True)
        if number % 7 == 0:
            opened.disk.resize(opened.disk.size_bytes + 512)
        if number % 5 == 0:
            opened.disk.flush_now()
        if number % 3 == 0:
            opened.look()
    opened.look()
    opened.disk.close()
    assert (opened.reported, opened.disk.state.needs_resync) == ([], None)


def test_renaming_the_folder_is_not_reported_as_a_change(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    opened = Opened(tmp_path / "a", "raw")
    (tmp_path / "a").rename(tmp_path / "b")
    opened.look()
    assert opened.disk.guard is not None
    assert opened.disk.guard.check_files() is None
    opened.disk.abandon()
    opened.watch.close()
    opened.positions.close()


def test_hydration_is_not_reported_as_a_change(tmp_path: Path) -> None:
    opened = Opened(tmp_path, "top")
    opened.disk.hydration.begin()
    while not opened.disk.hydration.hydrate(1 << 16):
        opened.look()
    opened.disk.hydration.flush()
    assert opened.disk.hydration.convert_to_raw()
    opened.look()
    opened.disk.hydration.detach_backing()
    opened.disk.write(0, b"after")
    opened.look()
    opened.disk.close()
    assert (opened.reported, opened.disk.state.needs_resync) == ([], None)
    opened.watch.close()
    opened.positions.close()


# ---- a stand-alone disk


class Mounted:
    def __init__(self, image: Image, alone: StandAlone, reported: list[str]) -> None:
        self.image, self.alone, self.reported = image, alone, reported

    async def end(self) -> str | None:
        """Close the disk, and return the problem that this reports, or None."""
        try:
            await self.alone.look_at_the_end()
            self.alone.close()
        except RigError as error:
            assert error.code == "ImageChanged"
            return error.message
        finally:
            self.image.close()
        return None


async def mount(path: Path, *, tracked: bool) -> Mounted:
    reported: list[str] = []
    image = await open_image(path)
    return Mounted(image, open_disk(image, path.stem, tracked=tracked, report=reported.append), reported)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "disk.img"
    path.parent.mkdir()
    path.write_bytes(bytes(SIZE))
    return path


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_the_end_of_a_mount_reports_the_change_of_its_image(
    image: Path, deed: Callable[[Path], None], tracked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_S", 0.01)
    mounted = await mount(image, tracked=tracked)
    mounted.alone.disk.write(0, b"guest")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mounted.alone.tree.run_maintenance)
            await trio.testing.wait_all_tasks_blocked()
            mounted.alone.watch.look()
            deed(image)
            while not mounted.reported:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    said = await mounted.end()
    assert said is not None
    assert said.startswith(mounted.reported[0])
    assert ("change log" in said) == tracked
    if tracked:
        assert DiskState.load(image.with_suffix(".disk")).needs_resync == "ImageChanged"


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("deed", [write, truncate_and_lengthen_again], ids=lambda deed: deed.__name__)
async def test_a_change_just_before_the_end_of_a_mount_is_reported(
    image: Path, deed: Callable[[Path], None], tracked: bool
) -> None:
    mounted = await mount(image, tracked=tracked)
    mounted.alone.watch.look()
    deed(image)  # the events that the kernel reports are not read before the end
    said = await mounted.end()
    assert said is not None
    assert "by another program" in said


def test_a_change_after_the_start_of_a_new_log_is_noticed_too(opened: Opened) -> None:
    write(opened.path)
    opened.look()
    opened.disk.tracking.start(new_generation=True)
    opened.look()
    opened.disk.write(0, b"guest")
    opened.look()
    assert (opened.disk.tracking.active, opened.disk.file_trouble) == (True, None)
    write(opened.path)
    opened.look()
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "ImageChanged")
    assert len(opened.reported) == 2


def test_a_change_from_before_a_new_log_does_not_end_that_log(opened: Opened) -> None:
    write(opened.path)
    opened.disk.tracking.start(new_generation=True)
    opened.look()
    assert opened.disk.tracking.active


@pytest.mark.parametrize("deed", [Path.unlink, replace, cut], ids=lambda deed: deed.__name__)
def test_no_new_log_begins_on_a_lost_file(opened: Opened, deed: Callable[[Path], None]) -> None:
    deed(opened.path)
    opened.look()
    with pytest.raises(RigError, match="restore the whole file") as refused:
        opened.disk.tracking.start(new_generation=True)
    assert refused.value.code == "DiskUnhealthy"
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "ImageChanged")


def test_a_change_just_before_a_rigs_disk_is_closed_is_recorded(opened: Opened) -> None:
    truncate_and_lengthen_again(opened.path)
    opened.disk.close()
    assert opened.disk.state.needs_resync == "ImageChanged"
    assert len(opened.reported) == 1


@pytest.mark.parametrize("tracked", [False, True])
async def test_without_inotify_a_replaced_file_is_found_at_the_end(
    image: Path, tracked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_flags: int) -> int:
        return -1

    monkeypatch.setattr(libc, "inotify_init1", none_left)
    mounted = await mount(image, tracked=tracked)
    replace(image)
    said = await mounted.end()
    assert said is not None
    assert "was replaced by another file" in said


async def test_an_image_in_a_renamed_folder_is_reported_as_moved_only(image: Path) -> None:
    mounted = await mount(image, tracked=False)
    mounted.alone.disk.write(0, b"guest")
    image.parent.rename(image.parent.with_name("moved"))
    assert await mounted.end() is None
    moved = image.parent.with_name("moved") / image.name
    assert mounted.reported == [f"{image} is not where it was: its folder was moved, or unmounted; it is {moved} now"]
    assert moved.read_bytes()[:5] == b"guest"


async def test_a_reported_change_does_not_end_the_log_of_the_next_mount(image: Path) -> None:
    mounted = await mount(image, tracked=True)
    write(image)
    mounted.alone.watch.look()
    assert await mounted.end() is not None
    again = await mount(image, tracked=True)
    assert again.alone.ended_generation is not None
    assert (again.alone.ended_generation.why, again.alone.disk.state.generation) == (
        "the image was changed by another program",
        2,
    )
    assert await again.end() is None
