"""Parts are applied when their news come; lost news cost time only; an idle applier asks for nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import Listing
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import FakeCache, Rig
from tests.support.threads import without_threads

NET_S = 40.0
OTHER_ID = "11111111-2222-4333-8444-555555555555"


class CountedCache(FakeCache):
    """Counts the lists of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[tuple[str, ...]] = []
        self.after_list_all: Callable[[], Awaitable[None]] | None = None

    async def list(self, disk_id: str) -> Listing:
        self.lists.append((disk_id,))
        return await super().list(disk_id)

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        before = self.lists.copy()
        found = await super().list_all(disk_ids)
        self.lists = [*before, tuple(disk_ids)]
        if self.after_list_all is not None:
            await self.after_list_all()
        return found


class CountedRig(Rig):
    """A rig whose account is counted."""

    cache: CountedCache

    @classmethod
    async def make(cls, folder: Path) -> CountedRig:
        rig = cls(folder)
        rig.cache = CountedCache()
        rig.restart()
        await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
        rig.cache.hold(rig.disk.sync())
        return rig

    async def run(self, nursery: trio.Nursery) -> None:
        """Run the applier, and wait until it has applied everything."""
        await nursery.start(lambda task_status: self.service.run(net_s=NET_S, task_status=task_status))
        await self.vault.wait_position(self.disk.position)
        await trio.sleep(1)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountedRig:
    without_threads(monkeypatch)
    return await CountedRig.make(tmp_path)


async def test_parts_are_applied_when_their_news_come(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.run(nursery)
    begun_s = trio.current_time()
    rig.cache.hold([rig.log("one")])
    await rig.service.parts_put(disk_ids=[DISK_ID])
    await rig.vault.wait_position(rig.disk.position)
    assert trio.current_time() == begun_s


async def test_lost_news_delay_parts_until_the_net(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.run(nursery)
    begun_s = trio.current_time()
    rig.cache.hold([rig.log("one")])  # and no call
    await rig.vault.wait_position(rig.disk.position)
    assert 0 < trio.current_time() - begun_s <= NET_S


async def test_an_idle_applier_looks_at_the_account_at_the_rate_of_the_net(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.run(nursery)
    before, rounds, seen = len(rig.cache.lists), rig.vault.rounds, len(rig.vault.seen)
    await trio.sleep(10 * NET_S)
    assert 9 <= len(rig.cache.lists) - before <= 10
    assert rig.vault.rounds - rounds <= 10
    assert len(rig.vault.seen) == seen, "nothing changed, and it was reported"


async def test_news_while_the_vault_is_away_are_kept(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.run(nursery)
    rig.vault.away = RigError(Code.RoleUnavailable, "the vault is away", recoverable=True)
    rig.cache.hold([rig.log("one")])
    await rig.service.parts_put(disk_ids=[DISK_ID])
    await trio.sleep(5)
    rig.vault.away = None
    begun_s = trio.current_time()
    await rig.vault.wait_position(rig.disk.position)
    assert trio.current_time() - begun_s <= 1


async def test_one_list_serves_all_disks_of_a_round(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.service.create_managed_disk(disk_id=OTHER_ID, size_bytes=SIZE_BYTES)
    rig.vault.disks = [DISK_ID, OTHER_ID]
    await rig.run(nursery)
    before = len(rig.cache.lists)
    await rig.service.parts_put(disk_ids=[OTHER_ID, DISK_ID])
    await trio.sleep(1)
    assert [sorted(each) for each in rig.cache.lists[before:]] == [sorted([DISK_ID, OTHER_ID])]


async def test_a_list_from_before_a_deletion_is_not_used(
    rig: CountedRig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await rig.service.create_managed_disk(disk_id=OTHER_ID, size_bytes=SIZE_BYTES)
    rig.vault.disks = [DISK_ID, OTHER_ID]
    await rig.run(nursery)

    async def replace_disk() -> None:
        rig.cache.after_list_all = None
        await rig.service.delete_managed_disk(disk_id=DISK_ID)
        await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)

    rig.cache.hold([rig.log("one")])
    rig.cache.after_list_all = replace_disk
    before = len(rig.cache.lists)
    await rig.service.parts_put(disk_ids=[DISK_ID, OTHER_ID])
    await trio.sleep(0.2)
    # The deletion lists the disk, and so does the round, which has a list from before.
    assert [set(each) for each in rig.cache.lists[before:]] == [{DISK_ID, OTHER_ID}, {DISK_ID}, {DISK_ID}]
