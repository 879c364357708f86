"""Each fault that a guest can meet: the guest's result, the bytes of the disk, and a log that has the same bytes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.fault_effects import (
    BadSectorsEffect,
    DelayEffect,
    DiskEffect,
    DiskFault,
    FailEffect,
    FlipEffect,
    FullEffect,
    GuestOperation,
    LieEffect,
    LimitEffect,
    MisdirectEffect,
    ShortenEffect,
    StaleEffect,
    TearEffect,
)
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import Turns, threshold_of
from siterig.blockfs.disk.disk_faults import RULES_MAX, DiskInjection
from siterig.cext._core import lib
from tests.support.disks.guest_faults import STREAM, fault
from tests.support.disks.guest_requests import GuestDisk, pattern

KIB = 1024
MS = 1_000_000


@pytest.fixture
def guest(tmp_path: Path, positions: PositionCounter) -> Iterator[GuestDisk]:
    disk = GuestDisk(tmp_path, positions=positions)
    yield disk
    disk.close()


def last(guest: GuestDisk) -> DiskInjection:
    return guest.faults.injections()[-1]


# --- errors ------------------------------------------------------------------------------------------------------


async def test_an_injected_error_is_neither_written_nor_logged(guest: GuestDisk) -> None:
    guest.write(0, b"before")
    logged = guest.logged()
    rule = await guest.faults.attach(fault(FailEffect(errno.EREMOTEIO)))
    assert guest.write(0, b"behind") == -errno.EREMOTEIO
    assert guest.read(0, 6) == -errno.EREMOTEIO
    assert guest.flush() == -errno.EREMOTEIO
    assert guest.discard(0, 4096) == -errno.EREMOTEIO
    assert guest.zero(0, 4096) == -errno.EREMOTEIO
    assert (guest.contents[:6], guest.logged()) == (b"before", logged)
    assert [entry.operation for entry in guest.faults.injections()] == ["write", "read", "flush", "discard", "zero"]
    await guest.faults.detach(rule)
    assert (guest.write(0, b"behind"), guest.read(0, 6), guest.flush()) == (6, b"behind", 0)
    guest.check_log()


async def test_only_the_operations_and_the_range_of_a_rule_meet_it(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(FailEffect(), "write", "discard", start=8192, length=4096))
    assert guest.write(8192 - 512, bytes(512)) == 512
    assert guest.write(8192 + 4096, bytes(512)) == 512
    assert guest.read(8192, 4096) == bytes(4096)
    assert (guest.flush(), guest.zero(8192, 4096)) == (0, 0)
    assert guest.faults.counts(rule).matched == 0
    assert guest.write(8192 - 512, bytes(513)) == -errno.EIO
    assert guest.write(8192 + 4095, b"x") == -errno.EIO
    assert guest.discard(0, 1 << 20) == -errno.EIO
    assert guest.faults.counts(rule).matched == 3


async def test_an_error_after_the_operation_comes_with_its_bytes_on_the_disk(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FailEffect(late=True), "write"))
    assert guest.write(0, b"done") == -errno.EIO
    assert guest.contents[:4] == b"done"
    guest.check_log()


async def test_requests_of_the_program_itself_meet_no_fault(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FailEffect()))
    assert guest.disk.write(0, b"mine") == 4
    assert guest.disk.read(0, 4) == b"mine"
    await guest.disk.flush()


# --- choice of operations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns",
    [
        Turns(STREAM, occurrence=3),
        Turns(STREAM, every=4),
        Turns(STREAM, occurrence=5, every=3),
        Turns(STREAM, threshold=threshold_of(0.3)),
        Turns(STREAM, threshold=threshold_of(0.5), times=4),
        Turns(STREAM, times=2),
    ],
)
async def test_the_rules_turns_are_those_of_python(guest: GuestDisk, turns: Turns) -> None:
    rule = await guest.faults.attach(fault(FailEffect(), "write", turns=turns))
    expected: list[int] = []
    for n in range(1, 41):
        fires = turns.fires(n, len(expected))
        expected += [n] if fires else []
        assert (guest.write(0, b"x") < 0) is fires, f"operation {n}"
    counts = guest.faults.counts(rule)
    assert (counts.matched, counts.fired) == (40, len(expected))
    assert counts.last_ns is not None
    assert abs(counts.last_ns - SYSTEM_CLOCK.wall_ns()) < 60_000 * MS


async def test_each_rule_counts_operations_that_another_one_fails(guest: GuestDisk) -> None:
    first = await guest.faults.attach(fault(FailEffect(errno.EIO), "write"))
    second = await guest.faults.attach(fault(FailEffect(errno.ENOSPC), "write"))
    assert guest.write(0, b"x") == -errno.EIO
    assert [guest.faults.counts(rule).fired for rule in (first, second)] == [1, 1]
    assert [entry.hidden for entry in guest.faults.injections()] == [False, True]


async def test_a_disabled_rule_counts_nothing_and_keeps_its_counters(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(FailEffect(), "write", enabled=False))
    assert guest.write(0, b"x") == 1
    await guest.faults.set_enabled(rule, True)
    assert guest.write(0, b"x") == -errno.EIO
    await guest.faults.set_enabled(rule, False)
    assert guest.write(0, b"x") == 1
    assert [(counts.rule, counts.matched, counts.fault.enabled) for counts in guest.faults.list_counts()] == [
        (rule, 1, False)
    ]


# --- bytes -------------------------------------------------------------------------------------------------------


async def test_a_short_write_writes_and_reports_the_first_bytes(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(ShortenEffect(1024)))
    data = pattern(4096)
    assert guest.write(0, data) == 1024
    assert guest.contents[:4096] == data[:1024] + bytes(3072)
    assert guest.read(0, 4096) == data[:1024]
    assert guest.read(0, 1024) == data[:1024]
    assert [(entry.operation, entry.length) for entry in guest.faults.injections()] == [("write", 4096), ("read", 4096)]
    guest.check_log()


@pytest.mark.parametrize(
    ("tear", "kept"),
    [
        (TearEffect(parts=4, keep=(1, 3)), [(0, 4096), (8192, 12288)]),
        (TearEffect(parts=2, keep=()), []),
        (TearEffect(parts=4, keep=(2, 3, 4), unit_bytes=4096), [(4096, 16384)]),
        (TearEffect(parts=3, keep=(3,), unit_bytes=4096), [(8192, 16384)]),
        (TearEffect(sizes=(512, 1000, 1), keep=(2,)), [(512, 1512)]),
        (TearEffect(sizes=(512, 1000, 1), keep=(3,)), [(1512, 16384)]),
        (TearEffect(parts=1 << 16, keep=(1,)), [(0, 512)]),
    ],
)
async def test_a_torn_write_leaves_the_parts_that_are_kept(
    guest: GuestDisk, tear: TearEffect, kept: list[tuple[int, int]]
) -> None:
    old, new, offset = pattern(16384, 1), pattern(16384, 2), 65536
    guest.write(offset, old)
    await guest.faults.attach(fault(tear))
    assert guest.write(offset, new) == 16384
    expected = bytearray(old)
    for start, end in kept:
        expected[start:end] = new[start:end]
    assert guest.contents[offset : offset + 16384] == expected
    assert guest.logged()[1:] == [("write", offset + start, end - start) for start, end in kept]
    guest.check_log()


async def test_a_write_is_torn_at_random_and_alike_with_the_same_seed(
    guest: GuestDisk, tmp_path: Path, positions: PositionCounter
) -> None:
    other = GuestDisk(tmp_path, name="data", positions=positions)
    data = pattern(65536, 7)
    for disk in (guest, other):
        await disk.faults.attach(fault(TearEffect(error=errno.EIO)))
        assert [disk.write(at * 65536, data) for at in range(4)] == [-errno.EIO] * 4
        disk.check_log()
    found = guest.contents
    assert found == other.contents
    sectors = {found[at : at + 512] == data[at % 65536 :][:512] for at in range(0, 4 * 65536, 512)}
    assert sectors == {True, False}
    assert len({found[at : at + 65536] for at in range(0, 4 * 65536, 65536)}) == 4, "each write is torn in its own way"
    other.close()


async def test_a_misdirected_write_is_written_and_logged_where_it_landed(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(MisdirectEffect(8192), "write"))
    assert guest.write(4096, b"astray") == 6
    assert (guest.contents[4096:4102], guest.contents[12288:12294]) == (bytes(6), b"astray")
    assert guest.logged() == [("write", 12288, 6)]
    assert last(guest).detail[0] == 8192
    size = guest.disk.size_bytes
    assert guest.write(size - 8195, b"partly outside") == 14, "the part outside the disk is lost"
    assert guest.contents[size - 3 :] == b"par"
    assert guest.write(size - 100, b"outside") == 7
    await guest.faults.detach(rule)
    await guest.faults.attach(fault(MisdirectEffect(-4)))
    assert guest.write(0, b"0123456789") == 10
    assert guest.contents[:6] == b"456789"
    assert guest.read(2, 4) == b"\0\0" + b"45", "a read comes from there as well"
    guest.check_log()


async def test_a_stale_read_returns_the_bytes_from_before_the_rule(guest: GuestDisk) -> None:
    guest.write(4096, pattern(8192, 1))
    rule = await guest.faults.attach(fault(StaleEffect()))
    guest.write(4096 + 100, pattern(5000, 2))
    guest.write(4096 + 200, pattern(100, 3))
    guest.discard(65536, 4096)
    guest.write(65536, b"new")
    now = guest.contents
    assert guest.read(0, 16384) == bytes(4096) + pattern(8192, 1) + bytes(4096)
    assert guest.read(4096 + 150, 10) == pattern(8192, 1)[150:160]
    assert guest.read(65536, 3) == bytes(3)
    assert guest.contents == now
    await guest.faults.detach(rule)
    assert guest.read(0, 1 << 20) == now
    guest.check_log()


async def test_a_bit_that_flips_on_a_write_is_on_the_disk_and_in_the_log(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FlipEffect(3), "write", start=4096, length=512))
    data = pattern(8192)
    assert guest.write(2048, data) == 8192
    found = guest.contents[2048:10240]
    flipped = [(2048 + at) * 8 + bit for at in range(8192) for bit in range(8) if (found[at] ^ data[at]) >> bit & 1]
    assert flipped == list(last(guest).detail[:3])
    assert all(4096 * 8 <= bit < 4608 * 8 for bit in flipped)
    assert len(flipped) == 3
    guest.check_log()


async def test_a_bit_that_flips_on_a_read_changes_only_the_answer(guest: GuestDisk) -> None:
    data = pattern(4096)
    guest.write(0, data)
    await guest.faults.attach(fault(FlipEffect(), "read", turns=Turns(STREAM, times=1)))
    found = guest.read(0, 4096)
    assert isinstance(found, bytes)
    assert sum((a ^ b).bit_count() for a, b in zip(found, data, strict=True)) == 1
    assert guest.contents[:4096] == data
    assert guest.read(0, 4096) == data


async def test_more_bits_than_a_range_has_flip_them_all(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FlipEffect(4096), "read"))
    assert guest.read(0, 4) == b"\xff" * 4
    found = guest.read(0, 65536)
    assert isinstance(found, bytes)
    assert sum(byte.bit_count() for byte in found) == 4096


async def test_a_write_heals_the_bad_sectors_that_it_covers(guest: GuestDisk) -> None:
    guest.write(0, pattern(16384))
    rule = await guest.faults.attach(fault(BadSectorsEffect(), start=4096, length=4096))
    assert guest.read(0, 8192) == -errno.EIO
    assert guest.read(0, 4096) == pattern(4096)
    assert guest.write(4096, bytes(700)) == 700
    assert guest.read(4096, 512) == bytes(512), "this sector was written as a whole"
    assert guest.read(4608, 512) == -errno.EIO, "this one only in part"
    await guest.faults.set_enabled(rule, False)
    await guest.faults.set_enabled(rule, True)
    assert guest.discard(4608, 1024) == 0
    assert guest.read(4096, 1536) == bytes(1536), "healed sectors stay healed"
    assert guest.read(4096, 1537) == -errno.EIO
    assert guest.zero(0, 16384) == 0
    assert guest.read(0, 16384) == bytes(16384)
    guest.check_log()


async def test_a_flush_that_lies_makes_nothing_durable(guest: GuestDisk) -> None:
    guest.write(0, b"x")
    rule = await guest.faults.attach(fault(LieEffect()))
    assert guest.flush() == 0
    assert guest.logged() == [("write", 0, 1)]
    await guest.faults.detach(rule)
    assert guest.flush() == 0
    assert guest.logged() == [("write", 0, 1), ("flush", 0, 0)]


async def test_a_full_disk_takes_writes_to_places_that_it_has_and_no_others(guest: GuestDisk) -> None:
    guest.write(0, pattern(8192))
    rule = await guest.faults.attach(fault(FullEffect(free_bytes=65536)))
    assert guest.write(1 << 18, bytes([1]) * 65536) == 65536, "there is space for as much"
    assert guest.write(1 << 19, b"x") == -errno.ENOSPC
    assert guest.write(4096, bytes(8192)) == -errno.ENOSPC, "a part of it is new"
    assert guest.write(100, b"x" * 8000) == 8000
    counts = guest.faults.counts(rule)
    assert (counts.fired, last(guest).error) == (2, errno.ENOSPC)
    guest.check_log()


# --- time --------------------------------------------------------------------------------------------------------


async def test_a_delay_and_its_jitter_are_those_of_python(guest: GuestDisk) -> None:
    from siterig.blockfs.core.fault_decisions import delay_ns

    await guest.faults.attach(fault(DelayEffect(4 * MS, 2 * MS, "normal"), "write"))
    began = SYSTEM_CLOCK.monotonic_ns()
    for _ in range(5):
        assert guest.write(0, b"x") == 1
    took = SYSTEM_CLOCK.monotonic_ns() - began
    expected = [delay_ns(STREAM, n, 4 * MS, 2 * MS, "normal") for n in range(1, 6)]
    assert [entry.detail[0] for entry in guest.faults.injections()] == expected
    assert took >= sum(expected)


@pytest.mark.parametrize(
    ("limit", "least_ms"),
    [(LimitEffect(bytes_per_s=1 << 20), 47), (LimitEffect(operations_per_s=100), 110), (LimitEffect(0, 100, 60 * MS), 50)],
)
async def test_operations_begin_no_faster_than_a_limit_allows(guest: GuestDisk, limit: LimitEffect, least_ms: int) -> None:
    await guest.faults.attach(fault(limit, "write"))
    began = SYSTEM_CLOCK.monotonic_ns()
    for _ in range(12):
        assert guest.write(0, bytes(4096)) == 4096
    took_ms = (SYSTEM_CLOCK.monotonic_ns() - began) / MS
    assert least_ms * 0.9 <= took_ms
    assert {entry.effect for entry in guest.faults.injections()} == {"limit"}


async def test_a_request_that_would_wait_is_not_begun_on_a_thread_that_may_not(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(DelayEffect(1), "write", start=4096, length=4096))
    data = b"x"
    for offset, result in ((0, 1), (4096, lib.SR_WOULD_WAIT)):
        assert lib.sr_handle_write(guest.handle | lib.SR_HANDLE_NO_WAIT, data, 1, offset) == result
    assert guest.faults.counts(rule).matched == 0
    assert guest.logged() == [("write", 0, 1)]


# --- reports -----------------------------------------------------------------------------------------------------


async def test_injections_are_numbered_and_only_the_last_are_kept(guest: GuestDisk) -> None:
    await guest.faults.attach(fault(FailEffect(), "write"))
    for _ in range(5000):
        guest.write(512, b"xy")
    found = guest.faults.injections()
    assert [entry.sequence for entry in found] == list(range(905, 5001))
    assert [entry.sequence for entry in guest.faults.injections(4998)] == [4999, 5000]
    entry = found[-1]
    assert (entry.operation, entry.offset, entry.length, entry.effect, entry.error) == ("write", 512, 2, "fail", errno.EIO)


async def test_an_injection_has_the_position_of_its_moment(guest: GuestDisk, positions: PositionCounter) -> None:
    await guest.faults.attach(fault(FailEffect(), "flush"))
    for _ in range(3):
        guest.write(0, b"x")
        guest.flush()
        assert last(guest).position == positions.value


async def test_a_wait_ends_when_the_rule_has_fired_so_often(guest: GuestDisk, autojump_clock: None) -> None:
    rule = await guest.faults.attach(fault(FailEffect(), "write"))
    waited = []

    async def wait(times: int) -> None:
        counts = await guest.faults.wait_fired(rule, times)
        waited.append((times, counts.fired))

    async with trio.open_nursery() as nursery:
        for times in (1, 2, 4):
            nursery.start_soon(wait, times)
        await trio.testing.wait_all_tasks_blocked()
        guest.write(0, b"x")
        guest.write(0, b"x")
        while len(waited) < 2:
            await trio.lowlevel.checkpoint()
        assert sorted(waited) == [(1, 2), (2, 2)]
        guest.write(0, b"x")
        guest.write(0, b"x")
    assert waited[2] == (4, 4)
    await guest.faults.wait_fired(rule, 4)


async def test_a_wait_for_a_rule_that_is_removed_is_an_error(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(FailEffect(), "write"))
    with pytest.RaisesGroup(pytest.RaisesExc(RigError, match=f"no fault rule {rule}")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.faults.wait_fired, rule)
            await trio.testing.wait_all_tasks_blocked()
            await guest.faults.detach(rule)


async def test_an_unknown_rule_is_named_with_those_in_force(guest: GuestDisk) -> None:
    rule = await guest.faults.attach(fault(FailEffect()))
    for call in (guest.faults.detach(999), guest.faults.set_enabled(999, True), guest.faults.wait_fired(999)):
        with pytest.raises(RigError, match=rf"no fault rule 999; in force: {rule} \(fault\)") as caught:
            await call
        assert caught.value.code == Code.FaultNotFound
    await guest.faults.clear()
    with pytest.raises(RigError, match="in force: none"):
        guest.faults.counts(rule)


async def test_a_disk_has_a_limit_of_rules(guest: GuestDisk) -> None:
    for _ in range(RULES_MAX):
        await guest.faults.attach(fault(FailEffect(), "flush"))
    with pytest.raises(RigError, match="has 64 fault rules; allowed: 64"):
        await guest.faults.attach(fault(FailEffect()))
    assert guest.flush() == -errno.EIO
    assert sum(counts.fired for counts in guest.faults.list_counts()) == RULES_MAX


async def test_bad_sectors_have_a_longest_range(guest: GuestDisk) -> None:
    with pytest.raises(RigError, match="bad sectors are 17179869185 bytes; allowed: up to 17179869184"):
        await guest.faults.attach(fault(BadSectorsEffect(), length=(16 << 30) + 1))
    await guest.faults.attach(fault(BadSectorsEffect(), length=16 << 30))
    assert guest.read(0, 1) == -errno.EIO


@pytest.mark.parametrize(
    ("effect", "operations", "message"),
    [
        (FlipEffect(0), (), "bits is 0; allowed: 1 to 4096"),
        (LieEffect(), ("write",), "operation 'write'; allowed: flush"),
        (TearEffect(parts=4, keep=(5,)), (), r"keep names parts \(5,\); allowed: 1 to 4"),
        (TearEffect(unit_bytes=1024), (), "unit_bytes is 1024; allowed: 512 and 4096"),
        (FailEffect(0), (), "error is 0; allowed: 1 to 4095"),
        (TearEffect(sizes=(512, 1 << 32)), (), "sizes are .*; allowed: up to 64 sizes of 1 to 4294967295 bytes"),
    ],
)
def test_a_fault_that_is_not_possible_is_refused(
    effect: DiskEffect, operations: tuple[GuestOperation, ...], message: str
) -> None:
    with pytest.raises(RigError, match=f"fault 'fault': {message}"):
        DiskFault("fault", effect, operations)


async def test_a_rule_with_several_ranges_is_one_rule(guest: GuestDisk) -> None:
    ranges = ((8192, 512), (16384, 4096), (65536, 1024))
    rule = await guest.faults.attach(DiskFault("fault", FailEffect(errno.EIO), ("write",), ranges=ranges))
    places = {
        0: 512,
        7680: 512,
        7681: -errno.EIO,
        8191: -errno.EIO,
        8703: -errno.EIO,
        8704: 512,
        20479: -errno.EIO,
        20480: 512,
    }
    places |= {65024: 512, 66559: -errno.EIO, 66560: 512}
    assert {at: guest.write(at, bytes(512)) for at in places} == places
    assert guest.write(0, bytes(128 * KIB)) == -errno.EIO
    assert guest.faults.counts(rule).matched == 6


async def test_bad_sectors_of_several_ranges_are_healed_one_by_one(guest: GuestDisk) -> None:
    ranges = ((4096, 1024), (12288, 1024))
    await guest.faults.attach(DiskFault("fault", BadSectorsEffect(), ranges=ranges))
    bad = [0, 4096, 4608, 5120, 12288, 12800, 13312]

    def unreadable() -> list[int]:
        return [at for at in bad if guest.read(at, 512) == -errno.EIO]

    assert unreadable() == [4096, 4608, 12288, 12800]
    guest.write(12800, bytes(512))
    assert unreadable() == [4096, 4608, 12288]
    guest.write(4608, bytes(512))
    guest.write(0, bytes(4607))
    assert unreadable() == [4096, 12288], "a part of a sector does not heal it"
    guest.write(0, bytes(4608))
    assert unreadable() == [12288]


async def test_flipped_bits_stay_in_the_first_range_that_the_operation_touches(guest: GuestDisk) -> None:
    await guest.faults.attach(DiskFault("fault", FlipEffect(64), ("write",), ranges=((512, 8), (2048, 8))))
    guest.write(0, bytes(4096))
    found = guest.contents[:4096]
    assert found[512:520] == b"\xff" * 8
    assert not any(found[:512] + found[520:])
    guest.check_log()


async def test_a_delay_stands_before_an_error(guest: GuestDisk) -> None:
    fault_ = DiskFault("fault", FailEffect(errno.EIO), ("write",), delay=DelayEffect(20 * MS))
    await guest.faults.attach(fault_)
    began_ns = SYSTEM_CLOCK.monotonic_ns()
    assert guest.write(0, bytes(512)) == -errno.EIO
    assert SYSTEM_CLOCK.monotonic_ns() - began_ns >= 20 * MS
