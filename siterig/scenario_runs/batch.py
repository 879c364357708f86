"""Runs several scenarios, each on a rig of its own: repeated, in parallel, and skipped where a program is missing."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.fault_decisions import SEED_MAX
from siterig.rpc.client import GUIDE
from siterig.scenario_runs.records import LineSeverity, RunRecords
from siterig.scenario_runs.runner import RunOptions, ScenarioRun
from siterig.scenario_runs.scenario_rig import OwnRig
from siterig.scenarios.contracts.scenario_result import ScenarioMeasures, ScenarioResult, ScenarioSetup
from siterig.scenarios.files.scenario_files import ScenarioFile
from siterig.scenarios.loads.make_load import missing_program

_RANDOM_SEEDS = 10**9


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The settings of a batch.

    Args:
        seed: the seed of all runs; None for that of each file, or a random one.
        repeat: how often each is run; the seed rises by 1 each time.
        jobs: how many rigs run at once.
        prove: the mechanism that a scenario tests is switched off; it must fail.
        keep: the folders of failed runs are kept.
    """

    seed: int | None = None
    repeat: int = 1
    jobs: int = 1
    prove: bool = False
    keep: bool = True


class BatchScreen:
    """Shows the progress of a batch; a subclass overrides what it shows."""

    def begin(self, name: str, title: str, seed: int) -> None:
        """Show that a scenario begins."""

    def line(self, name: str, at_s: float, severity: LineSeverity, text: str, evidence: str) -> None:
        """Show one line of a run."""

    def end(self, result: ScenarioResult) -> None:
        """Show the result of a run."""


class Batch:
    """Runs scenarios.

    Args:
        options: how they are run.
        screen: shows the progress.
        parent: the folder in which the rigs get their folders.
        tested: describes software and machine of a run in a folder.
    """

    def __init__(
        self, options: BatchOptions, screen: BatchScreen, *, parent: Path, tested: Callable[[Path], ScenarioSetup]
    ) -> None:
        self._options, self._screen, self._parent, self._tested = options, screen, parent, tested
        self._results: dict[int, ScenarioResult] = {}

    async def run(self, files: Sequence[ScenarioFile]) -> list[ScenarioResult]:
        """Run all scenarios, and return their results in the order of the files."""
        GUIDE.set(None)  # a role that is away is a part of many scenarios: no call waits for it by itself
        limit = trio.CapacityLimiter(self._options.jobs)
        async with trio.open_nursery() as nursery:
            number = 0
            for file in files:
                seeds = (self._options.seed, file.scenario.seed, secrets.randbelow(_RANDOM_SEEDS))
                first = next(seed for seed in seeds if seed is not None)
                for again in range(self._options.repeat):
                    await limit.acquire_on_behalf_of(number)
                    nursery.start_soon(self._one, number, file, (first + again) % (SEED_MAX + 1), limit)
                    number += 1
        return [self._results[each] for each in sorted(self._results)]

    async def _one(self, number: int, file: ScenarioFile, seed: int, limit: trio.CapacityLimiter) -> None:
        try:
            self._screen.begin(file.name, file.scenario.title, seed)
            result = await self._result(number, file, seed)
            self._results[number] = result
            self._screen.end(result)
        finally:
            limit.release_on_behalf_of(number)

    async def _result(self, number: int, file: ScenarioFile, seed: int) -> ScenarioResult:
        prove = self._options.prove
        missing = missing_of(file)
        if missing is None and prove and not file.scenario.has_proof:
            missing = "it has no [proof] and no fault rule"
        if missing is not None:
            return _skipped(file, seed, missing, without_mechanism=prove)
        folder = self._parent / str(number + 1)  # short, because the paths of sockets are limited
        keep = False
        try:
            records = RunRecords(partial(self._screen.line, file.name))
            run = ScenarioRun(file, OwnRig(folder, file.scenario.topology), records, RunOptions(seed, prove))
            result = await run.run()
            described = await trio.to_thread.run_sync(self._tested, folder)
            keep = self._options.keep and not result.ok and not prove and folder.is_dir()
            return result.model_copy(update={"tested": described, "kept": str(folder) if keep else None})
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def missing_of(file: ScenarioFile) -> str | None:
    """Return the name of a program that a scenario needs and this machine lacks; None if nothing is missing."""
    for program in file.scenario.needs or ():
        if shutil.which(program) is None:
            return f"program {program} is not installed"
    for workload in file.scenario.workload:
        program_text = missing_program(workload.kind)
        if program_text is not None:
            return f"workload {workload.name} needs {program_text}"
    return None


def _skipped(file: ScenarioFile, seed: int, reason: str, *, without_mechanism: bool) -> ScenarioResult:
    return ScenarioResult(
        name=file.name,
        title=file.scenario.title,
        file=str(file.path),
        sentences=list(file.scenario.sentences),
        seed=seed,
        ok=True,
        skipped=reason,
        without_mechanism=without_mechanism,
        started=SYSTEM_CLOCK.utc().isoformat(timespec="seconds"),
        duration_s=0,
        checks=[],
        moments=[],
        rpo=[],
        measures=ScenarioMeasures(),
        jobs=[],
        events=[],
        injections=[],
        verdicts=[],
    )
