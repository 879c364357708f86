"""A managed disk begins with the data of an image, and a resync makes it right, whatever the image has."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.azure_emu.applier import seeding
from siterig.azure_emu.applier.seeding import part_pieces
from siterig.azure_emu.disks.queries import disk_state
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images.image_reader import UNIT_BYTES
from siterig.cext.checksums import chunk_tag
from siterig.cext.packed_tags import unpack
from tests.support.disks.disk_history import CHUNK_BYTES, DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig

KEY = bytes(range(32))
POINTS = (
    "seed.read",
    "seed.part_applied",
    "store.apply.unpacked",
    "store.initial_sync.restarted",
    "store.initial_sync.cleared",
    "store.base.announced",
    "store.base.noted",
    "store.base.copied",
    "store.base.synced",
    "store.base.concluded",
    "store.initial_sync.mapped",
    "store.initial_sync.counted",
)


class KilledError(Exception):
    """A kill at a failpoint."""


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(seeding, "PART_BYTES", 2 * UNIT_BYTES)
    made = Rig(tmp_path)
    await made.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    made.disk.scribble(40)
    made.disk.close_log()
    return made


def image(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "seed.img"
    path.write_bytes(data)
    return path


async def seeded(rig: Rig, path: Path) -> int:
    mark = await rig.service.seed_disk(disk_id=DISK_ID, image=str(path), image_format=None)
    assert (mark.generation, mark.sync_complete, mark.complete_position) == (1, True, 0)
    return mark.sync_parts


async def tags(rig: Rig) -> dict[int, bytes]:
    spans = [(0, SIZE_BYTES // CHUNK_BYTES)]
    answer = await rig.service.checksums(
        disk_id=DISK_ID, comparison_id="one", key_hex=KEY.hex(), chunk_bytes=CHUNK_BYTES, spans=spans
    )
    await rig.service.end_comparison(comparison_id="one")
    return unpack(answer.checked(spans).packed)


def plain(data: bytes) -> dict[int, bytes]:
    chunks = {at: data[at * CHUNK_BYTES : (at + 1) * CHUNK_BYTES] for at in range(SIZE_BYTES // CHUNK_BYTES)}
    return {at: chunk_tag(KEY, at, chunk) for at, chunk in chunks.items() if any(chunk)}


async def resync(rig: Rig, content: bytes) -> int:
    """Send what differs from ``content``, in a new generation; return the bytes of its parts."""
    rig.disk.new_generation()
    parts = rig.disk.sync(against=content)
    rig.cache.hold(parts)
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.state(rig.disk.position) == rig.disk.data
    return sum(len(data) for _, data in parts)


async def test_the_state_of_a_seed_is_compared_but_is_no_valid_position(rig: Rig, tmp_path: Path) -> None:
    content = bytearray(rig.disk.data)
    content[100_000:100_100] = bytes(100)
    path = image(tmp_path, bytes(content))
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert await seeded(rig, path) == 3
    assert await tags(rig) == plain(bytes(content))
    state = disk_state(rig.disks / DISK_ID, 0)
    assert state.valid_ranges == []
    with pytest.raises(RigError) as caught:
        rig.state(1)
    assert caught.value.code == "InvalidPosition"
    sent = await resync(rig, bytes(content))
    assert sent < CHUNK_BYTES + 4096
    assert disk_state(rig.disks / DISK_ID, 0).valid_ranges == [(rig.disk.position, rig.disk.position)]
    rig.cache.hold([rig.log("one")])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.state(rig.disk.position) == rig.disk.data
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


async def test_the_image_of_another_disk_gives_the_right_replica(rig: Rig, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(SIZE_BYTES)
    await seeded(rig, image(tmp_path, content))
    await resync(rig, content)


@pytest.mark.parametrize("size_bytes", [512, 100_352, SIZE_BYTES - 512])
async def test_a_smaller_image_is_followed_by_zeros(rig: Rig, tmp_path: Path, size_bytes: int) -> None:
    content = random.Random(2).randbytes(size_bytes)
    await seeded(rig, image(tmp_path, content))
    assert await tags(rig) == plain(content.ljust(SIZE_BYTES, b"\0"))


async def test_an_image_of_zeros_leaves_the_managed_disk_empty(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    mark = await rig.service.seed_disk(disk_id=DISK_ID, image=str(path), image_format=None)
    assert (mark.generation, mark.sync_parts) == (0, 0)
    assert await tags(rig) == {}
    await resync(rig, bytes(SIZE_BYTES))


@pytest.mark.parametrize("point", POINTS)
async def test_a_seed_continues_after_a_kill_at_each_step(rig: Rig, tmp_path: Path, point: str) -> None:
    path = image(tmp_path, bytes(rig.disk.data))
    for reached in range(1, 8):
        kills = 0

        def kill(_name: str, at: int = reached) -> None:
            nonlocal kills
            kills += 1
            if kills == at:
                raise KilledError

        try:
            with failpoint.armed(point, kill):
                await seeded(rig, path)
            break
        except KilledError:
            rig.applier.close()
            rig.restart()
    assert reached > 1, "the kill was never reached"
    rig.vault.marks.clear()
    assert await seeded(rig, path) == 3
    assert await tags(rig) == plain(bytes(rig.disk.data))
    assert await resync(rig, bytes(rig.disk.data)) < 2048


async def test_a_repeated_seed_applies_no_part_twice(rig: Rig, tmp_path: Path) -> None:
    path = image(tmp_path, bytes(rig.disk.data))
    applied: list[int] = []

    def second(_name: str) -> None:
        applied.append(1)
        if len(applied) == 1:
            raise KilledError

    with failpoint.armed("seed.part_applied", second):
        with pytest.raises(KilledError):
            await seeded(rig, path)
        await seeded(rig, path)
        assert len(applied) == 3
        await seeded(rig, path)
    assert len(applied) == 3


async def test_a_managed_disk_with_data_of_the_site_is_left_as_it_is(rig: Rig, tmp_path: Path) -> None:
    parts = rig.disk.sync()
    rig.cache.hold(parts[:1])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    path = image(tmp_path, random.Random(3).randbytes(SIZE_BYTES))
    mark = await rig.service.seed_disk(disk_id=DISK_ID, image=str(path), image_format=None)
    assert (mark.sync_parts, mark.sync_complete) == (1, False)
    rig.cache.hold(parts[1:])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.state(rig.disk.position) == rig.disk.data


async def test_an_image_that_cannot_be_used_is_named_with_the_reason(rig: Rig, tmp_path: Path) -> None:
    async def refused(path: Path) -> RigError:
        with pytest.raises(RigError) as caught:
            await rig.service.check_seed(image=str(path), image_format=None, size_bytes=SIZE_BYTES)
        assert str(path) in caught.value.message
        return caught.value

    assert (await refused(tmp_path / "none.img")).code == "ImageUnusable"
    assert (await refused(tmp_path)).code == "ImageUnusable"
    assert (await refused(image(tmp_path, bytes(SIZE_BYTES + 512)))).code == "DiskTooSmall"
    assert (await refused(image(tmp_path, bytes(700)))).code == "InvalidDiskSize"
    found = await rig.service.check_seed(image=str(image(tmp_path, b"\1" * 4096)), image_format=None, size_bytes=SIZE_BYTES)
    assert (found.format, found.size_bytes, found.data_bytes) == ("raw", 4096, 4096)


def test_the_parts_have_all_ranges_and_a_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "PART_BYTES", 100)
    ranges = [(0, 30), (50, 200), (400, 20)]
    assert list(part_pieces(ranges)) == [[(0, 30), (50, 70)], [(120, 100)], [(220, 30), (400, 20)]]
    assert list(part_pieces([])) == []
