"""Whole folders of encrypted managed disks with damaged or foreign files never give wrong bytes."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.folders import folder_damage, folder_targets
from tests.fuzz.run import fuzz


def test_damaged_folders_of_encrypted_disks_give_right_bytes_or_a_named_error() -> None:
    seen = fuzz(folder_damage.folder, folder_targets.folder, share=0.12)
    assert {"opened, some blocks, no errors", "refused, no blocks, some errors"} <= seen.keys()


def test_no_file_is_read_into_memory_because_it_is_large(tmp_path: Path) -> None:
    folder = folder_damage.times(0).folders[3]
    seen = set()
    for number, name in enumerate(sorted(folder.files)):
        large = folder_damage.Damaged(folder, dict(folder.files), frozenset({name}), ())
        seen.add(folder_targets.folder(large, tmp_path / str(number)))
    assert {"opened, some blocks, no errors", "refused, no blocks, some errors"} <= seen
