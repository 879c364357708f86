"""Runs many seeds in several processes, and sums the results up in the order of the seeds.

The processes take small groups of seeds.  After an interrupt no group begins any more, and those that run end: then all
seeds up to some seed are done, and none after it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from siterig.scenarios.simulation.coverage import Coverage
from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.simulation import RunResult, Simulator

GROUP_SEEDS = 4
MEMORY = Path("/dev/shm")  # noqa: S108 (the folders in it are made by mkdtemp)

_simulators: list[Simulator] = []
"""The simulator of this process, in a folder that :func:`run_range` deletes."""


@dataclass(slots=True)
class SeedResults:
    """The results of a range of seeds.

    Attributes:
        seeds: the number of seeds that were run.
        following: the seed after the last one that was run.
        points: the number of recovery points that were compared.
        processor_s: the processor time of the runs.
        coverage: the counts of what occurred.
        failed: the results of the seeds that broke an invariant.
    """

    seeds: int = 0
    following: int = 0
    points: int = 0
    processor_s: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    failed: list[RunResult] = field(default_factory=list)

    def note(self, result: RunResult) -> None:
        """Add the result of one seed."""
        self.seeds += 1
        self.following = max(self.following, result.plan.seed + 1)
        self.points += result.points
        self.processor_s += result.processor_s
        self.coverage.add(result.coverage)
        if result.findings:
            self.failed.append(result)

    def add(self, other: SeedResults) -> None:
        """Add the results of other seeds."""
        self.seeds += other.seeds
        self.following = max(self.following, other.following)
        self.points += other.points
        self.processor_s += other.processor_s
        self.coverage.add(other.coverage)
        self.failed += other.failed


def folder_in_memory(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder, on a tmpfs if there is one; tests delete the folders of processes that have ended."""
    return tempfile.TemporaryDirectory(prefix=f"{prefix}-{os.getpid()}-", dir=MEMORY if MEMORY.is_dir() else None)


def run_seeds(simulator: Simulator, seeds: range) -> SeedResults:
    """Run seeds in this process."""
    results = SeedResults(following=seeds.start)
    for seed in seeds:
        results.note(simulator.run(plans.draw(seed)))
    return results


def run_range(
    seeds: range,
    processes: int,
    on_progress: Callable[[SeedResults, SeedResults], None],
    is_stopped: Callable[[], bool],
) -> SeedResults:
    """Run a range of seeds in several processes.

    Args:
        seeds: the seeds; their step is 1.
        processes: the number of processes.
        on_progress: called with the results so far, and those of the newest group.
        is_stopped: returns True when no group is to begin any more.
    """
    with folder_in_memory("siterig-simulation") as folder:
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_process, (folder,))
        with pool:
            return collect(lambda group: pool.submit(_run_group, group), seeds, 2 * processes, on_progress, is_stopped)


def collect(
    submit: Callable[[range], Future[SeedResults]],
    seeds: range,
    ahead: int,
    on_progress: Callable[[SeedResults, SeedResults], None],
    is_stopped: Callable[[], bool],
) -> SeedResults:
    """Submit the groups of a range, at most ``ahead`` at a time, and sum up their results in their order."""
    groups, waiting, results = _groups(seeds), deque[Future[SeedResults]](), SeedResults(following=seeds.start)
    while True:
        while not is_stopped() and len(waiting) < ahead and (group := next(groups, None)) is not None:
            waiting.append(submit(group))
        while is_stopped() and waiting and waiting[-1].cancel():  # one that has not begun
            waiting.pop()
        if not waiting:
            return results
        found = waiting.popleft().result()
        results.add(found)
        on_progress(results, found)


def _groups(seeds: range) -> Iterator[range]:
    for first in range(seeds.start, seeds.stop, GROUP_SEEDS):
        yield range(first, min(first + GROUP_SEEDS, seeds.stop))


def _start_process(folder: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes, and the parent stops
    _simulators.append(Simulator(Path(tempfile.mkdtemp(dir=folder))))


def _run_group(seeds: range) -> SeedResults:
    return run_seeds(_simulators[0], seeds)
