"""The files of a new disk: either all of them are created, or none is left."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.contracts.control import BackingImage
from siterig.blockfs.disk import parent_image
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_image, make_raw
from siterig.blockfs.disk.disk_state import DiskState

SIZE = 64 << 10


def make_empty(paths: DiskPaths) -> None:
    make_raw(paths, SIZE)


def make_thin(paths: DiskPaths) -> None:
    image = paths.folder.parent / "parent.img"
    image.write_bytes(bytes(SIZE))
    make_over_image(paths, parent_image.describe_parent(BackingImage(path=str(image), format="raw")), SIZE)


@pytest.mark.parametrize("make", [make_empty, make_thin])
def test_a_new_disk_whose_state_cannot_be_written_leaves_no_file(
    make: Callable[[DiskPaths], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    paths = DiskPaths(folder, "vm", "os")

    def full(_state: DiskState, _path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(DiskState, "save", full)
        with pytest.raises(OSError, match="No space left"):
            make(paths)
    assert list(folder.iterdir()) == []
    make(paths)
    assert DiskState.load(paths.file("disk")).size_bytes == SIZE
