"""Opening an image file: its detected format, and other programs that use it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import image_file
from siterig.blockfs.images.image_file import MountFormat, open_image
from siterig.blockfs.images.vhd import fixed_footer

SIZE = 1 << 20
FOOTER = fixed_footer(SIZE, "6a83da7e-b542-496d-a113-08b9b71d9e21")

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (Debian: qemu-utils)")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "LOCK_PATIENCE_S", 0.01)


async def refused(path: Path, format_: MountFormat | None = None, *, read_only: bool = False) -> tuple[str, str]:
    with pytest.raises(RigError) as failed:
        await open_image(path, format_=format_, read_only=read_only)
    return failed.value.code, failed.value.message


# ---- format


@pytest.mark.parametrize(
    ("name", "content", "format_", "size_bytes"),
    [
        ("disk.img", bytes(SIZE), "raw", SIZE),
        ("disk", bytes(512), "raw", 512),
        ("disk.vhd", bytes(SIZE) + FOOTER, "vhd", SIZE),
        ("disk.VHD", bytes(SIZE) + FOOTER, "vhd", SIZE),
    ],
)
async def test_the_format_follows_from_name_and_contents(
    tmp_path: Path, name: str, content: bytes, format_: str, size_bytes: int
) -> None:
    (tmp_path / name).write_bytes(content)
    image = await open_image(tmp_path / name)
    assert (image.path, image.format, image.size_bytes, image.read_only) == (tmp_path / name, format_, size_bytes, False)
    image.close()


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("disk.img", b"", "InvalidDiskSize", "has 0 bytes; a raw image has a positive multiple of 512"),
        ("disk.img", bytes(1000), "InvalidDiskSize", "has 1000 bytes"),
        (
            "disk.vhd",
            bytes(SIZE),
            "VhdCorrupt",
            "is named as a VHD, but its last 512 bytes are no VHD footer; if it is a raw",
        ),
        ("disk.vhd", bytes(SIZE) + FOOTER[:-1], "VhdUnsupported", "its footer has 511 bytes"),
        ("disk.vhd", FOOTER + bytes(SIZE), "VhdCorrupt", "begins like a dynamic VHD"),
        ("disk.vhd", bytes(SIZE) + FOOTER[:100] + b"x" + FOOTER[101:], "VhdCorrupt", "its checksum is"),
        ("disk.img", bytes(SIZE) + FOOTER, "ImageUnusable", "ends with a VHD footer, but is not named as a VHD"),
        ("disk.img", FOOTER + bytes(SIZE), "VhdCorrupt", "begins like a dynamic VHD"),
        ("disk.img", b"QFI\xfb".ljust(SIZE, b"\0"), "ImageUnusable", "is a qcow2 image"),
        ("disk.vhd", b"vhdxfile".ljust(SIZE, b"\0"), "ImageUnusable", "is a vhdx image"),
        ("disk.img", bytes(64) + b"\x7f\x10\xda\xbe".ljust(SIZE, b"\0"), "ImageUnusable", "is a vdi image"),
    ],
)
async def test_a_file_that_is_no_disk_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, code: str, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found, message = await refused(tmp_path / name)
    assert found == code
    assert message.startswith(f"{tmp_path / name}: ")
    assert says in message


def qemu_img(path: Path, format_: str, options: str) -> Path:
    chosen = ["-o", options] if options else []
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, *chosen, path, "10M"], check=True)
    return path


@pytest.mark.slow
@needs_qemu_img
@pytest.mark.parametrize(
    ("format_", "options", "code", "says"),
    [
        (
            "qcow2",
            "",
            "ImageUnusable",
            "is a qcow2 image; raw images and fixed VHDs are supported: qemu-img convert -f qcow2",
        ),
        ("qed", "", "ImageUnusable", "is a qed image"),
        ("vdi", "", "ImageUnusable", "is a vdi image"),
        ("vhdx", "", "ImageUnusable", "is a vhdx image"),
        ("vmdk", "", "ImageUnusable", "is a vmdk image"),
        (
            "vmdk",
            "subformat=monolithicFlat",
            "ImageUnusable",
            "is a vmdk image; raw images and fixed VHDs are supported: it",
        ),
        ("parallels", "", "ImageUnusable", "is a parallels image"),
        ("vpc", "subformat=dynamic", "VhdUnsupported", "is a dynamic VHD"),
    ],
)
async def test_other_formats_of_qemu_img_are_refused_by_name(
    tmp_path: Path, format_: str, options: str, code: str, says: str
) -> None:
    path = qemu_img(tmp_path / "disk.img", format_, options)
    found, message = await refused(path)
    assert (found, says in message) == (code, True), message


async def test_a_given_format_is_used_instead_of_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE) + FOOTER)
    for format_, size_bytes in (("raw", SIZE + 512), ("vhd", SIZE)):
        image = await open_image(path, format_=format_)  # type: ignore[arg-type]
        assert (image.format, image.size_bytes) == (format_, size_bytes)
        image.close()
    path.write_bytes(bytes(SIZE))
    assert (await refused(path, "vhd"))[0] == "VhdCorrupt"
    path.write_bytes(b"QFI\xfb".ljust(SIZE, b"\0"))
    (await open_image(path, format_="raw")).close()


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (folder, "is a folder"),
        (pipe, "is no regular file"),
        (loop_of_links, "cannot be opened: Too many levels of symbolic links"),
        (nothing, "does not exist"),
    ],
)
async def test_paths_that_are_no_files_are_refused_with_the_reason(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    make(tmp_path / "disk.img")
    code, message = await refused(tmp_path / "disk.img")
    assert (code, message.startswith(f"{tmp_path}/disk.img: {says}")) == ("ImageUnusable", True), message


async def test_a_link_is_followed_to_the_image(tmp_path: Path) -> None:
    (tmp_path / "real.img").write_bytes(bytes(SIZE))
    (tmp_path / "link.img").symlink_to("real.img")
    image = await open_image(tmp_path / "link.img")
    assert image.path == tmp_path / "real.img"
    image.close()


# ---- other users


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
async def test_a_writer_needs_the_image_alone(path: Path, first: bool, second: bool) -> None:
    image = await open_image(path, read_only=first)
    code, message = await refused(path, read_only=second)
    assert (code, message.startswith(f"{path}: is in use by ")) == ("ImageBusy", True)
    image.close()
    (await open_image(path, read_only=second)).close()


async def test_two_readers_can_open_one_image(path: Path) -> None:
    first, second = await open_image(path, read_only=True), await open_image(path, read_only=True)
    first.close()
    second.close()


async def test_opening_an_image_waits_for_its_release(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "LOCK_PATIENCE_S", 60)
    first = await open_image(path)
    opened = False
    async with trio.open_nursery() as nursery:

        async def second() -> None:
            nonlocal opened
            (await open_image(path)).close()
            opened = True

        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert not opened
        first.close()
    assert opened


@pytest.mark.parametrize(
    ("byte", "read_only", "code"),
    [(101, False, "ImageBusy"), (101, True, "ImageBusy"), (100, False, "ImageBusy"), (100, True, None)],
)
async def test_locks_of_qemu_are_respected(path: Path, byte: int, read_only: bool, code: str | None) -> None:
    """QEMU locks byte 101 to write and byte 100 to read (block/file-posix.c)."""
    with path.open("rb") as qemu:
        fcntl.fcntl(qemu, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        if code is None:
            (await open_image(path, read_only=read_only)).close()
        else:
            assert (await refused(path, read_only=read_only))[0] == code


HOLDS = """
import sys, trio
from pathlib import Path
from siterig.blockfs.images.image_file import open_image

async def hold():
    await open_image(Path(sys.argv[1]))
    print("held", flush=True)
    sys.stdin.read()

trio.run(hold)
"""


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [False, True])
async def test_the_user_of_an_image_is_named_for_another_hard_link_too(path: Path, *, read_only: bool) -> None:
    link = path.with_name("link.img")
    link.hardlink_to(path)
    command = [sys.executable, "-c", HOLDS, str(path)]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert (await process.stdout.receive_some()).startswith(b"held")
        code, message = await refused(link, read_only=read_only)
        assert (code, f"({process.pid}) as {path}" in message) == ("ImageBusy", True), message
        assert f"({process.pid})" in (await refused(path, read_only=read_only))[1]
    finally:
        process.kill()
        await process.wait()


@pytest.mark.slow
async def test_the_end_of_the_last_mount_is_awaited(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", HOLDS, str(path), "siterig", "mount"]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    notes = []

    def note(text: str) -> None:
        notes.append(text)
        process.kill()

    try:
        assert (await process.stdout.receive_some()).startswith(b"held")
        (await open_image(path, note=note)).close()
        assert len(notes) == 1
        assert f"{path}: waiting for the end of its last mount, " in notes[0]
        assert f"({process.pid})" in notes[0]
    finally:
        process.kill()
        await process.wait()


async def test_a_refused_image_is_unlocked(path: Path) -> None:
    path.write_bytes(bytes(1000))
    assert (await refused(path))[0] == "InvalidDiskSize"
    path.write_bytes(bytes(SIZE))
    (await open_image(path)).close()
