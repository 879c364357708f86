from __future__ import annotations

import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.make_vm()
    return rig


async def test_cycles_run_by_interval_and_each_point_is_exact(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        for _ in range(4):
            rig.write(5)
            await trio.sleep(rig.interval_s)
        assert len(rig.vault.points) == 5
    for position in rig.vault.points:
        rig.check_point(position)


async def test_segments_are_kept_until_applied_and_then_deleted(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.recovery.running = False
        rig.write(5)
        await rig.cycle(agent)
        kept = await rig.host.segments(vm=VM)
        assert kept
        rig.recovery.running = True
        await rig.cycle(agent)
        names = {segment.path for segment in await rig.host.segments(vm=VM)}
        assert not names & {segment.path for segment in kept}


async def test_part_that_the_cache_account_lost_is_sent_again(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        rig.recovery.running = False
        rig.write(20)
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        lost = list(rig.cache.blobs)
        assert {part.stream for part in lost} == {"sync", "log"}
        rig.cache.blobs.clear()
        cut = await rig.cycle(agent)
        assert set(lost) <= set(rig.cache.blobs)
    rig.recovery.running = True
    rig.check_point(cut.position)


async def test_part_that_is_nowhere_marks_the_vm_for_resync_once(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        rig.recovery.running = False
        rig.write(20)
        await rig.protect(agent)
        rig.cache.blobs.clear()
        for path in (rig.folder / "agent" / "spool").rglob("*.sync.hrl*"):
            path.unlink()
        await trio.sleep(3600)
        assert rig.vault.resyncs == ["SyncPartLost"]
        with pytest.raises(RigError, match="VM 'web01' is in phase 'resync-required'; a cycle needs phase 'delta'"):
            await rig.cycle(agent)
        rig.recovery.running = True
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


async def test_log_overflow_stops_cycles_until_a_resync_which_makes_it_whole(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.write(200)
        await trio.sleep(10 * rig.interval_s)
        points = len(rig.vault.points)
        assert rig.vault.resyncs == ["LogOverflow"]
        assert rig.vault.errors == []
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
        assert len(rig.vault.points) > points
    rig.check_point(cut.position)


@pytest.mark.parametrize("call", ["cut", "begin_snapshot"])
async def test_a_log_that_overflows_just_before_a_call_of_the_host_leads_to_a_resync(
    call: str, rig: Rig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = 0, getattr(rig.host, call)

    async def overflowing(**arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            rig.write(200)
        return await original(**arguments)

    async with rig.agent() as agent:
        if call == "cut":
            await rig.protect(agent)
            await trio.sleep(1)
            monkeypatch.setattr(rig.host, call, overflowing)
            await trio.sleep(10 * rig.interval_s)
            assert rig.vault.resyncs == ["LogOverflow"]
            await agent.resync(vm=VM)
        else:
            monkeypatch.setattr(rig.host, call, overflowing)
            await rig.protect(agent)  # the first copy becomes a comparison
        cut = await rig.cycle(agent)
    assert (calls > 1, rig.vault.errors) == (True, [])
    rig.check_point(cut.position)


async def test_an_early_resync_leaves_no_other_one_due(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.write(200)
        assert {info.needs_resync for info in await rig.host.list_disks(vm=VM)} == {"LogOverflow"}
        # As the vault's resync does: the relationship first, which is there already.
        await agent.create_relationship(vm=VM, interval_s=rig.interval_s, app_consistent_every_s=rig.app_consistent_every_s)
        await trio.sleep(1)
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
        assert rig.vault.resyncs == []
    rig.check_point(cut.position)


async def test_growth_needs_no_resync_and_older_points_stay_small(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        small = await rig.cycle(agent)
        await rig.grow("os", 64 << 10)
        rig.write(20)
        large = await rig.cycle(agent)
        rig.check_point(small.position)
        rig.check_point(large.position)
        await agent.resync(vm=VM)
        again = await rig.cycle(agent)
    rig.check_point(again.position)
    assert rig.vault.resyncs == []


async def test_a_disk_that_grows_while_its_copy_is_interrupted_is_copied_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    rig.write(20)
    kill_at = 12
    rig.interceptor.kill_at = kill_at
    async with rig.agent() as agent:
        await rig.protect(agent)
    assert rig.interceptor.calls >= kill_at
    rig.interceptor.kill_at = None
    await rig.grow("data", 64 << 10)
    rig.write(20)
    async with rig.agent() as agent:
        await agent.initial_replication(vm=VM)
        rig.check_point((await rig.cycle(agent)).position)


async def test_the_log_of_the_agent_has_the_id_of_a_point_as_its_trace(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        with structlog.testing.capture_logs() as lines:
            cut = await rig.cycle(agent)
        traces = {line["event"]: line["trace"] for line in lines if line.get("trace") == cut.tag_id}
        assert traces == {"cut_made": cut.tag_id, "point_sent": cut.tag_id}


async def test_resync_sends_only_the_chunks_that_differ(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path, sizes={"os": 4 << 20})
    await rig.make_vm()
    rig.write(500)
    async with rig.agent() as agent:
        await rig.protect(agent)
        cut = await rig.cycle(agent)
        rig.check_point(cut.position)
        rig.managed("os").data[3 << 20 : (3 << 20) + 4096] = b"x" * 4096
        rig.cache.puts.clear()
        await agent.resync(vm=VM)
        sync = [part for part in rig.cache.puts if part.stream == "sync"]
        assert [(part.generation, part.first) for part in sync] == [(2, 1), (2, 2)]
        sent = (await agent.progress(vm=VM)).disks
        assert sent == []
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


@pytest.mark.slow
async def test_old_generation_still_on_its_way_does_not_spoil_a_resync(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.recovery.running = False
        rig.write(8)
        await rig.cycle(agent)
        assert any(part.stream == "log" for part in rig.cache.blobs)
        rig.host.disk(VM, "os").write(0, b"y" * 4096)
        rig.history.append((rig.host.positions.value, "os", 0, b"y" * 4096))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.resync(vm=VM))
            await trio.sleep(60)
            progress = await agent.progress(vm=VM)
            assert progress.phase == "Resynchronization"
            assert progress.detail == "waiting for the recovery side to apply the new generation"
            rig.recovery.running = True
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


@pytest.mark.slow
async def test_spool_stays_bounded_while_the_recovery_side_is_slow(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siterig.replication.engine.disk_copy.PART_BYTES_MAX", 8 << 10)
    monkeypatch.setattr("siterig.replication.engine.snapshots.CHUNK_BYTES", 8 << 10)
    monkeypatch.setattr("siterig.replication.engine.uploader.SPOOLED_PARTS_MAX", 16)
    rig = Rig(tmp_path, sizes={"os": 1 << 20})
    await rig.make_vm()
    rig.write(400)
    rig.recovery.running = False
    async with rig.agent() as agent, trio.open_nursery() as nursery:
        await agent.create_relationship(vm=VM, interval_s=30, app_consistent_every_s=None)
        nursery.start_soon(lambda: agent.initial_replication(vm=VM))
        await trio.sleep(600)
        assert len(list((tmp_path / "agent" / "spool").rglob("*.sync.hrl*"))) == 16
        assert (await agent.progress(vm=VM)).phase == "InitialReplication"
        rig.recovery.running = True
    rig.recovery.apply()
    assert bytes(rig.managed("os").data) == rig.disk_at("os", 1 << 62)


async def test_vm_replicated_before_is_copied_by_comparison_not_by_skipping_zeros(
    rig: Rig, autojump_clock: MockClock
) -> None:
    rig.managed("os").sync_parts, rig.managed("os").generation = 1, 0
    rig.managed("os").data[:4096] = b"z" * 4096
    async with rig.agent() as agent:
        await rig.protect(agent)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


async def test_vm_that_failed_over_while_the_agent_was_dead_is_not_resumed(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
    rig.vault.allowed = False
    points = len(rig.vault.points)
    async with rig.agent() as agent:
        await trio.sleep(10 * rig.interval_s)
        with pytest.raises(RigError, match="phase 'suspended'"):
            await rig.cycle(agent)
    assert len(rig.vault.points) == points


async def test_suspended_vm_is_cut_no_more_and_can_be_protected_again(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        await agent.suspend(vm=VM)
        await agent.suspend(vm=VM)
        await agent.suspend(vm="unknown")
        points = len(rig.vault.points)
        rig.write(3)
        await trio.sleep(10 * rig.interval_s)
        assert len(rig.vault.points) == points
        await rig.protect(agent)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


async def test_a_repeated_request_sends_the_cut_that_was_made_and_makes_no_second_one(
    rig: Rig, autojump_clock: MockClock
) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.write(3)
        points = list(rig.vault.points)
        rig.cache.trouble = RigError(Code.CacheUnreachable, "away", recoverable=True)
        request_id = str(uuid.uuid4())
        with pytest.raises(RigError, match="away"):
            await agent.replicate_now(vm=VM, kind="CrashConsistent", name="mine", request_id=request_id)
        rig.cache.trouble = None
        cut = await agent.replicate_now(vm=VM, kind="CrashConsistent", name="mine", request_id=request_id)
        again = await agent.replicate_now(vm=VM, kind="CrashConsistent", name="mine", request_id=request_id)
        assert again == cut
        assert rig.vault.points == [*points, cut.position]
        other = await agent.replicate_now(vm=VM, kind="CrashConsistent", name="mine", request_id=str(uuid.uuid4()))
        assert other.tag_id != cut.tag_id


async def test_suspend_interrupts_an_initial_replication(rig: Rig, autojump_clock: MockClock) -> None:
    rig.cache.trouble = RigError(Code.CacheUnreachable, "away", recoverable=True)
    async with rig.agent() as agent:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.protect, agent)
                await trio.sleep(5)
                await agent.suspend(vm=VM)
        assert caught.group_contains(RigError, match="VM 'web01': phase 'suspended' was ordered meanwhile")


async def test_removed_relationship_leaves_no_log_no_spool_and_no_cycle(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        rig.recovery.running = False
        rig.write(5)
        await rig.protect(agent)
        await agent.remove_relationship(vm=VM)
        await agent.remove_relationship(vm=VM)
        points = len(rig.vault.points)
        await trio.sleep(10 * rig.interval_s)
        assert len(rig.vault.points) == points
        with pytest.raises(RigError, match="VM 'web01' has no replication relationship on this host"):
            await agent.resync(vm=VM)
    assert [path for path in (rig.folder / "agent" / "spool").rglob("*") if path.is_file()] == []
    assert not any(info.tracked for info in await rig.host.list_disks())


async def test_application_consistent_point_is_cut_while_the_guest_is_frozen(rig: Rig, autojump_clock: MockClock) -> None:
    frozen_at_cut: list[bool] = []
    rig.interceptor.before = lambda name: frozen_at_cut.append(rig.guests.is_frozen) if name == "cut" else None
    rig.guests.mounted = ["/mnt/a"]
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        frozen_at_cut.clear()
        cut = await rig.cycle(agent, "ApplicationConsistent")
        assert (cut.kind, frozen_at_cut, rig.guests.is_frozen) == ("ApplicationConsistent", [True], False)
        rig.guests.mounted = []
        cut = await rig.cycle(agent, "ApplicationConsistent")
        assert (cut.kind, cut.name, cut.downgraded_because) == ("CrashConsistent", "test", "no mounted file system")
        assert rig.vault.downgraded == {cut.position: "no mounted file system"}


@pytest.mark.slow
async def test_application_consistent_points_keep_their_schedule_over_a_restart(rig: Rig, autojump_clock: MockClock) -> None:
    cuts: list[float] = []
    rig.guests.mounted = ["/mnt/a"]
    rig.interceptor.before = lambda name: (
        cuts.append(trio.current_time()) if name == "cut" and rig.guests.is_frozen else None
    )
    rig.app_consistent_every_s = 3600
    async with rig.agent() as agent:
        await rig.protect(agent)
        begun = trio.current_time()
        await trio.sleep(1800)
    async with rig.agent():
        await trio.sleep(1750)
        assert cuts == []
        await trio.sleep(100)
        assert [round((at - begun) / 60) for at in cuts] == [60]


@pytest.mark.slow
@pytest.mark.parametrize("set_by_h", [-50, -1, 1, 50])
async def test_a_clock_that_is_set_moves_no_application_consistent_point(
    rig: Rig, autojump_clock: MockClock, set_by_h: int
) -> None:
    cuts: list[float] = []
    rig.guests.mounted = ["/mnt/a"]
    rig.interceptor.before = lambda name: (
        cuts.append(trio.current_time()) if name == "cut" and rig.guests.is_frozen else None
    )
    rig.app_consistent_every_s = 3600
    async with rig.agent() as agent:
        await rig.protect(agent)
        begun = trio.current_time()
        await trio.sleep(1800)
    rig.wall_ahead_ns = set_by_h * 3600 * 10**9
    async with rig.agent():
        await trio.sleep(1850)
        assert [round((at - begun) / 60) for at in cuts] == [60]


@pytest.mark.slow
async def test_a_restart_delays_application_consistent_points_a_period_at_most(rig: Rig, autojump_clock: MockClock) -> None:
    cuts: list[float] = []
    rig.guests.mounted = ["/mnt/a"]
    rig.interceptor.before = lambda name: (
        cuts.append(trio.current_time()) if name == "cut" and rig.guests.is_frozen else None
    )
    rig.app_consistent_every_s = 3600
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1800)
    rig.wall_ahead_ns, rig.boot_id = -50 * 3600 * 10**9, str(uuid.uuid4())
    async with rig.agent():
        begun = trio.current_time()
        await trio.sleep(3700)
        assert [round((at - begun) / 60) for at in cuts] == [60]


async def test_the_age_of_a_point_that_reaches_the_account_late_is_reported(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.interval_s = 10_000
        await trio.sleep(1)
        rig.write()
        rig.cache.trouble = RigError(Code.CacheUnreachable, "no route", recoverable=True)
        with pytest.raises(RigError):
            await rig.cycle(agent)
        begun = trio.current_time()
        await trio.sleep(25)
        rig.cache.trouble = None
        await rig.cycle(agent)
        assert rig.vault.ages_s[-2:] == [pytest.approx(trio.current_time() - begun), pytest.approx(0)]


async def test_a_book_of_format_1_is_read(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
    path = rig.folder / "agent" / "relationships.json"
    book = json.loads(path.read_text())
    book["format"] = 1
    for record in book["relationships"]:
        del record["app_point"]
        record["app_point_ns"] = 17
    path.write_text(json.dumps(book))
    async with rig.agent() as agent:
        await trio.sleep(1)
        await rig.cycle(agent)
        await agent.suspend(vm=VM)
    assert json.loads(path.read_text())["format"] == 2


async def test_guest_that_cannot_be_frozen_gets_a_crash_consistent_point_by_schedule(
    rig: Rig, autojump_clock: MockClock
) -> None:
    rig.guests.mounted = ["/mnt/a"]
    rig.guests.refusal = RigError(Code.FreezeFailed, "cannot freeze /mnt/a", recoverable=True)
    rig.app_consistent_every_s = 60
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(300)
        assert len(rig.vault.points) >= 10
        assert rig.vault.errors == []
        assert set(rig.vault.names) == {"scheduled"}
        assert set(rig.vault.downgraded.values()) == {"cannot freeze /mnt/a (FreezeFailed)"}
        with pytest.raises(RigError, match="cannot freeze /mnt/a"):
            await rig.cycle(agent, "ApplicationConsistent")


async def test_created_vm_has_formatted_disks_and_a_failed_one_leaves_nothing(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        disks = await agent.create_vm(
            vm="db01",
            disks=[DiskSpec(name="os", size_bytes=1 << 20, filesystem="ext4"), DiskSpec(name="raw", size_bytes=1 << 20)],
        )
        assert [disk.name for disk in disks] == ["os", "raw"]
        assert rig.guests.formatted == [("os.img", "ext4", "os")]
        await agent.create_vm(vm="db00", disks=[DiskSpec(name="os", size_bytes=1 << 20, image="/images/os.vhdx")])
        assert rig.guests.filled == [("os.img", Path("/images/os.vhdx"))]
        with pytest.raises(RigError, match="VM 'db01' exists already on this host"):
            await agent.create_vm(vm="db01", disks=[DiskSpec(name="os", size_bytes=1 << 20)])
        with pytest.raises(RigError, match="size is 1000 bytes"):
            await agent.create_vm(
                vm="db02", disks=[DiskSpec(name="os", size_bytes=1 << 20), DiskSpec(name="data", size_bytes=1000)]
            )
        rig.guests.refusal = RigError(Code.MkfsFailed, "no")
        with pytest.raises(RigError, match="no"):
            await agent.create_vm(vm="db03", disks=[DiskSpec(name="os", size_bytes=1 << 20, filesystem="xfs")])
        assert {info.vm for info in await agent.list_vms()} == {VM, "db00", "db01"}
        await agent.shutdown_vm(vm="db01")
        assert [Path(path).name for path in rig.guests.shut_down] == ["os.img", "raw.img"]


async def test_an_import_reports_progress_and_its_vm_is_not_made_twice(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent, trio.open_nursery() as nursery:
        rig.guests.may_fill = trio.Event()
        disks = [DiskSpec(name="os", size_bytes=1 << 20, image="/images/os.vhdx"), DiskSpec(name="raw", size_bytes=1 << 20)]
        nursery.start_soon(partial(agent.create_vm, vm="db00", disks=disks))
        await trio.testing.wait_all_tasks_blocked()
        progress = await agent.progress(vm="db00")
        assert progress.phase == "Import"
        assert [(disk.disk, disk.done_bytes, disk.total_bytes) for disk in progress.disks] == [("os", 4096, 1 << 20)]
        with pytest.raises(RigError, match="VM 'db00' is being created on this host"):
            await agent.create_vm(vm="db00", disks=disks)
        rig.guests.may_fill.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await agent.progress(vm="db00")).phase is None
        assert [disk.name for disk in await agent.list_vms() if disk.vm == "db00"] == ["os", "raw"]


async def test_check_refuses_a_vm_whose_snapshot_may_not_fit(
    rig: Rig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.write(10)
    async with rig.agent() as agent:
        assert [info.name for info in await agent.check_vm(vm=VM)] == ["os", "data"]

        class Full:
            f_bavail, f_frsize = 1, 4096

        monkeypatch.setattr("siterig.replication.hyperv.prerequisites.os.statvfs", lambda _folder: Full)
        with pytest.raises(RigError, match=r"VM 'web01': 4096 bytes are free at .*; a snapshot of its disks may need \d+"):
            await agent.check_vm(vm=VM)
        with pytest.raises(RigError, match="there is no VM 'nobody'"):
            await agent.check_vm(vm="nobody")
        with pytest.raises(RigError, match="there is no VM 'nobody'"):
            await agent.check_prerequisites(vm="nobody")
        broken = f"disk {VM}/os cannot be opened: it is damaged"
        rig.host.registry.broken[f"{VM}/os"] = "it is damaged"
        found = await agent.check_prerequisites(vm=VM)
        assert [(each.code, each.recoverable) for each in found.unmet] == [("DiskCorrupt", False), ("NotEnoughSpace", True)]
        assert found.unmet[0].message == broken


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"format": 3, "relationships": [], "received": []}), "format 3; this siterig reads 1 and 2"),
        ("{", "is not an agent's state"),
    ],
)
def test_agent_refuses_a_state_it_cannot_read(tmp_path: Path, content: str, message: str) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "relationships.json").write_text(content)
    rig: Any = Rig(tmp_path)
    with pytest.raises(RigError, match=message):
        rig.new_agent()
