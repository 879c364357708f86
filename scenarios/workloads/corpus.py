"""Real files of this machine as the content of a test disk, and the check that they are unchanged."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason

SOURCES = (Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share"))
FILE_BYTES_MAX = 16 * 1024 * 1024
_COPY_BYTES = 1024 * 1024
FOLDER = "corpus"


@dataclass
class Manifest:
    """SHA-256 and size of each file, by its path below the corpus folder."""

    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The sum of the sizes of the files."""
        return sum(size for _, size in self.files.values())


def choose(bytes_min: int, sources: Sequence[Path] = SOURCES) -> list[tuple[Path, int]]:
    """Choose regular files, sorted by path within each source, until their sizes reach ``bytes_min``.

    The same machine gives the same list.

    Returns:
        Paths and sizes in bytes.
    Raises:
        RigError: ``CorpusTooSmall`` if there are too few files.
    """
    chosen, total = [], 0
    for path, size in _candidates(sources):
        if total >= bytes_min:
            break
        chosen.append((path, size))
        total += size
    if total < bytes_min:
        where = ", ".join(map(str, sources))
        raise RigError(Code.CorpusTooSmall, f"{where} hold {total} bytes of readable files: {bytes_min} are needed")
    return chosen


def _candidates(sources: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    for source in sources:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= FILE_BYTES_MAX and os.access(path, os.R_OK):
                    yield path, status.st_size


def distribute(files: Sequence[tuple[Path, int]], shares: int) -> list[list[Path]]:
    """Distribute the files to shares of about the same number of bytes; the same list gives the same shares."""
    dealt: list[list[Path]] = [[] for _ in range(shares)]
    filled = [0] * shares
    for path, size in files:
        least = filled.index(min(filled))
        dealt[least].append(path)
        filled[least] += size
    return dealt


async def fill(files: Sequence[Path], root: Path, progress: Callable[[int], None]) -> Manifest:
    """Copy the files below ``root/corpus`` and make them durable; ``progress`` receives the size of each copied file."""

    def copy_all() -> Manifest:
        manifest = Manifest()
        for path in files:
            trio.from_thread.check_cancelled()
            name = str(path.relative_to("/"))
            manifest.files[name] = _copy(path, root / FOLDER / name)
            progress(manifest.files[name][1])
        return manifest

    manifest = await trio.to_thread.run_sync(copy_all)
    await trio.run_process(["sync", "--file-system", str(root)])
    return manifest


def _copy(source: Path, target: Path) -> tuple[str, int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while data := reader.read(_COPY_BYTES):
            digest.update(data)
            writer.write(data)
            size += len(data)
    return digest.hexdigest(), size


async def verify(manifest: Manifest, root: Path) -> list[str]:
    """Compare ``root/corpus`` with the manifest.

    Returns:
        One line for each file that is missing, changed, unreadable or unexpected.
    """
    return await trio.to_thread.run_sync(_verify, manifest, root / FOLDER)


def _verify(manifest: Manifest, root: Path) -> list[str]:
    problems = []
    for name, (wanted, _) in manifest.files.items():
        trio.from_thread.check_cancelled()
        try:
            with (root / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{name}: {reason(error, root / name)}")
            continue
        if found != wanted:
            problems.append(f"{name}: content differs")
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    problems += [f"{name}: not in the manifest" for name in sorted(there - manifest.files.keys())]
    return problems
