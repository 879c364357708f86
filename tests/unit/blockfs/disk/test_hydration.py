"""Hydration: a disk over a view becomes a raw disk while it is in use, despite kills, power loss, full disks and growth."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk import hydration
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_hydration import DiskHydration
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.layer import Layer
from siterig.cext._core import lib
from tests.support.disks.disk_model import replay
from tests.support.faults.some_steps import some_steps
from tests.support.io_faults import PUNCH, SYNC, WRITE, failing, io_verdict
from tests.support.process_kills import without_token
from tests.support.stores.plain_bases import HOLE, SIZE, Bases, content, make_store, open_host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    made = open_host(tmp_path)
    yield made
    made.abandon()


async def open_disk(host: DiskHost, store: Path) -> Disk:
    await host.create_disk_from_point(vm="web01", name="os", managed_disk=store.name, position=1)
    return host.disk("web01", "os")


async def hydrate_until(host: DiskHost, until: Callable[[DiskInfo], bool] = lambda disk: disk.promotion is None) -> DiskInfo:
    """Run the hydrator until the condition holds for the disk, and return the disk's information."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run_maintenance)
        with trio.fail_after(60):
            while not until((await host.list_disks())[0]):  # noqa: ASYNC110 (C does the work)
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    return (await host.list_disks())[0]


def names(host: DiskHost) -> set[str]:
    return {path.name for path in (host.root / "web01").iterdir() if not path.name.endswith((".hrl", ".spare", ".dirty"))}


def whole(disk: Disk) -> bytes:
    return disk.read(0, disk.size_bytes)


async def test_a_hydrated_disk_is_raw_and_needs_no_managed_disk(host: DiskHost, tmp_path: Path) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    disk.write(10_000, b"guest" * 1000)
    disk.zero(2 << 20, 9000)
    expected = whole(disk)
    handle = int(lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0))
    log_before = disk.tracking.log.next_seq
    [info] = await host.hydrate_vm(vm="web01")
    assert (info.promotion is not None, disk.state.kind) == (True, "top")
    await hydrate_until(host, lambda disk: disk.promotion is None and not (tmp_path / "store" / "holder").exists())
    assert (disk.state.kind, disk.state.managed_disk, disk.state.position) == ("raw", None, None)
    assert (disk.tracking.log.next_seq, disk.state.needs_resync, disk.tracking.dirty_bytes) == (log_before, None, 0)
    assert names(host) == {"os.disk", "os.img"}
    shutil.rmtree(tmp_path / "store")
    assert not [path for path in Path("/proc/self/fd").iterdir() if str(tmp_path / "store") in os.path.realpath(path)]
    assert whole(disk) == expected
    assert lib.sr_handle_write(handle, b"after", 5, 4096) == 5  # a handle that was open before still works
    lib.sr_handle_close(handle)
    expected = expected[:4096] + b"after" + expected[4101:]
    disk.close()
    host.abandon()
    again = open_host(tmp_path)
    assert whole(again.disk("web01", "os")) == expected == (host.root / "web01" / "os.img").read_bytes()
    again.abandon()


async def test_holes_of_the_backing_stay_holes(host: DiskHost, tmp_path: Path) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    ranges = disk.layer.data_ranges()
    await host.hydrate_vm(vm="web01")
    await hydrate_until(host)
    assert disk.layer.data_ranges() == ranges == [(0, HOLE[0]), (sum(HOLE), SIZE - sum(HOLE))]
    assert disk.stored_bytes < SIZE - HOLE[1] + (64 << 10)


async def test_bytes_left_by_a_power_loss_over_a_hole_are_not_served(tmp_path: Path) -> None:
    host = open_host(tmp_path)
    await open_disk(host, make_store(tmp_path / "store"))
    host.abandon()
    with (host.root / "web01" / "os.top").open("r+b") as file:
        file.seek(HOLE[0] + 50_000)
        file.write(b"of a write whose bit is lost")
    again = open_host(tmp_path)
    await again.hydrate_vm(vm="web01")
    await hydrate_until(again)
    assert whole(again.disk("web01", "os")) == content()
    again.abandon()


async def test_a_raw_disk_has_nothing_to_hydrate(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE - 512)
    [info] = await host.hydrate_vm(vm="web01")
    assert info.promotion is None
    with pytest.raises(RigError, match="there is no VM 'web02'"):
        await host.hydrate_vm(vm="web02")


async def test_progress_is_reported(host: DiskHost, tmp_path: Path) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    assert (await host.list_disks())[0].promotion is None
    await host.hydrate_vm(vm="web01")
    reported = []
    done = False
    while not done:
        done = disk.hydration.hydrate(1)
        found = (await host.list_disks())[0].promotion
        assert found is not None
        reported.append(found.done_bytes)
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (65536, SIZE)


# --- while guests write ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_hydration_is_right_with_concurrent_writes_reads_and_growth(host: DiskHost, tmp_path: Path, seed: int) -> None:
    """Each writer has its own blocks, so that a model knows them; all other bytes stay those of the backing."""
    store = make_store(tmp_path / "store")
    disk = await open_disk(host, store)
    start = bytearray(whole(disk))
    model = bytearray(start)
    stop = threading.Event()
    wrong: list[str] = []
    lock = threading.Lock()

    def write(which: int) -> None:
        dice = random.Random(seed * 10 + which)
        handle = int(lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0))
        while not stop.is_set():
            offset = dice.randrange(len(model) // 16384 // 2) * 32768 + which * 16384 + dice.randrange(9000)
            data = dice.randbytes(dice.randrange(1, 7000))
            with lock:
                data = data[: max(len(model) - offset, 0)]
            if data and dice.random() < 0.9:
                assert lib.sr_handle_write(handle, data, len(data), offset) == len(data)
            elif data:
                disk.zero(offset, len(data), discard=True)
                data = bytes(len(data))
            model[offset : offset + len(data)] = data
            if disk.read(offset, len(data)) != data:
                wrong.append(f"{len(data)} bytes at {offset}")
            if dice.random() < 0.02:
                lib.sr_handle_flush(handle)
        lib.sr_handle_close(handle)

    threads = [threading.Thread(target=write, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    try:
        await host.hydrate_vm(vm="web01")
        hydration_ended = False

        def grown_and_done(info: DiskInfo) -> bool:
            nonlocal hydration_ended
            if disk.size_bytes < SIZE + (40 << 10):
                with lock:
                    disk.resize(disk.size_bytes + 512)
                    model.extend(bytes(512))
            hydration_ended = hydration_ended or info.promotion is None
            return hydration_ended and disk.size_bytes >= SIZE + (40 << 10)

        await hydrate_until(host, grown_and_done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (wrong, disk.state.kind) == ([], "raw"), f"seed {seed}"
    assert whole(disk) == model, f"seed {seed}"
    assert replay(bytes(start), disk) == model, f"seed {seed}"
    disk.close()
    assert (host.root / "web01" / "os.img").read_bytes() == model


async def test_hydration_of_a_busy_disk_pauses_between_steps(
    host: DiskHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    monkeypatch.setattr(hydration, "BUSY_STEP_BYTES", 65536)
    paused: list[float] = []
    steps: list[int] = []
    handle = int(lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0))
    hydrate = disk.hydration.hydrate

    def hydrate_while_a_guest_writes(bytes_max: int) -> bool:
        steps.append(bytes_max)
        lib.sr_handle_write(handle, b"x", 1, 0)
        return hydrate(65536)

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    disk.hydration.hydrate = hydrate_while_a_guest_writes  # type: ignore[method-assign]
    monkeypatch.setattr(trio, "sleep", sleep)
    await host.hydrate_vm(vm="web01")
    await host.hydrator.attempt(disk)
    assert steps[0] == hydration.STEP_BYTES  # there was no request before
    assert set(steps[1:]) == {65536}
    assert len(paused) == len(steps) - 2  # all steps but the first and the last
    assert min(paused) >= hydration.PAUSE_S_MIN
    lib.sr_handle_close(handle)


async def test_the_vm_can_be_removed_during_hydration(host: DiskHost, tmp_path: Path) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    await host.hydrate_vm(vm="web01")
    disk.hydration.hydrate(65536)
    await host.remove_vm(vm="web01")
    await host.hydrator.attempt(disk)
    assert disk.hydration.stopped_by is None
    assert list(host.root.glob("web*")) == []


# --- interruptions ------------------------------------------------------------------------------------------------


async def test_a_new_disk_of_a_released_disks_name_keeps_its_backing(host: DiskHost, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    await open_disk(host, store)
    releasing, opened = threading.Event(), threading.Event()

    class Slow(Bases):
        def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
            view = super().open(managed_disk, position, holder)
            opened.set()
            return view

        def release(self, managed_disk: str, holder: str) -> None:
            releasing.set()
            opened.wait(0.3)  # it is not opened within this time
            super().release(managed_disk, holder)

    host.registry.views = Slow(tmp_path)
    await host.hydrate_vm(vm="web01")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run_maintenance)
        await trio.to_thread.run_sync(releasing.wait)
        await host.remove_vm(vm="web01")
        disk = await open_disk(host, store)
        nursery.cancel_scope.cancel()
    assert (store / "holder").read_text() == disk.paths.holder


async def test_hydration_stops_on_a_full_disk_and_continues_with_room(
    host: DiskHost, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    disk.write(700_000, b"guest")
    expected = whole(disk)
    await host.hydrate_vm(vm="web01")
    written = 0

    def full_after_a_while(operation: int, path: str, _offset: int, size: int) -> int:
        nonlocal written
        if operation != WRITE or not path.endswith(".top"):
            return 0
        written += size
        return 0 if written < 500_000 else 5000 if written < 600_000 else -errno.ENOSPC

    with io_verdict(full_after_a_while):
        info = await hydrate_until(host, lambda disk: disk.promotion is not None and disk.promotion.error is not None)
    assert info.promotion is not None
    assert info.promotion.error_code == "DiskFull"
    assert info.promotion.error == "hydration of disk web01/os: the host's disk is full; it continues when there is room"
    assert (info.tracked, info.needs_resync, disk.state.kind) == (True, None, "top")
    assert whole(disk) == expected
    await hydrate_until(host)
    assert (disk.state.kind, whole(disk)) == ("raw", expected)


async def test_hydration_leaves_the_last_free_space_to_the_guests(
    host: DiskHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    monkeypatch.setattr(hydration, "FREE_BYTES_MIN", 1 << 60)
    await host.hydrate_vm(vm="web01")
    info = await hydrate_until(host, lambda disk: disk.promotion is not None and disk.promotion.error is not None)
    assert info.promotion is not None
    assert info.promotion.error_code == "DiskFull"
    assert info.promotion.error is not None
    assert info.promotion.error.endswith("MiB are kept for guests; it continues when there is more")
    assert info.promotion.done_bytes == 0
    assert disk.hydration.done_bytes == 0


async def test_an_unreadable_managed_disk_stops_hydration_until_it_is_readable(host: DiskHost, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    disk = await open_disk(host, store)
    await host.hydrate_vm(vm="web01")

    def bad_below(operation: int, path: str, offset: int, _size: int) -> int:
        return -errno.EIO if path.endswith("/base") and offset >= 131072 else 0

    with io_verdict(bad_below):
        info = await hydrate_until(host, lambda disk: disk.promotion is not None and disk.promotion.error is not None)
    assert info.promotion is not None
    assert info.promotion.error_code == "HostIoError"
    assert info.promotion.error == (
        f"hydration of disk web01/os: stopped at byte 131072 of {SIZE}: Input/output error ({store / 'base'})"
    )
    host.hydrator.wake()
    await hydrate_until(host)
    assert whole(disk) == content()


async def test_a_failed_sync_of_the_hydrator_fails_the_guests_flush_too(host: DiskHost, tmp_path: Path) -> None:
    """The kernel reports the error once: if the hydrator hid it, the guest's next flush would wrongly succeed."""
    disk = await open_disk(host, make_store(tmp_path / "store"))
    disk.write(0, b"x")
    await host.hydrate_vm(vm="web01")
    with failing(SYNC, ".top", errno.EIO):
        await hydrate_until(host, lambda disk: disk.promotion is not None and disk.promotion.error is not None)
    with pytest.raises(OSError, match="Input/output error"):
        await disk.flush()
    assert (disk.state.kind, (await host.list_disks())[0].needs_resync) == ("top", "SyncFailed")


# --- kills --------------------------------------------------------------------------------------------------------


class Steps:
    """Counts operations on files and on the disk in C, and kills the process before step ``kill_at``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.done: list[str] = []
        for thing, name in (
            (os, "rename"),
            (os, "unlink"),
            (os, "fsync"),
            (DiskHydration, "detach_backing"),
            (DiskHydration, "convert_to_raw"),
            (DiskState, "save"),
        ):
            monkeypatch.setattr(thing, name, self._counting(name, getattr(thing, name)))

    def _counting(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            self.step(f"{name} {without_token(Path(args[0]).name)}" if isinstance(args[0], str | Path) else name)
            return real(*args, **kwargs)

        return counted

    def step(self, what: str) -> None:
        if len(self.done) == self.kill_at:
            os._exit(KILLED)
        self.done.append(what)

    def in_c(self, operation: int, path: str, _offset: int, _size: int) -> int:
        if operation in (WRITE, SYNC, PUNCH):
            self.step(f"{ {WRITE: 'write', SYNC: 'sync', PUNCH: 'punch'}[operation] } {Path(path).name}")
        return 0


KILLED = 9


def hydrate_counting(folder: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Hydrate to the end or to the kill, and return the steps."""
    host = open_host(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hydration, "SYNC_BYTES", 65536)
        patch.setattr(hydration, "STEP_BYTES", 1 << 20)
        steps = Steps(patch, kill_at)
        with io_verdict(steps.in_c):
            disk = host.disk("web01", "os")
            disk.hydration.begin()
            trio.run(host.hydrator.attempt, disk)
        assert disk.hydration.stopped_by is None
    host.abandon()
    return steps.done


def killed_at(folder: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    """Do the same in a child process, and check that it was killed."""
    child = os.fork()
    if child == 0:
        try:
            hydrate_counting(folder, monkeypatch, kill_at)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def check_and_finish(folder: Path, expected: bytes, *, power_loss: bool) -> None:
    host = open_host(folder)
    assert host.broken == {}
    disk = host.disk("web01", "os")
    assert whole(disk) == expected
    assert (disk.tracking.active, disk.state.needs_resync) == ((False, "PowerLoss") if power_loss else (True, None))
    disk.hydration.begin()  # the kill may have been before this was saved
    if disk.state.promoting:
        trio.run(host.hydrator.attempt, disk)
    assert (disk.state.kind, disk.state.promoting) == ("raw", False)
    assert {name for name in names(host) if without_token(name) != ".os.disk.tmp"} == {"os.disk", "os.img"}
    assert (whole(disk), (host.root / "web01" / "os.img").read_bytes()) == (expected, expected)
    host.abandon()
    again = open_host(folder)
    assert isinstance(again.registry.views, Bases)
    assert again.registry.views.kept == set(), "the next start releases the holders that a kill left"
    assert (again.broken, whole(again.disk("web01", "os"))) == ({}, expected)
    again.abandon()


@pytest.mark.slow
@pytest.mark.parametrize("power_loss", [False, True])
def test_a_kill_before_any_step_of_hydration_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power_loss: bool
) -> None:
    """After a power loss, only the durable maps count.  ``test_power_loss`` covers the loss of the file's bytes.

    A run takes some of the steps; ``SITERIG_ALL_STEPS=1`` takes all.
    """
    host = open_host(tmp_path / "start")
    disk = trio.run(open_disk, host, make_store(tmp_path / "start" / "store"))
    disk.write(5000, b"guest" * 3000)
    disk.zero(2 << 20, 100)
    trio.run(disk.flush)
    expected = whole(disk)
    host.abandon()

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "start", tmp_path / name))

    steps = hydrate_counting(fresh("whole"), monkeypatch, None)
    assert len(steps) > 40
    assert [step for step in steps if "rename" in step or "unlink" in step][-5:] == [
        "rename os.top",
        "rename .os.disk.tmp",
        "unlink os.top.present",
        "unlink os.top.durable",
        "unlink holder",
    ]
    for kill_at in some_steps(steps):
        step = steps[kill_at]
        folder = fresh(str(kill_at))
        killed_at(folder, monkeypatch, kill_at)
        try:
            with monkeypatch.context() as patch:
                if power_loss:
                    patch.setattr(boot, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
                check_and_finish(folder, expected, power_loss=power_loss)
        except AssertionError as exc:
            raise AssertionError(f"killed before step {kill_at}: {step}") from exc
        shutil.rmtree(folder)


async def test_hydration_continues_after_a_restart(host: DiskHost, tmp_path: Path) -> None:
    disk = await open_disk(host, make_store(tmp_path / "store"))
    await host.hydrate_vm(vm="web01")
    disk.hydration.hydrate(1 << 20)
    host.abandon()
    again = open_host(tmp_path)
    disk = again.disk("web01", "os")
    assert disk.state.promoting
    found = (await again.list_disks())[0].promotion
    assert found is not None
    assert 1 << 20 <= found.done_bytes < SIZE
    await hydrate_until(again)
    assert (disk.state.kind, whole(disk)) == ("raw", content())
    again.abandon()
