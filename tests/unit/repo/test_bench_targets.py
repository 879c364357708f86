"""Benchmarks report for each target whether it was met."""

from __future__ import annotations

import pytest

from bench.fio import COLUMNS, Figure, read_figure
from bench.targets import TARGETS, BenchTarget, judge

_REPORT = {
    "jobs": [
        {
            "read": {"iops": 0.0, "bw_bytes": 0, "clat_ns": {}},
            "write": {
                "iops": 1500.0,
                "bw_bytes": 6_000_000,
                "clat_ns": {"percentile": {"50.000000": 7000, "99.000000": 21_000}},
            },
        }
    ]
}


def test_a_target_is_judged_by_the_medians_of_the_rounds() -> None:
    ours = [Figure(10.0, 5.0, 0.0), Figure(100.0, 1.0, 0.0), Figure(40.0, 4.0, 0.0)]
    (verdict,) = judge({"tracked": {"randwrite": ours}, "untracked": {"randwrite": [Figure(50.0, 2.0, 0.0)] * 3}})
    assert verdict.target == BenchTarget("tracked", "untracked", "randwrite", 0.8)
    assert (verdict.found, verdict.lowest, verdict.highest, verdict.holds) == (0.8, 0.2, 2.0, True)
    assert verdict.by_latency == 0.5


def test_a_target_that_is_just_missed_does_not_hold() -> None:
    (verdict,) = judge(
        {"tracked": {"seqwrite": [Figure(44.9, 1.0, 1.0)]}, "untracked": {"seqwrite": [Figure(100.0, 1.0, 1.0)]}}
    )
    assert not verdict.holds


def test_a_figure_that_was_not_measured_gets_no_verdict() -> None:
    one = [Figure(1.0, 1.0, 1.0)]
    assert judge({"tracked": {"randwrite": one}, "ptll": {"randwrite": one}}) == []


def test_every_target_names_a_column_that_is_measured() -> None:
    assert {target.column for target in TARGETS} <= COLUMNS.keys()


def test_a_figure_is_operations_or_megabytes_a_second_by_its_column() -> None:
    small, large = (read_figure(COLUMNS[name], _REPORT) for name in ("randwrite", "seqwrite"))
    assert (small.value, large.value) == (1500.0, 6.0)
    assert (small.p50_us, small.p99_us) == (7.0, 21.0)


def test_a_job_that_did_nothing_is_no_figure() -> None:
    with pytest.raises(SystemExit, match=r"fio did nothing \(4K randread q1\)"):
        read_figure(COLUMNS["randread"], _REPORT)
