"""Inputs that were once misread, or nearly misread; every run reads them again.

``corpus/TARGET/NAME`` is usually the input file.  These targets differ:

- ``row`` and ``disk``: a folder of files.  Missing files of a disk are added: an image of zeros, and good other files.
  Segments of a disk are from an earlier boot and were closed cleanly, unless the case is about exactly this.
- ``part``: the first line of the file is the name of the blob.
- ``journal``: a folder of journal files, perhaps with a ``progress``.
- ``meta``: the name of the file begins with the kind and a comma.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from siterig.blockfs.transfer.part_name import PartName
from tests.fuzz import (
    damage,
    disk_damage,
    disk_targets,
    log_targets,
    small_damage,
    small_targets,
    store_damage,
    store_targets,
)

CORPUS = Path(__file__).parent / "corpus"


def row(case: Path, folder: Path) -> str:
    return log_targets.row([file.read_bytes() for file in sorted(case.iterdir())], folder)


def disk(case: Path, folder: Path) -> str:
    files = {file.name: file.read_bytes() for file in case.iterdir()}
    start = {"os.img": bytes(damage.DISK_BYTES), "os.dirty": small_damage.make_dirty(damage.DISK_ID, damage.GENERATION)}
    return disk_targets.disk({**start, "os.disk": disk_damage.state_of(damage.DISK_BYTES), **files}, folder)


def part(case: Path, folder: Path) -> str:
    name, _, data = case.read_bytes().partition(b"\n")
    return log_targets.part(PartName.parse(name.decode()), data, folder)


def meta(case: Path, folder: Path) -> str:
    kind = case.name.partition(",")[0]
    return store_targets.meta(kind, case.read_bytes(), folder)


def journal(case: Path, folder: Path) -> str:
    good = store_damage.good_store(0)
    files = {name: raw for name, raw in good.files.items() if not name.startswith(("journal/", "checkpoints/"))}
    for file in case.iterdir():
        files[file.name if file.name == "progress" else f"journal/{file.name}"] = file.read_bytes()
    return store_targets.store(good, files, folder)


def _file(target: Callable[[bytes, Path], str]) -> Callable[[Path, Path], str]:
    return lambda case, folder: target(case.read_bytes(), folder)


def _segment(case: Path, folder: Path) -> str:
    """Read a segment with both readers, and return the result of the log's reader."""
    log_targets.index(case.read_bytes(), folder)
    return log_targets.segment(case.read_bytes(), folder)


TARGETS: dict[str, Callable[[Path, Path], str]] = {
    "segment": _segment,
    "row": row,
    "disk": disk,
    "part": part,
    "dm_log": _file(small_targets.dm_log),
    "disk_state": _file(small_targets.disk_state),
    "dirty": _file(small_targets.dirty_file),
    "vhd": _file(small_targets.vhd),
    "meta": meta,
    "note": _file(store_targets.note),
    "base_map": _file(store_targets.base_map),
    "intent": _file(store_targets.intent),
    "journal": journal,
}
