"""The states of a logged disk: the positions at which it changed, and an image of the disk at any of them.

A state at a position has all writes up to it and no later one: a power cut leaves this if the disk keeps its writes in
order.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from siterig.blockfs.changelog import replay
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core.errors import Code, RigError

_CHANGES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


def find_positions(log: list[Path], at_most: int | None = None, *, after: int = 0) -> list[int]:
    """Return the positions at which a disk changed.

    Args:
        log: the segments of its change log.
        at_most: return only this many positions, at equal distances, the last included.
        after: leave out the positions up to this one.
    """
    if not log:
        return []
    changed = [record.position for _, record in replay.check(log).records() if record.type in _CHANGES]
    found = [position for position in changed if position > after]
    if at_most is None or len(found) <= at_most:
        return found
    return [found[(number + 1) * len(found) // at_most - 1] for number in range(at_most)]


def make_state(log: list[Path], position: int, to: Path, *, size_bytes: int, base: Path | None = None) -> Path:
    """Make ``to`` an image of a disk after all writes up to ``position``, and return its path.

    Args:
        log: the segments of its change log.
        position: the position.
        to: the image; an older file of this name is replaced.
        size_bytes: the size of the disk.
        base: an image of the disk when the log began; None if it was all zeros.

    Raises:
        RigError: ``LogCorrupt`` and other errors of a log that cannot be read.
    """
    to.unlink(missing_ok=True)
    if base is None:
        with to.open("xb") as file:
            file.truncate(size_bytes)
    else:
        copy_sparse(base, to)
    checked = replay.check(log, upto=position)
    onto = replay.open_image(to, checked, writable=True)
    try:
        replay.Replay(checked, onto).run()
    finally:
        onto.close()
    return to


def copy_sparse(source: Path, to: Path) -> None:
    """Copy an image; zeros become holes, and the bytes are shared where the file system can share them.

    Raises:
        RigError: ``HostIoError`` with the reason.
    """
    command = ["cp", "--reflink=auto", "--sparse=always", "--no-preserve=mode", "--", str(source), str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RigError(Code.HostIoError, f"{source} cannot be copied to {to}: {done.stderr.strip()}")
