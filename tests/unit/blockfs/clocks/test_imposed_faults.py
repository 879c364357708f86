"""Faults of the clock: each can be taken back by itself, after a kill at any moment, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siterig.blockfs.clocks.clock_page import SEQUENCE_AT, ClockPage, ensure_page
from siterig.blockfs.clocks.clock_terms import SECOND_NS, KernelTimes
from siterig.blockfs.clocks.imposed_faults import ImposedClockFaults
from siterig.blockfs.core.errors import RigError

HOUR_NS = 3600 * SECOND_NS


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ClockPage]:
    ensure_page(tmp_path / "clock")
    with ClockPage(tmp_path / "clock") as found:
        found.claim("agent")
        found.claim("vault")
        yield found


@pytest.fixture
def faults(page: ClockPage, tmp_path: Path) -> ImposedClockFaults:
    return ImposedClockFaults(page, tmp_path / "faults.json")


def leads_s(page: ClockPage) -> tuple[int, int]:
    """Return the lead of the wall times of agent and vault over the kernel's, in whole seconds."""
    terms, kernel = page.terms(), KernelTimes.now()
    agent, vault = (round((terms.wall_at(kernel, slot) - kernel.wall_ns) / SECOND_NS) for slot in (0, 1))
    return agent, vault


def test_faults_add_up_and_end_one_by_one_in_any_order(page: ClockPage, faults: ImposedClockFaults) -> None:
    page.change(lambda terms, kernel: terms.with_skews({1: 5 * SECOND_NS}, kernel))  # by hand
    faults.impose_jump("jump", -HOUR_NS)
    faults.impose_skew("skew", ["agent"], 60 * SECOND_NS)
    faults.impose_skew("drift", ["agent", "vault"], 0, drift_ppm=100_000)
    page.change(lambda terms, kernel: terms.advanced(1000 * SECOND_NS, kernel))
    assert leads_s(page) == (-3600 + 1000 + 60 + 100, -3600 + 1000 + 5 + 100)
    faults.lift(["skew"])
    assert leads_s(page) == (-3600 + 1000 + 100, -3600 + 1000 + 5 + 100)
    faults.lift(["drift", "unknown"])
    page.change(lambda terms, kernel: terms.advanced(1000 * SECOND_NS, kernel))
    assert leads_s(page) == (-3600 + 2000, -3600 + 2000 + 5)
    faults.lift()
    assert leads_s(page) == (2000, 2005)
    assert faults.imposed() == []


def test_a_kill_before_the_change_leaves_a_fault_neither_imposed_nor_lifted(
    page: ClockPage, faults: ImposedClockFaults
) -> None:
    faults.impose_jump("jump", HOUR_NS)
    imposed = faults.imposed()
    changes: tuple[Callable[[], int], ...] = (lambda: faults.impose_jump("other", HOUR_NS), lambda: faults.lift(["jump"]))
    for change in changes:
        before = os.pread(page.fd, 4096, 0)
        change()
        os.pwrite(page.fd, before, 0)  # the file was written, and the page was not
        assert faults.imposed() == imposed
        assert page.sequence == int.from_bytes(os.pread(page.fd, 8, SEQUENCE_AT), "little")
    faults.lift()
    assert leads_s(page) == (0, 0)


@pytest.mark.parametrize("text", ["", "{}", '[{"fault": "x"}]', '[{"fault": "x", "change": -1}]', "[" * 100_000])
def test_a_damaged_list_is_refused_by_name(faults: ImposedClockFaults, tmp_path: Path, text: str) -> None:
    (tmp_path / "faults.json").write_text(text)
    with pytest.raises(RigError, match=r"faults.json is damaged"):
        faults.imposed()
