"""A random walk through operations on a VM's recovery points, compared with byte arrays, for ``test_points_model``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from siterig.azure_emu.vault.model.resources import Job, MountedPoint
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.errors import RigError
from tests.system.points.expected_states import Machine, Mounted, Written
from tests.system.points.points_rig import PATIENCE_S, ROLES, Rig
from tests.system.points.points_source import HOUR, NS, VM, Images, Point, kept, same

TEST_VM = f"{VM}-test"
T = TypeVar("T")


class Walk:
    """A VM and all operations on it; every choice comes from the source's generator."""

    def __init__(self, rig: Rig, seed: int, say: Callable[[str], None]) -> None:
        self._rig, self._source, self._rng, self._say = rig, rig.source, rig.source.rng, say
        self._seed = seed
        self._hours = self._rng.randrange(1, 5)
        self._mounted: dict[str, Mounted] = {}
        self._machines: dict[str, Machine] = {}
        self._pruned: set[str] = set()
        self._retain = 0
        """Positions below this need not be readable, unless something holds them."""
        self._names = 0
        self._failed_over = False

    # --- expected contents ---------------------------------------------------------------------------------------

    def _points(self) -> list[Point]:
        return [point for point in self._source.points() if point.tag_id not in self._pruned]

    def _held(self) -> list[int]:
        """Return the positions at which something is open, lowest first."""
        return sorted(
            [*(each.position for each in self._mounted.values()), *(vm.position for vm in self._machines.values())]
        )

    def _lowest_held(self) -> int:
        return min(self._held(), default=1 << 62)

    def _floor(self) -> int:
        """Return the position that compaction must not pass."""
        return min(self._retain, self._lowest_held())

    def _readable(self) -> list[tuple[int, int]]:
        return [(max(first, self._floor()), last) for first, last in self._source.valid() if last >= self._floor()]

    async def _check_points(self) -> None:
        found = await self._rig.there(lambda: self._rig.vault.points(vm=VM))
        expected = sorted(self._points(), key=lambda point: -point.position)
        assert [(p.id, p.position, p.type == "ApplicationConsistent") for p in found] == [
            (point.tag_id, point.position, point.app) for point in expected
        ]

    async def _check_floors(self) -> None:
        """Check that positions that nothing needs are compacted in the end, and no others."""
        self._say(f"retain {self._retain}, held {self._lowest_held()}")
        states = await self._rig.compacted(max(self._floor(), *(disk.floors()[0] for disk in self._source.disks.values())))
        for disk, state in zip(self._source.disks.values(), states, strict=True):
            assert sorted(pin.position for pin in state.pins) == self._held()
            disk.forget_before(state.floor)

    async def _check_open(self) -> None:
        for each in self._mounted.values():
            for name, path in each.paths.items():
                what = f"recovery {each.name} at position {each.position}: {name}"
                same(await _reading(path.read_bytes), each.images[name], what)
        for vm, machine in self._machines.items():
            for name, written in machine.disks.items():
                await _reading(partial(written.check, f"{vm} over position {machine.position}: {name}"))

    # --- the source ---------------------------------------------------------------------------------------------

    def _disk(self) -> str:
        return self._rng.choice(sorted(self._source.disks))

    async def write(self) -> None:
        """Write, zero and discard at the source."""
        self._source.write(self._disk(), self._rng.randrange(1, 9))

    async def grow(self) -> None:
        """Grow a disk."""
        self._source.grow(self._disk(), self._rng.randrange(1, 60))

    async def close_log(self) -> None:
        """Close a part without a tag."""
        self._source.close_log(self._disk())

    async def tag(self) -> None:
        """Make a point, as far as the source can."""
        kind: TagKind = self._rng.choice(("CrashConsistent", "CrashConsistent", "ApplicationConsistent"))
        self._source.tag(kind)

    async def deliver(self) -> None:
        """Deliver some parts in any order, and some of them twice."""
        await self._source.deliver(self._disk(), self._rng.randrange(1, 6))

    async def deliver_all(self) -> None:
        """Deliver all parts, wait until they are applied, and check the points."""
        await self._source.deliver_all()
        await self._rig.settled()
        await self._check_points()

    async def create_point(self) -> None:
        """Create a point through the vault."""
        if self._failed_over:
            return
        kind: TagKind = self._rng.choice(("CrashConsistent", "ApplicationConsistent"))
        with trio.fail_after(PATIENCE_S):
            point = await self._rig.vault.create_point(vm=VM, kind=kind, name="asked")
        assert (point.id, point.position) == (self._source.tags[-1].tag_id, self._source.tags[-1].position)

    async def resync(self) -> None:
        """Begin a new generation with the differences; unsent parts of the old one are lost."""
        if self._failed_over:
            return
        await self._rig.settled()
        job = await self._rig.ended(await self._rig.vault.resync(vm=VM))
        assert job.state == "Succeeded", job
        await self._rig.settled()
        await self._check_points()

    # --- states of the past -------------------------------------------------------------------------------------

    def _position(self) -> int:
        """Return a readable position: where something changed, near it, or anywhere."""
        first, last = self._rng.choice(self._readable())
        states = sorted(at for disk in self._source.disks.values() for at in disk.site.states)
        edges = [at + by for at in states for by in (-1, 0, 1) if first <= at + by <= last] or [last]
        tags = [point.position for point in self._points() if first <= point.position <= last] or [first]
        return self._rng.choice((self._rng.choice(edges), self._rng.choice(edges), self._rng.choice(tags), first, last))

    def _choice(self) -> tuple[str, int]:
        """Return a point, a position or a time as a user writes it, and the position that it means."""
        position = self._position()
        points = self._points()
        match self._rng.randrange(8):
            case 0:
                return "LatestProcessed", max(points, key=lambda p: p.position).position
            case 3 if any(point.app for point in points):
                return "LatestApplicationConsistent", max(point.position for point in points if point.app)
            case 1 | 2:
                point = min(self._rng.choices(points, k=2), key=lambda point: point.position)  # old ones are removed first
                return point.tag_id, point.position
            case 4 | 5:
                seconds, rest = divmod(position * NS, 1_000_000_000)
                return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z", position
            case _:
                return f"@{position}", position

    def _unreadable(self) -> int:
        """Return a position that is refused: in the future, or between two generations."""
        gaps = [(a[1] + 1, b[0] - 1) for a, b in zip(self._source.valid(), self._source.valid()[1:], strict=False)]
        gaps = [(max(a, self._floor()), b) for a, b in gaps if b >= max(a, self._floor())]
        if gaps and self._rng.random() < 0.7:
            first, last = self._rng.choice(gaps)
            return self._rng.choice((first, last, self._rng.randint(first, last)))
        return max(last for _, last in self._source.valid()) + 1 + self._rng.randrange(1000)

    async def mount(self) -> None:
        """Mount a state read-only, while more parts come."""
        await self._rig.settled()
        choice, position = self._choice()
        images = self._source.images(position)
        await self._more_comes(choice)
        self._names += 1
        name = self._rng.choice((None, f"state-{self._names % 3}"))
        try:
            found = await self._rig.vault.mount_point(vm=VM, point=choice, name=name)
        except RigError as error:
            taken = error.code == "RecoveryExists" and name in self._mounted
            if not taken:
                raise
            return
        assert found.position <= position
        self._say(f"mounted {found.name} at {found.position} for {choice}")
        self._take(found, images)
        await self._check_open()

    def _take(self, found: MountedPoint, images: Images) -> None:
        assert found.broken is None
        point = None if found.recovery_point is None else found.recovery_point.id
        paths = {disk.name: Path(disk.path) for disk in found.disks}
        self._mounted[found.name] = Mounted(found.name, found.position, images, point, paths)

    async def _more_comes(self, choice: str) -> None:
        """Deliver more parts, unless they would change the choice."""
        if not choice.startswith("Latest"):
            await self._source.deliver(self._disk(), 3)

    async def mount_refused(self) -> None:
        """Check that a position that cannot be read is refused."""
        await self._rig.settled()
        position = self._unreadable()
        with trio.fail_after(PATIENCE_S):
            try:
                await self._rig.vault.mount_point(vm=VM, position=position, name="refused")
            except RigError as error:
                assert error.code == "InvalidPosition", error
            else:
                raise AssertionError(f"position {position} was mounted; valid are {self._source.valid()}")

    async def unmount(self) -> None:
        """Unmount one of the mounted states."""
        if self._mounted:
            name = self._rng.choice(sorted(self._mounted))
            await self._rig.vault.unmount_point(vm=VM, name=name)
            gone = self._mounted.pop(name)
            assert not any(path.exists() for path in gone.paths.values())

    async def scrub(self) -> None:
        """Scrub the managed disks, which must find no damage."""
        for disk in self._source.disks.values():
            assert await self._rig.recovery.scrub(disk_id=disk.site.disk_id) == []

    # --- failover -----------------------------------------------------------------------------------------------

    def _made(self, job: Job, images: Images) -> Machine:
        assert job.state == "Succeeded", job
        assert job.result is not None
        assert job.recovery_point is not None
        disks = {disk.name: Written(Path(disk.path), bytearray(images[disk.name])) for disk in job.result.disks}
        assert disks.keys() == images.keys()
        return Machine(job.recovery_point.position, job.recovery_point.id, disks)

    async def test_failover(self) -> None:
        """Fail over a test VM to a point, a position or a time, while more parts come."""
        if TEST_VM in self._machines:
            return
        await self._rig.settled()
        choice, position = self._choice()
        images = self._source.images(position)
        job = await self._rig.vault.test_failover(vm=VM, point=choice)
        await self._more_comes(choice)
        self._machines[TEST_VM] = self._made(await self._rig.ended(job), images)
        self._say(f"test VM at {self._machines[TEST_VM].position} for {choice}")
        await self._check_open()

    async def use(self) -> None:
        """Write in each VM, with and without a sync, and read."""
        for vm, machine in self._machines.items():
            written = machine.disks[self._disk()]
            await _reading(partial(written.write, self._rng, durable=self._rng.random() < 0.5))
            await _reading(partial(written.check, f"{vm} over position {machine.position}, written to"))

    async def clean_up(self) -> None:
        """Remove the test VM."""
        if TEST_VM in self._machines:
            job = await self._rig.ended(await self._rig.vault.cleanup_test_failover(vm=VM))
            assert job.state == "Succeeded", job
            del self._machines[TEST_VM]

    async def fail_over(self) -> None:
        """Fail over the VM itself, to another point each time: nothing of an earlier failover is left."""
        await self._rig.settled()
        choice, position = self._choice()
        images = self._source.images(position)
        self._machines.pop(VM, None)
        job = await self._rig.ended(await self._rig.vault.unplanned_failover(vm=VM, point=choice))
        self._failed_over = True
        self._machines[VM] = self._made(job, images)
        self._say(f"failed over to {self._machines[VM].position} for {choice}")
        await self._check_open()

    async def commit(self) -> None:
        """Commit the failover: the VM's disks become independent, and hold nothing of the managed disks."""
        await self.clean_up()
        await self.use()
        job = await self._rig.ended(await self._rig.vault.commit_failover(vm=VM))
        assert job.state == "Succeeded", job
        await self.use()
        if self._rng.random() < 0.5:
            await self._kill(["azure"])
        with trio.fail_after(PATIENCE_S):
            while any(disk.promotion for disk in await self._rig.host.list_disks(vm=VM)):  # noqa: ASYNC110 (elsewhere)
                await trio.sleep(0.01)
        await self.use()
        await self._check_open()
        for disk in self._source.disks.values():
            state = await self._rig.recovery.disk_state(disk_id=disk.site.disk_id)
            assert sorted(pin.position for pin in state.pins) == sorted(each.position for each in self._mounted.values())

    # --- policies and kills -------------------------------------------------------------------------------------

    async def age(self) -> None:
        """Let time pass, with a point now and then, and apply the vault's policies."""
        await self._apply_all()
        for _ in range(self._rng.randrange(1, 4)):
            self._source.advance(self._rng.randrange(HOUR // 12, HOUR + HOUR // 2))
            self._source.write(self._disk(), 2)
            await self.tag()
            await self._apply_all()
        await self.retain()

    async def _apply_all(self) -> None:
        """Apply all parts: an unreported point's age counts from its applying, and the oracle's from its tag."""
        self._rig.set_clock()
        await self._source.deliver_all()
        await self._rig.settled()

    async def retain(self) -> None:
        """Apply the policies once: expired points are removed, and all other points stay."""
        await self._source.deliver_all()
        await self._rig.settled()
        await self._check_points()
        await self._rig.policies()
        points = self._points()
        in_use = {each.point for each in self._mounted.values() if each.point} | {vm.point for vm in self._machines.values()}
        left = kept(points, self._source.position, self._hours, in_use)
        gone = {point.tag_id for point in points} - {point.tag_id for point in left}
        self._pruned |= gone
        self._retain = max(self._retain, min(point.position for point in left))
        self._say(f"{len(gone)} of {len(points)} points pruned")
        await self._check_points()
        if self._rng.random() < 0.5:  # otherwise the compaction continues during the next step
            await self._check_floors()
        await self._check_open()

    def _some_roles(self) -> list[str]:
        return self._rng.sample(ROLES, self._rng.choice((1, 1, 1, 2, len(ROLES))))

    async def _kill(self, roles: list[str]) -> None:
        self._say(f"kill {', '.join(roles)}")
        await self._rig.kill(*roles)
        await self._rig.start(*self._rng.sample(roles, len(roles)))
        if "azure" in roles:
            for vm, machine in self._machines.items():
                for name, written in machine.disks.items():
                    await _reading(partial(written.after_kill, f"{vm} after a kill: {name}"))

    async def _check_all(self) -> None:
        """Check that all promised states are there, and nothing else."""
        found = await self._rig.there(lambda: self._rig.vault.mounted_points(vm=VM))
        assert {each.name: (each.position, each.broken) for each in found} == {
            each.name: (each.position, None) for each in self._mounted.values()
        }
        await self._rig.settled()
        await self._check_points()
        await self._check_open()
        for disk in self._source.disks.values():
            state = await self._rig.there(lambda disk=disk: self._rig.recovery.disk_state(disk_id=disk.site.disk_id))  # type: ignore[misc]
            assert sorted(pin.position for pin in state.pins) == self._held()

    async def kill(self) -> None:
        """Kill some of the processes, and check that everything is there again."""
        await self._kill(self._some_roles())
        await self._check_all()

    async def _interrupted(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Kill some of the processes during a call, and return its result if it is known."""
        result: T | None = None

        async def attempt() -> None:
            nonlocal result
            try:
                result = await call()
            except RigError as error:
                self._say(f"interrupted: {error}")
                if not error.recoverable:
                    raise

        roles, delay_s = self._some_roles(), self._rng.choice((0.0, 0.003, 0.01, 0.02, 0.05, 0.1))
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt)
                await trio.sleep(delay_s)
                await self._kill(roles)
        return result

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds: each interrupted call can be repeated."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    return await call()
                except RigError as error:
                    if not error.recoverable:
                        raise
                await trio.sleep(0.02)

    async def mount_interrupted(self) -> None:
        """Interrupt a mount and its unmount; repeated, the state is mounted, and then unmounted."""
        await self._rig.settled()
        position = self._position()
        images = self._source.images(position)

        def mount() -> Awaitable[MountedPoint]:
            return self._rig.vault.mount_point(vm=VM, position=position, name="cut")

        await self._interrupted(mount)
        self._take(await self._again(mount), images)
        await self._check_all()
        await self._interrupted(lambda: self._rig.vault.unmount_point(vm=VM, name="cut"))
        del self._mounted["cut"]
        try:
            await self._again(lambda: self._rig.vault.unmount_point(vm=VM, name="cut"))
        except RigError as error:
            assert error.code == "NotMounted"
        await self._check_all()

    async def test_failover_interrupted(self) -> None:
        """Interrupt a test failover: it is complete, or failed and can be cleaned up; the cleanup ends after any kill."""
        if TEST_VM in self._machines:
            return
        await self._rig.settled()
        position = self._position()
        images = self._source.images(position)
        await self._interrupted(lambda: self._rig.vault.test_failover(vm=VM, point=f"@{position}"))
        job = await self._last_job("TestFailover")
        if job is not None and job.state == "Succeeded":
            self._machines[TEST_VM] = self._made(job, images)
            await self._check_all()
        (item,) = await self._rig.vault.items()
        self._machines.pop(TEST_VM, None)
        if item.testFailoverState != "None":
            await self._interrupted(lambda: self._rig.vault.cleanup_test_failover(vm=VM))
            job = await self._last_job("TestFailoverCleanup")
            (item,) = await self._rig.vault.items()
            if item.testFailoverState != "None":  # the request came too late
                job = await self._rig.ended(await self._rig.vault.cleanup_test_failover(vm=VM))
            assert job is not None
            assert job.state == "Succeeded", job
        await self._check_all()

    async def _last_job(self, scenario: str) -> Job | None:
        """Wait for the end of the newest job; return None if it belongs to another scenario."""
        newest = (await self._rig.vault.jobs())[0]
        return await self._rig.ended(newest) if newest.scenarioName == scenario else None

    async def resync_interrupted(self) -> None:
        """Interrupt a resync, which must succeed nevertheless."""
        if self._failed_over:
            return
        await self._rig.settled()
        await self._interrupted(lambda: self._rig.vault.resync(vm=VM))
        job = await self._last_job("RepairVMReplication")
        assert job is None or job.state == "Succeeded", job
        await self._check_all()

    async def in_use(self) -> None:
        """Check that states and VMs in use are not removed."""
        for name, each in list(self._mounted.items())[:1]:
            with each.paths["os"].open("rb"):
                with pytest.raises(RigError) as caught:
                    await self._rig.vault.unmount_point(vm=VM, name=name)
                assert caught.value.code == "RecoveryInUse"
        if TEST_VM in self._machines:
            with self._machines[TEST_VM].disks["os"].path.open("rb"):
                job = await self._rig.ended(await self._rig.vault.cleanup_test_failover(vm=VM))
                assert [error.code for error in job.errors] == ["DiskInUse"]
        await self._check_open()

    async def kill_during_work(self) -> None:
        """Kill the applier at some step of applying or compaction."""
        act: Callable[[], Awaitable[None]] = self._rng.choice((self.age, self.deliver_all, self.retain))
        steps = self._rng.randrange(60)
        self._say(f"kill after {steps} steps of {act.__name__}")
        async with self._rig.armed(steps):
            await act()
        await self._check_open()

    # --- the walk -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        await self._rig.protect(self._hours)
        await self._rig.settled()
        await self._check_points()

    async def step(self, number: int) -> None:
        """Take a random step; the choice does not depend on the results of earlier steps."""
        self._rng.seed(f"{self._seed} {number}")
        often = (self.write, self.close_log, self.tag, self.deliver, self.deliver, self.mount, self.mount, self.use)
        seldom = (
            self.grow,
            self.deliver_all,
            self.create_point,
            self.resync,
            self.mount_refused,
            self.unmount,
            self.unmount,
            self.scrub,
            self.test_failover,
            self.test_failover,
            self.clean_up,
            self.kill,
            self.age,
            self.age,
            self.age,
            self.age,
            self.kill_during_work,
            self.mount_interrupted,
            self.test_failover_interrupted,
            self.resync_interrupted,
            self.in_use,
        )
        act = self._rng.choice((*often, *often, *often, *seldom))
        self._say(act.__name__)
        await act()

    async def end(self) -> None:
        """Release all states and compact the rest; or fail over the VM finally."""
        await self.retain()
        if self._rng.random() < 0.5:
            for _ in range(self._rng.randrange(1, 3)):
                await self.fail_over()
                await self.use()
                await self.retain()
            await self.commit()
        else:
            while self._mounted:
                await self.unmount()
            await self.clean_up()
            await self.age()
            await self._check_floors()
        await self.scrub()


async def _reading(call: Callable[[], object]) -> bytes:
    """Run a call in a thread with a time limit, so that a mount that hangs does not hang the test."""
    with trio.fail_after(PATIENCE_S):
        found = await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    return found if isinstance(found, bytes) else b""
