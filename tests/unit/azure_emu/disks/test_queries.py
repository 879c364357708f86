"""Questions to a managed disk while its journal is folded away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.azure_emu.disks.change_steps import change_steps
from siterig.azure_emu.disks.loader import StoreState, query_consistently
from siterig.azure_emu.disks.queries import change_list, position_at
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import SiteDisk
from tests.support.stores.managed_disk import apply, new_store, site

Question = Callable[[StoreState, int, int], object]
QUESTIONS: dict[str, Question] = {
    "position_at": lambda loaded, at, _last: position_at(loaded, at * 10 - 1),
    "change_list": lambda loaded, at, last: change_list(loaded, at - 1, last, 5),
    "change_steps": lambda loaded, at, last: change_steps(loaded, at - 1, last),
}


def history(tmp_path: Path) -> tuple[SiteDisk, ManagedDiskStore, list[int]]:
    """A disk, its store of many journal files, and where each part ends."""
    disk, store = site(tmp_path), new_store(tmp_path)
    apply(store, disk.sync())
    ends = []
    for number in range(6):
        disk.scribble(10)
        disk.tag(str(number))
        ends.append(disk.position)
        apply(store, [disk.close_log()])
    return disk, store, ends


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_query_that_a_compaction_overtakes_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 1)
    _, store, ends = history(tmp_path)
    seen: list[StoreState] = []

    def overtaken(loaded: StoreState) -> object:
        if not seen:
            store.compactor.compact(ends[-1])
        seen.append(loaded)
        return QUESTIONS[name](loaded, ends[1], ends[-1])

    with pytest.raises(RigError) as caught:
        query_consistently(store.folder, overtaken)
    assert caught.value.code == "InvalidPosition"
    assert [loaded.history.oldest_position < ends[1] for loaded in seen] == [True, False]


def test_a_journal_file_that_no_compaction_deleted_is_named(tmp_path: Path) -> None:
    _, store, ends = history(tmp_path)
    (journal_file,) = (store.folder / "journal").iterdir()

    def query(loaded: StoreState) -> object:
        journal_file.rename(tmp_path / "away")
        try:
            return position_at(loaded, ends[1] * 10 - 1)
        finally:
            (tmp_path / "away").rename(journal_file)

    with pytest.raises(RigError) as caught:
        query_consistently(store.folder, query)
    assert (caught.value.code, str(journal_file) in caught.value.message) == ("StoreCorrupt", True)
