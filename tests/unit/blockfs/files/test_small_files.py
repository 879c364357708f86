"""A state file that is too large is refused with its name and the limit, and is never read as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import Pin
from siterig.azure_emu.disks.metadata import read_meta
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.files.small_file import SMALL_FILE_BYTES_MAX, FileTooLongError, read_small_file
from siterig.blockfs.host.mounted_points import MountRecord
from siterig.core.paths import Layout, check_format, create
from siterig.replication.engine.relationship import RelationshipBook

MIB = 1 << 20


def state(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "os.disk", lambda: DiskState.load(folder / "os.disk")


def pin(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "pin.json", lambda: read_meta(folder / "pin.json", Pin)


def note(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "point.json", lambda: MountRecord.load(folder / "point.json")


def rig(folder: Path) -> tuple[Path, Callable[[], object]]:
    layout = Layout.of(folder / "rig")
    create(layout)
    return layout.state, lambda: check_format(layout)


def book(folder: Path) -> tuple[Path, Callable[[], object]]:
    return folder / "relationships.json", lambda: RelationshipBook(folder)


@pytest.mark.parametrize(
    ("kind", "code", "mib"),
    [
        (state, "DiskStateCorrupt", 1),
        (pin, "StoreCorrupt", 1),
        (note, "RecoveryNoteCorrupt", 1),
        (rig, "StateVersion", 1),
        (book, "AgentStateUnreadable", 16),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_state_file_that_is_too_large_is_refused_with_the_limit(
    tmp_path: Path, kind: Callable[[Path], tuple[Path, Callable[[], object]]], code: str, mib: int
) -> None:
    path, read = kind(tmp_path)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # larger than any memory
    with pytest.raises(RigError) as refused:
        read()
    assert refused.value.code == code
    assert str(path) in refused.value.message
    assert f"has more than {mib * MIB} bytes; a file of its kind has at most that many" in refused.value.message


def test_a_file_exactly_as_large_as_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SMALL_FILE_BYTES_MAX)
    assert len(read_small_file(path)) == SMALL_FILE_BYTES_MAX
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(FileTooLongError):
        read_small_file(path)
