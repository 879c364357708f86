"""Operations that wait for a fault rule: freezes of several disks at one position, and every way in which a wait ends."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.fault_effects import DelayEffect, DiskFault, FailEffect, FreezeEffect, FullEffect
from siterig.blockfs.core.fault_decisions import Turns, stream_of
from siterig.blockfs.disk import disk_faults
from siterig.blockfs.disk.disk_faults import RulesChange
from siterig.cext._core import lib
from tests.support.disks.guest_requests import GuestDisk, Request, until_waiting
from tests.support.disks.log_oracle import KINDS, records
from tests.support.io_faults import SYNC, io_verdict

HOUR_NS = 3600 * 10**9
FREEZE = DiskFault("freeze", FreezeEffect())
DELAY = DiskFault("delay", DelayEffect(HOUR_NS))


@pytest.fixture
def guests(tmp_path: Path, positions: PositionCounter) -> Iterator[list[GuestDisk]]:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    yield disks
    for disk in disks:
        disk.close()


@pytest.mark.parametrize("fault", [FREEZE, DELAY], ids=lambda fault: fault.name)
async def test_a_removed_rule_wakes_the_operations_that_wait_for_it(guests: list[GuestDisk], fault: DiskFault) -> None:
    guest = guests[0]
    rule = await guest.faults.attach(fault)
    requests = [
        Request(lambda: guest.write(0, b"x")),
        Request(lambda: guest.read(4096, 1)),
        Request(guest.flush),
        Request(lambda: guest.discard(8192, 4096)),
    ]
    await guest.faults.wait_fired(rule, 4)
    await until_waiting(guest, rule, 4)
    assert (guest.contents[:1], guest.logged()) == (b"\0", [])
    await guest.faults.detach(rule)
    assert [await request.done() for request in requests] == [1, b"\0", 0, 0]
    assert guest.contents[:1] == b"x"
    guest.check_log()


async def test_disks_that_are_frozen_together_stop_at_one_position(
    guests: list[GuestDisk], positions: PositionCounter
) -> None:
    """A writer writes number n to the first disk, then to the second: in a freeze the second never has more."""
    stop = threading.Event()

    def write_on() -> int:
        n = 0
        while not stop.is_set():
            n += 1
            for guest in guests:
                guest.write(0, n.to_bytes(8, "little"))
        return n

    writers = [Request(write_on)]
    for _ in range(20):
        rules, position = await disk_faults.attach_all([guest.faults for guest in guests], FREEZE)
        before = [guest.contents[:8] for guest in guests]
        first, second = (int.from_bytes(data, "little") for data in before)
        assert first - 1 <= second <= first
        assert [guest.disk.tracking.log.last_position <= position for guest in guests] == [True, True]
        pairs = list(zip([guest.faults for guest in guests], rules, strict=True))
        with trio.fail_after(60):
            while not any(guest.faults.counts(rule).waiting for guest, rule in zip(guests, rules, strict=True)):
                await trio.lowlevel.checkpoint()
        assert [guest.contents[:8] for guest in guests] == before
        assert positions.value == position
        await disk_faults.detach_all(pairs)
    stop.set()
    assert isinstance(await writers[0].done(), int)
    for guest in guests:
        guest.check_log()


async def test_a_freeze_begins_after_the_operations_that_are_under_way(guests: list[GuestDisk]) -> None:
    writing, finish = threading.Event(), threading.Event()

    def hold(operation: int, path: str, _offset: int, _size: int) -> int:
        if operation == SYNC and path.endswith("os.img"):
            writing.set()
            assert finish.wait(60)
        return 0

    frozen: list[int] = []

    async def freeze() -> None:
        _, position = await disk_faults.attach_all([guest.faults for guest in guests], FREEZE)
        frozen.append(position)

    guests[0].write(0, b"x")
    with io_verdict(hold):
        request = Request(guests[0].flush)
        await trio.to_thread.run_sync(writing.wait, 60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(freeze)
            with trio.move_on_after(0.2):
                await trio.sleep_forever()
            assert (frozen, request.is_alive()) == ([], True)
            finish.set()
        assert await request.done() == 0
    assert frozen == [guests[0].disk.tracking.log.last_position]


async def test_a_waiting_request_meets_the_rules_that_came_meanwhile(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    freeze = await guest.faults.attach(FREEZE)
    request = Request(lambda: guest.write(0, b"x"))
    await until_waiting(guest, freeze, 1)
    second = await guest.faults.attach(FREEZE)
    failing = await guest.faults.attach(DiskFault("fail", FailEffect(errno.EILSEQ), ("write",)))
    await guest.faults.detach(freeze)
    await until_waiting(guest, second, 1)
    assert guest.contents[:1] == b"\0"
    await guest.faults.detach(second)
    assert await request.done() == -errno.EILSEQ
    assert guest.faults.counts(failing).fired == 1


async def test_a_freeze_that_is_switched_off_and_on_keeps_waiting_requests(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    rule = await guest.faults.attach(FREEZE)
    requests = [Request(lambda: guest.write(0, b"x")) for _ in range(8)]
    await until_waiting(guest, rule, 8)
    for _ in range(50):
        await guest.faults.set_enabled(rule, False)
        await guest.faults.set_enabled(rule, True)
        now = guest.logged()
        await trio.lowlevel.checkpoint()
        assert guest.logged() == now, "while the freeze is in force nothing is written"
    await guest.faults.set_enabled(rule, False)
    assert [await request.done() for request in requests] == [1] * 8
    guest.check_log()


async def test_a_freeze_after_the_operation_holds_back_only_the_answer(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    fault = DiskFault("late", FreezeEffect(late=True), ("write",), turns=Turns(stream_of(0, ""), occurrence=2))
    rule = await guest.faults.attach(fault)
    assert guest.write(0, b"1") == 1
    request = Request(lambda: guest.write(0, b"2"))
    await until_waiting(guest, rule, 1)
    assert guest.contents[:1] == b"2"
    assert guest.write(4096, b"3") == 1, "other operations continue"
    assert request.is_alive()
    await guest.faults.detach(rule)
    assert await request.done() == 1


@pytest.mark.parametrize("fault", [FREEZE, DELAY], ids=lambda fault: fault.name)
async def test_at_the_end_of_a_mount_nothing_waits(guests: list[GuestDisk], fault: DiskFault) -> None:
    guest, unruly = guests
    rule = await guest.faults.attach(fault)
    request = Request(lambda: guest.write(0, b"x"))
    await until_waiting(guest, rule, 1)
    for disk in guests:
        disk.faults.end_waits()
    assert await request.done() == 1
    assert guest.write(0, b"y") == 1
    await unruly.faults.attach(fault)
    assert unruly.write(0, b"y") == 1, "a rule that comes later keeps nothing, either"


@pytest.mark.parametrize("fault", [FREEZE, DELAY], ids=lambda fault: fault.name)
async def test_the_end_of_a_disk_fails_waiting_requests(
    tmp_path: Path, positions: PositionCounter, fault: DiskFault
) -> None:
    guest = GuestDisk(tmp_path, positions=positions)
    rule = await guest.faults.attach(fault)
    requests = [Request(lambda: guest.write(0, b"x")), Request(lambda: guest.read(0, 1)), Request(guest.flush)]
    await until_waiting(guest, rule, 3)
    [path] = list(tmp_path.rglob("os.*.hrl"))
    guest.disk.close()
    assert [await request.done() for request in requests] == [-errno.EIO] * 3
    lib.sr_handle_close(guest.handle)
    assert [KINDS[found.kind] for found in records(path)] == ["FLUSH"], "the clean mark, and no write"


async def test_a_wait_for_fired_ends_with_the_disk(tmp_path: Path, positions: PositionCounter) -> None:
    guest = GuestDisk(tmp_path, positions=positions)
    rule = await guest.faults.attach(FREEZE)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="is closed")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.faults.wait_fired, rule)
            await trio.testing.wait_all_tasks_blocked()
            guest.disk.close()
    lib.sr_handle_close(guest.handle)


async def test_a_waiting_request_meets_a_full_disk_that_came_meanwhile(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    freeze = await guest.faults.attach(FREEZE)
    request = Request(lambda: guest.write(0, b"x"))
    await until_waiting(guest, freeze, 1)
    await guest.faults.attach(DiskFault("full", FullEffect(0)))
    await guest.faults.detach(freeze)
    assert await request.done() == -errno.ENOSPC
    assert guest.contents[:1] == b"\0"


async def test_a_request_may_wait_while_all_rules_change_again_and_again(guests: list[GuestDisk]) -> None:
    """The waits after the operation end with their rules, and never take more room."""
    guest = guests[0]
    late = DiskFault("late", FreezeEffect(late=True), ("write",))
    ids = [await guest.faults.attach(FREEZE)]
    request = Request(lambda: guest.write(0, b"x"))
    await until_waiting(guest, ids[0], 1)
    for _ in range(5):
        change = RulesChange(guest.faults, attach=[FREEZE, *[late] * 62], detach=ids)
        ((ids,), _) = await disk_faults.change_rules([change])
        await until_waiting(guest, ids[0], 1)
    assert guest.contents[:1] == b"\0"
    await guest.faults.detach(ids[0])
    await until_waiting(guest, ids[1], 1)
    assert guest.contents[:1] == b"x"
    await guest.faults.clear()
    assert await request.done() == 1
