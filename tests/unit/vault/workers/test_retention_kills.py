"""The vault is killed at every change, commit and call of a round of its retention: no kept point is lost.

A run takes some of these steps; ``SITERIG_ALL_STEPS=1`` takes all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from sqlalchemy import event

from siterig.azure_emu.vault.points import points
from siterig.azure_emu.vault.points.retention import HOUR_NS, Policy, expired
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.control import CutInfo
from siterig.blockfs.contracts.disk_spec import DiskSpec
from tests.support.faults.some_steps import some_steps
from tests.support.rigs import vault_fakes
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import FakeRecovery, idle, running

pytestmark = pytest.mark.slow

KILLED = 9
VMS = ("db01", "web01")
RELEASED = "released"
"""Name of the file with the calls of ``retain`` of the recovery side, one line each; it outlives the vault."""


class RecordingWorld(World):
    """A world whose recovery side records the released positions in the vault's folder."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path()
        self.cuts: list[CutInfo] = []
        self.kept: dict[str, set[str]] = {}
        self.step: Callable[[str], None] = lambda _name: None

    def released(self) -> list[tuple[str, int]]:
        path = self.folder / RELEASED
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    async def live(self, vault: Vault) -> None:
        """Protect two VMs, and give them points of two days, of which none is pruned yet."""
        for vm in VMS:
            await vault.vms.create_vm(vm=vm, disks=[DiskSpec(name=name, size_bytes=1 << 30) for name in ("data", "os")])
            await vault.protection.enable_protection(vm=vm, interval_s=30)
            await idle(vault)
        for number in range(24):
            self.now_ns += 2 * HOUR_NS
            for vm in VMS:
                self.position += 10
                self.cuts.append(
                    CutInfo(
                        vm=vm,
                        tag_id=f"00000000-0000-4000-8000-{self.position:012}",
                        name="cycle",
                        position=self.position,
                        kind="ApplicationConsistent" if number % 9 == 0 else "CrashConsistent",
                        time_ns=self.now_ns,
                    )
                )
                self.cached.append((vm, self.cuts[-1]))
                await self.apply_cached()
        for vm in VMS:
            facts = await vault.context.database.transact(lambda session, vm=vm: points.facts(session, vm))  # type: ignore[misc]
            gone = expired(facts, Policy())
            assert len(gone) > 8
            self.kept[vm] = {point.id for point in facts} - set(gone)

    async def round(self) -> None:
        """Do one round of retention with a new vault; ``step`` is called at each of its steps."""
        async with running(self, self.folder) as vault:
            await idle(vault)
            engine = vault.context.database.engine
            event.listen(engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: self._changes(sql))
            event.listen(engine, "commit", lambda _c: self.step("COMMIT"))
            await vault.retention.round()
            self.step("the end")

    def _changes(self, sql: str) -> None:
        if not sql.startswith(("SELECT", "BEGIN")):
            self.step(sql.split("(", maxsplit=1)[0])

    async def listed(self, vault: Vault, vm: str) -> dict[str, int]:
        return {point.id: point.position for point in await vault.recovery_points.points(vm=vm)}


class RecordingRecovery(FakeRecovery):
    async def retain(self, *, positions: dict[str, int]) -> None:
        assert isinstance(self.world, RecordingWorld)
        self.world.step("retain")
        with (self.world.folder / RELEASED).open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in positions.items())
        await super().retain(positions=positions)


def killed_in_round(world: RecordingWorld, kill_at: int) -> None:
    left = [kill_at]

    def step(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(KILLED)

    child = os.fork()
    if child == 0:
        try:
            world.step = step
            trio.run(world.round)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


async def check_and_finish(world: RecordingWorld, what: str) -> set[str]:
    """Check the points after a restart, and after the next round; return the VMs that were pruned before the kill."""
    pruned = set()
    async with running(world, world.folder) as vault:
        disks = {vm: {disk.disk_id for disk in world.site[vm].values()} for vm in VMS}
        for vm in VMS:
            listed = await world.listed(vault, vm)
            assert listed.keys() >= world.kept[vm], what
            released = [position for disk_id, position in world.released() if disk_id in disks[vm]]
            assert not released or max(released) <= min(listed.values()), (
                f"{what}: the recovery side released a point that is listed"
            )
            if listed.keys() == world.kept[vm]:
                pruned.add(vm)
            else:
                assert len(listed) == 25, f"{what}: some are pruned, some are not"
        for cut in world.cuts:  # the applier reports again all points in its journals
            for disk_id in sorted(disks[cut.vm]) if cut.tag_id not in world.kept[cut.vm] else ():
                await world.report(disk_id, cut)
        for vm in pruned:
            assert (await world.listed(vault, vm)).keys() == world.kept[vm], f"{what}: pruned points come back"
        await vault.retention.round()
        for vm in VMS:
            listed = await world.listed(vault, vm)
            assert listed.keys() == world.kept[vm], what
            for disk_id in disks[vm]:
                assert [position for released_of, position in world.released() if released_of == disk_id][-1] == min(
                    listed.values()
                ), what
    return pruned


def test_a_kill_between_any_two_steps_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_fakes, "FakeRecovery", RecordingRecovery)
    monkeypatch.setattr(points, "_IDS_IN_QUERY", 4)
    world, ready = RecordingWorld(), tmp_path / "ready"

    async def live() -> None:
        async with running(world, ready) as vault:
            await world.live(vault)

    def fresh(name: str) -> None:
        world.folder = Path(shutil.copytree(ready, tmp_path / name))

    ready.mkdir()
    trio.run(live)
    steps: list[str] = []
    fresh("whole")
    world.step = steps.append
    trio.run(world.round)
    world.step = lambda _name: None
    assert steps.count("retain") == 1
    assert steps.count("COMMIT") == 4
    assert sum(name.startswith("DELETE") for name in steps) >= 12
    found = []
    commits = [steps[:number].count("COMMIT") for number in range(len(steps))]
    for kill_at in some_steps([f"{name} after {done} commits" for name, done in zip(steps, commits, strict=True)]):
        name = steps[kill_at]
        fresh(str(kill_at))
        killed_in_round(world, kill_at)
        found.append(trio.run(check_and_finish, world, f"killed before step {kill_at}: {name}"))
        shutil.rmtree(world.folder)
    assert [set(), {"db01"}, {"db01", "web01"}] == [each for i, each in enumerate(found) if each not in found[:i]]
