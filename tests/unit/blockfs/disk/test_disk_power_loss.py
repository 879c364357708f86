"""Power loss of a disk: it becomes one of the states that the guest's flushes allow, and the log becomes the same."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.fault_effects import DiskFault, FreezeEffect, LieEffect, StaleEffect
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import stream_of
from siterig.blockfs.disk import disk_faults
from siterig.blockfs.disk.disk_faults import LostWrites, PowerLoss, UnsyncedWrites
from tests.support.disks.guest_requests import GuestDisk, Request, pattern, until_waiting
from tests.support.io_faults import SYNC, failing

SECTOR = 512


@pytest.fixture
def guest(tmp_path: Path, positions: PositionCounter) -> Iterator[GuestDisk]:
    disk = GuestDisk(tmp_path, positions=positions)
    disk.faults.keep_unsynced()
    yield disk
    disk.close()


async def lose(guest: GuestDisk, *, seed: int = 0, keeps: bool = False, tear_bytes: int = 0) -> LostWrites:
    (lost,), _ = await disk_faults.lose_power(
        [guest.faults], PowerLoss(stream=stream_of(seed, "power loss"), keeps=keeps, tear_bytes=tear_bytes)
    )
    return lost


async def test_everything_after_the_last_flush_is_lost(guest: GuestDisk) -> None:
    guest.write(0, pattern(16384, 1))
    assert guest.flush() == 0
    flushed = guest.contents
    guest.write(4096, pattern(4096, 2))
    guest.write(4096 + 700, pattern(9000, 3))
    guest.write(1 << 19, b"new")
    guest.discard(0, 4096)
    guest.zero(12288, 512)
    assert guest.faults.unsynced() is not None
    lost = await lose(guest)
    assert guest.contents == flushed
    # Discard; the two writes with the zeroes in them; the new block.
    assert (lost.writes, lost.lost, lost.torn) == (3, 3, 0)
    guest.check_log()
    assert await lose(guest) == LostWrites(0, 0, 0, 0), "the state is durable"


async def test_a_flush_that_lies_loses_the_writes_before_it(guest: GuestDisk) -> None:
    guest.write(0, b"flushed")
    guest.flush()
    rule = await guest.faults.attach(DiskFault("liar", LieEffect()))
    guest.write(0, b"promised")
    assert guest.flush() == 0
    await guest.faults.detach(rule)
    await lose(guest)
    assert guest.contents[:8] == b"flushed\0"
    guest.check_log()


async def test_a_flush_that_fails_makes_nothing_durable(guest: GuestDisk) -> None:
    guest.write(0, b"before")
    with failing(SYNC, ".img", errno.EIO):
        assert guest.flush() == -errno.EIO
    guest.write(3, b"after")
    await lose(guest)
    assert guest.contents[:8] == bytes(8)


async def test_a_write_during_a_flush_is_lost_and_the_one_before_is_not(guest: GuestDisk) -> None:
    from tests.support.io_faults import io_verdict

    def write_in_between(operation: int, path: str, _offset: int, _size: int) -> int:
        if operation == SYNC and path.endswith(".img") and not done:
            done.append(guest.write(2, b"second"))
        return 0

    done: list[int] = []
    guest.write(0, b"first")
    with io_verdict(write_in_between):
        assert guest.flush() == 0
    assert (done, guest.contents[:8]) == ([6], b"fisecond")
    await lose(guest)
    assert guest.contents[:8] == b"first\0\0\0"
    guest.check_log()


async def test_requests_that_wait_fail(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(DiskFault("freeze", FreezeEffect()))
    request = Request(lambda: guest.write(0, b"x"))
    await until_waiting(guest, rule, 1)
    await lose(guest)
    assert await request.done() == -errno.EIO
    await guest.faults.detach(rule)
    assert (guest.contents[:1], guest.write(0, b"y")) == (b"\0", 1)


async def test_several_disks_lose_power_at_one_position(tmp_path: Path, positions: PositionCounter) -> None:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    for disk in disks:
        disk.faults.keep_unsynced()
        disk.write(0, b"kept")
        disk.flush()
        disk.write(0, b"lost")
    newest = positions.value
    lost, position = await disk_faults.lose_power([disk.faults for disk in disks])
    assert (position, [row.lost for row in lost]) == (newest, [1, 1])
    assert [disk.contents[:4] for disk in disks] == [b"kept", b"kept"]
    for disk in disks:
        disk.close()


async def test_a_disk_whose_old_bytes_are_not_kept_is_named(tmp_path: Path, positions: PositionCounter) -> None:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    disks[0].faults.keep_unsynced()
    disks[0].write(0, b"x")
    with pytest.raises(RigError, match=r"disk web01/data: its unsynced writes are not kept") as caught:
        await disk_faults.lose_power([disk.faults for disk in disks])
    assert caught.value.code == Code.FaultNotPossible
    assert disks[0].contents[:1] == b"x", "no disk has changed"
    for disk in disks:
        disk.close()


async def test_a_full_cache_reaches_the_medium(guest: GuestDisk) -> None:
    guest.write(0, pattern(1 << 18))
    guest.faults.keep_unsynced(1 << 17)
    for at in range(64):
        guest.write(at * 4096, pattern(4096, at + 2))
    before = guest.contents
    unsynced = guest.faults.unsynced()
    assert unsynced is not None
    assert (unsynced.writes + unsynced.written_back, unsynced.written_back > 0) == (64, True)
    assert unsynced.memory_bytes <= 1 << 17
    await lose(guest)
    kept = sum(guest.contents[at * 4096 : (at + 1) * 4096] == before[at * 4096 : (at + 1) * 4096] for at in range(64))
    assert kept == 64 - unsynced.writes
    guest.check_log()


async def test_a_write_larger_than_the_cache_reaches_the_medium_at_once(guest: GuestDisk) -> None:
    guest.write(0, pattern(1 << 18))
    guest.faults.keep_unsynced(1 << 16)
    assert guest.discard(0, 1 << 18) == 0
    assert guest.faults.unsynced() == UnsyncedWrites(writes=0, memory_bytes=0, written_back=1)
    await lose(guest)
    assert guest.contents == bytes(1 << 20)


async def test_without_tearing_each_write_is_there_or_not(guest: GuestDisk) -> None:
    seen = set()
    for seed in range(20):
        guest.write(0, bytes(1 << 16))
        guest.flush()
        for at in range(16):
            guest.write(at * 4096, bytes([at + 1]) * 4096)
        lost = await lose(guest, seed=seed, keeps=True)
        blocks = [guest.contents[at * 4096 : (at + 1) * 4096] for at in range(16)]
        assert all(block in (bytes(4096), bytes([at + 1]) * 4096) for at, block in enumerate(blocks))
        assert sum(block == bytes(4096) for block in blocks) == lost.lost
        assert lost.torn == 0
        seen.add(tuple(block[0] for block in blocks))
    assert len(seen) == 20, "each seed chooses other writes"


async def test_the_same_seed_loses_the_same_sectors(tmp_path: Path, positions: PositionCounter) -> None:
    found = []
    for name in ("os", "data"):
        disk = GuestDisk(tmp_path, name=name, positions=positions)
        disk.faults.keep_unsynced()
        rng = random.Random(7)
        for _ in range(40):
            disk.write(rng.randrange(1 << 19), pattern(rng.randrange(1, 20000), rng.randrange(1, 256)))
        lost = await lose(disk, seed=12, keeps=True, tear_bytes=512)
        found.append((lost, disk.contents))
        disk.check_log()
        disk.close()
    assert found[0] == found[1]
    assert found[0][0].torn > 0


@pytest.mark.parametrize("tear_bytes", [0, 512, 4096])
async def test_each_state_is_one_that_the_flushes_allow(guest: GuestDisk, tear_bytes: int) -> None:
    """Each sector has its bytes from the last flush, or those from the end; torn at whole units only."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for turn in range(30):
        flushed = guest.contents
        for _ in range(rng.randrange(1, 30)):
            offset, length = rng.randrange(1 << 18), rng.randrange(1, 30000)
            kind = rng.randrange(6)
            if kind == 0:
                guest.discard(offset, length)
            elif kind == 1 and rng.random() < 0.5:
                assert guest.flush() == 0
                flushed = guest.contents
            else:
                guest.write(offset, pattern(length, rng.randrange(1, 256)))
        end = guest.contents
        await lose(guest, seed=seed + turn, keeps=rng.random() < 0.8, tear_bytes=tear_bytes)
        now = guest.contents
        for at in range(0, len(now), SECTOR):
            piece = now[at : at + SECTOR]
            assert piece in (flushed[at : at + SECTOR], end[at : at + SECTOR]), f"turn {turn}, sector at {at}"
        guest.check_log()


async def test_several_disks_lose_different_writes(tmp_path: Path, positions: PositionCounter) -> None:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    for disk in disks:
        disk.faults.keep_unsynced()
        for block in range(32):
            disk.write(block * 4096, b"x")
    await disk_faults.lose_power([disk.faults for disk in disks], PowerLoss(stream=7, keeps=True))
    first, second = ([disk.contents[block * 4096] for block in range(32)] for disk in disks)
    assert first != second
    assert set(first) == set(second) == {0, ord("x")}
    for disk in disks:
        disk.close()


async def test_a_loss_names_the_ranges_that_have_their_old_bytes_again(guest: GuestDisk) -> None:
    guest.write(0, pattern(200_000, 1))
    guest.flush()
    guest.write(700, pattern(150_000, 2))
    guest.write(1 << 19, b"new")
    lost = await lose(guest)
    assert (lost.ranges, lost.range_count) == (((512, 150_528), (1 << 19, 512)), 2)
    assert sum(length for _, length in lost.ranges) == lost.length
    for at in range(20):
        guest.write(at * 8192, b"x")
    lost = await lose(guest)
    assert (len(lost.ranges), lost.range_count, lost.length) == (16, 20, 20 * 512)


async def test_survivors_are_numbered_by_the_ranges_of_each_disk(tmp_path: Path, positions: PositionCounter) -> None:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    for disk in disks:
        disk.faults.keep_unsynced()
        for block in range(3):
            disk.write(block * 4096, b"x")
    extents = [PowerLoss(survivors=(1,), ranges=((block * 4096, 4096),)) for block in (1, 2)]
    await disk_faults.lose_power([disk.faults for disk in disks], extents)
    assert [[disk.contents[block * 4096] for block in range(3)] for disk in disks] == [[0, ord("x"), 0], [0, 0, ord("x")]]
    for disk in disks:
        disk.close()


async def test_a_discard_of_holes_takes_neither_time_nor_memory(tmp_path: Path, positions: PositionCounter) -> None:
    guest = GuestDisk(tmp_path, size=1 << 40, positions=positions)
    guest.write(1 << 30, pattern(4096, 1))
    guest.flush()
    guest.faults.keep_unsynced()
    await guest.faults.attach(DiskFault("stale", StaleEffect()))
    guest.write(1 << 20, pattern(1024, 2))
    assert (guest.discard(0, 1 << 39), guest.zero(700, 1 << 38)) == (0, 0)
    guest.write((1 << 20) + 512, pattern(1024, 3))
    unsynced = guest.faults.unsynced()
    assert unsynced is not None
    # The zeros do not begin at a line of 16 bytes, so they are three requests: their edges and the middle.
    assert (unsynced.writes, unsynced.written_back) == (6, 0)
    assert unsynced.memory_bytes < 1 << 16
    assert guest.read(1 << 30, 4096) == pattern(4096, 1), "the old bytes of a stale read are kept, too"
    lost = await lose(guest)
    assert lost.ranges == ((1 << 20, 4096), (1 << 30, 4096))
    assert guest.disk.read(1 << 20, 2048) == bytes(2048)
    assert guest.disk.read(1 << 30, 4096) == pattern(4096, 1)
    guest.close()


async def test_no_request_comes_between_the_losses_of_two_disks(tmp_path: Path, positions: PositionCounter) -> None:
    """In the logs, the first disk is not written between its own old bytes and those of the second."""
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    for disk in disks:
        disk.faults.keep_unsynced()
    stop = threading.Event()

    def write_both() -> None:
        while not stop.is_set():
            disks[0].write(0, b"x")
            disks[1].write(0, large)

    large = pattern(65535)
    guests = [Request(write_both) for _ in range(2)]
    for _ in range(100):
        await disk_faults.lose_power([disk.faults for disk in disks])
    stop.set()
    for guest in guests:
        await guest.done()
    found = sorted((*row, number) for number, disk in enumerate(disks) for row in disk.logged_positions())
    is_written = False
    for _, length, number in found:
        if length % 512:  # a guest's write
            is_written |= number == 0
        elif number == 0:
            is_written = False
        else:
            assert not is_written
    for disk in disks:
        disk.check_log()
        disk.close()
