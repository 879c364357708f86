"""The resyncs of a thrash: each is explained by a fault that can cause it, or it is a finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.thrash.plan import FAULTS
from siterig.thrash.resync_causes import (
    ABANDONED_S,
    CAUSES,
    LASTS_S,
    AbandonedLog,
    MarkedResync,
    StruckFault,
    abandoned_logs,
    missing_cause,
    time_ns_of,
)

NOW_NS = 1_000_000 * SECOND_NS


def resync(reason: str) -> MarkedResync:
    return MarkedResync("vm1", reason, NOW_NS)


def fault(kind: str, began_s: float, ended_s: float | None = None) -> StruckFault:
    """Return a fault that began and ended so many seconds before the resync."""
    return StruckFault(
        kind, NOW_NS - int(began_s * SECOND_NS), None if ended_s is None else NOW_NS - int(ended_s * SECOND_NS)
    )


def log(vm: str = "vm1", reason: str = "LogOverflow", age_s: float = 5) -> AbandonedLog:
    return AbandonedLog(vm, reason, NOW_NS - int(age_s * SECOND_NS))


def test_every_kind_of_a_cause_is_one_of_the_plan() -> None:
    assert set().union(*CAUSES.values()) <= set(FAULTS)


@pytest.mark.parametrize(("reason", "kind"), [(reason, kind) for reason, kinds in CAUSES.items() for kind in sorted(kinds)])
def test_a_reason_is_explained_by_its_causes_shortly_before(reason: str, kind: str) -> None:
    logs = [log(reason=reason)]
    for good in (fault(kind, 30), fault(kind, 300, LASTS_S - 1)):
        assert missing_cause(resync(reason), [good], logs) is None
    for bad in (fault(kind, -1), fault(kind, 300, LASTS_S + 1)):
        assert "none of its causes struck" in str(missing_cause(resync(reason), [bad], logs))


@pytest.mark.parametrize("reason", ["ImageChanged", "DiskReplaced", "LogGap", "PowerLoss"])
def test_a_reason_that_no_fault_causes_is_a_finding(reason: str) -> None:
    faults = [fault(kind, 10) for kind in FAULTS]
    assert missing_cause(resync(reason), faults, [log(reason=reason)]) == "no fault of a thrash can cause it"


@pytest.mark.parametrize(
    "logs", [[], [log(vm="vm2")], [log(reason="LogFull")], [log(age_s=-2)], [log(age_s=ABANDONED_S + 1)]]
)
def test_an_abandoned_log_must_be_one_of_the_same_vm_and_reason(logs: list[AbandonedLog]) -> None:
    assert missing_cause(resync("LogOverflow"), [fault("cut", 10)], logs) == "the site abandoned no log of vm1 for it"


def test_errors_of_the_account_explain_no_bad_part() -> None:
    faults = [fault(kind, 10) for kind in FAULTS if kind != "blob-damaged"]
    assert "none of its causes struck" in str(missing_cause(resync("PartUnusable"), faults, []))


def test_abandoned_logs_are_read_from_the_log_of_the_site(tmp_path: Path) -> None:
    path = tmp_path / "site.log"
    path.write_text(
        "2026-12-01T12:58:48.115646Z [warning  ] log_abandoned                  dirty_bytes=134217728 disk=vm1/data "
        "reason=LogOverflow\n"
        "2026-12-01T12:58:49.000000Z [info     ] disk_opened                    disk=vm1/data\n"
        "2026-12-01T12:59:00.000000Z [warning  ] log_abandoned                  by=a process that was killed disk=vm2/os "
        "reason=LogFull\n"
    )
    assert abandoned_logs([path]) == [
        AbandonedLog("vm1", "LogOverflow", time_ns_of("2026-12-01T12:58:48.115646Z")),
        AbandonedLog("vm2", "LogFull", time_ns_of("2026-12-01T12:59:00Z")),
    ]
