"""A failure of qemu-img has the same error code as a copy without it; a fake program prints its messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.images import image_export

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 4 * MIB

Says = Callable[[str], None]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Return a function that sets the message of ``qemu-img``, which then fails."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(text: str) -> None:
        program = folder / "qemu-img"
        program.write_text(f"#!/bin/sh\ncat >&2 <<END\n{text}\nEND\nexit 1\n")
        program.chmod(0o755)

    return make


async def failure(tmp_path: Path) -> tuple[str, str]:
    """Code and message of an export to ``x.qcow2``."""
    disk = tmp_path / "os.img"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    with pytest.raises(RigError) as failed:
        await image_export.export(disk, tmp_path / "x.qcow2", "qcow2", force=False, advance=lambda _done: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["os.img", "programs"]
    return failed.value.code, failed.value.message.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            "qemu-img: error while writing at byte 6561792: No space left on device",
            "DiskFull",
            "x.qcow2: the host's disk is full",
        ),
        ("qemu-img: x: Could not resize file: Disk quota exceeded", "DiskFull", "x.qcow2: the host's disk is full"),
        (
            "qemu-img: error while writing at byte 0: File too large",
            "InvalidDiskSize",
            "x.qcow2: larger than the host's file system allows",
        ),
        ("qemu-img: error while writing at byte 0: Input/output error", "HostIoError", "x.qcow2: Input/output error"),
        (
            "qemu-img: error while writing at byte 0: Invalid argument",
            "ConvertFailed",
            "x.qcow2: qemu-img: error while writing at byte 0: Invalid argument",
        ),
        ("", "ConvertFailed", "x.qcow2: it failed and said nothing"),
    ],
)
async def test_an_error_of_writing_names_the_image(tmp_path: Path, says: Says, text: str, code: str, message: str) -> None:
    says(text)
    assert await failure(tmp_path) == (code, message)


async def test_an_error_that_hides_a_full_disk_is_reported_as_a_full_disk(
    tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    says("qemu-img: error while writing at byte 774144: Invalid argument")
    full = os.statvfs_result((4096, 4096, 100, 3, 3, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: full)
    assert await failure(tmp_path) == ("DiskFull", "x.qcow2: the host's disk is full")


READING = (
    "qemu-img: error while reading at byte 2097152: Input/output error\n"
    "qemu-img: error while reading at byte 0: Input/output error"
)


async def test_the_first_block_that_cannot_be_read_is_named(
    tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(fd: int, length: int, at: int) -> bytes:
        if at + length > 1_500_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, at)

    pread = os.pread
    monkeypatch.setattr(os, "pread", bad)
    says(READING)
    at = 1_500_000 // 4096 * 4096
    assert await failure(tmp_path) == (
        "ReadFailed",
        f"x.qcow2: was not created: os.img: cannot be read at byte {at}: Input/output error",
    )


async def test_a_read_that_failed_once_is_reported_with_the_progress_of_qemu(tmp_path: Path, says: Says) -> None:
    says(READING)
    assert await failure(tmp_path) == (
        "ReadFailed",
        "x.qcow2: was not created: os.img: cannot be read at byte 0: Input/output error",
    )
