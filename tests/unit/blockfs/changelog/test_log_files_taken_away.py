"""If another program removes or replaces a file of an open change log, this is noticed at once and the log ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.standalone import open_disk
from siterig.blockfs.images.image_file import open_image
from siterig.blockfs.watch import file_watch
from siterig.blockfs.watch.file_watch import FileWatch

SIZE = 4 << 20
FILES = ["os.000001.hrl", "os.000002.hrl", "os.spare", "os.disk", "os.dirty", "../position"]


class Opened:
    """A disk of a rig with two segments and a spare, and the reports about it."""

    def __init__(self, root: Path) -> None:
        self.reported: list[str] = []
        self.lost: list[str] = []
        self.watch = FileWatch()
        self.positions = PositionCounter(root / "position")
        self.paths = DiskPaths(root / "web01", "web01", "os")
        self.paths.folder.mkdir()
        make_raw(self.paths, SIZE)
        self.open()
        self.disk.tracking.start(new_generation=False)
        self.fill(1)
        self.watch.look()

    def open(self) -> None:
        options = DiskOptions(
            self.positions,
            policy=LogPolicy(kept_share_max=None),
            watch=self.watch,
            report_changed=lambda _paths, what: self.reported.append(what),
            report_log_lost=lambda _paths, what: self.lost.append(what),
        )
        self.disk = Disk.open(self.paths, options, None)

    def fill(self, segments: int) -> None:
        """Write until ``segments`` more segments have begun and a spare is ready."""
        self.disk.tracking.maintain()
        for _ in range(segments):
            for at in range(0, 320 << 10, 64 << 10):
                self.disk.write(at, b"x" * (64 << 10))
            self.disk.tracking.maintain()

    def end(self) -> None:
        self.disk.abandon()
        self.watch.close()
        self.positions.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    opened.end()


def rename(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


DEEDS: dict[Callable[[Path], None], str] = {
    Path.unlink: "was deleted, or renamed,",
    rename: "was deleted, or renamed,",
    replace: "was replaced by another file",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_a_removed_or_replaced_log_file_is_noticed_and_ends_the_log(
    opened: Opened, file: str, deed: Callable[[Path], None]
) -> None:
    path = (opened.paths.folder / file).resolve()
    if (path.suffix, deed) == (".disk", replace):
        return  # each change of the state replaces this file
    deed(path)
    opened.watch.look()
    assert opened.lost == [f"{path} {DEEDS[deed]} while the log was written to"]
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "LogCorrupt")
    assert DiskState.load(opened.paths.file("disk")).needs_resync == "LogCorrupt"
    opened.disk.write(0, b"the disk itself is whole")
    opened.disk.flush_now()
    opened.disk.tracking.maintain()
    opened.disk.close()
    assert (opened.reported, len(opened.lost)) == ([], 1)


@pytest.mark.parametrize("file", FILES)
def test_a_removed_file_is_noticed_at_the_end_if_not_before(opened: Opened, file: str) -> None:
    (opened.paths.folder / file).unlink()
    opened.disk.close()
    assert len(opened.lost) == 1
    assert DiskState.load(opened.paths.file("disk")).needs_resync == "LogCorrupt"


def test_after_a_kill_the_log_does_not_continue(opened: Opened) -> None:
    opened.paths.file("000001.hrl").unlink()
    opened.watch.look()
    opened.disk.abandon()
    opened.open()
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "LogCorrupt")


def test_a_new_log_can_begin_and_its_files_are_watched(opened: Opened) -> None:
    opened.paths.file("000002.hrl").unlink()
    opened.watch.look()
    opened.disk.tracking.start(new_generation=True)
    opened.watch.look()
    assert (opened.disk.tracking.active, len(opened.lost)) == (True, 1)
    opened.paths.file("dirty").unlink()
    opened.watch.look()
    assert (opened.disk.tracking.active, len(opened.lost)) == (False, 2)


def test_no_new_log_begins_while_the_position_file_is_deleted(opened: Opened) -> None:
    (opened.paths.folder.parent / "position").unlink()
    opened.watch.look()
    with pytest.raises(RigError, match="role restart") as refused:
        opened.disk.tracking.start(new_generation=True)
    assert refused.value.code == "DiskUnhealthy"


@pytest.mark.slow
def test_operations_of_the_writer_are_not_reported(opened: Opened) -> None:
    for _ in range(8):
        opened.fill(3)
        opened.watch.look()
        kept = opened.disk.tracking.segments()
        opened.disk.tracking.trim(opened.disk.state.generation, kept[-2].last_seq)
        opened.watch.look()
        opened.disk.resize(opened.disk.size_bytes + 512)
        opened.watch.look()
    opened.disk.tracking.start(new_generation=True)
    opened.watch.look()
    opened.disk.tracking.stop()
    opened.watch.look()
    opened.disk.tracking.start(new_generation=True)
    opened.fill(2)
    opened.watch.look()
    opened.disk.close()
    opened.open()
    opened.watch.look()
    assert (opened.disk.tracking.active, opened.lost, opened.reported) == (True, [], [])


def test_a_segment_of_an_earlier_process_is_watched_too(opened: Opened) -> None:
    opened.disk.close()
    opened.open()
    opened.paths.file("000001.hrl").unlink()
    opened.watch.look()
    assert len(opened.lost) == 1


def test_renaming_the_logs_folder_is_noticed(opened: Opened) -> None:
    opened.paths.folder.rename(opened.paths.folder.with_name("moved"))
    opened.watch.look()
    assert opened.lost == [f"{opened.paths.file('disk')} was deleted, or renamed, while the log was written to"]


@pytest.mark.parametrize("suffix", ["000001.hrl", "disk", "position", "dirty"])
async def test_the_report_and_the_end_of_a_mount_name_the_file(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "LOOK_S", 0.01)
    reported: list[str] = []
    path = tmp_path / "os.img"
    path.write_bytes(bytes(SIZE))
    image = await open_image(path)
    alone = open_disk(image, "os", tracked=True, report=reported.append)
    alone.disk.write(0, b"guest")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone.tree.run_maintenance)
            (tmp_path / f"os.{suffix}").unlink()
            while not reported:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    lost = f"{tmp_path}/os.{suffix} was deleted, or renamed, while the log was written to"
    await alone.look_at_the_end()
    alone.close()
    image.close()
    assert (reported, alone.log_trouble) == ([f"{lost}: the log ends, and no write from now on is in it"], lost)
    again = open_disk(await open_image(path), "os", tracked=True, report=reported.append)
    assert again.ended_generation is not None
    assert again.ended_generation.why == "a file of it was deleted, renamed, replaced or damaged"
    again.close()
