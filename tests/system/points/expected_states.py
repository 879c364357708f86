"""The states of a VM that a walk has opened, with the contents that they must have."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.points.points_source import Images, same


@dataclass
class Mounted:
    """A state that is mounted read-only, and its expected contents."""

    name: str
    position: int
    images: Images
    point: str | None
    paths: dict[str, Path]


@dataclass
class Written:
    """A writable disk over a point: its durable contents, and later writes."""

    path: Path
    synced: bytearray
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def now(self) -> bytes:
        """The contents that are read while no process is killed."""
        data = bytearray(self.synced)
        for at, piece in self.unsynced:
            data[at : at + len(piece)] = piece
        return bytes(data)

    def write(self, rng: random.Random, *, durable: bool) -> None:
        fd = os.open(self.path, os.O_RDWR)
        try:
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(self.synced))
                piece = rng.randbytes(min(rng.choice((512, 4096, 9000)), len(self.synced) - at))
                assert os.pwrite(fd, piece, at) == len(piece)
                self.unsynced.append((at, piece))
            if durable:
                os.fsync(fd)
                self.synced, self.unsynced = bytearray(self.now), []
        finally:
            os.close(fd)

    def check(self, what: str) -> None:
        same(self.path.read_bytes(), self.now, what)

    def after_kill(self, what: str) -> None:
        """Check that synced writes survived; each other byte is old or new, and counts as durable from now on."""
        found = self.path.read_bytes()
        assert len(found) == len(self.synced), what
        allowed = bytearray(self.synced)
        for at, piece in self.unsynced:
            for i, byte in enumerate(piece, at):
                if found[i] == byte:
                    allowed[i] = byte
        same(found, bytes(allowed), what)
        self.synced, self.unsynced = bytearray(found), []


@dataclass
class Machine:
    """A VM on the recovery side."""

    position: int
    point: str
    disks: dict[str, Written]
