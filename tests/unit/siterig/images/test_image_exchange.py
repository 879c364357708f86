"""Images of other formats: a disk exported and imported again is the same, byte for byte, and QEMU agrees."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files.sparse_copy import SparseCopy
from siterig.blockfs.images import importer, vhd
from siterig.blockfs.images import qemu_img as qemu_img_of_ours
from siterig.core.parsing import is_import, parse_import
from siterig.images import image_export
from siterig.images.image_export import ExportFormat
from tests.support.needs import needs_program

MIB = 1 << 20
SIZE = 24 * MIB
FORMATS: tuple[ExportFormat, ...] = ("raw", "vhd", "qcow2", "vhdx", "vmdk")
FOOTER = vhd.fixed_footer(MIB, "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42")
QEMU = {"raw": "raw", "vhd": "vpc", "qcow2": "qcow2", "vhdx": "vhdx", "vmdk": "vmdk"}


def disk_bytes(path: Path, seed: int) -> Path:
    """A sparse file of random pieces, the last sector among them."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(20):
            file.seek(rng.randrange(SIZE // 512 - 300) * 512)
            file.write(rng.randbytes(rng.randrange(1, 300) * 512))
        file.seek(SIZE - 512)
        file.write(rng.randbytes(512))
    return path


def as_vhd(path: Path) -> Path:
    """Copy a disk with a footer, as a mount shows it."""
    made = path.with_suffix(".vhd")
    shutil.copyfile(path, made)
    with made.open("ab") as file:
        file.write(vhd.fixed_footer(SIZE, "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42"))
    return made


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_program("qemu-img")
@pytest.mark.parametrize("format_", FORMATS)
async def test_export_then_import_gives_the_same_bytes_and_qemu_agrees(tmp_path: Path, format_: ExportFormat) -> None:
    seed = random.randrange(1 << 32)
    disk = disk_bytes(tmp_path / "os.img", seed)
    to = tmp_path / f"exported.{format_}"
    told: list[int] = []
    source = as_vhd(disk) if format_ == "vhd" else disk
    await image_export.export(source, to, format_, force=False, advance=told.append)
    assert sum(told) == source.stat().st_size
    if format_ in ("qcow2", "vhdx", "vmdk"):
        qemu_img("check", "-f", format_, to)
    assert "Images are identical." in qemu_img("compare", "-f", "raw", "-F", QEMU[format_], disk, to)
    if format_ == "raw":
        assert to.stat().st_blocks < disk.stat().st_blocks + 64  # and what the host keeps of its own

    looked = await importer.look_at(to)
    assert (looked.format, looked.size_bytes) == (format_, SIZE)
    back = tmp_path / "back.img"
    with back.open("wb") as file:
        file.truncate(SIZE + MIB)  # a larger disk
    await importer.fill(to, back, advance=lambda _done: None)
    assert back.read_bytes() == disk.read_bytes() + bytes(MIB), f"seed {seed}"
    assert back.stat().st_blocks * 512 < SIZE / 2, "what is a hole stays one"
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
@needs_program("qemu-img")
async def test_a_dynamic_vhd_is_imported(tmp_path: Path) -> None:
    disk, dynamic, back = disk_bytes(tmp_path / "os.img", 1), tmp_path / "dynamic.vhd", tmp_path / "back.img"
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", disk, dynamic)
    looked = await importer.look_at(dynamic)
    assert (looked.format, looked.size_bytes) == ("vhd", SIZE)
    with back.open("wb") as file:
        file.truncate(SIZE)
    await importer.fill(dynamic, back, advance=lambda _done: None)
    assert back.read_bytes() == disk.read_bytes()


@pytest.mark.slow
@needs_program("qemu-img")
async def test_an_image_that_needs_another_file_is_refused(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    with pytest.raises(
        RigError, match=r"top\.qcow2: needs another file, .*base\.qcow2: qemu-img convert makes one"
    ) as failed:
        await importer.look_at(top)
    assert failed.value.code == "ImageUnusable"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("x.img", b"x" * 1000, "InvalidDiskSize", "has 1000 bytes"),
        ("x.vhd", b"x" * 1024, "VhdCorrupt", "is named as a VHD, but its last 512 bytes are no VHD footer; if it is a raw"),
        ("x", bytes(MIB) + FOOTER, "ImageUnusable", "give --format vhd, or --format raw if every byte is"),
        ("x.vdi", bytes(64) + b"\x7f\x10\xda\xbe" + bytes(956), "ImageUnusable", "has VDI version 0.0; 1.1 is supported"),
        ("x.qcow2", b"QFI\xfb" + bytes(1020), "ImageUnusable", "x.qcow2: has qcow2 version 0; 2 and 3 are supported"),
        ("x.qed", b"QED\0" + bytes(1020), "ImageUnusable", "x.qed: qemu-img: Could not open '"),
    ],
)
@needs_program("qemu-img")
async def test_a_file_that_is_no_image_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, code: str, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RigError) as failed:
        await importer.look_at(tmp_path / name)
    assert failed.value.code == code
    assert words in failed.value.message
    assert "\n" not in failed.value.message


@pytest.mark.slow
@needs_program("qemu-img")
async def test_the_message_about_an_image_that_may_be_a_vhd_helps(tmp_path: Path) -> None:
    image, as_vhd_, as_qcow2 = tmp_path / "x", tmp_path / "x.vhd", tmp_path / "x.qcow2"
    image.write_bytes(bytes(MIB) + FOOTER)
    as_vhd_.symlink_to("x")
    with pytest.raises(RigError, match=r"x: ends with a VHD footer"):  # links are no names
        await importer.look_at(as_vhd_)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", image, as_qcow2)
    assert (await importer.look_at(as_qcow2)).size_bytes == MIB + 512
    image.rename(as_vhd_)
    assert (await importer.look_at(as_vhd_)).size_bytes == MIB


async def test_an_image_larger_than_the_disk_is_refused_and_the_disk_untouched(tmp_path: Path) -> None:
    image, disk = tmp_path / "image.img", tmp_path / "disk.img"
    image.write_bytes(b"x" * 1024)
    disk.write_bytes(bytes(512))
    with pytest.raises(RigError, match=r"has 512 bytes; the disk in .*image\.img has 1024"):
        await importer.fill(image, disk, advance=lambda _done: None)
    assert disk.read_bytes() == bytes(512)


async def test_an_export_replaces_a_file_only_with_force(tmp_path: Path) -> None:
    disk, to = disk_bytes(tmp_path / "os.img", 2), tmp_path / "out.img"
    to.write_bytes(b"precious")
    with pytest.raises(RigError) as failed:
        image_export.check(to, "raw", force=False)
    assert failed.value.code == "FileExists"
    with pytest.raises(RigError, match=r"out\.img is there already: name another file, or replace it with --force"):
        await image_export.export(disk, to, "raw", force=False, advance=lambda _done: None)
    assert (to.read_bytes(), sorted(p.name for p in tmp_path.iterdir())) == (b"precious", ["os.img", "out.img"])
    await image_export.export(disk, to, "raw", force=True, advance=lambda _done: None)
    assert to.read_bytes() == disk.read_bytes()


async def test_an_export_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    disk, to = disk_bytes(tmp_path / "os.img", 3), tmp_path / "out"
    with trio.CancelScope() as scope:
        await image_export.export(disk, to, "raw", force=False, advance=lambda _done: scope.cancel())
    assert scope.cancelled_caught
    assert [path.name for path in tmp_path.iterdir()] == ["os.img"]


def children() -> list[int]:
    """The processes that this one's main thread has started."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.slow
async def test_a_conversion_that_is_cancelled_ends_its_process_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that never ends, so that it is cancelled during its work."""
    programs, folder = tmp_path / "bin", tmp_path / "images"
    programs.mkdir()
    folder.mkdir()
    program = programs / qemu_img_of_ours.PROGRAM
    program.write_text(
        "#!/bin/sh\nfor target; do :; done\nprintf half > \"$target\"\nprintf '    (50.00/100%%)\\r'\nexec sleep 600\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    disk, seen, pids = disk_bytes(folder / "os.img", 3), [], []

    def half_way(done: int) -> None:
        seen.append(done)
        pids.extend(children())
        scope.cancel()

    with trio.CancelScope() as scope:
        await image_export.export(disk, folder / "out", "qcow2", force=False, advance=half_way)
    assert scope.cancelled_caught
    assert seen == [SIZE // 2]
    assert [path.name for path in folder.iterdir()] == ["os.img"]
    assert len(pids) == 1
    assert not Path(f"/proc/{pids[0]}").exists()


def make_hanging_qemu_img(folder: Path) -> Path:
    """A folder with a ``qemu-img`` that has its output open, reports that half is done, and never ends."""
    folder.mkdir()
    program = folder / "qemu-img"
    program.write_text("#!/bin/bash\nexec 4>\"${@: -1}\"\nprintf '    (50.00/100%%)\\r'\nexec sleep 1000\n")
    program.chmod(0o755)
    return folder


KILLED = """
import os, sys, trio
from pathlib import Path
from siterig.images import image_export
source, to, format_, force = sys.argv[1:]

def kill(_done):
    print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
    os.kill(os.getpid(), 9)

trio.run(lambda: image_export.export(Path(source), Path(to), format_, force=bool(force), advance=kill))
"""


@pytest.mark.slow
@pytest.mark.parametrize("force", ["", "force"])
@pytest.mark.parametrize("format_", ["raw", "qcow2"])
async def test_an_export_that_is_killed_leaves_nothing_and_nobody_that_writes_on(
    tmp_path: Path, format_: ExportFormat, force: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    disk = disk_bytes(folder / "os.img", 5)
    programs = make_hanging_qemu_img(tmp_path / "programs")
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", KILLED, str(disk), str(folder / "out"), format_, force]
    done = await trio.run_process(
        command, check=False, env=os.environ | {"PATH": path}, capture_stdout=True, capture_stderr=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in folder.iterdir()] == ["os.img"]
    if format_ == "qcow2":
        pid = int(done.stdout)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            with trio.fail_after(30):
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("format_", ["raw", "qcow2"])
@needs_program("qemu-img")
async def test_without_files_that_have_no_name_the_image_is_hidden_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: ExportFormat, cancelled: bool
) -> None:
    def without(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, mode, dir_fd=dir_fd)

    opened = os.open
    monkeypatch.setattr("siterig.images.image_export.os.open", without)
    disk, to = disk_bytes(tmp_path / "os.img", 6), tmp_path / "out"
    seen: list[list[str]] = []
    with trio.CancelScope() as scope:

        def advance(_done: int) -> None:
            seen.append([path.name for path in tmp_path.iterdir() if path.suffix == ".part"])
            if cancelled:
                scope.cancel()

        await image_export.export(disk, to, format_, force=False, advance=advance)
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(".out.")
    left = sorted(path.name for path in tmp_path.iterdir())
    if cancelled:
        assert left == ["os.img"]
    else:
        assert left == ["os.img", "out"]
        assert "Images are identical." in qemu_img("compare", "-f", "raw", "-F", QEMU[format_], disk, to)


async def test_a_source_that_cannot_be_read_is_named_with_the_byte(tmp_path: Path) -> None:
    disk = disk_bytes(tmp_path / "os.img", 4)
    fd = os.open(disk, os.O_WRONLY)  # not to be read
    target = tmp_path / "target"
    with (
        target.open("wb") as file,
        pytest.raises(RigError, match=r"os\.img: cannot be read at byte \d+: Bad file descriptor"),
    ):
        await SparseCopy(disk, fd, target, file.fileno(), SIZE).run(lambda _done: None)
    os.close(fd)


def test_without_qemu_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    image_export.check(tmp_path / "x.vhd", "vhd", force=False)
    with pytest.raises(RigError) as failed:
        image_export.check(tmp_path / "x.qcow2", "qcow2", force=False)
    assert (failed.value.code, failed.value.message) == (
        "ToolMissing",
        "format qcow2 needs qemu-img, which is not installed; on Debian: apt-get install qemu-utils",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("os=web.vhdx", ("os", "web.vhdx", None)),
        ("os=/a/b.img:2GiB", ("os", "/a/b.img", 2 << 30)),
        ("os=/a:b/c.img", ("os", "/a:b/c.img", None)),
    ],
)
def test_a_disk_of_an_image_is_name_equals_path_and_perhaps_a_size(text: str, expected: object) -> None:
    assert is_import(text)
    assert parse_import(text) == expected


def test_a_blank_disk_is_no_import() -> None:
    assert not is_import("os:1GiB:ext4")
    with pytest.raises(RigError, match="write NAME=IMAGE or NAME=IMAGE:SIZE"):
        parse_import("os=")


def test_a_size_in_the_place_of_an_image_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RigError) as caught:
        parse_import("os=64MiB")
    assert caught.value.message == "disk 'os=64MiB': there is no image '64MiB'; an empty disk of that size is os:64MiB"
    Path("64MiB").touch()
    assert parse_import("os=64MiB") == ("os", "64MiB", None)
