"""Rules in other roles: their counts, windows and injections, and what happens when a role or the director starts again."""

from __future__ import annotations

import itertools
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import (
    NO_OPEN_DISK,
    ArmedFaults,
    DiskCopies,
    FaultCount,
    FaultInjector,
    FaultPlan,
    FaultReport,
    InjectedFault,
)
from siterig.director.director import FaultDirector
from siterig.director.remote import START_POLL_S, START_S, RemoteInjector
from siterig.director.run_file import InjectionFile, read_injections, read_run, restore_run, state_of, write_run
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import FakeClock

_epochs = itertools.count()


class FakeRole(FaultInjector):
    """A role with disks, as the director sees it."""

    def __init__(self, *disks: str) -> None:
        self.disks = list(disks)
        self.is_away = self.hangs = False
        self.begin()

    def begin(self) -> None:
        """Start again: no rules, no counts."""
        self.epoch = f"epoch {next(_epochs)}"
        self.plans: dict[str, FaultPlan] = {}
        self.armed: list[list[str]] = []
        self.refuses: set[str] = set()
        self.without_file: dict[str, str] = {}
        self.counts: dict[str, FaultCount] = {}
        self.injected: list[InjectedFault] = []
        self.news = trio.Event()
        self.copies: DiskCopies | None = None

    def fire(self, name: str) -> None:
        """Let one operation meet a rule, if its window is open."""
        if not self.plans[name].is_open:
            return
        count = self.counts[name]
        n = count.matched + 1
        self.counts[name] = FaultCount(matched=n, fired=n, last_ns=1_800_000_000_000_000_000)
        self.injected.append(InjectedFault(name=name, operation="write web01/data", n=n, time_ns=1, done="failed"))
        self.news.set()
        self.news = trio.Event()

    async def serve_with(self, plans: list[FaultPlan]) -> None:
        """Serve with rules that the role has asked for."""
        self.is_away = False
        await self.arm_faults(plans=plans)

    def _check(self) -> None:
        if self.is_away:
            raise RigError(Code.RoleUnavailable, "the role does not answer", recoverable=True)

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        self._check()
        if self.hangs:
            await trio.sleep_forever()
        if refused := self.refuses & {plan.name for plan in plans}:
            raise RigError(Code.FaultNotPossible, f"fault {refused.pop()!r}: no disk that the rule matches is open")
        without = {plan.name: self.without_file[plan.name] for plan in plans if plan.name in self.without_file}
        plans = [plan for plan in plans if plan.name not in without]
        if new := [plan.name for plan in plans if plan.name not in self.plans]:
            self.armed.append(new)
        for plan in plans:
            self.plans.setdefault(plan.name, plan)
            self.counts.setdefault(plan.name, FaultCount(matched=0, fired=0))
        return ArmedFaults(targets={plan.name: list(self.disks) for plan in plans}, without_file=without)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        self._check()
        for name in names:
            self.plans.pop(name, None)
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        self._check()
        self.plans[name] = self.plans[name].model_copy(update={"is_open": is_open})
        return ArmedFaults(targets={name: self.disks})

    async def note_copies(self, *, copies: DiskCopies) -> None:
        self._check()
        self.copies = copies

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        self._check()
        first = after if epoch == self.epoch else 0
        if patience_s and len(self.injected) <= first and epoch == self.epoch:
            await self.news.wait()
        found = self.injected[first:]
        return FaultReport(epoch=self.epoch, sequence=len(self.injected), injections=found, counts=dict(self.counts))


class Stage:
    """A director with two roles that have disks."""

    def __init__(
        self,
        site: FakeRole,
        azure: FakeRole,
        schedule: FaultSchedule | None = None,
        former: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.site, self.azure = site, azure
        self.schedule = FaultSchedule(1, clock=self.clock) if schedule is None else schedule
        self.remote = RemoteInjector(self.schedule, {"site": site, "azure": azure}, former=former, clock=self.clock)
        self.director = FaultDirector(self.schedule, [self.remote], clock=self.clock)

    async def add(self, line: str) -> None:
        await self.director.add_faults(rules=[read_rule(line).document()])

    async def counts(self, name: str) -> tuple[int, int]:
        found = {rule.name: rule for rule in (await self.director.list_faults()).rules}[name]
        return found.matched, found.fired


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.director.run)
        yield stage
        nursery.cancel_scope.cancel()


def new_stage() -> Stage:
    return Stage(FakeRole("web01/data"), FakeRole())


async def test_counts_and_injections_of_all_roles_are_those_of_the_rule() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk * write error=EIO name=bad")
        stage.site.fire("bad")
        stage.azure.fire("bad")
        await trio.testing.wait_all_tasks_blocked()
        assert await stage.counts("bad") == (2, 2)
        found = await stage.director.injections(after=0)
        assert [(each.sequence, each.rule, each.layer, each.done) for each in found] == [
            (1, "bad", "disk", "failed"),
            (2, "bad", "disk", "failed"),
        ]


async def test_a_fault_in_a_role_opens_the_window_of_a_rule_in_another() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO name=first")
        await stage.add("disk web02 write error=EIO after=fault:first name=second")
        stage.azure.fire("second")
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: stage.director.wait_fired(name="first", times=1))
                await trio.testing.wait_all_tasks_blocked()
                stage.site.fire("first")
        await trio.testing.wait_all_tasks_blocked()
        stage.azure.fire("second")
        assert await stage.counts("second") == (1, 1)


async def test_a_role_that_started_again_gets_its_rules_and_the_counts_continue() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO name=bad")
        stage.site.fire("bad")
        await trio.testing.wait_all_tasks_blocked()
        old = stage.site.news
        stage.site.begin()
        old.set()
        await trio.testing.wait_all_tasks_blocked()
        assert list(stage.site.plans) == ["bad"]
        stage.site.fire("bad")
        assert await stage.counts("bad") == (2, 2)
        assert len(await stage.director.injections(after=0)) == 2


async def started_again(stage: Stage, last: FaultReport | None = None) -> list[FaultPlan]:
    """Let the site start again, and return the rules that it gets; it does not answer yet."""
    await trio.testing.wait_all_tasks_blocked()
    old = stage.site.news
    stage.site.begin()
    stage.site.is_away = True
    old.set()
    await trio.testing.wait_all_tasks_blocked()
    return stage.remote.rules_of("site", last)


async def serves(stage: Stage, plans: list[FaultPlan]) -> None:
    """Let the site serve with its rules."""
    await stage.site.serve_with(plans)
    stage.remote.role_is_ready("site")
    await trio.testing.wait_all_tasks_blocked()


async def test_a_role_that_starts_gets_its_rules_with_the_counts_that_continue() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO times=5 name=bad")
        await stage.add("disk web01/data lose=unflushed name=over")
        await stage.add("disk web01/data read error=EIO after=mark:later name=waiting")
        for name in ("bad", "bad", "over"):
            stage.site.fire(name)
        stage.azure.fire("bad")
        plans = await started_again(stage)
        assert [(plan.name, plan.is_open, plan.matched_before, plan.fired_before) for plan in plans] == [
            ("bad", True, 2, 3),
            ("waiting", False, 0, 0),
        ]
        await serves(stage, plans)
        assert stage.site.armed == [["bad", "waiting"]], "the director arms no rule for the second time"
        stage.site.fire("bad")
        assert await stage.counts("bad") == (4, 4)
        (plan,) = [plan for plan in await started_again(stage) if plan.name == "bad"]
        assert (plan.matched_before, plan.fired_before) == (3, 4)
        assert stage.remote.rules_of("vault") == []


async def test_a_change_waits_for_a_role_that_starts_and_is_in_force_when_it_returns() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO after=mark:now name=late")
        await stage.add("disk web01/data flush error=EIO name=gone")
        plans = await started_again(stage)
        done: list[str] = []

        async def change() -> None:
            await stage.director.note_mark(name="now")
            done.append("window")
            await stage.add("disk web01/data read error=EIO name=new")
            done.append("rule")
            await stage.director.remove_fault(name="gone")
            done.append("removal")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await trio.testing.wait_all_tasks_blocked()
            assert done == []
            await serves(stage, plans)
            stage.clock.advance_ns(int(START_POLL_S * 1e9))
        assert done == ["window", "rule", "removal"]
        assert {name: plan.is_open for name, plan in stage.site.plans.items()} == {"late": True, "new": True}


async def test_a_role_that_asks_while_a_rule_is_being_armed_gets_it() -> None:
    async with running(new_stage()) as stage:
        stage.site.hangs = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.add, "disk web01/data write error=EIO name=bad")
            await trio.testing.wait_all_tasks_blocked()
            assert [plan.name for plan in stage.remote.rules_of("site")] == ["bad"]
            stage.clock.advance_ns(5_000_000_000)


async def test_a_role_that_never_serves_keeps_a_change_waiting_for_seconds_only() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO after=mark:now name=late")
        await started_again(stage)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stage.director.note_mark, name="now"))
            await trio.testing.wait_all_tasks_blocked()
            stage.clock.advance_ns(int(START_S * 1e9))


async def test_the_last_report_of_a_process_that_a_rule_killed_counts_first() -> None:
    async with running(new_stage()) as stage:
        await stage.add("log web01/data open kill=SIGKILL times=1 name=end")
        await stage.add("disk web01/data write error=EIO name=bad")
        stage.site.fire("bad")
        killed = InjectedFault(name="end", operation="open", n=1, time_ns=5, done="sent SIGKILL to the process")
        counts = {"end": FaultCount(matched=1, fired=1), "bad": FaultCount(matched=1, fired=1)}
        last = FaultReport(epoch="its successor", sequence=1, injections=[killed], counts=counts)
        plans = await started_again(stage, last)
        assert [(plan.name, plan.fired_before) for plan in plans] == [("bad", 2)]
        assert [plan.name for plan in stage.remote.rules_of("site", last)] == ["bad"], "it is the same report"
        await serves(stage, plans)
        assert await stage.counts("end") == (1, 1)
        assert await stage.counts("bad") == (2, 2)
        assert [each.rule for each in await stage.director.injections(after=0)] == ["bad", "end"]


async def test_a_rule_that_a_new_process_refuses_does_not_keep_the_others_away() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk web01/data write error=EIO file=/data name=file")
        await stage.add("disk web01/data write error=EIO name=bad")
        await trio.testing.wait_all_tasks_blocked()
        old = stage.site.news
        stage.site.begin()
        stage.site.refuses = {"file"}
        with structlog.testing.capture_logs() as logged:
            old.set()
            await trio.testing.wait_all_tasks_blocked()
        assert list(stage.site.plans) == ["bad"]
        assert [(entry["event"], entry["rule"]) for entry in logged if entry["log_level"] == "error"] == [
            ("fault_not_armed_again", "file")
        ]


async def test_spared_faults_of_all_roles_and_processes_are_counted() -> None:
    async with running(new_stage()) as stage:
        await stage.add("log append flip=true recoverable=true name=x")
        for role, spared in ((stage.site, 3), (stage.azure, 2)):
            role.counts["x"] = FaultCount(matched=spared, fired=0, spared=spared)
        assert (await stage.director.list_faults()).rules[0].spared == 5
        old = stage.site.news
        stage.site.begin()
        old.set()
        await trio.testing.wait_all_tasks_blocked()
        stage.site.counts["x"] = FaultCount(matched=1, fired=0, spared=1)
        assert (await stage.director.list_faults()).rules[0].spared == 6


async def test_roles_that_need_it_learn_the_seed_of_the_atlas_and_the_disks() -> None:
    async with running(new_stage()) as stage:
        copies = DiskCopies(at_site=["web01/data"])
        await stage.add("disk web01/data read error=EIO name=other")
        await stage.remote.note_copies(copies)
        assert stage.site.copies is None, "no rule needs it"
        await stage.add("log append flip=true recoverable=true name=x")
        await stage.add("log append flip=true recoverable=true seed=9 name=y")
        assert [plan.atlas_seed for plan in stage.site.plans.values()] == [None, 1, 1]
        stage.azure.is_away = True
        await stage.remote.note_copies(copies)
        told: list[DiskCopies | None] = [stage.site.copies, stage.azure.copies]
        assert told == [copies, None]


async def test_a_file_that_one_role_has_is_enough_and_the_others_are_not_asked_again() -> None:
    async with running(new_stage()) as stage:
        stage.azure.without_file = {"file": f"fault 'file': where.file: '/a': {NO_OPEN_DISK}"}
        await stage.add("disk web01 write error=EIO file=/a after=mark:now name=file")
        assert (list(stage.site.plans), stage.azure.plans) == (["file"], {})
        assert [plan.name for plan in stage.remote.rules_of("site")] == ["file"]
        assert stage.remote.rules_of("azure") == []
        await stage.director.note_mark(name="now")
        assert stage.site.plans["file"].is_open


@pytest.mark.parametrize(
    ("line", "at_site", "refusal"),
    [
        ("file=/a", "'/a' matches no file of /mnt", "where.file: '/a' matches no file of /mnt"),
        ("file=/a", NO_OPEN_DISK, "where: vm = 'web01' matches no disk of this rig"),
        ("file=/a after=mark:now", NO_OPEN_DISK, f"where.file: {NO_OPEN_DISK}"),
    ],
)
async def test_a_file_that_no_role_has_is_refused_for_the_reason_of_the_disk_host(
    line: str, at_site: str, refusal: str
) -> None:
    async with running(new_stage()) as stage:
        stage.azure.without_file = {"x": f"fault 'x': where.file: {NO_OPEN_DISK}"}
        stage.site.without_file = {"x": f"fault 'x': where.file: {at_site}"}
        with pytest.raises(RigError, match=f"fault 'x': {refusal}"):
            await stage.add(f"disk web01 write error=EIO {line} name=x")
        stage.site.is_away = True
        with pytest.raises(RigError, match="the role does not answer"):
            await stage.add(f"disk web01 write error=EIO {line} name=x")
        assert (await stage.director.list_faults()).rules == []


@pytest.mark.parametrize("line", ["disk web01 lose=unflushed name=loss", "log append kill=SIGKILL times=1 name=loss"])
async def test_a_fault_that_happened_once_does_not_happen_again_in_a_new_process(line: str) -> None:
    async with running(new_stage()) as stage:
        await stage.add(line)
        stage.site.fire("loss")
        await trio.testing.wait_all_tasks_blocked()
        old = stage.site.news
        stage.site.begin()
        old.set()
        await trio.testing.wait_all_tasks_blocked()
        assert stage.site.plans == {}
        assert await stage.counts("loss") == (1, 1)


async def test_a_rule_that_matches_no_disk_is_refused_unless_it_waits_for_a_moment() -> None:
    async with running(Stage(FakeRole(), FakeRole())) as stage:
        with pytest.raises(RigError, match="fault 'bad': where: vm = 'web09' matches no disk of this rig: siterig vm list"):
            await stage.add("disk web09 write error=EIO name=bad")
        assert stage.site.plans == {}
        with pytest.raises(
            RigError, match="where: vm = 'web09' and part = 'segment' matches no file now; a VM has change logs"
        ):
            await stage.add("log web09 part=segment lost=true")
        await stage.add("disk web09 write error=EIO after=mark:later name=bad")
        assert not stage.site.plans["bad"].is_open


async def test_a_role_that_is_away_gets_the_rules_later_and_all_away_is_refused() -> None:
    async with running(Stage(FakeRole("web01/data"), FakeRole())) as stage:
        stage.azure.is_away = True
        await stage.add("disk * write error=EIO name=bad")
        stage.azure.is_away = False
        stage.remote.role_is_ready("azure")
        await trio.testing.wait_all_tasks_blocked()
        assert list(stage.azure.plans) == ["bad"]
        stage.azure.is_away = stage.site.is_away = True
        with pytest.raises(RigError, match="the role does not answer"):
            await stage.add("disk * read error=EIO name=worse")


async def test_a_stopped_role_keeps_nobody_waiting_and_catches_up() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk * write error=EIO name=bad")
        await stage.add("disk * read error=EIO after=mark:later name=late")
        stage.azure.is_away = True
        stage.remote.role_is_ready("azure")
        await trio.testing.wait_all_tasks_blocked()
        await stage.director.remove_fault(name="bad")
        await stage.add("disk * flush error=EIO name=new")
        await stage.director.note_mark(name="later")
        assert {name: plan.is_open for name, plan in stage.azure.plans.items()} == {"bad": True, "late": False}
        stage.azure.is_away = False
        for _ in range(2):  # the poll that was under way ends, and the next attempt follows
            stage.clock.advance_ns(4_000_000_000)
            await trio.testing.wait_all_tasks_blocked()
        assert {name: plan.is_open for name, plan in stage.azure.plans.items()} == {"late": True, "new": True}


async def test_a_role_that_does_not_answer_at_all_counts_as_away_after_seconds() -> None:
    async with running(new_stage()) as stage:
        stage.azure.hangs = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.add, "disk * write error=EIO name=bad")
            await trio.testing.wait_all_tasks_blocked()
            stage.clock.advance_ns(5_000_000_000)
        assert list(stage.site.plans) == ["bad"]


async def test_a_removed_rule_keeps_the_counts_of_its_last_moment() -> None:
    async with running(new_stage()) as stage:
        await stage.add("disk * write error=EIO fired=1 name=bad")
        stage.site.fire("bad")
        await stage.director.remove_fault(name="bad")
        assert stage.site.plans == {}
        assert [(verdict.ok, verdict.fired) for verdict in await stage.director.verdicts()] == [(True, 1)]


class LateRole(FakeRole):
    """A role whose long poll ends late, with the counts of the moment at which it was asked."""

    def begin(self) -> None:
        super().begin()
        self.waiting, self.answers = trio.Event(), trio.Event()

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        for name in names:
            self.counts.pop(name, None)
        return await super().disarm_faults(names=names)

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        report = await super().fault_report(after=after, epoch=epoch, patience_s=patience_s)
        if patience_s and report.injections and not self.answers.is_set():
            self.waiting.set()
            await self.answers.wait()
        return report


async def test_a_late_report_of_a_removed_rule_is_not_counted_for_a_new_one() -> None:
    role = LateRole("web01/data")
    async with running(Stage(role, FakeRole())) as stage:
        await stage.add("disk * write error=EIO name=bad")
        for _ in range(5):
            role.fire("bad")
        await role.waiting.wait()
        await stage.director.remove_fault(name="bad")
        await stage.add("disk * write error=EIO name=bad")
        role.answers.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await stage.counts("bad") == (0, 0)
        role.fire("bad")
        assert await stage.counts("bad") == (1, 1)


async def test_a_director_that_starts_again_continues_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    async with running(new_stage()) as stage:
        stage.schedule.subscribe(InjectionFile(tmp_path / "injections.jsonl"))
        await stage.add("disk * write error=EIO name=bad")
        await stage.add("disk * mark=seen name=mark")
        await stage.add("disk * read error=EIO after=mark:later name=waiting")
        await stage.add("disk * mark=never after=mark:later name=quiet")
        stage.azure.without_file = {"file": f"fault 'file': {NO_OPEN_DISK}"}
        await stage.add("disk * read error=EIO file=/a name=file")
        stage.site.fire("bad")
        assert await stage.counts("bad") == (1, 1)
        await stage.director.remove_fault(name="mark")
        write_run(path, state_of(stage.schedule, stage.remote.saved()))
        await stage.director.injections(after=0)
        stage.site.fire("bad")
        assert await stage.counts("bad") == (2, 2)  # it is in the file of injections, and the counts are not saved
    stage.site.fire("bad")
    stage.site.plans["stranger"] = stage.site.plans["bad"]
    stage.site.counts["stranger"] = FaultCount(matched=0, fired=0)
    run = read_run(path)
    assert run is not None
    schedule = FaultSchedule(run.seed)
    restore_run(schedule, run, read_injections(tmp_path / "injections.jsonl"))
    again = Stage(stage.site, stage.azure, schedule, run.roles)
    async with running(again):
        await again.director.resume()
        assert [plan.name for plan in again.remote.rules_of("site")] == ["bad", "waiting", "file"], "no role sets a mark"
        assert [plan.name for plan in again.remote.rules_of("azure")] == ["bad", "waiting"], "it does not have the file"
        assert sorted(stage.site.plans) == ["bad", "file", "waiting"]
        assert await again.counts("bad") == (3, 3)
        found = await again.director.injections(after=0)
        assert [(each.sequence, each.rule, each.n) for each in found] == [
            (1, "mark", 1),
            (2, "bad", 1),
            (3, "bad", 2),
            (4, "bad", 3),
        ]
        assert schedule.marks == ("seen",)
        assert {verdict.name: verdict.fired for verdict in await again.director.verdicts()} == {
            "mark": 1,
            "bad": 3,
            "waiting": 0,
            "quiet": 0,
            "file": 0,
        }
        await again.director.note_mark(name="later")
        assert stage.site.plans["waiting"].is_open


def test_a_run_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert read_run(tmp_path / "run.json") is None
    assert read_run(tmp_path / "missing") is None


def test_a_full_disk_leaves_whole_lines_in_the_file_of_injections(tmp_path: Path) -> None:
    path = tmp_path / "injections.jsonl"
    schedule = FaultSchedule(1, clock=FakeClock())
    schedule.subscribe(InjectionFile(path))
    schedule.add([read_rule("disk web01 write error=EIO name=bad")])

    def inject(n: int) -> None:
        schedule.adopt_injection("bad", operation="write", n=n, time_ns=1, position=None, done="failed")

    inject(1)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))  # half a line has room
    try:
        with structlog.testing.capture_logs() as logged:
            inject(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    inject(3)
    assert logged[-1]["event"] == "injection_not_written"
    assert [injection.n for injection in read_injections(path)] == [1, 3]
    assert [injection.n for injection in schedule.injections] == [1, 2, 3]


def test_the_newest_injections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.scenarios.faults.schedule.INJECTIONS_KEPT", 3)
    schedule = FaultSchedule(1, clock=FakeClock())
    schedule.add([read_rule("disk web01 write error=EIO name=bad")])
    for n in range(1, 6):
        schedule.adopt_injection("bad", operation="write", n=n, time_ns=1, position=None, done="failed")
    assert [injection.sequence for injection in schedule.injections] == [3, 4, 5]


def test_the_file_of_injections_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.director.run_file.INJECTION_BYTES_MAX", 500)
    schedule = FaultSchedule(1, clock=FakeClock())
    schedule.subscribe(InjectionFile(tmp_path / "injections.jsonl"))
    schedule.add([read_rule("disk web01 write error=EIO name=bad")])
    for n in range(20):
        schedule.adopt_injection("bad", operation="write", n=n, time_ns=1, position=None, done="failed")
    lines = (tmp_path / "injections.jsonl").read_text().splitlines()
    former = (tmp_path / "injections.jsonl.1").read_text().splitlines()
    assert '"sequence": 20' in lines[-1]
    assert len("\n".join(lines)) <= 500
    assert len("\n".join(former)) <= 500
