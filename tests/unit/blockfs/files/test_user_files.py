"""Files that a user names are opened only after their type is known, and opening them never waits."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.dm_log_writes import DmLogReader
from siterig.blockfs.changelog.replay import CheckedLog
from siterig.blockfs.changelog.replay import open_image as open_replay_target
from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.user_files import open_file, open_in_thread
from siterig.blockfs.images import importer
from siterig.blockfs.images.image_file import open_image

BOUND_S = 30


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def character_device(path: Path) -> None:
    """Create a character device that no driver serves."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(60, 200))  # "local/experimental use"
    except PermissionError:
        pytest.skip("only root makes device nodes")


KINDS = pytest.mark.parametrize(
    ("make", "kind"), [(fifo, "a FIFO"), (sock, "a socket"), (character_device, "a character device")]
)


def as_image(path: Path) -> None:
    trio.run(open_image, path)


def as_import(path: Path) -> None:
    trio.run(importer.look_at, path)


def as_import_of_a_given_format(path: Path) -> None:
    trio.run(importer.look_at, path, "qcow2")


def as_replay_target(path: Path) -> None:
    open_replay_target(path, CheckedLog([], 0, 0), writable=True)


def as_segment(path: Path) -> None:
    SegmentReader(path)


def as_dm_log(path: Path) -> None:
    DmLogReader(path)


@pytest.mark.parametrize(
    ("open_", "code"),
    [
        (as_image, "ImageUnusable"),
        (as_import, "ImageUnusable"),
        (as_import_of_a_given_format, "ImageUnusable"),
        (as_replay_target, "ImageUnusable"),
        (as_segment, "LogUnreadable"),
        (as_dm_log, "LogUnreadable"),
    ],
)
@KINDS
def test_only_files_and_block_devices_are_opened_others_are_named(
    tmp_path: Path, make: Callable[[Path], None], kind: str, open_: Callable[[Path], None], code: str
) -> None:
    path = tmp_path / "named"
    make(path)
    link = tmp_path / "link"
    link.symlink_to("named")
    for name in (path, link):
        with pytest.raises(RigError) as failed:
            open_(name)
        assert failed.value.code == code
        assert f"is no regular file, but {kind}; " in failed.value.message


def test_the_opened_file_is_the_one_whose_type_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is still opened, without waiting, if its name leads to a FIFO after the check."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"the disk")
    look = os.fstat

    def swap(fd: int) -> os.stat_result:
        found = look(fd)
        if stat.S_ISREG(found.st_mode) and not (tmp_path / "gone").exists():
            path.rename(tmp_path / "gone")
            os.mkfifo(path)
        return found

    monkeypatch.setattr(os, "fstat", swap)
    fd = open_file(path, os.O_RDONLY, code=Code.ImageUnusable, purpose="")
    assert os.read(fd, 8) == b"the disk"
    os.close(fd)


WAITS = """
import os, sys
from siterig.cli import exit_status
from siterig.blockfs.files.user_files import open_in_thread

async def work():
    print("waits", flush=True)
    await open_in_thread(lambda: os.open(sys.argv[1], os.O_RDONLY))

exit_status.run(work)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_waits_for_open_ends_with_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, tmp_path / "fifo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=BOUND_S)
        finally:
            process.kill()
    assert b"siterig: interrupted" in said


async def test_a_descriptor_that_is_opened_after_the_call_was_cancelled_is_closed() -> None:
    reader, writer = os.pipe()
    may_open = threading.Event()
    try:
        with trio.CancelScope() as scope:

            def open_() -> int:
                trio.from_thread.run_sync(scope.cancel)
                may_open.wait(BOUND_S)
                return writer

            await open_in_thread(open_)
        assert scope.cancelled_caught
    finally:
        may_open.set()
    with trio.fail_after(BOUND_S):
        await trio.lowlevel.wait_readable(reader)  # its other end was closed
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_pipe_behind_a_descriptor_is_refused_as_a_fifo() -> None:
    """A shell passes such a pipe for ``<(command)``; it has no name in a folder."""
    ends = os.pipe()
    try:
        for path in (
            Path(f"/dev/fd/{ends[0]}"),
            Path(f"/proc/self/fd/{ends[0]}"),
            Path(f"/proc/{os.getpid()}/fd/{ends[0]}"),
        ):
            with pytest.raises(RigError, match="is no regular file, but a FIFO") as failed:
                open_file(safe_files.resolve(path), os.O_RDONLY, code=Code.ImageUnusable, purpose="name a file")
            assert failed.value.code == "ImageUnusable"
    finally:
        for end in ends:
            os.close(end)
