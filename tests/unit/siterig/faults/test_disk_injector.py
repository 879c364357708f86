"""The injector of a process: rules on its disks, their windows, counts, injections, and power losses."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import NO_OPEN_DISK, DiskCopies, FaultPlan, FaultReport
from siterig.faults.armed_disk_rule import OpenDisk
from siterig.faults.disk_injector import DiskInjector
from siterig.scenarios.faults.atlas import FaultAtlas
from siterig.scenarios.faults.rules import read_rule
from tests.support.disks.guest_requests import GuestDisk, Request, pattern
from tests.support.io_faults import WRITE, failing

KIB = 1024


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[PositionCounter]:
    counter = PositionCounter(tmp_path / "position")
    yield counter
    counter.close()


@pytest.fixture
def guests(tmp_path: Path, positions: PositionCounter) -> Iterator[list[GuestDisk]]:
    disks = [GuestDisk(tmp_path, name=name, positions=positions) for name in ("os", "data")]
    yield disks
    for disk in disks:
        if disk.disk.is_open:
            disk.close()


def open_disk(guest: GuestDisk) -> OpenDisk:
    paths = guest.disk.paths
    return OpenDisk("web01", paths.name, guest.faults, paths.file("img"))


def plan(words: str, *, is_open: bool = True, seed: int = 4711) -> FaultPlan:
    rule = read_rule(words)
    return FaultPlan(name=rule.label, rule=rule.document(), seed=seed, is_open=is_open)


@asynccontextmanager
async def injecting(
    guests: list[GuestDisk], *, must_match: bool = False, is_source: bool = False
) -> AsyncIterator[DiskInjector]:
    injector = DiskInjector(lambda: map(open_disk, guests), must_match=must_match, is_source=is_source)
    async with trio.open_nursery() as nursery:
        await nursery.start(injector.run)
        yield injector
        await injector.disarm_faults(names=list(injector.counts()))
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


async def reported(injector: DiskInjector, count: int) -> FaultReport:
    """Return the first report that has so many injections."""
    with trio.fail_after(10):
        while True:
            report = await injector.fault_report(after=0, epoch="", patience_s=0)
            if len(report.injections) >= count:
                return report
            await injector.fault_report(after=report.sequence, epoch=report.epoch, patience_s=4)


async def test_a_rule_over_several_disks_counts_as_one(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        armed = await injector.arm_faults(plans=[plan("disk web01/* write error=EIO occurrence=2 every=1 times=2 name=x")])
        assert armed.targets == {"x": ["web01/data", "web01/os"]}
        found = [guests[i % 2].write(0, bytes(4096)) for i in range(5)]
        assert found == [4096, -errno.EIO, -errno.EIO, 4096, 4096]
        report = await reported(injector, 2)
        assert report.counts["x"].matched == 5
        assert [
            (each.n, each.operation, each.done, each.ranges) for each in sorted(report.injections, key=lambda each: each.n)
        ] == [
            (2, "write web01/data, 4096 bytes at 0", "failed with EIO", ((0, 4096),)),
            (3, "write web01/os, 4096 bytes at 0", "failed with EIO", ((0, 4096),)),
        ]


async def test_counts_of_a_former_process_continue(guests: list[GuestDisk]) -> None:
    before = {"matched_before": 2, "fired_before": 1}
    rules = ["disk * write error=EIO occurrence=4 name=nth", "disk * read error=EIO times=2 name=twice"]
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan(words).model_copy(update=before) for words in rules])
        assert [guests[0].write(0, bytes(4096)) for _ in range(3)] == [4096, -errno.EIO, 4096]
        assert [guests[0].read(0, 1) for _ in range(2)] == [-errno.EIO, b"\0"]
        report = await reported(injector, 2)
        assert [(each.name, each.n) for each in report.injections] == [("nth", 4), ("twice", 3)]
        counts = {name: (count.matched, count.fired) for name, count in report.counts.items()}
        assert counts == {"nth": (3, 1), "twice": (2, 1)}, "a report is of this process alone"


async def test_windows_switch_a_rule_on_and_off_and_its_counts_stay(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk web01/os read error=EIO name=x", is_open=False)])
        assert guests[0].read(0, 1) == b"\0"
        await injector.set_fault_window(name="x", is_open=True)
        assert guests[0].read(0, 1) == -errno.EIO
        await injector.set_fault_window(name="x", is_open=False)
        assert guests[0].read(0, 1) == b"\0"
        assert injector.counts()["x"].matched == 1
        await injector.disarm_faults(names=["x", "unknown"])
        report = await reported(injector, 1)
        assert report.counts["x"].fired == 1, "the director learns the last counts of a rule that was removed"


async def test_all_or_none(guests: list[GuestDisk]) -> None:
    async with injecting(guests, must_match=True) as injector:
        with pytest.raises(
            RigError, match=r"fault 'y': .*where.disk: 'dta': matches no disk; there are: web01/os, web01/data"
        ):
            await injector.arm_faults(
                plans=[plan("disk read error=EIO name=x"), plan("disk web01/dta read error=EIO name=y")]
            )
        assert guests[0].read(0, 1) == b"\0"
        assert not injector.counts()
        await injector.arm_faults(plans=[plan("disk read error=EIO name=x")])
        await injector.arm_faults(plans=[plan("disk read error=EIO name=x")])  # the same again changes nothing
        with pytest.raises(RigError, match="another rule of this name is armed"):
            await injector.arm_faults(plans=[plan("disk read error=ENXIO name=x")])
        with pytest.raises(RigError, match=r"where\.layer: 'link'") as caught:
            await injector.arm_faults(plans=[plan("link agent-vault delay=1s name=z")])
        assert caught.value.code == Code.FaultNotPossible


async def test_a_disk_that_is_opened_later_gets_the_rules_that_match(
    guests: list[GuestDisk], tmp_path: Path, positions: PositionCounter
) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk web01/l* read error=EIO name=x")])
        late = GuestDisk(tmp_path, name="late", positions=positions)
        try:
            injector.disk_opened(open_disk(late))
            assert late.read(0, 1) == -errno.EIO
            assert guests[0].read(0, 1) == b"\0"
            await reported(injector, 1)
        finally:
            late.close()


async def test_a_pause_begins_at_one_position_and_ends_with_the_rule(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        armed = await injector.arm_faults(plans=[plan("disk web01/* pause=true name=x")])
        done: list[int] = []
        writers = [threading.Thread(target=lambda guest=guest: done.append(guest.write(0, b"x" * 512))) for guest in guests]
        for writer in writers:
            writer.start()
        await until(lambda: injector.counts()["x"].waiting == 2)
        assert not done
        report = await reported(injector, 1)
        assert [each.done for each in report.injections] == ["paused web01/data, web01/os"]
        assert injector.counts()["x"].fired == 1
        removed = await injector.disarm_faults(names=["x"])
        assert armed.position == removed.position, "nothing was changed meanwhile"
        for writer in writers:
            await trio.to_thread.run_sync(writer.join)
        assert done == [512, 512]


async def test_a_power_loss_at_a_write_undoes_unflushed_writes_on_all_disks(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk web01/* write lose=unflushed occurrence=5 name=x")])
        for guest in guests:
            guest.write(0, pattern(4096, 1))
            assert guest.flush() == 0
            guest.write(0, pattern(4096, 2))
        assert await trio.to_thread.run_sync(guests[0].write, 8192, pattern(512, 3)) == -errno.EIO
        assert guests[1].read(0, 4096) == -errno.EIO, "the power is off"
        report = await reported(injector, 1)
        assert "power loss of 2 disks" in report.injections[0].done
        assert "2 of 2 unsynced writes lost; every operation fails now" in report.injections[0].done
        await injector.disarm_faults(names=["x"])
        for guest in guests:
            assert guest.read(0, 4096) == pattern(4096, 1)
            assert guest.read(8192, 512) == bytes(512)
            guest.check_log()


async def test_the_write_at_which_the_power_fails_can_be_torn(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        words = "disk web01/os write lose=unflushed occurrence=2 tear.sizes=512,512 tear.keep=2 name=x"
        await injector.arm_faults(plans=[plan(words)])
        guests[0].write(0, pattern(512, 1))
        assert await trio.to_thread.run_sync(guests[0].write, 4096, pattern(1024, 2)) == -errno.EIO
        await injector.disarm_faults(names=["x"])
        assert guests[0].contents[:512] == bytes(512)
        assert guests[0].contents[4096:5120] == bytes(512) + pattern(1024, 2)[512:]
        guests[0].check_log()


async def test_writes_survive_a_power_loss_by_their_number(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        words = "disk web01/os write start=64KiB lose=unflushed survive=1,3 occurrence=4 timing=after crash=false name=x"
        await injector.arm_faults(plans=[plan(words)])
        guests[0].write(0, pattern(512, 9))  # not at the place of the rule: it is not counted, and lost
        for i in range(3):
            guests[0].write(64 * KIB + i * 4096, pattern(4096, i))
        done = await trio.to_thread.run_sync(guests[0].write, 64 * KIB, pattern(512, 7))
        assert done == 512, "without a crash the operation succeeds"
        contents = guests[0].contents
        assert contents[:512] == bytes(512)
        base = 64 * KIB
        assert contents[base : base + 512] == bytes(512), "a lost write came later"
        assert contents[base + 512 : base + 4096] == pattern(4096, 0)[512:]
        assert contents[base + 4096 : base + 8192] == bytes(4096)
        assert contents[base + 8192 : base + 12288] == pattern(4096, 2)
        guests[0].check_log()


async def test_an_immediate_power_loss_acts_when_its_window_opens(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk web01/os lose=unflushed name=x", is_open=False)])
        guests[0].write(0, pattern(512, 1))
        await injector.set_fault_window(name="x", is_open=True)
        assert guests[0].flush() == -errno.EIO
        await injector.set_fault_window(name="x", is_open=False)
        assert guests[0].read(0, 512) == bytes(512)
        assert guests[0].faults.unsynced() is not None
        await injector.disarm_faults(names=["x"])
        assert guests[0].faults.unsynced() is None


async def test_a_disk_that_is_closed_ends_its_records_and_the_rule_stays(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk read error=EIO name=x")])
        guests[1].close()
        assert guests[0].read(0, 1) == -errno.EIO
        assert (await reported(injector, 1)).counts["x"].fired == 1
        await injector.set_fault_window(name="x", is_open=False)
        assert guests[0].read(0, 1) == b"\0"


async def test_a_rule_acts_only_while_its_file_exists(guests: list[GuestDisk], tmp_path: Path) -> None:
    file = tmp_path / "armed"
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan(f"disk web01/os read error=EIO while_file={file} name=x")])
        assert guests[0].read(0, 1) == b"\0"
        file.touch()
        await until(lambda: guests[0].read(0, 1) == -errno.EIO)
        file.unlink()
        await until(lambda: guests[0].read(0, 1) == b"\0")
        counted = injector.counts()["x"]
        assert counted.matched == counted.fired >= 1, "what comes while the file is away is not counted"
        await injector.disarm_faults(names=["x"])
        file.touch()


async def test_a_file_is_mapped_only_in_a_mounted_file_system(guests: list[GuestDisk]) -> None:
    refusal = r"fault 'x': where\.file: '/a/\*': no file system of .* is mounted here: attach"
    async with injecting(guests, must_match=True) as injector:
        with pytest.raises(RigError, match=refusal):
            await injector.arm_faults(plans=[plan("disk web01/os read error=EIO file=/a/* name=x")])
        assert not injector.counts()


async def test_a_role_leaves_out_a_rule_whose_file_it_does_not_have(guests: list[GuestDisk]) -> None:
    lines = ("disk web01/os read error=EIO file=/a name=x", "disk web09 read error=EIO file=/a name=y")
    async with injecting(guests) as injector:
        armed = await injector.arm_faults(plans=[plan(line) for line in (*lines, "disk web01/os write error=EIO name=z")])
        assert armed.targets == {"z": ["web01/os"]}
        assert list(injector.counts()) == ["z"]
        assert armed.without_file["x"].startswith("fault 'x': where.file: '/a': no file system of ")
        assert armed.without_file["y"] == f"fault 'y': where.file: '/a': {NO_OPEN_DISK}"


async def test_the_power_is_lost_although_the_record_of_its_fault_was_dropped(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    async with injecting(guests) as injector:
        rules = ("disk web01/os write lose=unflushed occurrence=2 name=x", "disk web01/os read error=EIO name=y fired=any")
        await injector.arm_faults(plans=[plan(rule) for rule in rules])
        guest.write(0, pattern(4096))
        request = Request(lambda: guest.write(8192, b"x"))
        (rule,) = [rule for rule, fault in guest.faults.rules().items() if fault.name == "x"]
        deadline = time.monotonic() + 10
        while not guest.faults.counts(rule).waiting:  # the injector cannot run meanwhile
            assert time.monotonic() < deadline
        for _ in range(5000):  # more than the disk keeps records of
            assert guest.read(0, 1) == -errno.EIO
        assert await request.done() == -errno.EIO
        assert guest.contents == bytes(1 << 20)
        report = await reported(injector, 1)
        assert report.dropped > 0
        (found,) = [each for each in report.injections if each.name == "x"]
        assert "1 of 1 unsynced writes lost; every operation fails now" in found.done


async def test_a_record_has_the_bytes_that_were_changed_or_lost(guests: list[GuestDisk]) -> None:
    guest = guests[0]
    async with injecting(guests) as injector:
        acts: dict[str, Callable[[], object]] = {
            "write tear.parts=4 tear.keep=1,3": lambda: guest.write(4096, bytes(4096)),
            "write misdirect=+8KiB": lambda: guest.write((1 << 20) - 10240, bytes(4096)),
            "write misdirect=-8KiB": lambda: guest.write(4096, bytes(512)),
            "write error=EIO timing=after": lambda: guest.write(0, bytes(512)),
            "read error=EIO timing=after": lambda: guest.read(0, 512),
            "write truncate=512": lambda: guest.write(0, bytes(4096)),
            "write flip.bits=16 start=2 length=2": lambda: guest.write(0, bytes(512)),
            "write tear=true": lambda: guest.write(0, bytes(65536)),
        }
        for number, (words, act) in enumerate(acts.items()):
            await injector.arm_faults(plans=[plan(f"disk web01/os {words} name=n{number}")])
            act()
            await injector.disarm_faults(names=[f"n{number}"])
        found = (await reported(injector, 8)).injections
        ranges = [each.ranges for each in found]
        assert ranges[0] == ((5120, 1024), (7168, 1024))
        assert ranges[1] == (((1 << 20) - 10240, 4096), ((1 << 20) - 2048, 2048))
        assert ranges[2] == ((4096, 512),), "it landed outside the disk"
        assert (ranges[3], found[3].done) == ((), "was done, and failed with EIO")
        assert ranges[4] == ((0, 512),)
        assert ranges[5] == ((512, 3584),)
        assert ranges[6] == ((2, 1),) * 8 + ((3, 1),) * 8
        assert 1 < len(ranges[7]) <= 64


async def test_a_pause_is_recorded_with_its_position(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        guests[0].write(0, b"x")
        armed = await injector.arm_faults(plans=[plan("disk pause=true name=x")])
        assert (await reported(injector, 1)).injections[0].position == armed.position is not None


async def test_a_range_that_no_disk_has_is_refused(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        with pytest.raises(RigError, match=r"where.start: 1048576: web01/os has 1048576 bytes; allowed: a byte of the disk"):
            await injector.arm_faults(plans=[plan("disk web01/os write start=1MiB error=EIO name=x")])
        await injector.arm_faults(plans=[plan("disk web01/os write start=1MiB error=EIO after=mark:grown name=x")])
        await injector.arm_faults(plans=[plan("disk web01/os write start=1023KiB length=1GiB error=EIO name=y")])
        assert guests[0].write((1 << 20) - 1, b"x") == -errno.EIO


async def test_a_power_loss_has_room_for_the_errors_after_it(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        rules = [plan(f"disk web01/os read error=EIO occurrence=9 name=r{number}") for number in range(62)]
        await injector.arm_faults(plans=[*rules, plan("disk web01/os write lose=unflushed occurrence=2 name=x")])
        with pytest.raises(
            RigError, match=r"'y': disk web01/os: has 63 fault rules, and needs one more for each of 1 power"
        ):
            await injector.arm_faults(plans=[plan("disk web01/* write error=EIO occurrence=9 name=y")])
        guests[0].write(0, b"x")
        assert await trio.to_thread.run_sync(guests[0].write, 0, b"y") == -errno.EIO
        assert guests[0].flush() == -errno.EIO, "the power is off"


async def test_a_power_loss_that_the_host_fails_is_recorded_and_ends_nothing(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.arm_faults(plans=[plan("disk web01/os write lose=unflushed occurrence=2 name=x")])
        guests[0].write(0, pattern(4096))
        guests[0].flush()
        await injector.disarm_faults(names=["x"])
        await injector.arm_faults(plans=[plan("disk web01/os write lose=unflushed occurrence=2 name=x")])
        guests[0].write(0, pattern(4096, 2))
        with failing(WRITE, ".img", errno.EIO):
            assert await trio.to_thread.run_sync(guests[0].write, 0, b"y") == -errno.EIO
            report = await reported(injector, 1)
        assert "the power loss failed, and left some unsynced writes: Input/output error" in report.injections[0].done
        await injector.disarm_faults(names=["x"])
        assert guests[0].read(0, 4096) == pattern(4096, 2)


# --- recoverable ----------------------------------------------------------------------------------------------------------

BLOCKS = range(0, 1 << 20, 4 * KIB)
BOTH = DiskCopies(at_both=["web01/os"], at_site=["web01/os", "web01/data"])


def recoverable(words: str, *, seed: int = 7) -> FaultPlan:
    return plan(f"disk {words} bad_sectors=true recoverable=true fired=any name=x").model_copy(update={"atlas_seed": seed})


def bad_blocks(guest: GuestDisk) -> set[int]:
    return {at for at in BLOCKS if guest.read(at, 4 * KIB) == -errno.EIO}


@pytest.fixture
def small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.scenarios.faults.atlas.ATLAS_REGION_BYTES", 64 * KIB)


@pytest.mark.usefixtures("small_regions")
async def test_bad_sectors_are_in_regions_of_the_site_alone(
    guests: list[GuestDisk], tmp_path: Path, positions: PositionCounter
) -> None:
    atlas = FaultAtlas(7)
    wanted = {at for at in BLOCKS if atlas.kind_of("web01/os", at) == "site"}
    assert 0 < len(wanted) < len(BLOCKS)
    async with injecting(guests, is_source=True) as injector:
        armed = await injector.arm_faults(plans=[recoverable("web01/*")])
        assert armed.targets == {"x": ["web01/data", "web01/os"]}
        assert not bad_blocks(guests[0]), "nobody has said that the recovery side has it"
        await injector.note_copies(copies=BOTH)
        assert bad_blocks(guests[0]) == wanted
        assert not bad_blocks(guests[1]), "the recovery side does not have it"
        assert injector.counts()["x"].fired == len(wanted)
        healed = min(wanted)
        guests[0].write(healed, bytes(4 * KIB))
        await injector.note_copies(copies=DiskCopies())
        assert not bad_blocks(guests[0])
        await injector.note_copies(copies=BOTH)
        assert bad_blocks(guests[0]) == wanted - {healed}
        late = GuestDisk(tmp_path, name="late", positions=positions)
        await injector.note_copies(copies=DiskCopies(at_both=["web01/late"]))
        injector.disk_opened(open_disk(late))
        assert bad_blocks(late) == {at for at in BLOCKS if atlas.kind_of("web01/late", at) == "site"}
        await injector.disarm_faults(names=["x"])
        late.close()


@pytest.mark.usefixtures("small_regions")
async def test_a_range_limits_recoverable_bad_sectors(guests: list[GuestDisk]) -> None:
    site = {at for at in BLOCKS if FaultAtlas(7).kind_of("web01/os", at) == "site"}
    other = next(at for at in BLOCKS if at not in site)
    async with injecting(guests, is_source=True) as injector:
        await injector.note_copies(copies=BOTH)
        with pytest.raises(RigError, match=r"expect.recoverable: true: no byte at this place .*allowed: a longer range"):
            await injector.arm_faults(plans=[recoverable(f"web01/os start={other} length=4KiB")])
        await injector.arm_faults(plans=[recoverable("web01/os start=100KiB length=400KiB")])
        assert bad_blocks(guests[0]) == {at for at in site if 100 * KIB <= at < 500 * KIB}


async def test_disks_of_the_recovery_side_have_no_recoverable_bad_sectors(guests: list[GuestDisk]) -> None:
    async with injecting(guests) as injector:
        await injector.note_copies(copies=BOTH)
        armed = await injector.arm_faults(plans=[recoverable("web01/*")])
        assert armed.targets == {"x": []}
        assert not bad_blocks(guests[0])
