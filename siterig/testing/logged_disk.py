"""A disk of which every write is logged, for tests of databases and file systems that must survive a crash.

A test writes to the disk, notes positions, and then looks at the disk as a power cut at any position would have left it:

    with LoggedDisk(folder, 64 << 20) as disk:
        mkfs(disk.path)
        with mounted(disk.path, folder / "guest") as guest:
            ...  # run the database in guest, note disk.position after each commit
    for position in disk.positions(20):
        state = disk.state_at(position, folder / f"{position}.img")
        with mounted(state, folder / "check") as guest:
            ...  # open the database, compare it with the notes

Fault contract: the disk is served by a process of its own (``siterig mount``).  :meth:`LoggedDisk.kill` ends it as a crash
would; the log and the image stay and can be read.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.testing.crash_states import find_positions, make_state

END_S = 60.0
IN_USE_S = 5.0


class LoggedDisk:
    """A new disk in a folder, served while the context is open.

    Args:
        folder: an existing folder for the image, its log and the mount.
        size_bytes: size of the disk, a multiple of 512.
        name: name of the disk and of its files.

    Raises:
        RuntimeError: on entry, if the disk could not be mounted; the text is the error of ``siterig mount``.
    """

    def __init__(self, folder: Path, size_bytes: int, name: str = "disk") -> None:
        self.folder, self.name, self.size_bytes = folder, name, size_bytes
        self.image = folder / f"{name}.img"
        self.mount = folder / f"{name}.mnt"
        self.path = self.mount / f"{name}.img"
        """The disk as a file: use it with mkfs, mount, a loop device or QEMU."""
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> LoggedDisk:
        """Make the image and mount it."""
        with self.image.open("xb") as file:
            file.truncate(self.size_bytes)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Unmount the disk, unless its server was killed; after an error also if a program still uses it."""
        if error is None or self._server is None:
            self.stop()
            return
        server, self._server = self._server, None
        for limit_s in (IN_USE_S, END_S):  # the second signal ends the mount of a disk in use
            server.send_signal(signal.SIGTERM)
            try:
                server.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                error.add_note(f"{self.path} is in use")
            else:
                return
        server.kill()
        server.communicate()

    def start(self) -> None:
        """Mount the disk, also again after :meth:`stop` or :meth:`kill`: the log continues."""
        command = [sys.executable, "-m", "siterig", "mount", str(self.image), "--mnt", str(self.mount), "--log", "--json"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if server.stdout is None or not server.stdout.readline():
            _, errors = server.communicate(timeout=END_S)
            raise RuntimeError(f"{self.image}: not mounted: {_error_text(errors)}")
        self._server = server

    def stop(self) -> None:
        """Unmount the disk cleanly; nothing may use it any more.

        Raises:
            RuntimeError: the disk is in use, or its log could not be closed cleanly.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        server.send_signal(signal.SIGTERM)
        try:
            _, errors = server.communicate(timeout=END_S)
        except subprocess.TimeoutExpired as late:
            self._server = server
            notes = _error_text((late.stderr or b"").decode(errors="replace"))
            raise RuntimeError(f"{self.path} is in use: unmount it first ({notes})") from None
        if server.returncode != 0:
            raise RuntimeError(f"{self.image}: {_error_text(errors)}")

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash of it would.  Nothing that was written is lost."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
            self._server = None

    @property
    def position(self) -> int:
        """The position of the newest record.  A write that has returned has a lower or equal position."""
        return read_position(self.folder / f"{self.name}.position")

    @property
    def log(self) -> list[Path]:
        """The segments of the change log."""
        return sorted(self.folder.glob(f"{self.name}.*.hrl"))

    def positions(self, at_most: int | None = None) -> list[int]:
        """Return the positions at which the disk changed, or ``at_most`` of them at equal distances, the last included."""
        return find_positions(self.log, at_most)

    def state_at(self, position: int, to: Path) -> Path:
        """Make ``to`` an image of the disk after all writes up to ``position``: the state that a power cut there leaves."""
        return make_state(self.log, position, to, size_bytes=self.size_bytes)


def mkfs(disk: Path, filesystem: str = "ext4") -> None:
    """Make a file system on a disk or image; root is not needed."""
    subprocess.run([f"mkfs.{filesystem}", "-q", str(disk)], check=True)


@contextmanager
def mounted(disk: Path, where: Path) -> Iterator[Path]:
    """Mount the file system of a disk or image on the folder ``where``, which is made, for the time of the block.

    Needs root.  The file system replays its journal first, as it does after a crash.  At the end of the block, programs that
    use the file system have 5 seconds to end.  If one still uses it then, or a test failed while its database was open, the
    folder is unmounted lazily: the file system and its loop device end with their last user.

    Raises:
        RuntimeError: the block ended without an error, and a program still uses the file system.
    """
    where.mkdir(exist_ok=True)
    # "mount -o loop" takes a loop device that is attached to this file already.  Another mount namespace can keep one with
    # its mounted file system, and then an older state would be shown.
    attach = ["losetup", "--find", "--show", str(disk)]
    loop = subprocess.run(attach, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        subprocess.run(["mount", loop, str(where)], check=True)
        try:
            yield where
        except BaseException as error:
            if in_use := _unmount(where, wait_s=0):
                error.add_note(in_use)
            raise
        if in_use := _unmount(where):
            raise RuntimeError(in_use)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def _unmount(where: Path, wait_s: float = IN_USE_S) -> str | None:
    """Unmount a folder, lazily if a program still uses it after ``wait_s``, and return that as a message.

    A program that is ending can use the folder for some moments more: ``pg_ctl stop`` returns before the server has
    ended.  The kernel has no event for the end of the last use.
    """
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + round(wait_s * 1e9)
    while True:
        done = subprocess.run(["umount", str(where)], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return None
        if SYSTEM_CLOCK.monotonic_ns() >= deadline_ns:
            break
        SYSTEM_CLOCK.sleep_thread(0.05)
    subprocess.run(["umount", "--lazy", str(where)], check=True)
    return f"{where} is in use: close its files and end its programs before the block ends ({done.stderr.strip()})"


def _error_text(errors: str) -> str:
    lines: list[Any] = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    texts = [str(line.get("text", line.get("note", ""))) for line in lines]
    return "; ".join(filter(None, texts)) or errors.strip() or "no output"
