"""The workload of fio: ``python -m siterig.scenarios.workloads.fio_rounds --root DIR ...``.

Step N is a run of fio with ``verify=crc32c`` that writes the file ``round-N`` at random; the file is fsynced (not by fio,
which ends with success when its last fsync failed) and acknowledged, and the file of the round N - ``kept`` is deleted.
After the last round the workload waits.  :func:`command` builds fio's command line, also for the check.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.cext import linux
from siterig.scenarios.workloads.ack_log import Ack, AckWriter
from siterig.scenarios.workloads.durable_file import sync_file
from siterig.scenarios.workloads.worker import Steps, add_common_options, work

_IDLE_S = 0.05


class FioError(Exception):
    """A run of fio failed; the text is the end of its output."""


def round_path(root: Path, n: int) -> Path:
    """Return the file of round ``n``."""
    return root / f"round-{n}"


def present(root: Path) -> frozenset[int]:
    """Return the numbers of the rounds that have a file."""
    return frozenset(int(path.name.removeprefix("round-")) for path in root.glob("round-*"))


def command(files: Mapping[int, Path], size_bytes: int, *, verifies: bool) -> list[str]:
    """Return the command line that writes rounds, or verifies them.

    Args:
        files: the file of each round, by its number.
        size_bytes: the size of a file.
        verifies: the files are read; otherwise they are written.
    """
    words = ["fio", "--thread", "--ioengine=psync", "--rw=randwrite", "--bs=4k", f"--size={size_bytes}", "--fallocate=none"]
    words += ["--verify=crc32c", "--verify_fatal=1", "--group_reporting", "--output-format=terse", "--minimal"]
    words += ["--verify_state_save=0"]  # a file in the folder in which fio was started
    words += ["--verify_only", "--verify_state_load=0"] if verifies else ["--do_verify=0"]
    for n, path in files.items():
        words += [f"--name=round{n}", f"--filename={path}", f"--randseed={n}"]
    return words


class FioRounds(Steps):
    """The rounds below a folder, and the acknowledgement file."""

    failures = (OSError, FioError)

    def __init__(
        self, root: Path, acks: AckWriter, position: Path, *, size_bytes: int, rounds: int, rounds_kept: int | None = None
    ) -> None:
        """Open or create the folder.

        Args:
            root: the folder of the files.
            acks: the acknowledgement log.
            position: the position file of the disk's host.
            size_bytes: the size of the file of a round.
            rounds: the number of rounds.
            rounds_kept: the number of newest rounds whose files stay; None for all.
        """
        self.acknowledged = 0
        self._root, self._position, self._size_bytes, self._rounds = root, position, size_bytes, rounds
        self._kept = rounds if rounds_kept is None else rounds_kept
        root.mkdir(exist_ok=True)
        self._acks = acks
        self.newest = max(present(root), default=0)

    def step(self) -> None:
        if self.newest >= self._rounds:
            SYSTEM_CLOCK.sleep_thread(_IDLE_S)
            return
        n = self.newest + 1
        begin = read_position(self._position)
        fd = os.open(round_path(self._root, n), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            # fio gets the open file: a path may lead to no disk meanwhile, and fio would fill a file of this machine.
            self._acks.check()
            os.ftruncate(fd, self._size_bytes)
            self._write(n, fd)
            sync_file(fd, self._root)
        finally:
            os.close(fd)
        self._acks.append(Ack(n, begin, read_position(self._position), SYSTEM_CLOCK.wall_ns()))
        self.newest = self.acknowledged = n
        if n > self._kept:
            round_path(self._root, n - self._kept).unlink(missing_ok=True)

    def _write(self, n: int, fd: int) -> None:
        """Let fio write an open file that has its size."""
        done = subprocess.run(
            command({n: Path(f"/proc/self/fd/{fd}")}, self._size_bytes, verifies=False),
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            pass_fds=(fd,),
            # A disk that hangs ends this process without waiting for fio, which would keep the file system in use.
            preexec_fn=lambda: linux.set_parent_death_signal(signal.SIGKILL),
        )
        if done.returncode:
            raise FioError(" ".join((done.stderr + done.stdout).split())[-300:])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._acks.close()


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m siterig.scenarios.workloads.fio_rounds")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--kept", type=int)
    options = add_common_options(parser).parse_args()

    def make(acks: AckWriter) -> FioRounds:
        return FioRounds(
            options.root,
            acks,
            options.position,
            size_bytes=options.size,
            rounds=options.rounds,
            rounds_kept=options.kept,
        )

    return work(make, FioRounds.failures, options)


if __name__ == "__main__":
    sys.exit(main())
