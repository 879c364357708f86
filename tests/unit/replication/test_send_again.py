"""Parts that the recovery side cannot use are put again by the agent, or their VM is marked for a resync."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    without_threads(monkeypatch)
    return Rig(tmp_path)


@pytest.fixture
async def waiting(rig: Rig) -> Rig:
    """Nothing is applied."""
    await rig.make_vm()
    rig.recovery.running = False
    rig.write(20)
    return rig


def spoil(rig: Rig) -> dict[PartName, bytes]:
    """Every blob that is in the account loses its content; what it was."""
    good = dict(rig.cache.blobs)
    assert {part.stream for part in good} == {"sync", "log"}
    rig.cache.blobs.update(dict.fromkeys(good, b"spoilt"))
    return good


async def test_spoilt_parts_of_a_copy_and_of_the_log_are_replaced(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        cut = await rig.cycle(agent)
        good = spoil(rig)
        await agent.send_again(vm=VM, parts=[part.blob() for part in good])
        assert {part: rig.cache.blobs[part] for part in good} == good
        assert rig.vault.resyncs == []
    rig.recovery.running = True
    rig.check_point(cut.position)


async def test_a_part_lost_during_a_copy_is_replaced_and_the_copy_continues(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await agent.create_relationship(vm=VM, interval_s=30, app_consistent_every_s=None)
        spoilt: list[PartName] = []
        seen = trio.Event()

        def spoil_first(name: str) -> None:
            if name == "end_snapshot" and rig.cache.blobs and not spoilt:  # all is copied, and nothing is applied
                spoilt.append(min(rig.cache.blobs))
                rig.cache.blobs[spoilt[0]] = b"spoilt"
                seen.set()

        rig.interceptor.before = spoil_first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.initial_replication(vm=VM))
            await seen.wait()
            await agent.send_again(vm=VM, parts=[spoilt[0].blob()])
        assert rig.cache.blobs[spoilt[0]] != b"spoilt"
        cut = await rig.cycle(agent)
    rig.recovery.running = True
    rig.check_point(cut.position)


async def test_a_spoilt_part_of_a_resync_is_replaced(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    rig.recovery.running = True
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        rig.write(5)
        async with trio.open_nursery() as nursery:
            rig.recovery.running = False
            nursery.start_soon(lambda: agent.resync(vm=VM))
            await trio.sleep(5)
            (wait,) = rig.waits.list()
            assert (wait.vm, wait.code) == (VM, "RecoverySideBehind")
            parts = [part for part in rig.cache.blobs if part.generation > 1]
            rig.cache.blobs.update(dict.fromkeys(parts, b"spoilt"))
            await agent.send_again(vm=VM, parts=[part.blob() for part in parts])
            rig.recovery.running = True
        cut = await rig.cycle(agent)
        rig.check_point(cut.position)
        assert rig.waits.list() == []


@pytest.mark.parametrize("stream", ["sync", "log"])
async def test_a_part_that_nobody_has_marks_the_vm_for_resync(waiting: Rig, autojump_clock: MockClock, stream: str) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        good = spoil(rig)
        part = next(part for part in good if part.stream == stream)
        if stream == "sync":
            for path in (rig.folder / "agent" / "spool" / part.disk_id).glob("*.sync.hrl*"):
                path.unlink()
        else:
            await rig.host.trim_log(disk_id=part.disk_id, generation=part.generation, last_seq=part.last)
        await agent.send_again(vm=VM, parts=[part.blob()])
        await trio.sleep(10)
        assert rig.vault.resyncs == ["SyncPartLost" if stream == "sync" else "LogGap"]


async def test_a_part_that_is_not_sound_at_the_site_either_is_not_sent(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        good = spoil(rig)
        part = next(part for part in good if part.stream == "log")
        (path,) = [
            Path(segment.path)
            for segment in await rig.host.segments(vm=VM)
            if (segment.disk_id, segment.first_seq) == (part.disk_id, part.first)
        ]
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        await agent.send_again(vm=VM, parts=[part.blob()])
        await trio.sleep(10)
        assert rig.vault.resyncs == ["LogCorrupt"]


async def test_names_of_nothing_that_was_sent_are_passed_over(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        (log, *_) = (part for part in rig.cache.blobs if part.stream == "log")
        strays = [
            PartName(log.disk_id, 9, "sync", 1, 1),
            PartName(log.disk_id, 1, "sync", 900, 900),
            PartName(log.disk_id, 1, "log", log.first, log.last + 100),
            PartName(log.disk_id, 1, "log", log.last + 1000, log.last + 1001),
            PartName("0b6f3a52-63f4-4c2f-8f0e-6f8b1c9d0e1f", 1, "log", 1, 1),
        ]
        puts = len(rig.cache.puts)
        await agent.send_again(vm=VM, parts=[part.blob() for part in strays])
        await trio.sleep(120)
        assert rig.vault.resyncs == []
        assert not set(strays) & set(rig.cache.puts[puts:])


async def test_parts_that_are_applied_already_are_not_sent_again(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        parts = list(rig.cache.blobs)
        rig.recovery.running = True
        await rig.cycle(agent)
        puts = len(rig.cache.puts)
        await agent.send_again(vm=VM, parts=[part.blob() for part in parts])
        assert set(parts).isdisjoint(rig.cache.puts[puts:])
        assert rig.vault.resyncs == []


@pytest.mark.parametrize("code", ["CacheForbidden", "CacheError"])
async def test_a_part_that_the_account_refuses_does_not_keep_the_others_back(
    waiting: Rig, autojump_clock: MockClock, code: str
) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        good = spoil(rig)
        refused = min(good)
        rig.cache.refused[refused] = RigError(Code.of(code), f"cannot put {refused.blob()}: 403")
        with pytest.raises(RigError, match=refused.blob()):
            await agent.send_again(vm=VM, parts=[part.blob() for part in good])
        assert [part for part in good if rig.cache.blobs[part] == b"spoilt"] == [refused]
        rig.cache.refused.clear()
        await agent.send_again(vm=VM, parts=[refused.blob()])
        assert {part: rig.cache.blobs[part] for part in good} == good


async def test_a_foreign_file_in_the_spool_stops_nothing(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        for folder in (rig.folder / "agent" / "spool").iterdir():
            (folder / "notes.sync.hrl").write_bytes(b"somebody's")
        await rig.cycle(agent)
        assert rig.vault.errors == []


async def test_a_failed_over_vm_only_replaces_parts_that_it_had_sent(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        good = spoil(rig)
        await agent.suspend(vm=VM)
        rig.write(5)
        await rig.host.cut(vm=VM, kind="CrashConsistent", name="after the failover")
        await agent.send_again(vm=VM, parts=[part.blob() for part in good])
        assert rig.cache.blobs == good


async def test_without_a_name_everything_that_is_missing_is_sent(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    rig.interval_s = 900.0
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        good = dict(rig.cache.blobs)
        rig.cache.blobs.clear()
        await agent.send_again(vm=VM, parts=[])
        assert {part: rig.cache.blobs[part] for part in good} == good


async def test_the_bytes_that_wait_in_the_account_are_reported_with_each_point(
    waiting: Rig, autojump_clock: MockClock
) -> None:
    rig = waiting
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        for disk_id, size_bytes in rig.vault.waiting.items():
            assert size_bytes == sum(len(data) for part, data in rig.cache.blobs.items() if part.disk_id == disk_id) > 0
        rig.recovery.running = True
        rig.recovery.apply()
        await rig.cycle(agent)
        assert sum(rig.vault.waiting.values()) <= sum(len(data) for data in rig.cache.blobs.values())


async def test_a_failing_account_is_a_wait_until_the_first_success(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    rig.recovery.running = True
    rig.retry_delays_s = (60.0,)
    async with rig.agent() as agent:
        await rig.protect(agent)
        with rig.cache_down():
            await trio.sleep(200)
            (wait,) = rig.waits.list()
            assert (wait.vm, wait.code) == (VM, "CacheUnreachable")
            since_ns = wait.since_ns
            await trio.sleep(200)
            assert [each.since_ns for each in rig.waits.list()] == [since_ns]
        await trio.sleep(100)
        assert rig.waits.list() == []


async def test_a_vault_that_does_not_answer_is_a_wait_of_the_vm(waiting: Rig, autojump_clock: MockClock) -> None:
    rig = waiting
    rig.recovery.running = True
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.vault.trouble = RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)
        await trio.sleep(100)
        assert {(wait.vm, wait.code) for wait in rig.waits.list()} == {(VM, "RoleUnavailable")}
        rig.vault.trouble = None
        await trio.sleep(100)
        assert rig.waits.list() == []
        await agent.remove_relationship(vm=VM)
    assert rig.waits.list() == []
