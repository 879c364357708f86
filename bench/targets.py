"""The targets of the data plane, and what a run says of them.

On a machine that others use, operations a second tell mostly who got the cores; the median latency of an operation tells
more of the work.  So a verdict has both: the first decides.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.fio import Figure


@dataclass(frozen=True, slots=True)
class BenchTarget:
    """In ``column``, ``subject`` reaches at least ``at_least`` times what ``peer`` does in the same run."""

    subject: str
    peer: str
    column: str
    at_least: float


TARGETS = (
    *(BenchTarget("untracked", "ptll", column, 1.0) for column in ("randwrite", "randwrite4", "randread", "randread4")),
    BenchTarget("tracked", "naive", "randwrite", 2.0),
    BenchTarget("tracked", "naive", "randwrite4", 3.0),
    *(BenchTarget("tracked", "untracked", column, 0.8) for column in ("randwrite", "randwrite4", "randread", "randread4")),
    BenchTarget("tracked", "untracked", "seqwrite", 0.45),
    BenchTarget("tracked", "untracked", "buffered", 0.45),
    BenchTarget("tracked", "naive", "fsync", 1.0),
    *(BenchTarget("tracked", "before", column, 0.98) for column in ("randwrite", "randread")),
    *(BenchTarget("armed", "tracked", column, 0.95) for column in ("randwrite", "randread")),
)

Values = dict[str, dict[str, list[Figure]]]
"""Subject, column, and the figures of its rounds."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """``found``: ratio of the medians; ``lowest`` and ``highest`` of the rounds' own ratios.

    ``by_latency``: the same ratio made of an operation's median latency.
    """

    target: BenchTarget
    found: float
    lowest: float
    highest: float
    by_latency: float

    @property
    def holds(self) -> bool:
        """True if the target is met."""
        return self.found >= self.target.at_least


def judge(values: Values) -> list[TargetResult]:
    """Judge each target whose two subjects and column were measured."""
    found = []
    for target in TARGETS:
        ours, theirs = (values.get(name, {}).get(target.column, []) for name in (target.subject, target.peer))
        if ours and theirs:
            ratios = [a.value / b.value for a, b in zip(ours, theirs, strict=True)]
            ratio = statistics.median(a.value for a in ours) / statistics.median(b.value for b in theirs)
            by_latency = statistics.median(b.p50_us for b in theirs) / statistics.median(a.p50_us for a in ours)
            found.append(TargetResult(target, ratio, min(ratios), max(ratios), by_latency))
    return found
