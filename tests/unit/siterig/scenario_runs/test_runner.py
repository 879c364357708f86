"""The runner of scenarios on a rig that only records calls: order of the timeline, moments, failures, cleanup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import Event, HealthError, Job, ProtectedItem, RecoveryPoint, Vm
from siterig.blockfs.clocks.clock_terms import MILLION, SECOND_NS
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import FaultControl
from siterig.core.supervisor_contract import SupervisorControl
from siterig.scenario_runs.clock_watch import ClockWatch
from siterig.scenario_runs.expectations import retries_fit
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.runner import RunOptions, ScenarioRun
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenario_runs.watcher import SeenRetry
from siterig.scenarios.contracts.scenario_result import ScenarioResult
from siterig.scenarios.faults.records import FaultVerdict
from siterig.scenarios.files.expectations import RetryExpectation
from siterig.scenarios.files.scenario_files import ScenarioFile, parse_scenario
from tests.support.samples import Canned, sample

TOPOLOGY = """\
title = "t"
description = "d"
[[topology.vm]]
name = "web01"
[[topology.vm.disk]]
name = "data"
size = "1MiB"
"""
FAULT = '[[fault]]\nname = "slow"\nwhere = { layer = "disk" }\nwhat = { delay = "1ms" }\n'
CHANGES = ("create_vm", "enable_protection", "unplanned_failover", "commit_failover", "create_point", "resync")


class Recording:
    """Answers like a :class:`Canned` service, and records the calls that change something."""

    def __init__(self, rig: RecordingRig, service: Any, recorded: Sequence[str] = ()) -> None:
        self._rig, self._service, self._recorded = rig, service, recorded

    def __getattr__(self, name: str) -> Any:
        async def call(**arguments: Any) -> Any:
            if name in self._recorded:
                self._rig.note(name)
                self._rig.arguments.setdefault(name, []).append(arguments)
                if name in self._rig.failures:
                    raise self._rig.failures[name]
            return await getattr(self._service, name)(**arguments)

        return call


class RecordingRig(ScenarioRig):
    """A rig without processes; ``calls`` has what was done, with the time since the first start."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.calls: list[tuple[float, str]] = []
        self.arguments: dict[str, list[dict[str, Any]]] = {}
        self.failures: dict[str, RigError] = {}
        self.events: list[Event] = []
        item = sample(ProtectedItem).model_copy(update={"name": "web01", "protectionState": "Protected", "healthErrors": []})
        self.answers: dict[str, Any] = {"items": [item], "events": self.events, "points": [sample(RecoveryPoint)]}
        self.answers["list_vms"] = [sample(Vm).model_copy(update={"name": "web01", "side": "site"})]
        self.fired = FaultVerdict(name="slow", ok=True, fired=1, expected=">=1", text="fired 1")
        self.faults: FaultControl = Recording(
            self,
            Canned(FaultControl, {"verdicts": [self.fired], "injections": []}),
            ("add_faults", "clear_faults", "note_mark"),
        )
        self.supervisor: SupervisorControl = Canned(SupervisorControl)
        self.blobs_removed_after: str | None = None
        self._began_s: float | None = None

    def note(self, text: str) -> None:
        if self._began_s is None:
            self._began_s = SYSTEM_CLOCK.trio_time_s()
        self.calls.append((round(SYSTEM_CLOCK.trio_time_s() - self._began_s, 1), text))

    @property
    def vault(self) -> Any:
        return Recording(self, Canned(VaultApi, self.answers), CHANGES)

    @property
    def site(self) -> Any:
        return Canned(DiskHostControl)

    azure = site

    @property
    def folder(self) -> Path:
        return self.root

    @property
    def site_position(self) -> Path:
        return self.root / "position"

    azure_position = site_position

    async def start(self, announce: Any) -> None:
        self.note("start")

    def clock(self) -> RigClockControl:
        return RigClockControl(self.root / "clock")

    def wall_ns(self) -> int:
        return SYSTEM_CLOCK.wall_ns()

    async def rotate_account_keys(self) -> None:
        self.note("rotate_account_keys")

    async def set_account(self, source: str) -> None:
        self.note(f"set_account {Path(source).relative_to(self.root)}")

    async def remove_blobs(self) -> None:
        self.blobs_removed_after = self.calls[-1][1]

    async def start_director(self) -> None:
        self.note("start_director")

    async def stop(self) -> None:
        self.note("stop")

    async def kill_site(self) -> None:
        self.note("kill_site")

    async def restart_site(self) -> None:
        self.note("restart_site")


async def run(rig: RecordingRig, text: str, *, without_mechanism: bool = False, topology: str = TOPOLOGY) -> ScenarioResult:
    file = ScenarioFile("t", Path("t.toml"), parse_scenario("t.toml", topology + text))
    records = RunRecords(lambda *_: None)
    return await ScenarioRun(file, rig, records, RunOptions(1, without_mechanism=without_mechanism)).run()


async def test_entries_run_in_order_each_at_its_moment(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)

    async def later() -> None:
        for vm in ("web02", "web01"):
            await trio.sleep(3.5)
            rig.events.append(sample(Event).model_copy(update={"eventCode": "ApplyStalled", "affectedObject": vm}))

    text = """
[[timeline]]
do = "lose-site"
at = "3s"
[[timeline]]
do = "unplanned-failover"
vm = "web01"
after = "event:Apply*/web01"
[[timeline]]
do = "commit"
vm = "web01"
at = "1s"
[[timeline]]
do = "restore-site"
when.item = { vm = "web01", state = "Protect*", points = 1 }
at = "9s"
"""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        result = await run(rig, text)
    assert (result.ok, result.error) == (True, None)
    wanted = [(0.0, "start"), (0.0, "create_vm"), (3.0, "kill_site"), (7.0, "unplanned_failover"), (7.0, "commit_failover")]
    assert [(round(at_s), call) for at_s, call in rig.calls] == [
        *wanted,
        (9, "restart_site"),
        (9, "stop"),
    ]


async def test_a_background_entry_lets_the_next_one_begin(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    slow = sample(Job).model_copy(update={"endTime": None, "state": "InProgress"})
    rig.answers["resync"] = slow
    rig.answers["job"] = slow

    async def end() -> None:
        await trio.sleep(5)
        rig.answers["job"] = sample(Job)

    background = '[[timeline]]\ndo = "resync"\nvm = "web01"\nbackground = true\n[[timeline]]\ndo = "lose-site"\nat = "1s"\n'
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        result = await run(rig, background)
    assert result.ok, result.error
    assert [call for _, call in rig.calls] == ["start", "create_vm", "resync", "kill_site", "stop"]
    assert rig.calls[-1][0] >= 5


async def test_a_moment_that_does_not_come_ends_the_run(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    text = '[[timeline]]\ndo = "lose-site"\nwithin = "5s"\nwhen.item = { vm = "web01", state = "Unprotected" }\n'
    result = await run(rig, text)
    assert not result.ok
    assert result.error is not None
    start = "timeline[1] lose-site: ScenarioTimedOut: lose-site: not within 5s; last seen: web01: Protected (Primary)"
    assert result.error.startswith(start)
    assert [call for _, call in rig.calls] == ["start", "create_vm", "stop"]


async def test_an_operation_that_must_fail_is_a_check(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    rig.failures["resync"] = RigError(Code.DiskUnhealthy, "no")
    text = '[[timeline]]\ndo = "resync"\nvm = "web01"\nfails = "Disk*"\n[[timeline]]\ndo = "lose-site"\nfails = "*"\n'
    result = await run(rig, text)
    assert result.error is None
    assert [(check.ok, check.evidence) for check in result.checks] == [(True, "DiskUnhealthy: no"), (False, "it succeeded")]
    other = await run(rig, text.replace("Disk*", "VmBusy"))
    assert [check.ok for check in other.checks] == [False, False]


async def test_seeds_and_the_new_secret_of_the_account_are_in_the_folder_of_the_run(
    tmp_path: Path, autojump_clock: Any
) -> None:
    rig = RecordingRig(tmp_path)
    text = """
[topology]
account = "env:SECRET"
[[topology.vm]]
name = "web01"
[[topology.vm.disk]]
name = "data"
size = "1MiB"
[[timeline]]
do = "protect"
vm = "web01"
seed_from = ["seed.img", "data=/media/data.img"]
[[timeline]]
do = "set-account"
account = "new.txt"
"""
    result = await run(rig, text, topology='title = "t"\ndescription = "d"\n')
    assert result.error is None
    assert [call for _, call in rig.calls[-4:]] == ["create_vm", "enable_protection", "set_account new.txt", "stop"]
    assert rig.blobs_removed_after == "stop", "nothing is left in the account of a user"
    (arguments,) = rig.arguments["enable_protection"]
    seeds = [(seed.disk, seed.image) for seed in arguments["seeds"]]
    assert seeds == [(None, str(tmp_path / "seed.img")), ("data", "/media/data.img")]


async def test_each_change_of_the_clock_is_a_moment(tmp_path: Path, autojump_clock: Any) -> None:
    text = """
[[timeline]]
do = "advance-clock"
by = "6m"
[[timeline]]
do = "jump-clock"
shift = "-2d"
[[timeline]]
do = "skew-clock"
role = "agent"
shift = "+1h"
"""
    result = await run(RecordingRig(tmp_path), text)
    assert result.ok, result.error
    said = [moment.text.partition("; it shows")[0] for moment in result.moments if moment.lane == "clock"]
    wanted = ["it advanced by 6m", "wall time jumped by -2d", "wall time of agent is skewed by +1h"]
    assert said == [f"clock: {change}" for change in wanted]
    assert result.clock == "a clock of the rig's own, which was changed 3 times"


async def test_a_change_of_the_clock_by_a_command_is_a_moment(tmp_path: Path) -> None:
    rig = RecordingRig(tmp_path)
    watch = ClockWatch(rig, records := RunRecords(lambda *_: None))
    watch.look()
    with rig.clock() as clock:
        await clock.set_rate(60 * MILLION)
        watch.look()
        await clock.set_skew(["site"], 0, drift_ppm=200)
        await clock.jump(SECOND_NS)
    watch.look()
    watch.look()
    assert [moment.text.partition("; it shows")[0] for moment in records.moments] == [
        "clock: it runs at 60 times real speed",
        "clock (2 changes): wall time jumped by +1s; wall time of site drifts by +200ppm",
    ]


async def test_a_fault_that_cannot_be_armed_ends_the_run_before_the_timeline(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    rig.failures["add_faults"] = RigError(Code.FaultNotPossible, "fault 'slow': where.disk: no such disk")
    result = await run(rig, FAULT + '[[timeline]]\ndo = "lose-site"\n')
    assert result.error == "set-up: FaultNotPossible: fault 'slow': where.disk: no such disk"
    assert [call for _, call in rig.calls] == ["start", "create_vm", "start_director", "add_faults", "clear_faults", "stop"]


async def test_a_fault_that_did_not_fire_fails_the_run(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    mark = '[[timeline]]\ndo = "mark"\nmark = "now"\n'
    assert (await run(rig, FAULT + mark)).ok
    assert [call for _, call in rig.calls] == [
        "start",
        "create_vm",
        "start_director",
        "add_faults",
        "note_mark",
        "clear_faults",
        "stop",
    ]
    silent = rig.fired.model_copy(update={"ok": False, "fired": 0, "text": "fired 0, expected >=1"})
    rig.faults = Recording(rig, Canned(FaultControl, {"verdicts": [silent], "injections": []}))
    result = await run(rig, FAULT)
    assert (result.ok, [check.evidence for check in result.checks]) == (False, ["fired 0, expected >=1"])


async def test_a_cancelled_run_is_cleaned_up(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    with trio.move_on_after(2) as scope:
        await run(rig, FAULT + '[[timeline]]\ndo = "wait"\nat = "30s"\n')
    assert scope.cancelled_caught
    assert [call for _, call in rig.calls] == ["start", "create_vm", "start_director", "add_faults", "clear_faults", "stop"]


async def test_a_bug_passes_through_after_the_cleanup(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    rig.answers["items"] = None
    with pytest.raises(ExceptionGroup):
        await run(rig, '[[timeline]]\ndo = "wait"\nat = "30s"\n')
    assert rig.calls[-1][1] == "stop"


async def test_states_may_come_true_within_their_time_limit(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    item = rig.answers["items"][0]
    rig.answers["items"] = [item.model_copy(update={"protectionState": "Other"})]
    text = '[expect]\nwithin = "10s"\nitem = [{ vm = "web01", state = "Protected" }]\n'
    assert not (await run(rig, text)).ok

    async def change() -> None:
        await trio.sleep(4)
        rig.answers["items"] = [item]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        result = await run(rig, text)
    assert [check.ok for check in result.checks] == [True]


async def test_the_time_limit_ends_a_run_cleanly(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    result = await run(rig, '[[timeline]]\ndo = "wait"\nat = "400s"\n')
    assert result.error == "timeline[1] wait: ScenarioTimedOut: the run did not end within 5m (time_limit)"
    assert rig.calls[-1][1] == "stop"


async def test_without_the_mechanism_waits_are_short(tmp_path: Path, autojump_clock: Any) -> None:
    rig = RecordingRig(tmp_path)
    wait = '[[timeline]]\ndo = "wait"\nwhen.item = { vm = "web01", state = "Other" }\n'
    result = await run(rig, FAULT + wait, without_mechanism=True)
    assert not result.ok
    assert "not within 10s" in str(result.error)
    longer = await run(RecordingRig(tmp_path), FAULT + wait + '[proof]\nwithin = "25s"\n', without_mechanism=True)
    assert "not within 25s" in str(longer.error)
    assert [call for _, call in rig.calls] == ["start", "create_vm", "stop"]


async def test_a_proof_does_not_fail_by_the_rule_that_it_leaves_out(tmp_path: Path, autojump_clock: Any) -> None:
    text = (
        FAULT + '[[timeline]]\ndo = "wait"\nafter = "fault:slow"\nwhen.fault = { name = "slow" }\n'
        '[[timeline]]\ndo = "remove-fault"\nfault = "slow"\n[expect]\nfault = [{ name = "slow" }]\n'
    )
    rig = RecordingRig(tmp_path)
    result = await run(rig, text, without_mechanism=True)
    assert (result.ok, result.error) == (True, None)
    assert [call for _, call in rig.calls] == ["start", "create_vm", "stop"]


async def test_a_run_that_did_not_come_to_the_mechanism_proves_nothing(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = '[[timeline]]\ndo = "wait"\nwhen.item = { vm = "web01", state = "Other" }\n'
    rig = RecordingRig(tmp_path)
    rig.failures["create_vm"] = RigError(Code.DiskFull, "no room")
    result = await run(rig, FAULT + wait, without_mechanism=True)
    assert (result.ok, result.error) == (True, "the timeline did not begin: set-up: DiskFull: no room")
    result = await run(RecordingRig(tmp_path), FAULT + '[[timeline]]\ndo = "wait"\nat = "400s"\n', without_mechanism=True)
    assert (result.ok, "the run did not end within 5m" in str(result.error)) == (True, True)

    async def fail(_machines: object) -> list[str]:
        return ["VmBusy: web01 is in use"]

    monkeypatch.setattr("siterig.scenario_runs.machines.Machines.release_all", fail)
    result = await run(RecordingRig(tmp_path), FAULT + wait, without_mechanism=True)
    assert (result.ok, result.error) == (True, "the cleanup failed: VmBusy: web01 is in use")
    result = await run(RecordingRig(tmp_path), "")
    assert (result.ok, result.error) == (False, "VmBusy: web01 is in use")


def test_retry_times_are_compared_with_those_announced() -> None:
    seen = [SeenRetry("web01", "CacheUnreachable", n, delay_s, delay_s) for n, delay_s in enumerate((0.9, 2.1, 3.9, 8), 1)]
    wanted = RetryExpectation(vm="web01", error="Cache*", delays=("1s", "2s", "4s"))
    assert retries_fit(wanted, seen) == (True, "announced after the attempts: 0.9 s, 2.1 s, 3.9 s; allowed difference 0.6 s")
    assert not retries_fit(wanted, seen[:2])[0]
    assert not retries_fit(wanted.model_copy(update={"delays": ("1s", "4s")}), seen)[0]
    assert not retries_fit(wanted.model_copy(update={"error": "Other"}), seen)[0]
    late = [SeenRetry("web01", "CacheUnreachable", 1, 0.1, 1.3), *seen[1:]]  # the look at the first one came late
    assert retries_fit(wanted, late) == (
        True,
        "announced after the attempts: 0.1 to 1.3 s, 2.1 s, 3.9 s; allowed difference 0.6 s",
    )
    assert not retries_fit(wanted.model_copy(update={"delays": ("2s", "2s", "4s")}), late)[0]
    assert sample(HealthError).errorCode
