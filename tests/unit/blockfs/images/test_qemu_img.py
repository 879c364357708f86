"""qemu-img gets descriptors and no names, opens no file that an image refers to, and is bounded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import confined, helper_process, importer, qemu_img
from siterig.blockfs.images.helper_process import HelperLimits
from siterig.blockfs.images.qemu_img import OpenImage, Target
from tests.support.needs import needs_program

pytestmark = pytest.mark.slow

MIB = 1 << 20
SECRET = b"TOPSECRET-4711"
LIMITS = HelperLimits(cpu_s=10, file_bytes=MIB)

needs_landlock = pytest.mark.skipif(confined.landlock_version() == 0, reason="needs a kernel with Landlock")


def run_qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(MIB, b"\0"))
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(MIB)
    return path


@needs_program("qemu-img")
@pytest.mark.parametrize("step", ["disk_bytes", "check", "convert"])
async def test_an_image_swapped_between_two_steps_brings_in_no_other_file(
    tmp_path: Path, secret: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    image, evil = tmp_path / "image.qcow2", tmp_path / "evil.qcow2"
    run_qemu_img("create", "-f", "qcow2", image, MIB)
    run_qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", evil)
    real = getattr(qemu_img, step)
    swapped = False

    async def swap_first(*arguments: object, **options: object) -> object:
        nonlocal swapped
        swapped = True
        evil.rename(image)
        return await real(*arguments, **options)

    monkeypatch.setattr(qemu_img, step, swap_first)
    await importer.fill(image, target, advance=lambda _done: None)
    assert swapped
    assert target.read_bytes() == bytes(MIB)


def backing(folder: Path, secret: Path) -> Path:
    run_qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", folder / "x.qcow2")
    return folder / "x.qcow2"


def data_file(folder: Path, secret: Path) -> Path:
    """Create an image that refers to the secret as its data file."""
    other = folder / ("d" * (len(str(secret)) - len(str(folder)) - 1))
    run_qemu_img("create", "-f", "qcow2", "-o", f"data_file={other},data_file_raw=on", folder / "x.qcow2", MIB)
    path = folder / "x.qcow2"
    path.write_bytes(path.read_bytes().replace(os.fsencode(other), os.fsencode(secret)))
    return path


def extents(folder: Path, secret: Path) -> Path:
    path = folder / "x.vmdk"
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 2048 FLAT "{secret}" 0\nddb.adapterType = "ide"\nddb.geometry.cylinders = "2"\n'
        'ddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\n'
    )
    return path


@needs_landlock
@needs_program("qemu-img")
@pytest.mark.parametrize("make", [backing, data_file, extents])
async def test_qemu_img_itself_opens_no_file_that_an_image_refers_to(
    tmp_path: Path, secret: Path, target: Path, make: object
) -> None:
    """Simulate a header that was changed in place after the check."""
    assert callable(make)
    path = make(tmp_path, secret)
    image, into = os.open(path, os.O_RDONLY), os.open(target, os.O_RDWR)
    try:
        opened = OpenImage(path, image, "vmdk" if path.suffix == ".vmdk" else "qcow2")
        try:
            await qemu_img.convert(
                opened,
                Target(target, into),
                to="raw",
                size_bytes=MIB,
                advance=lambda _done: None,
                options=("-n", "--target-is-zero"),
            )
        except RigError as error:
            assert error.code == "ConvertFailed"
            assert str(path) in error.message or str(target) in error.message
    finally:
        os.close(image)
        os.close(into)
    assert SECRET not in target.read_bytes()


@needs_landlock
async def test_a_helper_sees_only_its_files_and_no_secrets(
    secret: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "4711")
    fd = os.open(secret, os.O_RDONLY)
    try:
        done = await helper_process.run(["/bin/cat", f"/dev/fd/{fd}"], limits=LIMITS, reads=[fd])
        assert done.out.startswith(SECRET)
        done = await helper_process.run(["/bin/cat", str(target)], limits=LIMITS, reads=[fd])
        assert (done.out, b"Permission denied" in done.err) == (b"", True)
        done = await helper_process.run(["/usr/bin/env"], limits=LIMITS)
        assert b"4711" not in done.out
    finally:
        os.close(fd)


async def test_a_helper_that_prints_without_end_is_stopped() -> None:
    done = await helper_process.run(["/usr/bin/yes"], limits=LIMITS)
    assert done.stopped == f"it printed more than {helper_process.OUTPUT_BYTES_MAX} bytes"
    assert done.status < 0


async def test_a_helper_that_makes_no_progress_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_process, "IDLE_S_MAX", 0.05)
    monkeypatch.setattr(helper_process, "_LOOK_S", 0.02)
    with trio.fail_after(30):
        done = await helper_process.run(["/bin/sleep", "1000"], limits=LIMITS)
    assert done.stopped == "it made no progress for 0.05 s"


async def test_a_helper_has_bounds_of_cpu_time_and_file_size(target: Path) -> None:
    with trio.fail_after(60):
        loop = "while true; do :; done"
        done = await helper_process.run(["/bin/sh", "-c", loop], limits=HelperLimits(cpu_s=1, file_bytes=MIB))
    assert done.status < 0
    fd = os.open(target, os.O_RDWR)
    try:
        command = f"cat /dev/zero >/dev/fd/{fd}"
        done = await helper_process.run(["/bin/sh", "-c", command], limits=LIMITS, writes=[fd])
    finally:
        os.close(fd)
    assert done.status != 0
    assert target.stat().st_size == MIB


async def test_a_cancelled_helper_is_ended() -> None:
    pids: list[int] = []
    with trio.CancelScope() as scope:

        def on_output(text: bytes) -> None:
            pids.append(int(text))
            scope.cancel()

        await helper_process.run(["/bin/sh", "-c", "echo $$; exec sleep 1000"], limits=LIMITS, on_output=on_output)
    assert scope.cancelled_caught
    assert not Path(f"/proc/{pids[0]}").exists()
