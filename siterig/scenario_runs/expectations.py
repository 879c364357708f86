"""The evaluation of ``[expect]`` at the end of a scenario."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.documents.quantities import duration_text, parse_duration
from siterig.scenario_runs.conditions import Baseline, Conditions, Observation
from siterig.scenario_runs.machines import Machines, disk_path
from siterig.scenario_runs.operations import Operations
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.watcher import SeenRetry
from siterig.scenarios.checks.vm_checks import first_difference
from siterig.scenarios.faults.records import FaultVerdict
from siterig.scenarios.files.conditions import CONDITION_KINDS
from siterig.scenarios.files.expectations import BoundsExpectation, EqualDisks, ExpectTable, RetryExpectation
from siterig.scenarios.files.topology import SECOND_NS, ScenarioTable

STEP = "expect"
_POLL_S = 0.2


class Expectations:
    """Evaluates expectations, and records each as a check.

    Args:
        expect: the expectations.
        conditions: looks at the rig.
        operations: makes test failovers.
        machines: the VMs.
        records: gets the checks.
    """

    def __init__(
        self, expect: ExpectTable, conditions: Conditions, operations: Operations, machines: Machines, records: RunRecords
    ) -> None:
        self._expect, self._conditions, self._operations = expect, conditions, operations
        self._machines, self._records = machines, records

    async def states(self, base: Baseline) -> None:
        """Wait until all states hold, up to the time limit, and record each."""
        for kind, wanted in self._wanted():
            observation = await self._eventually(kind, wanted, base)
            self._records.check(STEP, f"{kind} {_words(wanted)}", observation.ok, observation.text)

    def _wanted(self) -> Iterator[tuple[str, ScenarioTable]]:
        for kind in CONDITION_KINDS:
            for wanted in getattr(self._expect, kind):
                yield kind, wanted

    async def _eventually(self, kind: str, condition: ScenarioTable, base: Baseline) -> Observation:
        observation = await self._conditions.look(kind, condition, base)
        with SYSTEM_CLOCK.move_on_after(self._expect.within / SECOND_NS):
            while not observation.ok:
                await SYSTEM_CLOCK.sleep(_POLL_S)
                observation = await self._conditions.look(kind, condition, base)
        return observation

    async def data(self) -> None:
        """Check data and equality of disks."""
        for data in self._expect.data:
            await self._operations.check_data(
                f"{STEP}: {data.workload} of the {data.of} VM", data.workload, data.of, data.point
            )
        for equal in self._expect.equal:
            await self._equal(equal)

    async def _equal(self, equal: EqualDisks) -> None:
        source, test = await self._operations.source_and_test(equal.vm)
        for disk in source.disks:
            try:
                offset = await first_difference(Path(disk.path), disk_path(test, disk.name), lambda _done: None)
                text = f"all {disk.size_bytes} bytes are equal" if offset is None else f"first difference at offset {offset}"
            except RigError as error:
                offset, text = -1, error.message
            self._records.check(STEP, f"disk {equal.vm}/{disk.name} is equal on both sides", offset is None, text)

    def measured(self) -> None:
        """Check the bounds of the measures."""
        for name, ok, text in _bounds(self._expect.bounds, self._records):
            self._records.check(STEP, name, ok, text)

    def retries(self, seen: Sequence[SeenRetry]) -> None:
        """Check the announced delays between attempts."""
        for wanted in self._expect.retry:
            ok, text = retries_fit(wanted, seen)
            self._records.check(STEP, f"retries of {wanted.vm}: {', '.join(wanted.delays)}", ok, text)

    def verdicts(self, verdicts: Sequence[FaultVerdict]) -> None:
        """Check that each fault rule fired as often as it should."""
        for verdict in verdicts:
            self._records.check(STEP, f"fault {verdict.name}", verdict.ok, verdict.text)


def retries_fit(expectation: RetryExpectation, seen: Sequence[SeenRetry]) -> tuple[bool, str]:
    """Compare the announced delays of the first attempts with the wanted ones."""
    retries = [each for each in seen if each.vm == expectation.vm and fnmatch.fnmatchcase(each.code, expectation.error)]
    due = [parse_duration(text) / SECOND_NS for text in expectation.delays]
    slack_s = expectation.tolerance / SECOND_NS
    pairs = list(zip_longest(due, retries[: len(due)]))
    ok = all(
        found is not None and found.delay_s - slack_s <= expected <= found.delay_s_max + slack_s for expected, found in pairs
    )
    shown = ", ".join(map(_delay_text, retries[: len(due)])) or "none"
    return ok, f"announced after the attempts: {shown}; allowed difference {slack_s:g} s"


def _delay_text(retry: SeenRetry) -> str:
    least, most = f"{retry.delay_s:.1f}", f"{retry.delay_s_max:.1f}"
    return f"{least} s" if least == most else f"{least} to {most} s"


def _bounds(bounds: BoundsExpectation, records: RunRecords) -> Iterator[tuple[str, bool, str]]:
    measures = records.measures
    for name, limit_ns, found_s in (("RPO", bounds.rpo, measures.rpo_s), ("RTO", bounds.rto, measures.rto_s)):
        if limit_ns is not None:
            text = "it was not measured" if found_s is None else f"{found_s:.1f} s"
            yield f"{name} at most {duration_text(limit_ns)}", found_s is not None and found_s * SECOND_NS <= limit_ns, text
    if bounds.lost is not None:
        text = "it was not measured" if measures.lost is None else f"{measures.lost} lost"
        yield (
            f"at most {bounds.lost} acknowledged steps lost",
            measures.lost is not None and measures.lost <= bounds.lost,
            text,
        )


def _words(condition: ScenarioTable) -> str:
    document: dict[str, Any] = condition.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    return ", ".join(f"{key} {' + '.join(value) if isinstance(value, list) else value}" for key, value in document.items())
