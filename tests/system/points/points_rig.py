"""The recovery side of a rig for tests that kill its processes: vault, applier and disk host, with a real mount."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from siterig.azure_emu.contracts.recovery_side import ManagedDiskState
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.sides.provider import Provider
from siterig.core.fuse_options import FuseOptions
from siterig.core.limits import Limits
from siterig.core.paths import Layout, create
from siterig.rpc import directory, server
from siterig.rpc.client import proxy
from siterig.supervisor import cleanup
from siterig.supervisor.process import Child, execute
from tests.system.points.points_roles import Fuse, Policies, cache_of, clock_of
from tests.system.points.points_source import NS, VM, Source

ROLES = ("azure", "applier", "vault")
PATIENCE_S = 60.0
UNEXPECTED = (
    "Traceback",
    "call_crashed",
    "job_crashed",
    "apply_failed",
    "compaction_failed",
    "damage_not_served",
    "mounted_point_not_opened",
    "disk_not_opened",
    "pins_not_reconciled",
    "base_map_rebuilt",
    "damaged_store_set_aside",
)
"""Words that no role's log may contain, however its process was killed."""
_HOST_OPTIONS = [*FuseOptions().words(), *Limits(log_share_max=1.0, when_log_full="bitmap").words()]
_COMMANDS = {
    "azure": ["-m", "siterig.roles.azure"],
    "applier": ["-m", "tests.system.points.points_roles"],
    "vault": ["-m", "tests.system.points.points_roles"],
}
T = TypeVar("T")


class Rig:
    """A recovery side whose roles are processes; ``source`` stands for the site."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.layout = Layout.of(folder)
        create(self.layout)
        self.vault = directory.vault(self.layout)
        self.link = directory.vault_link(self.layout)
        self.recovery = directory.recovery_side(self.layout)
        self.host = directory.azure(self.layout)
        self._policies: Policies = proxy(Policies, self.layout.socket("vault"))
        self._fuse: Fuse = proxy(Fuse, self.layout.socket("applier"))
        self.source = Source(self.layout.root / "source", rng, cache_of(self.layout), self.recovery, self.link)
        self._children: dict[str, Child] = {}
        self.set_clock()

    def set_clock(self) -> None:
        """Set the vault's clock to the source's time."""
        fresh = self.layout.root / "clock.new"
        fresh.write_text(str(self.source.position * NS))
        fresh.rename(clock_of(self.layout))

    @property
    def running(self) -> list[str]:
        """The roles that were started and not killed."""
        return list(self._children)

    async def start(self, *roles: str) -> None:
        """Start roles concurrently, and return when all of them answer."""
        async with trio.open_nursery() as nursery:
            for role in roles:
                words = [str(self.layout.root), *(_HOST_OPTIONS if role == "azure" else [role])]
                child = await execute(role, [sys.executable, *_COMMANDS[role], *words], self.layout.log(role))
                self._children[role] = child
                nursery.start_soon(child.ready)

    async def kill(self, *roles: str) -> None:
        """Kill roles with SIGKILL, in this order."""
        for role in roles:
            child = self._children.pop(role)
            await child.kill()
            await child.close()

    @asynccontextmanager
    async def armed(self, steps: int) -> AsyncIterator[None]:
        """Kill the applier after so many steps, if the block takes that many, and start it again at once."""
        await self._fuse.arm(steps=steps)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_when_it_ends)
            yield
            nursery.cancel_scope.cancel()
        try:
            await self._fuse.arm(steps=-1)
        except RigError:  # the applier was killed only now
            await self._start_when_it_ends()

    async def _start_when_it_ends(self) -> None:
        await self._children["applier"].wait()
        with trio.CancelScope(shield=True):
            await self.kill("applier")
            await self.start("applier")

    async def policies(self) -> None:
        """Run the vault's policies once, now."""
        self.set_clock()
        await self._policies.round()

    async def ended(self, job: Job) -> Job:
        """Wait for the end of a job, even if processes are killed meanwhile."""
        with trio.fail_after(PATIENCE_S):
            while job.endTime is None:
                await trio.sleep(0.02)
                job = await self.there(lambda name=job.name: self.vault.job(name=name))  # type: ignore[misc]
        return job

    async def there(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of a role, and repeat the call while the role does not answer."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    return await ask()
                except RigError as error:
                    if error.code != "RoleUnavailable":
                        raise
                await trio.sleep(0.02)

    async def settled(self) -> None:
        """Wait until all delivered parts that can be applied are applied, and the vault knows it."""
        expected = {disk.site.disk_id: disk.mark for disk in self.source.disks.values()}
        found: dict[str, tuple[int, int, bool, int]] = {}
        with trio.move_on_after(PATIENCE_S):
            while found != expected:
                marks = await self.there(lambda: self.link.watermarks(vm=VM))
                found = {m.disk_id: (m.generation, m.sync_parts, m.sync_complete, m.log_seq) for m in marks}
                await trio.sleep(0.01)
        assert found == expected, f"applied is {found}, not {expected}"

    async def compacted(self, upto: int) -> list[ManagedDiskState]:
        """Wait until each journal is compacted up to a position, as far as that is possible, and return the disks' states.

        A killed applier has forgotten its orders, so the policies run again and again.
        """
        found = []
        for disk in self.source.disks.values():
            floor = max(end for end in disk.floors() if end <= upto)
            with trio.fail_after(PATIENCE_S):
                while True:
                    state = await self.there(lambda disk=disk: self.recovery.disk_state(disk_id=disk.site.disk_id))  # type: ignore[misc]
                    if state.floor >= floor:
                        break
                    await trio.sleep(0.05)
                    await self.there(self.policies)
            assert state.floor == floor, f"{disk.site.disk_id}: the floor is {state.floor}, not {floor}"
            found.append(state)
        return found

    async def protect(self, hours: int) -> None:
        """Protect the VM, and wait for its first point."""
        await self.vault.create_vm(vm=VM, disks=[])
        await self.ended(await self.vault.enable_protection(vm=VM, interval_s=30, history_hours=hours))
        with trio.fail_after(PATIENCE_S):
            while (await self.vault.items())[0].protectionState != "Protected":  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.02)

    def unexpected(self) -> list[str]:
        """Return the unexpected lines of the roles' logs, with the lines around them."""
        found = []
        for role in ROLES:
            lines = self.layout.log(role).read_text().splitlines()
            for at, line in enumerate(lines):
                if any(word in line for word in UNEXPECTED):
                    found.append(f"{role}: " + "\n".join(lines[max(at - 2, 0) : at + 60]))
        return found


@asynccontextmanager
async def recovery_side(folder: Path, rng: random.Random) -> AsyncIterator[Rig]:
    """Run a rig in ``folder`` during the block; it leaves no process and no mount."""
    rig = Rig(folder, rng)
    faces = {"Provider": (Provider, rig.source)}
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, faces, rig.layout.socket("agent"))
            await rig.start(*ROLES)
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await rig.kill(*rig.running)
            await cleanup.unmount_stale(rig.layout.azure_mount)
