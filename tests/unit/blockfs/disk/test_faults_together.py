"""Fault rules that meet each other, ranges that do not fit sectors, and choices that are the same in C and in Python."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.fault_effects import (
    BadSectorsEffect,
    DelayEffect,
    DiskFault,
    FailEffect,
    FlipEffect,
    FullEffect,
    LimitEffect,
    TearEffect,
)
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.fault_decisions import Turns, flipped_bits, threshold_of, torn_ranges
from siterig.cext._core import lib
from tests.support.disks.guest_faults import STREAM, fault
from tests.support.disks.guest_requests import GuestDisk, Request, pattern

MS = 1_000_000


@pytest.fixture
def guest(tmp_path: Path, positions: PositionCounter) -> Iterator[GuestDisk]:
    disk = GuestDisk(tmp_path, positions=positions)
    yield disk
    disk.close()


async def test_a_full_disk_counts_the_blocks_that_a_write_fills_once(guest: GuestDisk) -> None:
    full = DiskFault("full", FullEffect(free_bytes=4 * 4096), delay=DelayEffect(1))
    await guest.faults.attach(full)
    blocks = [1 << 16, (1 << 17) + 3584, (1 << 18) + 512, 1 << 19]
    for offset in blocks:
        wanted = lib.sr_handle_write(guest.handle | lib.SR_HANDLE_NO_WAIT, b"x" * 512, 512, offset)
        assert wanted in (lib.SR_WOULD_WAIT, 512), "a request that is only looked at takes no space"
        assert guest.write(offset, b"x" * 512) == 512
    assert guest.write(0, b"x") == -errno.ENOSPC
    assert guest.write((1 << 17), b"x" * 512) == 512, "the block has its place"
    guest.check_log()


@pytest.mark.parametrize("full_first", [True, False])
async def test_a_write_that_a_rule_fails_takes_no_space(guest: GuestDisk, full_first: bool) -> None:
    rules = [fault(FullEffect(free_bytes=4096)), fault(FailEffect(), "write", turns=Turns(STREAM, times=2))]
    for rule in rules if full_first else reversed(rules):
        await guest.faults.attach(rule)
    assert [guest.write(at * 4096, b"x") for at in range(4)] == [-errno.EIO, -errno.EIO, 1, -errno.ENOSPC]


async def test_bytes_do_not_change_if_a_later_rule_fails_the_write(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FlipEffect(), "write"))
    await guest.faults.attach(fault(FailEffect(), "write"))
    assert guest.write(0, b"x" * 512) == -errno.EIO
    assert [(entry.effect, entry.hidden) for entry in guest.faults.injections()] == [("fail", False), ("flip", True)]


async def test_a_limit_that_delays_nothing_is_no_fault_and_holds_nothing(guest: GuestDisk) -> None:
    held = DiskFault("limit", LimitEffect(operations_per_s=1), ("write",), holds="after")
    rule = await guest.faults.attach(held)
    request = Request(lambda: guest.write(0, b"x"))
    assert await request.done() == 1
    counts = guest.faults.counts(rule)
    assert (counts.matched, counts.fired, counts.last_ns, guest.faults.injections()) == (1, 0, None, [])
    second = Request(lambda: guest.write(0, b"y"))
    await guest.faults.wait_fired(rule)
    await guest.faults.detach(rule)
    assert await second.done() == 1


async def test_a_burst_may_be_longer_than_the_host_runs(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(LimitEffect(0, 1, 1 << 54), "write"))
    began = SYSTEM_CLOCK.monotonic_ns()
    assert [guest.write(0, b"x") for _ in range(3)] == [1] * 3
    assert SYSTEM_CLOCK.monotonic_ns() - began < 500 * MS


async def test_bad_sectors_are_all_those_that_the_range_touches(guest: GuestDisk) -> None:
    ranges = ((100, 10), (300, 10), (1000, 100))
    await guest.faults.attach(DiskFault("fault", BadSectorsEffect(), ranges=ranges))

    def unreadable() -> list[int]:
        return [at for at in range(0, 3072, 512) if guest.read(at, 512) == -errno.EIO]

    assert unreadable() == [0, 512, 1024]
    assert guest.read(0, 1) == -errno.EIO, "a sector is read as a whole"
    guest.write(1, bytes(1023))
    assert unreadable() == [0, 1024]
    guest.write(0, bytes(512))
    assert unreadable() == [1024]


async def test_sectors_are_bad_from_the_begin_of_their_rule(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(BadSectorsEffect(), start=4096, length=4096, enabled=False))
    guest.write(4096, pattern(4096))
    assert guest.read(4096, 4096) == pattern(4096)
    await guest.faults.set_enabled(rule, True)
    assert guest.read(4096, 512) == -errno.EIO, "a write before does not heal it"
    await guest.faults.set_enabled(rule, False)
    guest.write(4096, bytes(512))
    await guest.faults.set_enabled(rule, True)
    assert (guest.read(4096, 512), guest.read(4608, 512)) == (bytes(512), -errno.EIO)


async def test_torn_and_flipped_bytes_are_those_of_python(guest: GuestDisk) -> None:
    """The same choices in C and in Python, byte by byte, also for writes that do not begin or end with a sector."""
    lengths, tears = (
        (1, 511, 512, 700, 4096, 65536, 70001),
        (TearEffect(), TearEffect(parts=3), TearEffect(sizes=(513, 9, 80))),
    )
    expected = bytearray(guest.contents)
    for tear in tears:
        rule = await guest.faults.attach(fault(tear))
        for n, length in enumerate(lengths, 1):
            data, offset = pattern(length, n + 1), 100 * n
            assert guest.write(offset, data) == length
            kept = torn_ranges(STREAM, n, length, parts=tear.parts or None, sizes=tear.sizes or None)
            for start, end in kept:
                expected[offset + start : offset + end] = data[start:end]
            assert guest.contents == expected, (tear, length)
        await guest.faults.detach(rule)
    for bits in (1, 3, 4096):
        rule = await guest.faults.attach(fault(FlipEffect(bits), "write", start=1000, length=300))
        for n, offset in enumerate((900, 1001, 1299), 1):
            data = pattern(600, n + 20)
            assert guest.write(offset, data) == 600
            expected[offset : offset + 600] = data
            first = max(offset, 1000)
            for bit in flipped_bits(STREAM, n, (min(offset + 600, 1300) - first) * 8, bits):
                expected[first + bit // 8] ^= 1 << bit % 8
            assert guest.contents == expected, (bits, offset)
        await guest.faults.detach(rule)
    guest.check_log()


async def test_threads_together_meet_the_faults_that_python_chooses(guest: GuestDisk) -> None:
    turns = Turns(STREAM, threshold=threshold_of(0.3))
    rule = await guest.faults.attach(fault(FailEffect(), "write", turns=turns))

    def write_often() -> list[int]:
        return [guest.write(0, b"x") for _ in range(250)]

    requests = [Request(write_often) for _ in range(4)]
    results = [result for request in requests for result in cast(list[int], await request.done())]
    chosen = [n for n in range(1, 1001) if turns.fires(n, 0)]
    assert sorted(entry.n for entry in guest.faults.injections()) == chosen
    assert sorted(entry.fired for entry in guest.faults.injections()) == list(range(1, len(chosen) + 1))
    assert (results.count(-errno.EIO), guest.faults.counts(rule).matched) == (len(chosen), 1000)
