"""The handles of the fixtures siterig_faults and siterig_clock, without servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from siterig.blockfs.clocks.clock_page import ClockPage, ensure_page
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.director.director import FaultDirector
from siterig.director.injectors import LayerInjector
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.schedule import FaultSchedule
from siterig.testing import ClockHandle, DiskHandle, FaultsHandle, RigHandle
from siterig.testing.timeline import Timeline
from siterig.testing.trio_thread import run_in_thread
from tests.support.clocks import FakeClock

MOMENT = timedelta(seconds=10)
"""The clocks of the kernel are read one after the other, and this process may wait in between."""


class AnyInjector(LayerInjector):
    """An injector that can arm every rule of its layers."""

    layers = ("disk", "log")


class FakeDisk:
    """A disk whose server has rules, and whose operations a test makes."""

    def __init__(self) -> None:
        self.name, self.timeline = "disk-1", Timeline()
        self.schedule = FaultSchedule(1, clock=FakeClock())
        self.director = FaultDirector(self.schedule, [AnyInjector()], clock=FakeClock())

    def ask(self, method: str, /, **arguments: Any) -> Any:
        found = run_in_thread(lambda: getattr(self.director, method)(**arguments))
        values = [each.model_dump(mode="json") for each in found] if isinstance(found, list) else found
        return values.model_dump(mode="json") if hasattr(values, "model_dump") else values

    def write(self, start: int = 0) -> None:
        operation = FaultOperation("disk", "write", {"vm": self.name, "disk": "disk"}, start=start, length=512)
        for decision in self.schedule.decide(operation):
            self.schedule.record(decision, f"failed at {start}")

    def handle(self, seed: int = 7) -> FaultsHandle:
        """Return the handle of one more test with this disk."""
        return FaultsHandle(cast(DiskHandle, self), seed=seed, timeout_s=0.01)


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


def test_a_rule_acts_on_the_disk_of_the_fixture_and_keeps_its_name(disk: FakeDisk) -> None:
    faults = disk.handle()
    (status,) = faults.add({"where": {"layer": "disk", "op": "write"}, "what": {"error": "EIO"}, "when": {"times": 1}})
    (armed,) = disk.schedule.armed()
    assert (armed.rule.where.vm, armed.seed) == ("disk-1", 7)
    assert status.name == armed.label == "disk write times=1 error=EIO"
    disk.write(512)
    disk.write(1024)
    assert faults.wait(status.name).fired == 1
    assert [each.done for each in faults.injections(status.name)] == ["failed at 512"]
    faults.check()
    assert (faults.rules(), disk.schedule.armed()) == ([], [])


def test_a_rule_that_does_not_fire_fails_the_test_and_one_that_need_not_passes(disk: FakeDisk) -> None:
    faults = disk.handle()
    faults.add("disk write error=EIO name=never", "disk read error=EIO fired=any name=any")
    with pytest.raises(RigError, match=r"^fault 'never' has fired 0 of 2 times within 0\.01 s$"):
        faults.wait("never", times=2)
    faults.remove("never")
    with pytest.raises(RigError, match=r"^fault 'never' was removed$"):
        faults.wait("never")
    with pytest.raises(RigError, match=r"^fault 'never' fired never; expected: >=1; no operation matched it$"):
        faults.check()
    faults.check()  # the second time it is silent: the test has failed already


def test_a_handle_does_not_see_the_rules_of_an_earlier_test(disk: FakeDisk) -> None:
    first = disk.handle()
    first.add("disk write error=EIO name=same")
    disk.write()
    first.check()
    second = disk.handle()
    assert (second.verdicts(), second.injections(), second.rules()) == ([], [], [])
    second.add("disk write error=EIO name=same")
    assert second.injections() == []
    with pytest.raises(RigError, match="'same' fired never"):
        second.check()
    with pytest.raises(RigError, match="has added no fault 'other'; it has added: same"):
        second.remove("other")


def test_a_mark_opens_a_window(disk: FakeDisk) -> None:
    faults = disk.handle()
    faults.add("disk write error=EIO after=mark:go name=late")
    disk.write()
    faults.mark("go")
    disk.write()
    assert [status.fired for status in faults.rules()] == [1]
    assert faults.clear() == 1


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("process agent kill=SIGKILL", "where.layer: 'process': the fixture has a disk and no rig; allowed: disk, log$"),
        (
            "disk web01 write error=EIO",
            "where.vm: 'web01': the rule acts on the disk of the fixture; name no VM; operations: ",
        ),
        ("disk write eror=EIO", "did you mean error"),
    ],
)
def test_a_rule_that_is_not_for_this_disk_changes_nothing(disk: FakeDisk, rule: str, text: str) -> None:
    with pytest.raises(RigError, match=text):
        disk.handle().add("disk write error=EIO", rule)
    assert disk.schedule.armed() == []


def test_verdicts_and_injections_are_kept(disk: FakeDisk, tmp_path: Path) -> None:
    faults = disk.handle(seed=11)
    faults.add("disk write error=EIO name=once")
    disk.write(4096)
    faults.check()
    (path,) = faults.keep(tmp_path / "kept")
    found = json.loads(path.read_text())
    assert found["seed"] == 11
    assert [verdict["ok"] for verdict in found["verdicts"]] == [True]
    assert [each["done"] for each in found["injections"]] == ["failed at 4096"]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[RigHandle]:
    """A rig with the clock of two roles; nothing of it runs."""
    ensure_page(tmp_path / "clock")
    with ClockPage(tmp_path / "clock") as page:
        own = HostProcess.own()
        for role in ("vault", "agent"):
            page.claim(role, HostProcess(pid=own.pid, started=own.started + 1))  # it has ended
        yield RigHandle(tmp_path, interval_s=1, timeout_s=1)


def test_a_shared_rig_is_refused_with_the_remedy(tmp_path: Path) -> None:
    shared = RigHandle(tmp_path, interval_s=1, timeout_s=1, is_shared=True)
    text = "other workers share this rig, .*: give these tests a rig of their own, siterig_rig = testing.rig.share=False.$"
    with pytest.raises(RigError, match=f"^faults: {text}"):
        FaultsHandle(shared, seed=1, timeout_s=1)
    with pytest.raises(RigError, match=f"^the clock: {text}"):
        ClockHandle(shared)


def test_each_change_of_the_clock_is_in_force_and_in_the_timeline(rig: RigHandle, tmp_path: Path) -> None:
    clock = ClockHandle(rig)
    before = clock.now()
    clock.advance("25h")
    assert clock.now() - before > timedelta(hours=25) - MOMENT
    clock.jump("-1h")
    assert timedelta(hours=24) - MOMENT < clock.now() - before < timedelta(hours=25) - MOMENT
    clock.rate(0)
    assert clock.state().rate == 0
    state = clock.skew("agent", "+1h", drift="+200ppm")
    now = datetime.fromisoformat(state.wall_time)
    shown = {role.role: datetime.fromisoformat(role.wall_time) - now for role in state.roles}
    assert abs(shown["vault"]) < MOMENT
    assert abs(shown["agent"] - timedelta(hours=1)) < MOMENT
    clock.restore()
    assert (clock.state().rate, [role.skew_ns for role in clock.state().roles]) == (1.0, [0, 0])
    assert abs(clock.state().wall_ahead_ns) < MOMENT.total_seconds() * 1e9
    rig.timeline.save(tmp_path / "timeline.jsonl")
    steps = [json.loads(line)["what"] for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert steps == ["clock_advanced", "clock_jumped", "clock_rate_set", "clock_skewed", "clock_reset"]


def test_a_change_that_is_not_allowed_is_named(rig: RigHandle) -> None:
    clock, other = ClockHandle(rig), ClockHandle(rig)
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: clock.advance("-1h"), "by"),
        (lambda: clock.jump("1 fortnight"), "by"),
        (lambda: clock.rate(1001), "1001"),
        (lambda: clock.skew("agnt", "+1h"), "did you mean agent"),
        (lambda: clock.skew("agent", "+1h", drift="fast"), "drift"),
    ]
    for change, text in changes:
        with pytest.raises(RigError, match=text):
            change()
    other.restore()
    assert clock.state().change == 0
