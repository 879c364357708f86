"""Files beside an image: never written through other users' links, named in errors, and removed after a failed mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import structlog

from siterig.blockfs.changelog.disk_log import DiskLog
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.host import disk_tree
from siterig.blockfs.host.standalone import StandAlone, open_disk
from siterig.blockfs.images.image_file import Image, open_image
from tests.support.io_faults import SYNC, failing
from tests.support.other_user import UID, file_of_other_user, folder_of_other_user, link_of_other_user, needs_root

SIZE = 1 << 20
HELPERS = ("d.disk", "d.spare", "d.dirty", "d.position", "d.recycled", "d.000001.hrl", "d.000002.hrl")


class Opened:
    """An image in a folder, which is opened as a tracked disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image: Image | None = None

    async def open(self, *, tracked: bool = True) -> StandAlone:
        self.image = await open_image(self.folder / "d.img")
        try:
            return open_disk(self.image, "d", tracked=tracked)
        except BaseException:
            self.image.close()
            raise

    def release(self) -> None:
        assert self.image is not None
        self.image.close()

    def found(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if not path.is_symlink()}


@pytest.fixture
def ours(tmp_path: Path) -> Opened:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "d.img").write_bytes(bytes(SIZE))
    return Opened(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Opened:
    folder = folder_of_other_user(tmp_path / "theirs")
    file_of_other_user(folder / "d.img", bytes(SIZE))
    return Opened(folder)


async def whole_mount(opened: Opened) -> None:
    alone = await opened.open()
    try:
        for number in range(4):
            alone.disk.write(number * 4096, b"x" * 4096)
            alone.disk.tracking.log.rotate()
            alone.disk.tracking.maintain()
    finally:
        alone.close()
        opened.release()


@needs_root
@pytest.mark.parametrize("helper", [*HELPERS, ".d.disk.tmp", ".d.dirty.tmp", ".d.position.tmp"])
async def test_a_log_in_another_users_folder_is_not_written_through_a_link(
    theirs: Opened, tmp_path: Path, helper: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 1000)
    link_of_other_user(theirs.folder / helper, victim)
    if helper.startswith("."):
        await whole_mount(theirs)
    else:
        with pytest.raises(RigError) as failed:
            await whole_mount(theirs)
        assert failed.value.code in ("ForeignFile", "LogExists")
        assert str(theirs.folder / helper) in failed.value.message
        assert theirs.found().keys() == {"d.img"}
    assert victim.read_bytes() == b"precious" * 1000
    assert (theirs.folder / helper).is_symlink()


@needs_root
@pytest.mark.parametrize("helper", HELPERS)
async def test_a_link_made_while_the_disk_is_in_use_is_not_written_through(
    theirs: Opened, tmp_path: Path, helper: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious" * 1000)
    alone = await theirs.open()
    (theirs.folder / helper).unlink(missing_ok=True)
    link_of_other_user(theirs.folder / helper, victim)
    for number in range(4):
        alone.disk.write(number * 4096, b"x" * 4096)
        try:
            alone.disk.tracking.log.rotate()
            alone.disk.tracking.maintain()
        except (OSError, RigError):
            break
    try:
        alone.close()
    except RigError as error:
        assert error.code in ("ForeignFile", "HostIoError")
    theirs.release()
    assert victim.read_bytes() == b"precious" * 1000


@needs_root
async def test_another_users_files_beside_the_image_are_not_overwritten(theirs: Opened) -> None:
    await whole_mount(theirs)
    before = theirs.found()
    for name in before:
        os.chown(theirs.folder / name, UID, UID)
    with pytest.raises(
        RigError, match=r"/d\.disk: belongs to user nobody .*run the command as the user who owns it"
    ) as failed:
        await theirs.open()
    assert failed.value.code == "ForeignFile"
    assert theirs.found() == before


@needs_root
async def test_an_image_is_not_opened_through_another_users_link(theirs: Opened, tmp_path: Path) -> None:
    link_of_other_user(theirs.folder / "link.img", tmp_path / "victim")
    (tmp_path / "victim").write_bytes(bytes(SIZE))
    with pytest.raises(RigError, match=r"link\.img: is a symbolic link of user nobody"):
        await open_image(theirs.folder / "link.img")


# --- errors ------------------------------------------------------------------------------------------------------------


async def test_the_end_names_a_log_file_that_was_deleted_during_the_mount(ours: Opened) -> None:
    alone = await ours.open()
    alone.disk.tracking.maintain()
    for path in ours.folder.glob("d.*"):
        if path.suffix in (".hrl", ".spare"):
            path.unlink()
    alone.disk.write(0, b"x")
    with pytest.raises(OSError, match="No such file"):
        alone.disk.tracking.log.rotate()
    alone.close()
    ours.release()
    assert alone.log_trouble == f"{ours.folder}/d.000001.hrl was deleted, or renamed, while the log was written to"


async def test_segments_deleted_between_two_mounts_are_reported_once(ours: Opened) -> None:
    await whole_mount(ours)
    for path in ours.folder.glob("*.hrl"):
        path.unlink()
    with structlog.testing.capture_logs() as logs:
        alone = await ours.open()
    assert alone.ended_generation is not None
    assert alone.ended_generation.why == f"{ours.folder}: all segments (d.NNNNNN.hrl) of generation 1 are missing"
    assert [entry for entry in logs if entry["event"].startswith("log_") and entry["log_level"] != "info"] == []
    alone.close()
    ours.release()


async def test_a_deleted_dirty_file_is_reported_at_the_next_mount(ours: Opened) -> None:
    await whole_mount(ours)
    (ours.folder / "d.dirty").unlink()
    alone = await ours.open()
    assert alone.ended_generation is not None
    assert alone.ended_generation.why == "its file NAME.dirty is damaged or missing"
    alone.close()
    ours.release()


async def test_an_error_of_log_maintenance_is_logged_with_its_file(ours: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = await ours.open()

    def full(_log: DiskLog) -> None:
        with naming(ours.folder / "d.spare"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DiskLog, "maintain", full)
    with structlog.testing.capture_logs() as logs:
        await disk_tree.maintain_once([alone.disk])
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("log_maintenance_failed", f"No space left on device ({ours.folder}/d.spare)")
    ]
    alone.abandon()
    ours.release()


async def test_a_sync_that_fails_at_the_end_names_the_image(ours: Opened) -> None:
    alone = await ours.open()
    alone.disk.write(0, b"x")
    with failing(SYNC, ".img", errno.EIO), pytest.raises(RigError) as failed:
        alone.close()
    ours.release()
    assert failed.value.message == f"{ours.folder}/d.img: cannot be closed cleanly: Input/output error"
    assert failed.value.code == "HostIoError"


# --- failed mounts --------------------------------------------------------------------------------------------------


async def test_a_failed_mount_removes_only_the_files_that_it_made(ours: Opened) -> None:
    (ours.folder / "d.txt").write_bytes(b"theirs")
    before = ours.found()
    alone = await ours.open()
    assert len(ours.found()) > 5
    alone.withdraw()
    ours.release()
    assert ours.found() == before


@pytest.mark.parametrize("step", ["d.position", ".d.dirty", "rename"])
async def test_an_open_that_fails_at_any_step_leaves_nothing(
    ours: Opened, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before, open_ = ours.found(), safe_files.open_file

    def failing_open(path: Path, flags: int, *, mode: int = 0o600) -> int:
        if path.name.startswith(step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return open_(path, flags, mode=mode)

    monkeypatch.setattr(safe_files, "open_file", failing_open)
    if step == "rename":
        monkeypatch.setattr(safe_files, "rename", lambda _old, _new: failing_open(ours.folder / "rename", 0))
    with pytest.raises(RigError, match=r"cannot hold the change log of d\.img: No space left on device") as failed:
        await ours.open()
    assert (failed.value.code, failed.value.recoverable) == ("DiskFull", True)
    assert ours.found() == before


async def test_the_log_continues_after_a_failed_mount(ours: Opened) -> None:
    await whole_mount(ours)
    alone = await ours.open()
    assert alone.ended_generation is None
    alone.withdraw()
    ours.release()
    alone = await ours.open()
    assert (alone.ended_generation, alone.disk.state.generation) == (None, 1)
    alone.close()
    ours.release()


async def test_a_failed_mount_without_a_log_does_not_end_the_existing_log(ours: Opened) -> None:
    await whole_mount(ours)
    before = ours.found()
    alone = await ours.open(tracked=False)
    assert alone.ended_generation is not None
    assert not DiskState.load(ours.folder / "d.disk").tracked
    alone.withdraw()
    ours.release()
    assert ours.found() == before
