"""Rules with ``recoverable = true`` for change logs and managed disks damage blocks only that the site's disk keeps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.changelog.segment import HEADER_BYTES, RECORD_HEADER_BYTES
from siterig.core.fault_contract import DiskCopies
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.injector import HostFileInjector
from siterig.host_faults.log_files import DiskHostLogs
from siterig.host_faults.places import FilePlaces, HostFile
from siterig.host_faults.store_files import ManagedDisks
from siterig.host_faults.written_bytes import SegmentWalk, WrittenBytes, read_head
from siterig.scenarios.faults.atlas import FaultAtlas
from tests.support.faults.applied_disk import BLOCK_BYTES, AppliedDisk
from tests.support.faults.host_faults import armed, plan, report
from tests.support.faults.logged_disk import LoggedDisk
from tests.support.repo.examples import examples

DISK = "web01/os"
SEED = 4711
KIB = 1024
AT_SITE = DiskCopies(at_site=[DISK])


@pytest.fixture
def small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.scenarios.faults.atlas.ATLAS_REGION_BYTES", 64 * KIB)


async def arm(injector: HostFileInjector, words: str, copies: DiskCopies) -> None:
    """Arm a rule as in a rig, with the seed of its atlas."""
    await injector.note_copies(copies=copies)
    await injector.arm_faults(plans=[plan(words).model_copy(update={"atlas_seed": SEED})])


# --- change logs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["flip=true", "tear=true"])
@pytest.mark.usefixtures("small_regions")
async def test_records_of_a_log_are_damaged_in_regions_of_copies_alone(fault: str, tmp_path: Path) -> None:
    words = f"log append part=segment {fault} recoverable=true name=x"
    (tmp_path / "a").mkdir()
    logged = LoggedDisk(tmp_path / "a")
    met: dict[int, bool] = {}
    async with armed([DiskHostLogs(logged.root)]) as injector:
        await arm(injector, words, DiskCopies())  # a log needs no other side: the disk itself has the block
        for at in range(0, 1 << 20, 32 * KIB + 4 * KIB):
            before = len((await report(injector)).injections)
            with suppress(OSError):  # a torn record
                logged.disk.write(at, bytes(4 * KIB))
            met[at] = len((await report(injector)).injections) > before
        count = (await report(injector)).counts["x"]
    logged.close()
    atlas = FaultAtlas(SEED)
    assert met == {at: atlas.kind_of(DISK, at) == "copies" for at in met}
    assert (count.fired, count.spared) == (sum(met.values()), len(met) - sum(met.values()))
    assert count.matched == len(met)
    assert 0 < count.fired < count.matched, "one kind of region alone"


async def test_a_mount_has_no_recovery_side_so_each_record_may_be_damaged(tmp_path: Path) -> None:
    logged = LoggedDisk(tmp_path)
    async with armed([DiskHostLogs(logged.root)], "log append flip=true recoverable=true name=x") as injector:
        logged.write(5)
        assert (await report(injector)).counts["x"].fired == 5
    logged.close()


# --- managed disks --------------------------------------------------------------------------------------------------------


def unreadable(applied: AppliedDisk) -> set[int]:
    """Return the offsets of the blocks of the newest position that cannot be read; the others must be right."""
    position = applied.store.watermark().complete_position
    view, state, found = open_view(applied.folder, position), applied.disk.states[position], set[int]()
    for at in range(0, len(state), BLOCK_BYTES):
        try:
            assert view.pread(at, min(BLOCK_BYTES, len(state) - at)) == state[at : at + BLOCK_BYTES]
        except OSError:
            found.add(at)
    view.close()
    return found


@pytest.mark.parametrize("part", ["", "part=journal", "part=base", "part=checkpoint"])
@pytest.mark.usefixtures("small_regions")
async def test_a_managed_disk_is_damaged_in_regions_of_copies_alone(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 100_000)
    monkeypatch.setattr("siterig.azure_emu.disks.journal._WRITE_BYTES", 10_000)  # segments of several writes
    monkeypatch.setattr("siterig.azure_emu.disks.checkpoints.RECORDS_MIN", 10)
    monkeypatch.setattr("siterig.azure_emu.disks.base_image.REREAD_DELAY_S", 0.0)
    monkeypatch.setattr("siterig.azure_emu.scrub.journal.TORN_WAIT_S", 0.0)
    applied = AppliedDisk(tmp_path)
    places = ManagedDisks(applied.folder.parent, lambda _: ("web01", "os"))
    async with armed([places]) as injector:
        await arm(injector, f"store write {part} flip=true recoverable=true name=x", AT_SITE)
        applied.begin()
        applied.work()
        applied.reopen()
        found, damaged = await report(injector), unreadable(applied)
    atlas = FaultAtlas(SEED)
    assert {atlas.kind_of(DISK, at) for at in damaged} == ({"copies"} if part != "part=checkpoint" else set())
    assert applied.complete()
    assert found.counts["x"].fired == len(found.injections) > 0
    applied.check()
    applied.store.close()


@pytest.mark.usefixtures("small_regions")
async def test_a_torn_part_is_applied_again(tmp_path: Path) -> None:
    applied = AppliedDisk(tmp_path)
    places = ManagedDisks(applied.folder.parent, lambda _: ("web01", "os"))
    async with armed([places]) as injector:
        await arm(injector, "store write part=journal tear=true times=2 recoverable=true name=x", AT_SITE)
        applied.apply([*applied.sync, *applied.parts])
        assert (await report(injector)).counts["x"].fired > 0
    assert set(applied.errors) == {"StoreIo"}
    assert applied.complete()
    assert applied.check()
    applied.store.close()


@pytest.mark.parametrize(
    ("copies", "name"), [(DiskCopies(), ("web01", "os")), (DiskCopies(at_both=[DISK]), ("web01", "os")), (AT_SITE, None)]
)
async def test_a_managed_disk_is_spared_unless_the_site_has_the_disk(
    copies: DiskCopies, name: tuple[str, str] | None, tmp_path: Path
) -> None:
    applied = AppliedDisk(tmp_path)
    async with armed([ManagedDisks(applied.folder.parent, lambda _: name)]) as injector:
        await arm(injector, "store write flip=true recoverable=true name=x", copies)
        applied.apply([*applied.sync, *applied.parts])
        count = (await report(injector)).counts["x"]
        assert (count.fired, count.spared, count.last_ns) == (0, count.matched, None)
        assert count.matched > 0
    assert applied.check()
    applied.store.close()


# --- which bytes ----------------------------------------------------------------------------------------------------------

RANGES = st.lists(st.tuples(st.integers(0, 1 << 33), st.integers(1, 5 << 20)), min_size=1, max_size=5)


@settings(max_examples=examples(100))
@given(st.integers(0, 1 << 62), RANGES)
def test_the_disk_at_the_site_keeps_the_bytes_that_copies_may_lose(seed: int, ranges: Sequence[tuple[int, int]]) -> None:
    """The bytes that bad sectors may take at the site are those of :meth:`FaultAtlas.within` for ``site``."""
    atlas = FaultAtlas(seed)
    log, store = (
        HostRule(plan(f"{words} flip=true recoverable=true").model_copy(update={"atlas_seed": seed}))
        for words in ("log append", "store write")
    )
    segment = HostFile("log", "web01", "os", "segment", Path("f"))
    base = HostFile("store", "web01", "os", "base", Path("f"))
    for start, length in ranges:
        site = list(atlas.within("site", DISK, start, length))
        record = [WrittenBytes(128, length + 64, start, length, is_whole=True)]
        assert log.may_damage(segment, record, AT_SITE) == ([] if site else [(128, length + 64)])
        data = [WrittenBytes(start, length, start, length)]
        damaged = store.may_damage(base, data, AT_SITE)
        assert sorted([*site, *damaged]) == sorted([*site, *atlas.within("copies", DISK, start, length)])
        assert sum(count for _, count in [*site, *damaged]) == length


def test_the_blocks_of_a_segment_are_known_however_it_is_cut(tmp_path: Path) -> None:
    logged = LoggedDisk(tmp_path)
    logged.write(20)
    logged.close()
    data = logged.segments()[0].read_bytes()
    wanted, at = dict[int, int](), HEADER_BYTES
    while (head := read_head(data[at : at + RECORD_HEADER_BYTES])) is not None:
        at += RECORD_HEADER_BYTES
        wanted |= {at + n: head.changes[0] + n for n in range(head.payload_bytes)} if head.changes else {}
        at += head.payload_bytes
    assert wanted
    for step in (1 << 20, 10_000, 777):
        walk, found = SegmentWalk.of(data[:step], 500), dict[int, int]()
        assert walk is not None
        for start in range(0, at, step):
            for each in walk.follow(data[start : min(start + step, at)], 500 + start) or ():
                found |= {each.at - 500 + n: each.disk_at + n for n in range(each.length)}
        assert found == wanted
        assert walk.follow(b"index" * 100, 500 + at) is None, "the rest of the frame"
    assert SegmentWalk.of(data[1:], 500) is None


def test_every_kind_of_place_knows_its_bytes(tmp_path: Path) -> None:
    places: list[FilePlaces] = [DiskHostLogs(tmp_path), ManagedDisks(tmp_path)]
    for place in places:
        for part in ("base", "metadata", "checkpoint", "dirty-bitmap", "snapshot"):
            file = HostFile(place.layer, "web01", "os", part, tmp_path / "id" / "base.sums")
            assert not place.written(file, "write" if place.layer == "store" else "append", [b"x" * 4096], 0)
