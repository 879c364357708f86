"""The files of change logs: segments, dirty bitmaps and snapshots of a disk host or of one disk."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from siterig.blockfs.changelog.segment import HEADER_BYTES, decode_header, encode_header
from siterig.host_faults.places import (
    NEW_FOLDER,
    Choice,
    FileDamage,
    FilePlaces,
    HostFile,
    HostLayer,
    existing,
    final_name,
    forms_of,
)
from siterig.host_faults.written_bytes import WrittenBytes, record_bytes

_LOG_FILE = re.compile(r"(?P<name>.+)\.(?:(?P<segment>\d{6,}\.hrl|(?P<spare>spare|recycled))|(?P<dirty>dirty)|snapshot)")
_CLOSED = ".hrl"


class _LogFiles(FilePlaces):
    """The links of change logs: the headers of segments."""

    @property
    def layer(self) -> HostLayer:
        return "log"

    def is_link(self, file: HostFile, op: str, data: bytes) -> bool:
        return op == "rotate" and len(data) == HEADER_BYTES

    def broken_link(self, file: HostFile, data: bytes, fd: int) -> bytes:
        header = decode_header(file.path, data, of_disk=True)
        return encode_header(replace(header, first_seq=header.first_seq + 1))

    def written(self, file: HostFile, op: str, pieces: Sequence[bytes | memoryview], offset: int) -> Sequence[WrittenBytes]:
        return record_bytes(pieces, offset) if (file.part, op) == ("segment", "append") else ()

    def break_chain(self, files: Sequence[HostFile], choose: Choice) -> FileDamage | None:
        """Exchange the names of two neighbouring segments."""
        logs: defaultdict[str, list[HostFile]] = defaultdict(list)
        for file in files:
            if file.path.name.endswith(_CLOSED):
                logs[file.owner].append(file)
        pairs = [pair for log in logs.values() for pair in pairwise(log)]
        if not pairs:
            return None
        first, second = (file.path for file in pairs[choose(len(pairs))])
        aside = first.with_name(f".{first.name}.exchanged")
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
        return FileDamage(pairs[0][0], f"exchanged {first} and {second}", ((0, first.stat().st_size),))


@dataclass(frozen=True)
class DiskHostLogs(_LogFiles):
    """The change logs of a disk host: ``root/VM/NAME.000007.hrl``, ``NAME.dirty``, ``NAME.snapshot``."""

    root: Path

    def file_of(self, path: Path) -> HostFile | None:
        if path.parent.parent not in forms_of(self.root):
            return None
        return _log_file(path, path.parent.name.removeprefix(NEW_FOLDER))

    def files(self) -> Iterator[HostFile]:
        yield from existing(self, self.root.glob("*/*"))


@dataclass(frozen=True)
class StandaloneLog(_LogFiles):
    """The change log next to an image that is mounted alone; its VM has the name of the disk.

    Args:
        folder: the folder of the image.
        name: the name of its disk.
    """

    folder: Path
    name: str

    def file_of(self, path: Path) -> HostFile | None:
        found = _log_file(path, self.name) if path.parent in forms_of(self.folder) else None
        return found if found is not None and found.disk == self.name else None

    def files(self) -> Iterator[HostFile]:
        yield from existing(self, self.folder.iterdir())


def _log_file(path: Path, vm: str) -> HostFile | None:
    found = _LOG_FILE.fullmatch(final_name(path.name))
    if found is None:
        return None
    part = "segment" if found["segment"] else "dirty-bitmap" if found["dirty"] else "snapshot"
    return HostFile("log", vm, found["name"], part, path, is_spare=found["spare"] is not None)
