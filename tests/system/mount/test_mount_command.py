"""Tests of ``siterig mount``: users and scripts mount one image as a disk, use it, misuse it and kill it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.printable import printable
from tests.support.disks.guest import write_durably
from tests.support.disks.mount_process import (
    DEAD,
    IMAGE_BYTES,
    ROOT,
    Start,
    copied,
    copied_as,
    logs,
    loop_over,
    names,
    read,
    replayed,
    siterig,
)

pytestmark = pytest.mark.system

MIB = 1 << 20


# ---- a session


def test_a_file_system_on_a_tracked_image_is_sound_and_its_log_replays(
    image: Path, where: Path, tmp_path: Path, start_each: Start
) -> None:
    before = copied(image)
    mount = start_each(image, where, "--log")
    assert mount.mounted == {
        "image": str(image),
        "format": "raw",
        "size_bytes": IMAGE_BYTES,
        "read_only": False,
        "disk": str(where / "disk.img"),
        "vhd": str(where / "disk.vhd"),
        "log": {
            "disk_id": mount.mounted["log"]["disk_id"],
            "generation": 1,
            "segments": 1,
            "first": str(logs(image)[0]),
            "last": str(logs(image)[0]),
            "bytes": logs(image)[0].stat().st_size,
        },
        "faults": {"seed": mount.mounted["faults"]["seed"], "armed": []},
    }
    assert names(where) == ["disk.000001.hrl", "disk.img", "disk.stats", "disk.vhd"]
    guest = tmp_path / "guest"
    guest.mkdir()
    content = os.urandom(300_000)
    with loop_over(mount.disk, "--direct-io=on") as loop:
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", loop], check=True)
        subprocess.run(["mount", loop, guest], check=True)
        try:
            (guest / "file").write_bytes(content)
            (guest / "doomed").write_bytes(os.urandom(200_000))
            (guest / "doomed").unlink()
            subprocess.run(["fstrim", guest], check=False, capture_output=True)
        finally:
            subprocess.run(["umount", guest], check=True)
        shown = siterig("log", "verify", *sorted(where.glob("*.hrl")))
        assert (shown.returncode, ": ok: records 1 to " in shown.stdout) == (0, True), shown.stdout
    unmounted = mount.end()
    paths = logs(image)
    assert unmounted["log"]["segments"] == len(paths)
    assert (unmounted["log"]["first"], unmounted["log"]["last"]) == (str(paths[0]), str(paths[-1]))
    assert not where.exists(), "the folder that the mount created is still there"
    with loop_over(image) as loop:
        subprocess.run(["e2fsck", "-fn", loop], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "ro", loop, guest], check=True)
        try:
            assert (guest / "file").read_bytes() == content
        finally:
            subprocess.run(["umount", guest], check=True)
    assert replayed(before, logs(image)) == image.read_bytes()


def test_an_untracked_image_has_no_files_next_to_it(image: Path, where: Path, start: Start) -> None:
    mount = start(image, where)
    assert mount.mounted["log"] is None
    write_durably(mount.disk, 1000, b"here")
    assert names(where) == ["disk.img", "disk.stats", "disk.vhd"]
    mount.end()
    assert names(image.parent) == ["disk.img"]
    assert read(image, 1000, 4) == b"here"


def test_the_text_for_people_shows_the_disk_and_how_to_end_the_mount(image: Path, where: Path, start: Start) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "siterig", "mount", str(image), "--mnt", str(where), "--log"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"mounted {image} (raw, 64 MiB) as {where}/disk.img\n"
        assert process.stderr.readline() == f"siterig: note: Ctrl-C or umount {where} ends it\n"
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert stdout.splitlines()[-2:] == [
            f"unmounted {where}",
            f"  the log of generation 1: {image.parent}/disk.000001.hrl, 192 B",
        ]
        assert (process.returncode, stderr) == (0, "")
    finally:
        process.kill()
        process.communicate()
        subprocess.run(["umount", "-l", where], check=False, capture_output=True)


def test_no_name_can_be_created_removed_or_moved(image: Path, where: Path, start_each: Start) -> None:
    mount = start_each(image, where)
    new = where / "new"
    deeds: list[Callable[[], object]] = [
        mount.disk.unlink,
        new.mkdir,
        new.touch,
        lambda: new.symlink_to("x"),
        lambda: new.hardlink_to(mount.disk),
        lambda: mount.disk.rename(new),
        lambda: os.mkfifo(new),
        lambda: (where / "disk.vhd").rename(mount.disk),
    ]
    for deed in deeds:
        with pytest.raises(PermissionError):
            deed()
    with pytest.raises(NotADirectoryError):
        mount.disk.rmdir()
    assert names(where) == ["disk.img", "disk.stats", "disk.vhd"]


def test_a_copy_onto_a_disk_overwrites_its_beginning(image: Path, where: Path, start_each: Start, tmp_path: Path) -> None:
    mount = start_each(image, where)
    write_durably(mount.disk, 0, b"a" * 2000)
    (tmp_path / "small").write_bytes(b"b" * 1000)
    subprocess.run(["cp", tmp_path / "small", mount.disk], check=True)
    assert read(mount.disk, 0, 2000) == b"b" * 1000 + b"a" * 1000
    assert mount.disk.stat().st_size == IMAGE_BYTES


# ---- kills


def test_after_kills_the_generation_continues_and_the_log_replays(image: Path, where: Path, start_each: Start) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    before = copied(image)
    for _ in range(3):
        mount = start_each(image, where, "--log")
        assert mount.mounted["log"]["generation"] == 1
        fd = os.open(mount.disk, os.O_RDWR)
        for _ in range(dice.randrange(200)):
            offset = dice.randrange(IMAGE_BYTES - 65536)
            assert os.pwrite(fd, dice.randbytes(dice.randrange(1, 65536)), offset)
        mount.kill()
        with pytest.raises(OSError, match=DEAD):
            os.close(fd)
        with pytest.raises(OSError, match=DEAD):
            names(where)
    mount = start_each(image, where, "--log")
    mount.end()
    assert replayed(before, logs(image)) == image.read_bytes()


def test_a_loop_device_on_a_killed_mount_is_named(image: Path, where: Path, start: Start) -> None:
    mount = start(image, where, "--log")
    with loop_over(mount.disk) as loop:
        mount.kill()
        again = start(image, where, "--log")
        assert again.note() == (
            f"siterig: note: {loop} lies on {where}/disk.img of an earlier mount, which is dead; detach it: "
            f"losetup -d {loop}\n"
        )
        again.end()


def test_a_dead_mount_of_another_image_is_cleared(image: Path, where: Path, start: Start) -> None:
    mount = start(image, where)
    mount.kill()
    other = image.with_name("other.img")
    shutil.copy(image, other)
    second = start(other, where)
    assert names(where) == ["other.img", "other.stats", "other.vhd"]
    second.end()


# ---- the host's disk is full


@pytest.mark.parametrize("room_at_the_end", [True, False])
def test_a_write_without_room_for_its_log_fails_and_changes_nothing(
    tmp_path: Path, where: Path, start_each: Start, room_at_the_end: bool
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "tmpfs", folder], check=True)
    try:
        image = folder / "disk.img"
        image.write_bytes(bytes(4 * MIB))
        before = copied(image)
        mount = start_each(image, where, "--log")
        with pytest.raises(OSError, match="No space left on device"):
            for _ in range(4):
                for at in range(0, 4 * MIB, MIB // 2):
                    write_durably(mount.disk, at, os.urandom(MIB // 2))
        now = mount.disk.read_bytes()
        if room_at_the_end:
            subprocess.run(["mount", "-o", "remount,size=40M", folder], check=True)
        else:
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
        subprocess.run(["umount", where], check=True)
        status, _, stderr = mount.ended()
        assert status == 0, stderr  # the end of the log is truncated first, which leaves room for the rest
        assert image.read_bytes() == now
        subprocess.run(["mount", "-o", "remount,size=40M", folder], check=True)
        again = start_each(image, where, "--log")
        assert again.mounted["log"]["generation"] == 1
        write_durably(again.disk, 100, b"room again")
        again.end()
        assert replayed(before, logs(image)) == image.read_bytes()
    finally:
        subprocess.run(["umount", "-l", where], check=False, capture_output=True)
        subprocess.run(["umount", folder], check=True)


def test_a_mount_with_an_abandoned_log_reports_it_at_its_end(tmp_path: Path, where: Path, start: Start) -> None:
    folder, backing = tmp_path / "host", tmp_path / "host.ext4"
    folder.mkdir()
    with backing.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", backing], check=True)
    subprocess.run(["mount", "-o", "loop", backing, folder], check=True)
    try:
        image = folder / "disk.img"
        image.write_bytes(os.urandom(4 * MIB))
        mount = start(image, where, "--log")
        write_durably(mount.disk, 0, b"logged")
        subprocess.run(["chattr", "+i", image], check=True)
        discard = subprocess.run(["fallocate", "--punch-hole", "-l", "1M", mount.disk], capture_output=True, check=False)
        subprocess.run(["chattr", "-i", image], check=True)
        assert discard.returncode != 0
        write_durably(mount.disk, MIB, b"not logged")
        subprocess.run(["umount", where], check=True)
        status, printed, stderr = mount.ended()
        assert (status, printed) == (1, [])
        assert stderr.splitlines()[-1] == (
            f"siterig: error: {image}: its change log was abandoned (WriteFailed): "
            "the last writes are not in it (LogAbandoned)"
        )
        assert read(image, MIB, 10) == b"not logged"
        again = start(image, where, "--log")
        assert again.mounted["log"]["generation"] == 2
        before = copied(image)
        write_durably(again.disk, 100, b"logged again")
        log = again.end()["log"]
        logged = [path for path in logs(image) if log["first"] <= str(path) <= log["last"]]
        assert len(logged) == log["segments"]
        assert replayed(before, logged) == image.read_bytes()
    finally:
        subprocess.run(["umount", "-l", where], check=False, capture_output=True)
        subprocess.run(["umount", folder], check=True)


# ---- options


@pytest.mark.parametrize(("option", "most"), [("--fuse-threads", 58), ("--fuse-queue", 65535)], ids=["threads", "queue"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", "65536", "9" * 5000])
def test_threads_and_queue_have_limits(image: Path, where: Path, option: str, most: int, value: str) -> None:
    refused = siterig("mount", image, "--mnt", where, option, value)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"siterig: error: {option} is {value!r}: it must be a whole number from 1 to {most} (InvalidLimit)\n"
    )
    assert not where.exists()


# ---- names


def test_an_image_can_have_any_name(tmp_path: Path, start: Start) -> None:
    image, where = tmp_path / os.fsdecode(b"a,b \\c\xff.1.img"), tmp_path / os.fsdecode(b"m ,\\\xfe")
    image.write_bytes(bytes(MIB))
    environment = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}
    mount = start(image, where, "--log", environment=environment)
    assert names(where) == [os.fsdecode(b"a,b \\c\xff.1" + end) for end in (b".000001.hrl", b".img", b".stats", b".vhd")]
    second = subprocess.run(
        [sys.executable, "-m", "siterig", "mount", image, "--mnt", tmp_path / "second"],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert b"(mounted at " in second.stderr, "the table of mounts was not understood"
    mount.end()
    process = subprocess.Popen(
        [sys.executable, "-m", "siterig", "mount", image, "--mnt", where],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        shown = printable(str(image)).encode()
        assert b"\\xff" in shown
        assert process.stdout.readline().startswith(b"mounted " + shown)
    finally:
        process.terminate()
        process.communicate()


# ---- an image that other programs change or use


def test_an_image_changed_between_mounts_begins_a_new_generation(image: Path, where: Path, start: Start) -> None:
    first_start = copied(image)
    mount = start(image, where, "--log")
    write_durably(mount.disk, 0, b"one")
    mount.end()
    first_end, first_logs = image.read_bytes(), logs(image)
    write_durably(image, 100, b"somebody else")
    second_start = copied_as(image, "second-start")
    mount = start(image, where, "--log")
    assert mount.note() == (
        f"siterig: note: {image}: the change log of generation 1 ends: {image} was written to, or replaced, since it was "
        "last closed; generation 2 begins with the image as it is now\n"
    )
    assert mount.mounted["log"]["generation"] == 2
    write_durably(mount.disk, 50, b"two")
    mount.end()
    second_logs = [path for path in logs(image) if path not in first_logs]
    assert replayed(first_start, first_logs) == first_end
    assert replayed(second_start, second_logs) == image.read_bytes()


def test_an_image_is_mounted_only_once(image: Path, where: Path, tmp_path: Path, start: Start) -> None:
    mount = start(image, where)
    for options in ([], ["--log"], ["--read-only"]):
        second = siterig("mount", image, "--mnt", tmp_path / "second", *options)
        assert second.returncode == 1
        assert second.stderr.startswith(f"siterig: error: {image}: is in use by ")
        assert second.stderr.endswith(f"({mount.process.pid}) (mounted at {where}) (ImageBusy)\n")
        assert not (tmp_path / "second").exists()
    write_durably(mount.disk, 0, b"undisturbed")
    mount.end()


def test_two_images_are_mounted_concurrently(image: Path, where: Path, tmp_path: Path, start: Start) -> None:
    other = image.with_name("other.img")
    shutil.copy(image, other)
    first, second = start(image, where, "--log"), start(other, tmp_path / "second", "--log")
    write_durably(first.disk, 0, b"first")
    write_durably(second.disk, 0, b"second")
    first.end()
    second.end()
    assert (read(image, 0, 6), read(other, 0, 6)) == (b"first\0", b"second")


def test_a_mount_point_that_is_in_use_is_refused(image: Path, where: Path, start: Start) -> None:
    other = image.with_name("other.img")
    shutil.copy(image, other)
    start(image, where)
    second = siterig("mount", other, "--mnt", where)
    assert (second.returncode, second.stderr) == (
        1,
        f"siterig: error: {where}: siterig:{image} is mounted here already (MountFailed)\n",
    )


def test_an_image_on_a_loop_device_is_refused(image: Path, where: Path) -> None:
    with loop_over(image) as loop:
        refused = siterig("mount", image, "--mnt", where)
    assert (refused.returncode, refused.stderr) == (1, f"siterig: error: {image}: is in use by {loop} (ImageBusy)\n")


# ---- reading only


def test_a_read_only_disk_refuses_writes(image: Path, where: Path, start: Start) -> None:
    write_durably(image, 0, b"kept")
    mount = start(image, where, "--read-only")
    assert mount.mounted["read_only"] is True
    with pytest.raises(OSError, match="Read-only file system") as failed:
        mount.disk.open("r+b")
    assert failed.value.errno == errno.EROFS
    assert read(mount.disk, 0, 4) == b"kept"
    with loop_over(mount.disk) as loop:
        flags = subprocess.run(["blockdev", "--getro", loop], check=True, capture_output=True, text=True).stdout
        assert flags.strip() == "1"
    mount.end()


def test_an_image_on_a_read_only_file_system_can_be_read(image: Path, where: Path, start: Start) -> None:
    folder = image.parent
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        mount = start(image, where)
        assert mount.mounted["read_only"] is True
        assert mount.note() == f"siterig: note: {image} lies on a read-only file system: the disk can only be read\n"
        mount.end()
        refused = siterig("mount", image, "--mnt", where, "--log")
        assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
            2,
            f"siterig: error: {image}: can only be read, so there is nothing to log (ImageUnusable)",
        )
    finally:
        subprocess.run(["umount", folder], check=True)
    assert not where.exists()


# ---- VHDs, and growth


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (Debian: qemu-utils)")
def test_a_fixed_vhd_of_qemu_keeps_its_footer(image: Path, where: Path, tmp_path: Path, start: Start) -> None:
    path = image.with_name("azure.vhd")
    create = ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on"]
    subprocess.run([*create, path, "16M"], check=True)
    before, footer = copied_as(path, "before.vhd"), path.read_bytes()[-512:]
    mount = start(path, where, "--log")
    assert (mount.mounted["format"], mount.mounted["size_bytes"]) == ("vhd", 16 * MIB)
    assert mount.disk.stat().st_size == 16 * MIB
    write_durably(mount.disk, 16 * MIB - 5, b"bytes")
    with pytest.raises(OSError, match="No space left on device"):
        write_durably(mount.disk, 16 * MIB, b"behind")
    with pytest.raises(OSError, match="File too large"):
        os.truncate(mount.disk, 17 * MIB)
    mount.end()
    assert path.read_bytes()[-517:] == b"bytes" + footer
    raw = tmp_path / "raw.img"
    subprocess.run(["qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw], check=True)
    assert raw.read_bytes() == path.read_bytes()[:-512]
    assert replayed(before, logs(path)) == path.read_bytes()


def test_a_raw_image_grows_with_its_disk(image: Path, where: Path, start_each: Start) -> None:
    before = copied(image)
    mount = start_each(image, where, "--log")
    os.truncate(mount.disk, 2 * IMAGE_BYTES)
    write_durably(mount.disk, 2 * IMAGE_BYTES - 3, b"end")
    mount.end()
    assert image.stat().st_size == 2 * IMAGE_BYTES
    assert replayed(before, logs(image)) == image.read_bytes()
    assert start_each(image, where, "--log").mounted["log"]["generation"] == 1
