"""With thousands of parts, tags or segments, the cost for each of them stays small."""

from __future__ import annotations

import os
import resource
from collections import Counter
from pathlib import Path

import pytest

from siterig.azure_emu.applier.part_applier import TAGS_IN_REPORT_MAX
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.transfer.part_name import PartName
from siterig.core.process_setup import allow_many_files
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_each_of_many_parts_is_classified_at_most_a_few_times(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Counter[PartName] = Counter()
    classify = ManagedDiskStore.classify

    def counted(store: ManagedDiskStore, part: PartName) -> str:
        looks[part] += 1
        return classify(store, part)

    monkeypatch.setattr(ManagedDiskStore, "classify", counted)
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold([*rig.disk.sync(), *(rig.log(str(number)) for number in range(20))])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.cache.blobs == {}
    assert max(looks.values()) <= 4


async def test_tags_are_reported_in_portions_after_a_restart(rig: Rig) -> None:
    count = TAGS_IN_REPORT_MAX + 1
    sync = rig.disk.sync()
    for number in range(count):
        rig.disk.tag(str(number))
    rig.cache.hold([*sync, rig.disk.close_log()])
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    await rig.service.process_latest(disk_ids=[DISK_ID])
    rig.restart()
    reports: list[list[TagSeen]] = []
    applied = rig.vault.applied

    async def noted(**report: object) -> None:
        reports.append(report["tags"])  # type: ignore[arg-type]
        await applied(**report)  # type: ignore[arg-type]

    rig.vault.applied = noted  # type: ignore[method-assign]
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert [len(tags) for tags in reports] == [TAGS_IN_REPORT_MAX, 1]
    assert [tag.name for tags in reports for tag in tags] == [str(number) for number in range(count)]


async def test_segments_that_are_kept_are_not_opened_when_others_are_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DiskPaths(tmp_path, "web01", "os")
    make_raw(paths, 1 << 20)
    disk = Disk.open(paths, DiskOptions(PositionCounter(tmp_path / "position")), None)
    disk.tracking.start(new_generation=False)
    disk.write(0, b"of the generation before")
    disk.tracking.start(new_generation=True)
    for number in range(3):
        disk.write(0, bytes([number]))
        disk.tracking.log.rotate()
    await disk.flush()
    assert len(disk.tracking.segments()) == 3
    opened: list[str] = []
    os_open = os.open

    def noted(path: str, *arguments: int, **keywords: int) -> int:
        opened.append(str(path))
        return os_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", noted)
    assert [number for number, _ in find_segments(tmp_path, "os")] == [1, 2, 3, 4, 5]
    disk.tracking.trim(2, last_seq=1)
    assert [number for number, _ in find_segments(tmp_path, "os")] == [3, 4, 5]
    disk.tracking.trim(2, last_seq=3)
    assert [number for number, _ in find_segments(tmp_path, "os")] == [5]
    assert not [path for path in opened if path.endswith(".hrl")]
    disk.close()


def test_a_role_may_open_as_many_files_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
