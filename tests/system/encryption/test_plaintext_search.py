"""The search for plaintext finds a marker wherever a file may have it, and a deleted file that a process has open."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import zstandard

from tests.support.rigs.plaintext import deleted_files, files_below, has, new_marker, pieces_of, with_children

MARKER = new_marker(random.Random(1))
PIECES = pieces_of([MARKER])


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, MARKER),
        (7, MARKER),
        (12_345, MARKER[9:40]),
        ((1 << 20) - 20, MARKER),
        ((5 << 20) + 1, MARKER),
        (77, zstandard.ZstdCompressor().compress(b"text " * 1000 + MARKER)),
        ((2 << 20) - 2, zstandard.ZstdCompressor().compress(MARKER + b"text " * 1000)),
        (0, zstandard.ZstdCompressor().compress(os.urandom(5000) + MARKER)[:5100]),
    ],
)
def test_a_marker_is_found_at_any_byte_behind_holes_and_within_a_frame(tmp_path: Path, at: int, data: bytes) -> None:
    path = tmp_path / ".hidden"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(at)
        file.write(data)
        file.truncate(8 << 20)
    assert has(path, PIECES)
    assert not has(path, pieces_of([new_marker(random.Random(2))]))


def test_all_files_are_searched_but_those_of_some_folders(tmp_path: Path) -> None:
    for name in ("a/.b/c", "a/d", "site/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "site" / "e")
    assert {str(path.relative_to(tmp_path)) for path in files_below(tmp_path, {tmp_path / "site"})} == {"a/.b/c", "a/d"}


def test_a_deleted_file_that_is_open_is_searched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 99 + MARKER)
    with path.open("rb"):
        path.unlink()
        assert [has(each, PIECES) for each in deleted_files(with_children([os.getpid()]))].count(True) == 1
