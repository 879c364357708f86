"""A random walk through operations on a VM's recovery points, checked against byte arrays, for ``test_points_model``."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from siterig.azure_emu.vault.model.api import Job, MountedPoint
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.errors import RigError
from tests.system.points.points_rig import PATIENCE_S, ROLES, Rig
from tests.system.points.points_source import HOUR, NS, VM, Images, Point, kept, same

TEST_VM = f"{VM}-test"
T = TypeVar("T")


@dataclass
class Mounted:
    """A state that is mounted read-only, and what it must read as."""

    name: str
    position: int
    images: Images
    point: str | None
    paths: dict[str, Path]


@dataclass
class Written:
    """A writable disk over a point: what is durable, and what was written since."""

    path: Path
    synced: bytearray
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def now(self) -> bytes:
        """What is read while nothing is killed."""
        data = bytearray(self.synced)
        for at, piece in self.unsynced:
            data[at : at + len(piece)] = piece
        return bytes(data)

    def write(self, rng: random.Random, *, durable: bool) -> None:
        fd = os.open(self.path, os.O_RDWR)
        try:
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(self.synced))
                piece = rng.randbytes(min(rng.choice((512, 4096, 9000)), len(self.synced) - at))
                assert os.pwrite(fd, piece, at) == len(piece)
                self.unsynced.append((at, piece))
            if durable:
                os.fsync(fd)
                self.synced, self.unsynced = bytearray(self.now), []
        finally:
            os.close(fd)

    def check(self, what: str) -> None:
        same(self.path.read_bytes(), self.now, what)

    def after_kill(self, what: str) -> None:
        """What was synced is there; of the rest each byte is old or new, and stays so."""
        found = self.path.read_bytes()
        assert len(found) == len(self.synced), what
        allowed = bytearray(self.synced)
        for at, piece in self.unsynced:
            for i, byte in enumerate(piece, at):
                if found[i] == byte:
                    allowed[i] = byte
        same(found, bytes(allowed), what)
        self.synced, self.unsynced = bytearray(found), []


@dataclass
class Machine:
    """A VM on the recovery side."""

    position: int
    point: str
    disks: dict[str, Written]


class Walk:
    """One VM's life; every choice is from the source's generator."""

    def __init__(self, rig: Rig, seed: int, say: Callable[[str], None]) -> None:
        self._rig, self._source, self._rng, self._say = rig, rig.source, rig.source.rng, say
        self._seed = seed
        self._hours = self._rng.randrange(1, 5)
        self._mounted: dict[str, Mounted] = {}
        self._machines: dict[str, Machine] = {}
        self._pruned: set[str] = set()
        self._retain = 0
        """Below this nothing has to be there, if nothing holds it."""
        self._names = 0
        self._failed_over = False

    # --- what must be there -------------------------------------------------------------------------------------

    def _points(self) -> list[Point]:
        return [point for point in self._source.points() if point.tag_id not in self._pruned]

    def _held(self) -> list[int]:
        """Positions that something is open at, lowest first."""
        return sorted(
            [*(each.position for each in self._mounted.values()), *(vm.position for vm in self._machines.values())]
        )

    def _lowest_held(self) -> int:
        return min(self._held(), default=1 << 62)

    def _floor(self) -> int:
        """Nothing is folded beyond this."""
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
        """What was given up is folded in the end, and nothing else."""
        self._say(f"retain {self._retain}, held {self._lowest_held()}")
        states = await self._rig.folded(max(self._floor(), *(disk.floors()[0] for disk in self._source.disks.values())))
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
        """Writes, zeros and discards at the source."""
        self._source.write(self._disk(), self._rng.randrange(1, 9))

    async def grow(self) -> None:
        """A disk grows."""
        self._source.grow(self._disk(), self._rng.randrange(1, 60))

    async def close_log(self) -> None:
        """A part without a tag."""
        self._source.close_log(self._disk())

    async def tag(self) -> None:
        """A point, as far as the source can make one."""
        kind: TagKind = self._rng.choice(("CrashConsistent", "CrashConsistent", "ApplicationConsistent"))
        self._source.tag(kind)

    async def deliver(self) -> None:
        """Some parts come, in any order, some twice."""
        await self._source.deliver(self._disk(), self._rng.randrange(1, 6))

    async def deliver_all(self) -> None:
        """Everything that was sent has come, is applied, and its points are there."""
        await self._source.deliver_all()
        await self._rig.settled()
        await self._check_points()

    async def create_point(self) -> None:
        """Through the vault."""
        if self._failed_over:
            return
        kind: TagKind = self._rng.choice(("CrashConsistent", "ApplicationConsistent"))
        with trio.fail_after(PATIENCE_S):
            point = await self._rig.vault.create_point(vm=VM, kind=kind, name="asked")
        assert (point.id, point.position) == (self._source.tags[-1].tag_id, self._source.tags[-1].position)

    async def resync(self) -> None:
        """A new generation with the differences; what was not sent of the old one is lost."""
        if self._failed_over:
            return
        await self._rig.settled()
        job = await self._rig.ended(await self._rig.vault.resync(vm=VM))
        assert job.state == "Succeeded", job
        await self._rig.settled()
        await self._check_points()

    # --- looking at the past ------------------------------------------------------------------------------------

    def _position(self) -> int:
        """One that can be read: where something changed, near it, or anywhere."""
        first, last = self._rng.choice(self._readable())
        states = sorted(at for disk in self._source.disks.values() for at in disk.site.states)
        edges = [at + by for at in states for by in (-1, 0, 1) if first <= at + by <= last] or [last]
        tags = [point.position for point in self._points() if first <= point.position <= last] or [first]
        return self._rng.choice((self._rng.choice(edges), self._rng.choice(edges), self._rng.choice(tags), first, last))

    def _choice(self) -> tuple[str, int]:
        """A point, a position or a time, as a user says it; the position that it means."""
        position = self._position()
        points = self._points()
        match self._rng.randrange(8):
            case 0:
                return "LatestProcessed", max(points, key=lambda p: p.position).position
            case 3 if any(point.app for point in points):
                return "LatestApplicationConsistent", max(point.position for point in points if point.app)
            case 1 | 2:
                point = min(self._rng.choices(points, k=2), key=lambda point: point.position)  # old ones go first
                return point.tag_id, point.position
            case 4 | 5:
                seconds, rest = divmod(position * NS, 1_000_000_000)
                return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z", position
            case _:
                return f"@{position}", position

    def _unreadable(self) -> int:
        """A position that is refused: of the future, or between two generations."""
        gaps = [(a[1] + 1, b[0] - 1) for a, b in zip(self._source.valid(), self._source.valid()[1:], strict=False)]
        gaps = [(max(a, self._floor()), b) for a, b in gaps if b >= max(a, self._floor())]
        if gaps and self._rng.random() < 0.7:
            first, last = self._rng.choice(gaps)
            return self._rng.choice((first, last, self._rng.randint(first, last)))
        return max(last for _, last in self._source.valid()) + 1 + self._rng.randrange(1000)

    async def mount(self) -> None:
        """Read-only, while more parts come."""
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
        """Meanwhile; but not what would change what is chosen."""
        if not choice.startswith("Latest"):
            await self._source.deliver(self._disk(), 3)

    async def mount_refused(self) -> None:
        """What cannot be read is refused, and leaves nothing."""
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
        """One of them."""
        if self._mounted:
            name = self._rng.choice(sorted(self._mounted))
            await self._rig.vault.unmount_point(vm=VM, name=name)
            gone = self._mounted.pop(name)
            assert not any(path.exists() for path in gone.paths.values())

    async def scrub(self) -> None:
        """Every byte of the stores is as it was written."""
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
        """A VM over a point, a position or a time; parts go on coming."""
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
        """The VM writes, with and without a sync, and reads."""
        for vm, machine in self._machines.items():
            written = machine.disks[self._disk()]
            await _reading(partial(written.write, self._rng, durable=self._rng.random() < 0.5))
            await _reading(partial(written.check, f"{vm} over position {machine.position}, written to"))

    async def clean_up(self) -> None:
        """The test VM goes."""
        if TEST_VM in self._machines:
            job = await self._rig.ended(await self._rig.vault.cleanup_test_failover(vm=VM))
            assert job.state == "Succeeded", job
            del self._machines[TEST_VM]

    async def fail_over(self) -> None:
        """The VM itself, at another point each time: nothing of a former one is left."""
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
        """The VM's disks become its own; it holds nothing of the managed disks then."""
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
        """Time passes, with a point now and then, and the vault keeps to its policy."""
        await self._apply_all()
        for _ in range(self._rng.randrange(1, 4)):
            self._source.advance(self._rng.randrange(HOUR // 12, HOUR + HOUR // 2))
            self._source.write(self._disk(), 2)
            await self.tag()
            await self._apply_all()
        await self.retain()

    async def _apply_all(self) -> None:
        """The age of a point whose sending is not reported counts from when it is applied, and the oracle's from its tag."""
        self._rig.set_clock()
        await self._source.deliver_all()
        await self._rig.settled()

    async def retain(self) -> None:
        """A round of the policies: what must go is gone, all else is there."""
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
        if self._rng.random() < 0.5:  # or else the fold goes on behind what comes next
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
        """What was promised is there, and nothing else."""
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
        """Some of the processes, and everything is there again."""
        await self._kill(self._some_roles())
        await self._check_all()

    async def _cut(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Some of the processes are killed while they do something; what came of it, if it can be known."""
        result: T | None = None

        async def attempt() -> None:
            nonlocal result
            try:
                result = await call()
            except RigError as error:
                self._say(f"cut: {error}")
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
        """Until it is done: whatever was cut can be done again."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    return await call()
                except RigError as error:
                    if not error.recoverable:
                        raise
                await trio.sleep(0.02)

    async def mount_cut(self) -> None:
        """Mounted again, it is there; taken away again, it is gone."""
        await self._rig.settled()
        position = self._position()
        images = self._source.images(position)

        def mount() -> Awaitable[MountedPoint]:
            return self._rig.vault.mount_point(vm=VM, position=position, name="cut")

        await self._cut(mount)
        self._take(await self._again(mount), images)
        await self._check_all()
        await self._cut(lambda: self._rig.vault.unmount_point(vm=VM, name="cut"))
        del self._mounted["cut"]
        try:
            await self._again(lambda: self._rig.vault.unmount_point(vm=VM, name="cut"))
        except RigError as error:
            assert error.code == "NotMounted"
        await self._check_all()

    async def test_failover_cut(self) -> None:
        """It is there as a whole, or failed and can be cleaned up; the cleanup comes to its end whatever is killed."""
        if TEST_VM in self._machines:
            return
        await self._rig.settled()
        position = self._position()
        images = self._source.images(position)
        await self._cut(lambda: self._rig.vault.test_failover(vm=VM, point=f"@{position}"))
        job = await self._last_job("TestFailover")
        if job is not None and job.state == "Succeeded":
            self._machines[TEST_VM] = self._made(job, images)
            await self._check_all()
        (item,) = await self._rig.vault.items()
        self._machines.pop(TEST_VM, None)
        if item.testFailoverState != "None":
            await self._cut(lambda: self._rig.vault.cleanup_test_failover(vm=VM))
            job = await self._last_job("TestFailoverCleanup")
            (item,) = await self._rig.vault.items()
            if item.testFailoverState != "None":  # it was not asked for in time
                job = await self._rig.ended(await self._rig.vault.cleanup_test_failover(vm=VM))
            assert job is not None
            assert job.state == "Succeeded", job
        await self._check_all()

    async def _last_job(self, scenario: str) -> Job | None:
        """The end of the newest job, if it is one of these."""
        newest = (await self._rig.vault.jobs())[0]
        return await self._rig.ended(newest) if newest.scenarioName == scenario else None

    async def resync_cut(self) -> None:
        """It comes to its end."""
        if self._failed_over:
            return
        await self._rig.settled()
        await self._cut(lambda: self._rig.vault.resync(vm=VM))
        job = await self._last_job("RepairVMReplication")
        assert job is None or job.state == "Succeeded", job
        await self._check_all()

    async def in_use(self) -> None:
        """What is open is not taken away."""
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

    async def kill_in_the_midst(self) -> None:
        """The applier, at some step of applying or folding."""
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
        """Any of them; the choice does not hang on how an earlier one went."""
        self._rng.seed(f"{self._seed} {number}")
        often = (self.write, self.close_log, self.tag, self.deliver, self.deliver, self.mount, self.mount, self.use)
        seldom = (
            self.grow, self.deliver_all, self.create_point, self.resync, self.mount_refused, self.unmount, self.unmount,
            self.scrub, self.test_failover, self.test_failover, self.clean_up, self.kill,
            self.age, self.age, self.age, self.age, self.kill_in_the_midst, self.mount_cut, self.test_failover_cut,
            self.resync_cut, self.in_use,
        )  # fmt: skip
        act = self._rng.choice((*often, *often, *often, *seldom))
        self._say(act.__name__)
        await act()

    async def end(self) -> None:
        """All that is held is let go, and the rest is folded; or the VM moves over for good."""
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
    """In a thread, for a limited time: a mount that hangs must not hang the test."""
    with trio.fail_after(PATIENCE_S):
        found = await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    return found if isinstance(found, bytes) else b""
