"""The faults of one mount: rules that follow each other, seeds, verdicts, and a power loss by hand."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.power_contract import LossExtent
from siterig.faults.armed_disk_rule import OpenDisk
from siterig.faults.disk_power import DiskPower
from siterig.images import mount_sockets
from siterig.images.mount_faults import LocalFaults, MountFaults
from siterig.images.mount_sockets import FoundMount, socket_of
from siterig.scenarios.faults.records import Injection
from siterig.scenarios.faults.rule_files import parse_rules
from tests.support.disks.guest_requests import GuestDisk, pattern


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[GuestDisk]:
    positions = PositionCounter(tmp_path / "position")
    disk = GuestDisk(tmp_path, positions=positions)
    yield disk
    disk.close()
    positions.close()


@asynccontextmanager
async def faults_of(guest: GuestDisk, *, seed: int | None = None) -> AsyncIterator[tuple[MountFaults, list[Injection]]]:
    found: list[Injection] = []
    alone: Any = SimpleNamespace(disk=guest.disk)
    faults = MountFaults(alone, guest.disk.paths.file("img"), seed=seed, report=found.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(faults.run)
        yield faults, found
        nursery.cancel_scope.cancel()


async def write(guest: GuestDisk) -> int:
    return await trio.to_thread.run_sync(guest.write, 0, bytes(512))


async def test_a_mount_that_has_started_can_be_called(guest: GuestDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="own-", dir="/tmp") as folder:
        monkeypatch.setattr(mount_sockets, "_bases", lambda _uid: [Path(folder, "siterig")])
        async with faults_of(guest) as (faults, _), trio.open_nursery() as nursery:
            await nursery.start(faults.answer_calls, "0:57", notes.append)
            assert socket_of(FoundMount(Path("/m"), "0:57", os.geteuid())).exists()
            nursery.cancel_scope.cancel()
        Path(folder).chmod(0o700)
        Path(folder, "siterig").chmod(0o755)
        async with faults_of(guest) as (faults, _), trio.open_nursery() as nursery:
            await nursery.start(faults.answer_calls, "0:57", notes.append)
    assert [note.partition(": ")[0] for note in notes] == [
        "siterig fault --mnt and siterig power-loss cannot reach this mount"
    ]


async def test_a_rule_that_follows_another_meets_the_very_next_operation(guest: GuestDisk) -> None:
    rules = parse_rules(
        "rules",
        """
        [[fault]]
        name = "first"
        where = { layer = "disk", op = "write" }
        when = { occurrence = 2 }
        what = { error = "EIO", mark = "broken" }
        [[fault]]
        name = "next"
        where = { layer = "disk", op = "write" }
        when = { after = "fault:first", times = 1 }
        what = { error = "ENOSPC" }
        [[fault]]
        name = "flush"
        where = { layer = "disk", op = "flush" }
        when = { after = "mark:broken", until = "fault:next" }
        what = { error = "EROFS" }
        expect = { fired = 0 }
        """,
    )
    async with faults_of(guest) as (faults, injected):
        for _ in range(20):
            await faults.arm(rules)
            assert [await write(guest) for _ in range(4)] == [512, -errno.EIO, -errno.ENOSPC, 512]
            assert await trio.to_thread.run_sync(guest.flush) == 0, "its window has closed again"
            assert all(verdict.ok for verdict in await faults.verdicts())
            assert await faults.control.clear_faults() == 3
        assert [each.rule for each in injected] == ["first", "next"] * 20


async def test_a_rule_that_comes_later_follows_one_in_force_in_each_run(guest: GuestDisk) -> None:
    first = {"name": "first", "where": {"layer": "disk", "op": "write"}, "when": {"every": 2}, "what": {"error": "EIO"}}
    then = {"where": {"layer": "disk"}, "when": {"after": "fault:first", "times": 1}, "what": {"error": "ENOSPC"}}
    async with faults_of(guest) as (faults, _):
        for _ in range(20):
            await faults.control.add_faults(rules=[first])
            assert await write(guest) == 512
            await faults.control.add_faults(rules=[then | {"name": "then"}])
            results = await trio.to_thread.run_sync(lambda: [guest.write(0, bytes(512)) for _ in range(2)])
            assert results == [-errno.EIO, -errno.ENOSPC]
            await faults.control.clear_faults()


async def test_the_seed_is_that_of_the_command(guest: GuestDisk) -> None:
    results = []
    for _ in range(2):
        async with faults_of(guest, seed=11) as (faults, _):
            await faults.control.add_faults(rules=[{"where": {"layer": "disk"}, "when": {"probability": 0.5}} | ERROR])
            results.append([await write(guest) for _ in range(32)])
            assert await faults.control.clear_faults() == 1
    assert results[0] == results[1]
    assert set(results[0]) == {512, -errno.EIO}


ERROR = {"what": {"error": "EIO"}, "name": "x"}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"where": {"layer": "blob"}, "what": {"error": 503}}, "where.layer: 'blob' has no faults here; allowed: disk"),
        ({"where": {"layer": "disk", "vm": "web01"}, "what": {"error": "EIO"}}, "where.vm: 'web01': matches no disk"),
        (
            {"where": {"layer": "disk"}, "what": {"bad_sectors": True}, "expect": {"recoverable": True}},
            "expect.recoverable: true: there is no recovery side here",
        ),
        (
            {"where": {"layer": "disk"}, "when": {"until": "event:RoleReady"}, "what": {"error": "EIO"}},
            "when.until: 'event:RoleReady': events are those of a rig; allowed here: mark, position, time, fault",
        ),
    ],
)
async def test_a_rule_that_a_mount_cannot_have_is_refused_by_name(guest: GuestDisk, rule: dict[str, Any], text: str) -> None:
    async with faults_of(guest) as (faults, _):
        with pytest.raises(RigError) as caught:
            await faults.control.add_faults(rules=[rule | {"name": "x"}])
        assert caught.value.message.startswith("fault 'x': ")
        assert text in caught.value.message
        assert (await faults.control.list_faults()).rules == []


async def test_a_power_loss_by_hand_needs_kept_writes_and_no_guest(guest: GuestDisk) -> None:
    image = guest.disk.paths.file("img")
    disk = OpenDisk("os", "os", guest.faults, image, title="os")
    power = DiskPower(lambda: [disk], remedy="mount it with --power-loss")

    async def lose(extent: LossExtent) -> tuple[int, int]:
        report = await power.lose_disk_power(vm="*", extent=extent, seed=5)
        return report.disks[0].writes, report.disks[0].lost

    with pytest.raises(RigError, match="unsynced writes are not kept: mount it with --power-loss") as caught:
        await lose("all")
    assert caught.value.code == Code.FaultNotPossible
    guest.faults.keep_unsynced()
    for block in range(16):
        guest.write(block * 4096, pattern(4096, block))
    writes, lost = await lose("random")
    assert writes == 16
    assert 0 < lost < 16
    guest.write(0, pattern(4096, 99))
    assert await lose("all") == (1, 1)
    assert guest.contents[:4096] in (bytes(4096), pattern(4096, 0))
    guest.check_log()
    with pytest.raises(RigError, match="there is no VM 'web01' with disks; there are: os"):
        await power.lose_disk_power(vm="web01", extent="all")


async def test_a_rule_waits_for_a_position_of_the_disk(guest: GuestDisk) -> None:
    async with faults_of(guest) as (faults, _):
        await write(guest)
        when = {"after": f"position:{guest.disk.tracking.log.last_position + 10}"}
        await faults.control.add_faults(rules=[{"where": {"layer": "disk", "op": "flush"}, "when": when} | ERROR])
        assert await trio.to_thread.run_sync(guest.flush) == 0
        for _ in range(10):
            await write(guest)
        with trio.fail_after(10):
            while await trio.to_thread.run_sync(guest.flush) == 0:
                await trio.lowlevel.checkpoint()
        assert (await faults.control.list_faults()).rules[0].state == "armed"


async def test_a_disk_without_a_log_has_no_positions(guest: GuestDisk) -> None:
    disk = OpenDisk("os", "os", guest.faults, guest.disk.paths.file("img"))
    faults = LocalFaults(lambda: [disk], [])
    rule = {"where": {"layer": "disk"}, "when": {"after": "position:7"}} | ERROR
    with pytest.raises(RigError, match=r"after: 'position:7': positions are those of a change log; allowed here: mark, t"):
        await faults.control.add_faults(rules=[rule])
