"""Inputs that once were, or nearly were, misread; every run reads them again.

``corpus/TARGET/NAME`` is the file itself; for rows of segments a folder of them; for a part its blob's name in a first line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blockfs.part import PartName
from tests.fuzz import log_targets, small_targets

CORPUS = Path(__file__).parent / "corpus"


def row(case: Path, folder: Path) -> str:
    return log_targets.row([file.read_bytes() for file in sorted(case.iterdir())], folder)


def part(case: Path, folder: Path) -> str:
    name, _, data = case.read_bytes().partition(b"\n")
    return log_targets.part(PartName.parse(name.decode()), data, folder)


def _file(target: Callable[[bytes, Path], str]) -> Callable[[Path, Path], str]:
    return lambda case, folder: target(case.read_bytes(), folder)


TARGETS: dict[str, Callable[[Path, Path], str]] = {
    "segment": _file(log_targets.segment),
    "row": row,
    "part": part,
    "dm_log": _file(small_targets.dm_log),
    "disk_state": _file(small_targets.disk_state),
    "dirty": _file(small_targets.dirty_file),
    "vhd": _file(small_targets.vhd),
}
