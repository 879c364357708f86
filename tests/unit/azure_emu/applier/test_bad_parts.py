"""Parts that are in the account and cannot be used: asked for again, replaced, applied; nothing else waits for them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier.applier import REPAIR_WAIT_S
from siterig.azure_emu.applier.bad_parts import (
    FOLLOWING_MAX,
    LONG_BAD,
    QUICK_FOR_S,
    REQUEST_AGAIN_S,
    RETRY_S,
    SLOW_RETRY_S,
    BadParts,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk
from tests.support.rigs.applier_rig import Rig

OTHER_ID = "0b6f3a52-63f4-4c2f-8f0e-6f8b1c9d0e1f"


@pytest.fixture
def fast_clock() -> trio.testing.MockClock:
    """500 seconds a second.  An autojumping clock would spin while the disks' threads work, and starve them."""
    return trio.testing.MockClock(rate=500)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    await made.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    made.disk.scribble(20)
    return made


def log_part(number: int) -> PartName:
    return PartName(DISK_ID, 1, "log", number, number)


def test_one_failed_look_is_not_enough_to_ask_and_a_second_is() -> None:
    bad, part = BadParts(), log_part(5)
    listed = [log_part(number) for number in range(1, 40)]
    bad.note(part, RigError(Code.PartUnreadable, "500", recoverable=True), 0)
    assert bad.to_request(part, listed, 0) == []
    bad.note(part, RigError(Code.PartUnreadable, "500", recoverable=True), RETRY_S)
    assert bad.to_request(part, listed, RETRY_S) == [log_part(number) for number in range(5, 6 + FOLLOWING_MAX)]


def test_wrong_content_is_requested_at_growing_intervals() -> None:
    bad, part = BadParts(), log_part(1)
    now, asked = 0.0, []
    while now < 1000:
        bad.note(part, RigError(Code.PartCorrupt, "checksum"), now)
        if bad.to_request(part, [part], now):
            asked.append(now)
            bad.note_requested(part, now)
        assert bad.retry_s(part, now) == (RETRY_S if now < QUICK_FOR_S else SLOW_RETRY_S)
        now += bad.retry_s(part, now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert asked[0] == 0
    assert gaps == sorted(gaps)
    assert gaps[0] < REQUEST_AGAIN_S + SLOW_RETRY_S


def spoilt(kind: str, good: bytes, other: bytes) -> bytes:
    """The content of a blob that its account has spoilt."""
    return {"truncated": good[: len(good) // 2], "empty": b"", "other content": other, "no zstd": bytes(len(good))}[kind]


@pytest.mark.parametrize("kind", ["unreadable", "truncated", "empty", "other content", "no zstd"])
@pytest.mark.parametrize("at", [0, 1, -1])
async def test_a_part_that_cannot_be_used_is_asked_for_and_its_replacement_is_applied(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock, kind: str, at: int
) -> None:
    """The first and a middle part of an initial replication; then parts of the log."""
    parts = [*rig.disk.sync(), rig.log("one")]
    position, data = rig.disk.position, bytes(rig.disk.data)
    rig.cache.hold(parts)
    part, good = parts[at]
    if kind == "unreadable":
        rig.cache.unreadable.add(part)
    else:
        rig.cache.blobs[part] = spoilt(kind, good, parts[at - 1][1])
    await nursery.start(rig.service.run)
    await rig.vault.wait_asked()
    assert rig.vault.asked[0][1][0] == part.blob()
    assert rig.vault.asked_temporary == [kind == "unreadable"]
    await rig.vault.wait_failed()
    assert rig.waits.list()[0].disk == DISK_ID
    rig.cache.unreadable.clear()
    assert await rig.cache.put(part, good, replace=True)
    await rig.vault.wait_position(position)
    assert rig.state(position) == data
    await rig.vault.wait_rounds(2)
    assert rig.waits.list() == []


async def test_a_part_that_stays_bad_is_reported_with_the_remedy(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    parts = rig.disk.sync()
    rig.cache.hold(parts)
    rig.cache.unreadable.add(parts[0][0])
    await nursery.start(rig.service.run)
    while len(rig.vault.failed) < 2:
        await rig.vault.changed.wait()
    first, second = [message for _, message in rig.vault.failed]
    assert "role restart" not in first
    assert second == f"{first}; {LONG_BAD}"
    assert "siterig role restart azurite" in second


async def test_a_blob_that_is_no_part_is_passed_over_and_reported(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.foreign.append(f"{DISK_ID}/notes.txt")
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await nursery.start(rig.service.run)
    await rig.vault.wait_position(rig.disk.position)
    await rig.vault.wait_rounds(2)
    assert rig.vault.failed == []
    assert rig.vault.seen[-1] == (0, [f"{DISK_ID}/notes.txt"])


@pytest.mark.parametrize(
    "stray",
    [
        PartName(DISK_ID, 9, "sync", 1, 1),
        PartName(DISK_ID, 9, "sync", 5, 5),
        PartName(DISK_ID, 9, "log", 1, 7),
        PartName(DISK_ID, 1, "sync", 900, 900),
    ],
    ids=PartName.blob,
)
async def test_a_stray_blob_with_the_name_of_a_part_stops_nothing(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock, stray: PartName
) -> None:
    await nursery.start(rig.service.run)
    rig.cache.hold(rig.disk.sync())
    await rig.vault.wait_rounds(2)
    rig.cache.blobs[stray] = b"what somebody left here"
    for name in ("one", "two"):
        rig.cache.hold([rig.log(name)])
        await rig.vault.wait_position(rig.disk.position)


async def test_a_stray_blob_that_looks_like_the_next_part_is_skipped(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    await nursery.start(rig.service.run)
    rig.cache.hold(rig.disk.sync())
    part, data = rig.log("one")
    rig.cache.blobs[PartName(DISK_ID, 1, "log", part.first, part.last + 100)] = b"longer, and so it is tried first"
    rig.cache.blobs[part] = data
    await rig.vault.wait_position(rig.disk.position)


async def test_a_bad_part_of_one_disk_does_not_hold_up_another(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = SiteDisk(tmp_path / "other", random.Random(4), disk_id=OTHER_ID)
    other.scribble(3)
    await rig.service.create_managed_disk(disk_id=OTHER_ID, size_bytes=SIZE_BYTES)
    rig.vault.disks = [DISK_ID, OTHER_ID]
    bad = rig.disk.sync()
    rig.cache.hold(bad)
    rig.cache.unreadable.add(bad[0][0])
    get, stuck = rig.cache.get, trio.Event()

    async def slow_get(part: PartName) -> bytes:
        if part in rig.cache.unreadable and rig.vault.failed:  # the second look takes for ever
            await stuck.wait()
        return await get(part)

    rig.cache.get = slow_get  # type: ignore[method-assign]
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    parts = other.sync()
    rig.cache.hold(parts)
    while any(part in rig.cache.blobs for part, _ in parts):
        await rig.vault.wait_rounds(1)
    stuck.set()


async def test_latest_waits_for_a_bad_part_to_be_replaced_but_not_for_ever(
    rig: Rig, fast_clock: trio.testing.MockClock
) -> None:
    parts = [*rig.disk.sync(), rig.log("one")]
    rig.cache.hold(parts)
    rig.cache.unreadable.add(parts[-1][0])
    begun = trio.current_time()
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.complete_position < rig.disk.position
    assert trio.current_time() - begun >= REPAIR_WAIT_S
    assert len(rig.vault.asked) >= 1
    rig.cache.unreadable.clear()
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.complete_position == rig.disk.position


async def test_the_bytes_that_wait_in_the_account_are_reported(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    parts = rig.disk.sync()
    rig.cache.hold(parts[1:])
    await nursery.start(rig.service.run)
    await rig.vault.wait_rounds(2)
    assert rig.vault.seen[-1] == (sum(len(data) for _, data in parts[1:]), [])
    rig.cache.hold(parts[:1])
    await rig.vault.wait_position(rig.disk.position)
    await rig.vault.wait_rounds(2)
    assert rig.vault.seen[-1] == (0, [])


async def test_a_missing_part_before_later_ones_is_a_wait_and_is_requested(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.hold(rig.disk.sync())
    first, second = rig.log("one"), rig.log("two")
    rig.cache.hold([second])
    await nursery.start(rig.service.run)
    await rig.vault.wait_asked()
    assert rig.vault.asked[0][1] == []
    (wait,) = rig.waits.list()
    assert (wait.code, wait.disk) == ("PartMissing", DISK_ID)
    assert "log sequence number" in wait.reason
    rig.cache.hold([first])
    await rig.vault.wait_position(rig.disk.position)
    await rig.vault.wait_rounds(2)
    assert rig.waits.list() == []


async def test_a_vault_that_does_not_answer_is_a_wait_until_it_does(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.vault.away = RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)
    await nursery.start(rig.service.run)
    await rig.vault.wait_rounds(1)
    assert [(wait.code, wait.vm, wait.disk) for wait in rig.waits.list()] == [("RoleUnavailable", None, None)]
    rig.vault.away = None
    await rig.vault.wait_rounds(2)
    assert rig.waits.list() == []
