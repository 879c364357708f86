"""Small parts of several disks travel in one blob, and each stays as safe as in a blob of its own."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer import bundle
from siterig.blockfs.transfer.bundle import BundleName
from siterig.blockfs.transfer.bundled_account import BAD_FOR_S, LOOK_EVERY_S, READ_AGAIN_S, BundledAccount
from siterig.blockfs.transfer.cache_account import AccountBlob
from siterig.blockfs.transfer.part_name import PartName
from siterig.scenarios.simulation.rig.account import SimulatedAccount

DISKS = [f"4f1f0f5e-8f4b-4b52-a5c1-00000000000{number}" for number in range(4)]
PARTS = {PartName(disk, 1, "log", 5, 5): f"tags of {disk}".encode() for disk in DISKS}
ONE, TWO, THREE, FOUR = PARTS


class Blobs(SimulatedAccount):
    """An account in memory that counts its calls; ``trouble``, while set, is raised by ``delete``."""

    def __init__(self) -> None:
        super().__init__(random.Random(1))
        self.calls: list[str] = []
        self.trouble: RigError | None = None

    async def put(self, part: AccountBlob, data: bytes, *, replace: bool = False) -> bool:
        self.calls.append("put")
        return await super().put(part, data, replace=replace)

    async def get(self, part: AccountBlob) -> bytes:
        self.calls.append("get")
        return await super().get(part)

    async def delete(self, part: AccountBlob) -> None:
        self.calls.append("delete")
        if self.trouble is not None:
            raise self.trouble
        await super().delete(part)

    def spoil(self, at: int) -> None:
        """Change a byte of the only bundle."""
        (name,) = (name for name in self.blobs if isinstance(name, BundleName))
        data = bytearray(self.blobs[name])
        data[at] ^= 1
        self.blobs[name] = bytes(data)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def site(blobs: Blobs) -> BundledAccount:
    return BundledAccount(blobs, SYSTEM_CLOCK, is_writer=True)


def applier(blobs: Blobs) -> BundledAccount:
    return BundledAccount(blobs, SYSTEM_CLOCK)


async def test_parts_of_several_disks_cost_one_blob_one_read_and_one_deletion(blobs: Blobs) -> None:
    await site(blobs).put_together(PARTS)
    reader = applier(blobs)
    found = await reader.list_all(DISKS)
    assert {part: size for listing in found.values() for part, size in listing.sizes.items()} == {
        part: len(data) for part, data in PARTS.items()
    }
    for part, data in PARTS.items():
        assert await reader.get(part) == data
        await reader.delete(part)
    assert blobs.calls == ["put", "get", "delete"]
    assert blobs.blobs == {}
    assert (await reader.list(DISKS[0])).parts == []


async def test_a_bundle_stays_until_its_last_part_is_deleted(blobs: Blobs) -> None:
    await site(blobs).put_together(PARTS)
    reader = applier(blobs)
    await reader.list_all(DISKS)
    for part in (ONE, TWO, THREE):
        await reader.delete(part)
    assert [listing.parts for listing in (await reader.list_all(DISKS)).values()] == [[], [], [], [FOUR]]
    reader = applier(blobs)  # a restart: the applied parts are shown, and deleted, again
    assert [listing.parts for listing in (await reader.list_all(DISKS)).values()] == [[part] for part in PARTS]
    for part in (ONE, TWO, THREE):
        await reader.delete(part)
    assert len(blobs.blobs) == 1
    blobs.trouble = RigError(Code.CacheUnreachable, "busy", recoverable=True)
    with pytest.raises(RigError):
        await reader.delete(FOUR)
    assert len(blobs.blobs) == 1
    blobs.trouble = None
    assert (await reader.list(DISKS[3])).parts == []
    assert blobs.blobs == {}


async def test_a_damaged_section_is_damage_of_one_part_which_is_sent_again_by_itself(blobs: Blobs) -> None:
    writer, reader = site(blobs), applier(blobs)
    await writer.put_together(PARTS)
    blobs.spoil(-1)
    await reader.list_all(DISKS)
    assert [await reader.get(part) == data for part, data in PARTS.items()] == [True, True, True, False]
    blobs.spoil(-1)
    assert await reader.get(FOUR) == PARTS[FOUR], "a part that is read again is read from the account"
    await writer.put(FOUR, b"sent again", replace=True)
    assert (await reader.list(DISKS[3])).sizes == {FOUR: 10}
    assert await reader.get(FOUR) == b"sent again"
    for part in PARTS:
        await reader.delete(part)
    assert blobs.blobs == {}


async def test_parts_of_a_bundle_that_cannot_be_read_are_missing_and_put_again(
    blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    writer, reader = site(blobs), applier(blobs)
    await writer.put_together(PARTS)
    (bad,) = blobs.blobs
    blobs.spoil(20)
    for account in (writer, reader):
        found = await account.list_all(DISKS)
        assert all(not listing.parts and listing.unreadable == (bad.blob(),) for listing in found.values())
    await writer.put_together({part: PARTS[part] for part in (ONE, TWO, THREE)})
    assert bad in blobs.blobs, "one of its parts is nowhere else"
    await writer.put(FOUR, PARTS[FOUR])
    assert bad not in blobs.blobs
    found = await reader.list_all(DISKS)
    assert all(listing.parts and not listing.unreadable for listing in found.values())
    # The same parts once more: the name of the first bundle is free, and that of a present one is not used again.
    await writer.put_together({part: PARTS[part] for part in (ONE, TWO, THREE)})
    assert len(blobs.blobs) == 3
    assert await reader.get(TWO) == PARTS[TWO]


async def test_a_site_that_was_restarted_deletes_a_bundle_that_stays_bad(
    blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    await site(blobs).put_together(PARTS)
    (bad,) = blobs.blobs
    blobs.spoil(20)
    writer, reader = site(blobs), applier(blobs)  # a restart: nobody knows which parts the bundle had
    begun = trio.current_time()
    while bad in blobs.blobs:
        assert (await reader.list(ONE.disk_id)).unreadable == (bad.blob(),), "a bad bundle is shown until it is deleted"
        await writer.put(ONE, PARTS[ONE])
        await writer.list_all(DISKS)
        await trio.sleep(READ_AGAIN_S / 3)
    assert BAD_FOR_S <= trio.current_time() - begun <= BAD_FOR_S + READ_AGAIN_S
    assert await reader.list(ONE.disk_id) == await writer.list(ONE.disk_id)
    assert (await reader.list(ONE.disk_id)).sizes == {ONE: len(PARTS[ONE])}


async def test_only_the_site_deletes_a_bad_bundle_and_none_that_can_be_read_again(
    blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    await site(blobs).put_together(PARTS)
    blobs.spoil(20)
    reader, writer = applier(blobs), site(blobs)
    for _ in range(20):
        await reader.list(DISKS[0])
        await trio.sleep(READ_AGAIN_S)
    await writer.list(DISKS[0])
    await trio.sleep(BAD_FOR_S - READ_AGAIN_S)
    await writer.list(DISKS[0])
    blobs.spoil(20)
    await trio.sleep(BAD_FOR_S)
    assert (await writer.list(DISKS[0])).parts == [ONE]
    assert len(blobs.blobs) == 1


async def test_the_site_finds_a_bundle_that_somebody_else_has_put(
    blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    writer = site(blobs)
    await writer.list(DISKS[0])
    blobs.blobs[BundleName.of([ONE], 7)] = b"no bundle"
    assert (await writer.list(DISKS[0])).unreadable == ()
    for _ in range(6):
        await trio.sleep(max(LOOK_EVERY_S, BAD_FOR_S))
        await writer.list(DISKS[0])
    assert blobs.blobs == {}


async def test_a_bundle_that_could_not_be_read_for_a_while_is_read_again(
    blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    await site(blobs).put_together(PARTS)
    blobs.spoil(20)
    reader = applier(blobs)
    assert (await reader.list(DISKS[0])).parts == []
    blobs.spoil(20)
    assert (await reader.list(DISKS[0])).parts == []
    await trio.sleep(READ_AGAIN_S)
    assert (await reader.list(DISKS[0])).parts == [ONE]


async def test_parts_of_others_get_blobs_of_their_own_when_a_managed_disk_is_deleted(blobs: Blobs) -> None:
    await site(blobs).put_together(PARTS)
    await applier(blobs).remove_disk(DISKS[1])
    assert blobs.blobs == {part: PARTS[part] for part in (ONE, THREE, FOUR)}


async def test_the_site_asks_for_bundles_only_while_one_may_exist(blobs: Blobs) -> None:
    writer = site(blobs)
    lists: list[str] = []
    listing = blobs.list_with_bundles

    async def noted(disk_ids: list[str]) -> object:
        lists.append("with bundles")
        return await listing(disk_ids)

    blobs.list_with_bundles = noted  # type: ignore[assignment, method-assign]
    await writer.list(DISKS[0])
    await writer.list(DISKS[0])
    assert len(lists) == 1, "after a start there may be one"
    await writer.put_together(PARTS)
    assert (await writer.list(DISKS[0])).parts == [ONE]
    assert len(lists) == 2


async def test_a_bundle_is_within_its_limits(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "PARTS_MAX", 3)
    await site(blobs).put_together(PARTS)
    assert len(blobs.blobs) == 2
    blobs.blobs.clear()
    size = bundle.size_bytes(list(PARTS.values())[:2])
    monkeypatch.setattr(bundle, "BUNDLE_BYTES_MAX", size)
    await site(blobs).put_together(PARTS)
    assert [len(data) for data in blobs.blobs.values()] == [size, size]
    assert (await applier(blobs).list(DISKS[3])).parts == [FOUR]
    monkeypatch.setattr(bundle, "BUNDLE_BYTES_MAX", size - 1)
    assert (await applier(blobs).list(DISKS[3])).unreadable
