"""Start, end and clean up ``siterig mount``, and look at the files that it leaves."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.warm_command import run_warm, start_siterig

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60
IMAGE_BYTES = 64 << 20
"""Size of the images that the tests of one mounted image use."""
DEAD = "Transport endpoint is not connected|Software caused connection abort|Operation canceled"  # the last over io_uring
"""Texts of the errors of a disk whose server is gone."""
SITERIG = (sys.executable, "-m", "siterig")


def plain(stderr: str) -> str:
    """Convert the JSON documents on stderr to the lines that the command prints without ``--json``."""
    lines = []
    for line in stderr.splitlines():
        document: dict[str, Any] = json.loads(line)
        note = document.get("note")
        lines.append(f"siterig: note: {note}" if note is not None else str(document["text"]))
    return "".join(f"{line}\n" for line in lines)


class MountProcess:
    """A process ``siterig mount IMAGE --mnt DIR --json ...``; ``prefix`` precedes the command."""

    def __init__(
        self,
        image: Path,
        where: Path,
        *options: str,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (),
    ) -> None:
        self.where = where
        words = ["mount", str(image), "--mnt", str(where), "--json", *options]
        self.process: subprocess.Popen[str]
        if prefix or program:
            self.process = self._cold([*prefix, *(program or SITERIG), *words], environment or {})
        else:
            self.process = start_siterig(words, environment=environment, new_session=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"not mounted: {self.process.communicate()[1]}")
        self.mounted: dict[str, Any] = json.loads(line)["mounted"]
        self.disk = Path(self.mounted["disk"])

    def _cold(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def note(self) -> str:
        """Return the next line on stderr in the form without ``--json``."""
        assert self.process.stderr is not None
        return plain(self.process.stderr.readline())

    def is_silent(self, for_s: float) -> bool:
        """Return whether the process neither prints on stderr nor ends for that time."""
        assert self.process.stderr is not None
        return not select.select([self.process.stderr], [], [], for_s)[0]

    def ended(self) -> tuple[int, list[dict[str, Any]], str]:
        """Wait for the end; return exit status, documents printed since, and stderr in the form without ``--json``."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, [json.loads(line) for line in stdout.splitlines()], plain(stderr)

    def end(self) -> dict[str, Any]:
        """End the process cleanly, and return the document that it prints at the end."""
        self.signal(signal.SIGINT)
        status, printed, stderr = self.ended()
        assert (status, len(printed)) == (0, 1), stderr
        return dict(printed[0]["unmounted"])

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.communicate()

    def clean_up(self) -> None:
        """Kill the process if it runs, and remove the mount."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        subprocess.run(["umount", "-l", str(self.where)], check=False, capture_output=True)


def siterig(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run another siterig command to its end."""
    return run_warm(*arguments, timeout_s=PATIENCE_S)


Start = Callable[..., MountProcess]


@contextmanager
def mounts(*common: str) -> Iterator[Start]:
    """Yield a function that starts mounts with these additional options; all mounts are removed afterwards."""
    started: list[MountProcess] = []

    def start(*arguments: Any, **options: Any) -> MountProcess:
        started.append(MountProcess(*arguments, *common, **options))
        return started[-1]

    try:
        yield start
    finally:
        for mount in started:
            mount.clean_up()


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def logs(image: Path) -> list[Path]:
    """Return the segments of an image's change log."""
    return sorted(image.parent.glob("*.hrl"))


def copied_as(path: Path, name: str) -> Path:
    """Copy a file to another name in its folder."""
    return Path(shutil.copy(path, path.with_name(name)))


def replayed(start: Path, segments: list[Path]) -> bytes:
    """Return the bytes of the start image after ``siterig log replay`` onto it."""
    done = siterig("log", "replay", *segments, "--onto", start)
    assert done.returncode == 0, done.stderr
    return start.read_bytes()


def read(path: Path, offset: int, length: int) -> bytes:
    """Return a range of a file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def copied(path: Path) -> Path:
    """Copy an image to the folder above its own."""
    return Path(shutil.copy(path, path.parent.parent / f"{path.name}.copy"))


@contextmanager
def loop_over(path: Path, *options: str) -> Iterator[str]:
    """Attach a loop device to a file, and return its path."""
    command = ["losetup", "--find", "--show", *options, str(path)]
    loop = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield loop
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
