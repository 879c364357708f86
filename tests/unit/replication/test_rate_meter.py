"""Rates over the last minute, and the figures of a copy."""

from __future__ import annotations

import pytest

from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.parts.rate_meter import RateMeter
from tests.support.clocks import FakeClock


def test_a_rate_counts_the_last_minute_only() -> None:
    clock = FakeClock()
    meter = RateMeter(clock.trio_time_s)
    assert meter.per_second == 0
    for _ in range(10):
        meter.add(100)
        clock.advance_ns(10**9)
    assert meter.per_second == 100
    clock.advance_ns(40 * 10**9)
    assert meter.per_second == 20
    clock.advance_ns(20 * 10**9)
    assert meter.per_second == 0


def test_the_memory_of_a_meter_does_not_grow_with_the_amounts() -> None:
    clock = FakeClock()
    meter = RateMeter(clock.trio_time_s)
    for _ in range(10_000):
        meter.add(1)
        clock.advance_ns(10**7)
    assert meter.per_second == pytest.approx(100, rel=0.05)
    assert len(meter._entries) < 70  # noqa: SLF001 (the bound is the promise)


def test_a_copy_has_a_rate_a_time_left_and_figures_when_it_has_ended() -> None:
    clock = FakeClock()
    tracker = ProgressTracker("web01", clock)
    tracker.begin("InitialReplication", [("os", 0, 1000)])
    for _ in range(5):
        tracker.more("os", 100)
        tracker.sent("os", 40)
        clock.advance_ns(10**9)
    found = tracker.snapshot()
    assert (found.upload_bytes_s, found.left_s, found.last_copy) == (40, 5, None)
    tracker.done("os", 1000)
    tracker.end()
    tracker.begin("DeltaReplication", [])
    tracker.end()
    last = tracker.snapshot().last_copy
    assert last is not None
    assert (last.phase, last.total_bytes, last.sent_bytes, last.duration_s) == ("InitialReplication", 1000, 200, 5)
    assert last.before_bytes == 0


def test_the_last_copy_of_a_vm_may_be_that_of_a_disk_that_joined() -> None:
    tracker = ProgressTracker("web01", FakeClock())
    joining = ProgressTracker("web01", FakeClock(), part_of=tracker)
    for each, disk, size in ((tracker, "os", 1000), (joining, "data", 500)):
        each.begin("InitialReplication", [(disk, 0, size)])
        each.done(disk, size)
        each.end()
        last = tracker.snapshot().last_copy
        assert last is not None
        assert last.total_bytes == size
        assert joining.snapshot().last_copy == last


def test_a_copy_that_is_continued_by_another_process_names_the_bytes_before() -> None:
    tracker = ProgressTracker("web01", FakeClock())
    tracker.begin("InitialReplication", [("os", 600, 1000), ("data", 0, 500)])
    tracker.done("os", 1000)
    tracker.sent("os", 300)
    tracker.begin("InitialReplication", [("os", 1000, 1000), ("data", 0, 500)])
    tracker.done("data", 500)
    tracker.sent("data", 100)
    tracker.end()
    last = tracker.snapshot().last_copy
    assert last is not None
    assert (last.before_bytes, last.total_bytes, last.sent_bytes) == (600, 1500, 400)
