"""A stand-alone disk: when its log continues or a new generation begins, and that other files are never changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.standalone import StandAlone, open_disk
from siterig.blockfs.images.image_file import Image, open_image
from siterig.blockfs.images.vhd import fixed_footer
from siterig.blockfs.watch import file_stamps
from siterig.blockfs.watch.file_stamps import KILL_GRACE_S
from tests.support.disks.disk_model import replay_files
from tests.support.io_faults import SYNC, failing

SIZE = 1 << 20
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


class Mounts:
    """Open an image several times, as consecutive mounts do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image: Image | None = None
        self.alone: StandAlone | None = None

    async def open(self, *, tracked: bool = True, read_only: bool = False, name: str | None = None) -> StandAlone:
        self.image = await open_image(self.path, read_only=read_only)
        try:
            self.alone = open_disk(self.image, name or self.path.stem, tracked=tracked)
        except BaseException:
            self.image.close()
            raise
        return self.alone

    def close(self) -> None:
        assert self.alone is not None
        assert self.image is not None
        self.alone.close()
        self.image.close()
        self.alone = None

    def kill(self) -> None:
        """Leave the files in the state that kill -9 leaves."""
        assert self.alone is not None
        assert self.image is not None
        self.alone.abandon()
        self.image.close()
        self.alone = None

    async def written(self, data: bytes, at: int = 0, *, tracked: bool = True) -> StandAlone:
        """Mount the image, write once, close it cleanly, and return the disk."""
        alone = await self.open(tracked=tracked)
        alone.disk.write(at, data)
        self.close()
        return alone

    @property
    def state(self) -> DiskState:
        return DiskState.load(self.path.with_suffix(".disk"))


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return Mounts(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def refused(mounts: Mounts, code: str, says: str) -> None:
    before = {path: path.read_bytes() for path in mounts.path.parent.iterdir() if path.is_file()}
    with pytest.raises(RigError) as failed:
        await mounts.open()
    assert (failed.value.code, says in failed.value.message) == (code, True), failed.value.message
    assert {path: path.read_bytes() for path in mounts.path.parent.iterdir() if path.is_file()} == before


# ---- the log continues


async def test_a_clean_end_and_a_new_start_continue_one_log(mounts: Mounts) -> None:
    first = await mounts.written(b"one")
    second = await mounts.written(b"two", at=512)
    assert (first.ended_generation, second.ended_generation) == (None, None)
    assert second.disk.state.generation == 1
    assert replay_files(bytes(SIZE), second.segments()) == mounts.path.read_bytes()
    assert len(second.segments()) == 2


@pytest.mark.parametrize("kills", [1, 3])
async def test_after_kills_the_generation_continues(mounts: Mounts, kills: int) -> None:
    await mounts.written(b"first")
    for number in range(kills):
        alone = await mounts.open()
        assert alone.ended_generation is None
        alone.disk.write(number * 700, b"%d" % number * 600)
        mounts.kill()
    alone = await mounts.written(b"last", at=SIZE - 4)
    assert (alone.ended_generation, alone.disk.state.generation) == (None, 1)
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


async def test_a_record_missing_in_the_image_is_applied_after_a_kill(mounts: Mounts) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"logged")
    mounts.kill()
    stat = mounts.path.stat()
    mounts.path.write_bytes(bytes(SIZE))  # as if the write had not reached the image
    os.utime(mounts.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    await mounts.open()
    mounts.close()
    assert mounts.path.read_bytes()[:6] == b"logged"


async def test_a_log_continues_after_a_clean_end_and_a_reboot(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    await mounts.written(b"one")
    monkeypatch.setattr(boot, "current_boot_id", lambda: OTHER_BOOT)
    alone = await mounts.written(b"two")
    assert (alone.ended_generation, alone.disk.state.generation) == (None, 1)


async def test_positions_continue_from_mount_to_mount(mounts: Mounts) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"one")
    position = alone.disk.tracking.log.last_position
    mounts.kill()
    alone = await mounts.open()
    alone.disk.write(0, b"two")
    assert alone.disk.tracking.log.last_position > position
    mounts.close()


async def test_a_kill_during_growth_of_a_raw_image_is_not_taken_for_a_change(mounts: Mounts) -> None:
    alone = await mounts.open()
    state = alone.disk.state
    alone.disk.resize(2 * SIZE)
    mounts.kill()
    state.save(mounts.path.with_suffix(".disk"))  # as if the kill had been before the new size was saved
    alone = await mounts.written(b"end", at=2 * SIZE - 3)
    assert (alone.ended_generation, mounts.state.size_bytes) == (None, 2 * SIZE)
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


# ---- a new generation begins


def write_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"somebody else")


def replace(path: Path) -> None:
    """Replace the file by a copy with the same size and times."""
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def write_unseen(path: Path) -> None:
    stat = path.stat()
    write_to(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def grow(path: Path) -> None:
    os.truncate(path, 2 * SIZE)


def shrink(path: Path) -> None:
    os.truncate(path, SIZE // 2)


CHANGES: dict[Callable[[Path], None], str] = {
    write_to: "was written to, or replaced",
    write_unseen: "was written to, or replaced",
    grow: "disk.img had 1048576 bytes, and has 2097152",
    shrink: "disk.img had 1048576 bytes, and has 524288",
}


def touch(path: Path) -> None:
    path.touch()


def change_rights(path: Path) -> None:
    path.chmod(0o640)


def link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def copy_with_new_times(path: Path) -> None:
    """Replace the file by a copy with a new time."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def write_the_same(path: Path) -> None:
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "deed", [touch, change_rights, link, replace, copy_with_new_times, write_the_same], ids=lambda deed: deed.__name__
)
async def test_an_operation_that_changes_no_byte_does_not_end_the_log(mounts: Mounts, deed: Callable[[Path], None]) -> None:
    await mounts.written(b"one")
    deed(mounts.path)
    alone = await mounts.written(b"two", at=1000)
    assert (alone.ended_generation, alone.disk.state.generation) == (None, 1)
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


async def test_an_image_too_large_for_a_digest_is_compared_by_its_times(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_stamps, "DIGEST_BYTES_MAX", 4096)
    mounts.path.write_bytes(os.urandom(SIZE))
    await mounts.written(b"one")
    replace(mounts.path)  # a copy with the time of the last write
    assert (await mounts.written(b"two")).ended_generation is None
    change_rights(mounts.path)
    alone = await mounts.written(b"three")
    assert alone.ended_generation is not None
    assert "was replaced, or its owner, rights or name were changed" in alone.ended_generation.why
    touch(mounts.path)
    alone = await mounts.written(b"four")
    assert alone.ended_generation is not None
    assert "was written to, or replaced" in alone.ended_generation.why


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_change_between_two_mounts_begins_a_new_generation(mounts: Mounts, change: Callable[[Path], None]) -> None:
    old = await mounts.written(b"one")
    kept = {path: path.read_bytes() for path in old.segments()}
    change(mounts.path)
    start = mounts.path.read_bytes()
    alone = await mounts.written(b"two", at=1000)
    assert alone.ended_generation is not None
    assert (alone.ended_generation.generation, alone.disk.state.generation) == (1, 2)
    assert CHANGES[change] in alone.ended_generation.why
    assert replay_files(start, alone.segments()) == mounts.path.read_bytes()
    assert {path: path.read_bytes() for path in old.segments()} == kept
    third = await mounts.written(b"three")
    assert (third.ended_generation, third.disk.state.generation) == (None, 2)


async def test_a_write_by_others_long_after_a_kill_is_not_overwritten(mounts: Mounts) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"logged")
    mounts.kill()
    write_to(mounts.path)
    late_ns = int(mounts.path.stat().st_mtime_ns + (KILL_GRACE_S + 1) * 1e9)
    os.utime(mounts.path, ns=(late_ns, late_ns))
    alone = await mounts.open()
    assert alone.ended_generation is not None
    assert "after the process that logged it was killed" in alone.ended_generation.why
    assert alone.disk.read(0, 13) == b"somebody else"
    mounts.close()


async def test_after_power_loss_the_log_is_not_continued(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"one")
    position = alone.disk.tracking.log.last_position
    mounts.kill()
    monkeypatch.setattr(boot, "current_boot_id", lambda: OTHER_BOOT)
    alone = await mounts.open()
    assert alone.ended_generation is not None
    assert "the machine stopped" in alone.ended_generation.why
    alone.disk.write(0, b"two")
    assert alone.disk.tracking.log.last_position > position + (1 << 40)
    mounts.close()


async def test_after_deletion_of_the_log_a_new_generation_begins(mounts: Mounts) -> None:
    alone = await mounts.written(b"one")
    for path in alone.segments():
        path.unlink()
    alone = await mounts.written(b"two")
    assert alone.ended_generation is not None
    assert alone.disk.state.generation == 2


@pytest.mark.parametrize("delete", [False, True])
async def test_after_an_abandoned_log_a_new_generation_begins(
    mounts: Mounts, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"one")
    with failing(SYNC, ".hrl", errno.EIO), pytest.raises(OSError, match="Input/output error"):
        await alone.disk.flush()
    assert not alone.disk.tracking.active
    mounts.kill()
    assert mounts.state.needs_resync == "SyncFailed"
    if delete:
        mounts.path.with_suffix(".dirty").unlink()
    start = mounts.path.read_bytes()
    alone = await mounts.written(b"two", at=100)
    assert alone.ended_generation is not None
    assert (alone.ended_generation.generation, alone.disk.state.generation) == (1, 2)
    assert alone.ended_generation.why == "the host could not make its bytes durable"
    assert replay_files(start, alone.segments()) == mounts.path.read_bytes()


async def test_a_failed_end_is_an_error_and_is_not_recorded_as_clean(mounts: Mounts) -> None:
    alone = await mounts.open()
    alone.disk.write(0, b"one")
    assert mounts.image is not None
    with failing(SYNC, ".img", errno.EIO), pytest.raises(RigError) as failed:
        alone.close()
    mounts.image.close()
    assert failed.value.code == "HostIoError"
    assert failed.value.message == f"{mounts.path}: cannot be closed cleanly: Input/output error"
    assert mounts.state.closed is None
    alone = await mounts.written(b"two")
    assert alone.ended_generation is not None


async def test_a_mount_without_a_log_ends_the_log(mounts: Mounts) -> None:
    await mounts.written(b"one")
    alone = await mounts.written(b"two", tracked=False)
    assert alone.ended_generation is not None
    assert alone.ended_generation.generation == 1
    alone = await mounts.open(tracked=False)
    assert alone.ended_generation is None, "this is reported once"
    mounts.kill()
    alone = await mounts.written(b"three")
    assert alone.ended_generation is not None
    assert alone.ended_generation.why == "the image was mounted without a log since"


async def test_a_read_only_mount_leaves_the_log_as_it_is(mounts: Mounts) -> None:
    await mounts.written(b"one")
    before = {path: path.read_bytes() for path in mounts.path.parent.iterdir()}
    alone = await mounts.open(tracked=False, read_only=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        alone.disk.write(0, b"no")
    mounts.close()
    assert {path: path.read_bytes() for path in mounts.path.parent.iterdir()} == before
    assert (await mounts.written(b"two")).ended_generation is None


async def test_the_log_may_have_any_size(mounts: Mounts) -> None:
    alone = await mounts.open()
    for _ in range(3):
        alone.disk.write(0, os.urandom(SIZE))
    assert alone.disk.tracking.active
    mounts.close()
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


async def test_a_long_log_is_split_into_segments_while_it_is_served(mounts: Mounts) -> None:
    alone = await mounts.open()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone.tree.run_maintenance)
            while len(alone.segments()) < 3:
                alone.disk.write(0, os.urandom(100_000))
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    mounts.close()
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


# ---- files beside the image


async def test_an_untracked_image_has_nothing_beside_it(mounts: Mounts) -> None:
    alone = await mounts.open(tracked=False)
    alone.disk.write(0, b"one")
    alone.disk.resize(2 * SIZE)
    await alone.disk.flush()
    mounts.close()
    assert names(mounts.path.parent) == ["disk.img"]
    assert mounts.path.read_bytes() == b"one" + bytes(2 * SIZE - 3)


async def test_a_tracked_image_has_its_state_and_log_beside_it(mounts: Mounts) -> None:
    await mounts.written(b"one")
    assert names(mounts.path.parent) == ["disk.000001.hrl", "disk.dirty", "disk.disk", "disk.img", "disk.position"]


@pytest.mark.parametrize("suffix", ["spare", "recycled", "dirty", "position", "000007.hrl"])
async def test_files_of_other_programs_are_not_overwritten(mounts: Mounts, suffix: str) -> None:
    mounts.path.with_suffix(f".{suffix}").write_bytes(b"precious")
    await refused(mounts, "LogExists", f"disk.{suffix}: is there, but no disk.disk that names its disk")
    mounts.path.with_suffix(f".{suffix}").unlink()
    await mounts.written(b"one")


@pytest.mark.parametrize("foreign", [b"precious", bytes(1 << 17), b"{}"])
async def test_with_a_foreign_state_file_the_image_is_served_without_a_log(mounts: Mounts, foreign: bytes) -> None:
    mounts.path.with_suffix(".disk").write_bytes(foreign)
    await refused(mounts, "DiskStateCorrupt", "disk.disk: is not a disk state file")
    await mounts.written(b"one", tracked=False)
    assert mounts.path.with_suffix(".disk").read_bytes() == foreign


async def test_two_images_of_the_same_name_do_not_share_a_log(mounts: Mounts) -> None:
    await mounts.written(b"one")
    other = Mounts(mounts.path.with_suffix(".raw"))
    other.path.write_bytes(bytes(SIZE))
    await refused(other, "LogExists", "disk.disk: belongs to image disk.img; give the disk of disk.raw another name")


@pytest.mark.parametrize("name", ["disk.disk", "disk.position", "disk.spare", "disk.dirty", "disk.recycled"])
async def test_an_image_named_like_a_file_of_its_own_log_is_refused(tmp_path: Path, name: str) -> None:
    mounts = Mounts(tmp_path / name)
    mounts.path.write_bytes(bytes(SIZE))
    await refused(mounts, "ImageUnusable", "has the name of a file of disk 'disk'")


async def test_a_disk_of_a_rig_can_only_be_read(mounts: Mounts) -> None:
    DiskState(disk_id=OTHER_BOOT, size_bytes=SIZE, kind="raw", generation=1, tracked=True, needs_resync=None).save(
        mounts.path.with_suffix(".disk")
    )
    await refused(mounts, "ImageUnusable", "is a disk of a rig")
    with pytest.raises(RigError, match="is a disk of a rig"):
        await mounts.open(tracked=False)
    await mounts.open(tracked=False, read_only=True)
    mounts.close()


async def test_a_read_only_image_cannot_have_a_log(mounts: Mounts) -> None:
    with pytest.raises(RigError, match="there is nothing to log"):
        await mounts.open(read_only=True)


async def test_a_failed_start_releases_everything(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(RigError) as failed:
            await mounts.open()
    assert failed.value.code == "DiskFull"
    assert find_segments(mounts.path.parent, "disk") == []
    alone = await mounts.written(b"one")
    assert alone.ended_generation is None
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()


async def test_a_vhd_keeps_its_footer_and_its_size(tmp_path: Path) -> None:
    footer = fixed_footer(SIZE, OTHER_BOOT)
    mounts = Mounts(tmp_path / "disk.vhd")
    mounts.path.write_bytes(bytes(SIZE) + footer)
    alone = await mounts.open()
    assert alone.disk.size_bytes == SIZE
    alone.disk.write(SIZE - 3, b"end")
    assert alone.disk.write(SIZE - 3, b"endless") == 3, "the footer is not part of the disk"
    with pytest.raises(OSError, match="past the end"):
        alone.disk.write(SIZE, b"over")
    with pytest.raises(RigError, match="cannot grow"):
        alone.disk.resize(2 * SIZE)
    mounts.close()
    assert mounts.path.read_bytes() == bytes(SIZE - 3) + b"end" + footer
    assert replay_files(bytes(SIZE), alone.segments()) == mounts.path.read_bytes()[:SIZE]


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(
    ("file", "name"), [("disk.raw", "disk"), ("disk", "disk"), ("disk.img", "other"), ("a.b.img", "a.b")]
)
async def test_an_image_can_have_another_name_than_its_disk(tmp_path: Path, file: str, name: str, tracked: bool) -> None:
    mounts = Mounts(tmp_path / file)
    mounts.path.write_bytes(bytes(SIZE))
    alone = await mounts.open(tracked=tracked, name=name)
    alone.disk.write(0, b"x" * 512)
    await alone.look_at_the_end()
    mounts.close()
    assert mounts.path.read_bytes()[:512] == b"x" * 512
