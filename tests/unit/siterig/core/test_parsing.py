"""Values on the command line are parsed, and a wrong one is named with the allowed form."""

from __future__ import annotations

import pytest

from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.core.parsing import format_size, interval_notice, parse_disk, parse_point, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1GiB", 2**30), ("512MiB", 2**29), ("1.5G", 3 * 2**29), ("1048576", 2**20), ("2 tib", 2**41), ("64KB", 64000)],
)
def test_sizes_are_understood(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1000", "size '1000' is 1000 bytes: it must be a positive multiple of 512"),
        ("33554433", "size '33554433' is 33554433 bytes: it must be a positive multiple of 512"),
        ("1.00000001TiB", "size '1.00000001TiB' is no whole number of bytes"),
        ("0GiB", "size '0GiB' is 0 bytes: it must be a positive multiple of 512"),
        ("1GiBB", "size '1GiBB' is not understood: write a number and KiB, MiB, GiB or TiB"),
        ("-1GiB", "size '-1GiB' is not understood: write a number and KiB, MiB, GiB or TiB"),
        ("", "size '' is not understood: write a number and KiB, MiB, GiB or TiB"),
    ],
)
def test_a_bad_size_is_named(text: str, message: str) -> None:
    with pytest.raises(RigError) as caught:
        parse_size(text)
    assert (caught.value.code, caught.value.message) == ("InvalidDiskSize", message)


def test_a_disk_is_a_name_a_size_and_perhaps_a_file_system() -> None:
    assert parse_disk("os:1GiB:ext4") == DiskSpec(name="os", size_bytes=2**30, filesystem="ext4")
    assert parse_disk("raw:512") == DiskSpec(name="raw", size_bytes=512)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("os", "InvalidDisk", "disk 'os' is not understood: write NAME:SIZE or NAME:SIZE:FILESYSTEM, e.g. os:1GiB:ext4"),
        ("os:1GiB:ntfs", "UnknownFilesystem", "disk 'os:1GiB:ntfs': file system 'ntfs' is not one of ext4, xfs, btrfs"),
    ],
)
def test_a_bad_disk_is_named(text: str, code: str, message: str) -> None:
    with pytest.raises(RigError) as caught:
        parse_disk(text)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_points_are_words_or_ids() -> None:
    assert parse_point("latest") == "Latest"
    assert parse_point("latest-processed") == "LatestProcessed"
    assert parse_point("latest-app") == "LatestApplicationConsistent"
    assert parse_point("2b4ddfef-d68f") == "2b4ddfef-d68f"


def test_only_official_intervals_pass_without_a_notice() -> None:
    assert [interval_notice(value) for value in (30, 300, 900)] == [None, None, None]
    assert interval_notice(5) == "interval 5 s exists in this rig only; the service has 30, 300, 900"
    with pytest.raises(RigError, match=r"^interval 0 s: it must be positive; the service has 30, 300, 900$"):
        interval_notice(0)


def test_sizes_are_shown_for_people() -> None:
    assert [format_size(size) for size in (512, 2**30, 5 * 2**39)] == ["512 B", "1 GiB", "2.5 TiB"]
