"""The ranges of files: partitions and offsets of loop devices, patterns, and ranges that touch.

tests/system/mount/test_mount_faults.py maps files of real file systems.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests import file_ranges, loop_devices
from siterig.blockfs.guests.file_ranges import file_systems_over, merged, ranges_of
from siterig.blockfs.guests.loop_devices import DiskUse

MOUNTINFO = r"""30 1 8:1 / / rw - ext4 /dev/sda1 rw
31 30 7:3 / /guest rw - ext4 /dev/loop3 rw
32 30 259:1 / /guest\040two rw - xfs /dev/loop3p2 rw
33 30 7:3 /sub /bound rw - ext4 /dev/loop3 rw
34 30 0:50 /@home /butter rw - btrfs /dev/loop3p1 rw
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a loop device at an offset over ``disk.img``, with two partitions."""
    loop = tmp_path / "sys" / "loop3"
    for folder, files in {
        loop: {"dev": "7:3"},
        loop / "loop": {"offset": "1048576"},
        loop / "loop3p1": {"dev": "259:0", "start": "2048"},
        loop / "loop3p2": {"dev": "259:1", "start": "4096"},
    }.items():
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    disk = tmp_path / "disk.img"
    monkeypatch.setattr(loop_devices, "loop_uses", lambda: [DiskUse(str(disk), "/dev/loop3", ())])
    paths = {"/sys/block": tmp_path / "sys", "/proc/self/mountinfo": tmp_path / "mountinfo"}
    monkeypatch.setattr(file_ranges, "Path", lambda *parts: Path(paths.get(parts[0], Path(parts[0])), *parts[1:]))
    return disk


def test_partitions_and_offsets_move_the_ranges(host: Path) -> None:
    found = {str(each.mountpoint): (each.kind, each.offset_bytes) for each in file_systems_over(host)}
    mib = 1 << 20
    assert found == {"/guest": ("ext4", mib), "/guest two": ("xfs", 3 * mib), "/butter": ("btrfs", 2 * mib)}


def test_a_disk_that_nothing_is_mounted_from_has_no_files(host: Path) -> None:
    with pytest.raises(RigError, match=r"no file system of .*other\.img is mounted here: attach a loop device"):
        ranges_of(host.with_name("other.img"), "/a")


def test_ranges_that_touch_are_one() -> None:
    assert merged([(100, 50), (0, 10), (150, 10), (5, 10), (20, 1)]) == [(0, 15), (20, 1), (100, 60)]
    assert merged([(0, 100), (10, 10)]) == [(0, 100)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("/a/*", ["a/b/deep", "a/file"]),
        ("/a/f*", ["a/file"]),
        ("/a/file", ["a/file"]),
        ("/[a]/f?le", ["a/file"]),
        ("*", ["a/b/deep", "a/file", "top"]),
        ("/a/link", []),
        ("/a", []),
        ("/none/*", []),
    ],
)
def test_a_pattern_matches_regular_files_of_one_file_system(tmp_path: Path, pattern: str, names: list[str]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/file", "a/b/deep", "top"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "link").symlink_to("file")
    assert sorted(str(path.relative_to(tmp_path)) for path in file_ranges.matching_files(tmp_path, pattern)) == names
