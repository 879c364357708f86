"""The files that fault rules of the layers log and store are for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from siterig.host_faults.written_bytes import WrittenBytes

HostLayer = Literal["log", "store"]
NEW_FOLDER = ".new-"
"""The beginning of the name of a folder that is being created."""
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
Choice = Callable[[int], int]
"""Returns a number from 0 to its argument minus 1, by the seed of a rule."""


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file that fault rules are for.

    Args:
        layer: its layer.
        vm: the VM's name; empty if it is not known, or there is none.
        disk: the disk's name; the id of a managed disk whose name is not known.
        part: its part, one of the layer's.
        path: the file.
        is_spare: it only waits to be used, and holds nothing: an operation can meet a fault in it, but damage is none.
    """

    layer: HostLayer
    vm: str
    disk: str
    part: str
    path: Path
    is_spare: bool = False

    @property
    def place(self) -> Mapping[str, str]:
        """The keys of a rule's place."""
        names = {"vm": self.vm} if self.vm else {}
        return {**names, "disk": self.disk, "part": self.part}

    @property
    def owner(self) -> str:
        """The disk as ``VM/NAME``, or its name alone."""
        return f"{self.vm}/{self.disk}" if self.vm else self.disk


@dataclass(frozen=True, slots=True)
class FileDamage:
    """Damage that was done to a file.

    Args:
        file: the file.
        done: the damage in words.
        ranges: start and length of the changed bytes in the file.
    """

    file: HostFile
    done: str
    ranges: tuple[tuple[int, int], ...]


class FilePlaces(Protocol):
    """The files of one layer in a process, and the links of their chains.

    A link is the header of a segment in a log, or of a frame in a journal.  A broken one has good checksums, and does not
    follow the one before.
    """

    @property
    def layer(self) -> HostLayer:
        """The layer."""
        ...

    def file_of(self, path: Path) -> HostFile | None:
        """Return the file of a path; None if no rule is for it.  A temporary name stands for the final one."""
        ...

    def files(self) -> Iterator[HostFile]:
        """Return the files that exist now."""
        ...

    def is_link(self, file: HostFile, op: str, data: bytes) -> bool:
        """Return True if these bytes, which an operation writes, are a link."""
        ...

    def broken_link(self, file: HostFile, data: bytes, fd: int) -> bytes:
        """Return the bytes of a broken link; a copy of the link in the file is changed, too."""
        ...

    def written(self, file: HostFile, op: str, pieces: Sequence[bytes | memoryview], offset: int) -> Sequence[WrittenBytes]:
        """Return the bytes of the disk that a write stores, as far as they are known; called for each write, in order."""
        ...

    def break_chain(self, files: Sequence[HostFile], choose: Choice) -> FileDamage | None:
        """Break a chain of these files at once; return None if there is none that can be broken."""
        ...


def final_name(name: str) -> str:
    """Return the name that a file with a temporary name gets."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else name


def existing(places: FilePlaces, paths: Iterable[Path]) -> Iterator[HostFile]:
    """Yield the files of these paths, sorted, without hidden ones.

    Only paths with a name of such a file are looked at: another one may be a mount that this process itself serves.
    """
    for path in sorted(paths):
        if not path.name.startswith(".") and (file := places.file_of(path)) is not None and path.is_file():
            yield file


def forms_of(folder: Path) -> tuple[Path, Path]:
    """Return a folder as it was named, and as the kernel names it."""
    return folder.absolute(), folder.resolve()
