"""The workload of a file tree: ``python -m siterig.scenarios.workloads.file_tree --root DIR ...``.

Step N writes the file N with known contents under a temporary name, fsyncs it, renames it into place and fsyncs the folder;
then it is acknowledged, and the file N - ``KEPT`` is deleted.  So the tree after any step is known.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.files.durable_io import sync_folder
from siterig.scenarios.workloads.ack_log import Ack, AckWriter
from siterig.scenarios.workloads.durable_file import sync_file
from siterig.scenarios.workloads.worker import Steps, add_common_options, work

KEPT = 64
_FOLDERS = 8
_PARTIAL = ".partial"


def content(n: int) -> bytes:
    """Return the bytes of file ``n``: 500 to 20499 of them."""
    return hashlib.shake_256(b"file %d" % n).digest(500 + n * 911 % 20_000)


def path_of(root: Path, n: int) -> Path:
    """Return the path of file ``n``."""
    return root / f"d{n % _FOLDERS}" / f"f{n}"


def present(root: Path) -> dict[int, Path]:
    """Return the files that are in place, by their number; unfinished ones are left out."""
    found = {}
    for path in root.glob("d*/f*"):
        if path.suffix != _PARTIAL and path.name[1:].isdecimal():
            found[int(path.name[1:])] = path
    return found


class FileTree(Steps):
    """The tree below a folder, and the acknowledgement file."""

    failures = (OSError,)

    def __init__(self, root: Path, acks: AckWriter, position: Path) -> None:
        self.acknowledged = 0
        self._root, self._position = root, position
        for number in range(_FOLDERS):
            (root / f"d{number}").mkdir(parents=True, exist_ok=True)
        for folder in (root, root.parent):
            sync_folder(folder)
        self._acks = acks
        self.newest = max(present(root), default=0)

    def step(self) -> None:
        n = self.newest + 1
        begin = read_position(self._position)
        path = path_of(self._root, n)
        partial = path.with_name(path.name + _PARTIAL)
        with partial.open("wb") as file:
            file.write(content(n))
            file.flush()
            os.fsync(file.fileno())
            partial.rename(path)
            sync_file(file.fileno(), path.parent)
        self._acks.append(Ack(n, begin, read_position(self._position), SYSTEM_CLOCK.wall_ns()))
        self.newest = self.acknowledged = n
        if n > KEPT:
            path_of(self._root, n - KEPT).unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._acks.close()


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m siterig.scenarios.workloads.file_tree")
    parser.add_argument("--root", type=Path, required=True)
    options = add_common_options(parser).parse_args()
    return work(lambda acks: FileTree(options.root, acks, options.position), FileTree.failures, options)


if __name__ == "__main__":
    sys.exit(main())
