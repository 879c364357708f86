"""The command of developers: ``python -m siterig.scenarios.simulation --seeds 1000``.

It runs seeds on all processors, shows its progress, and prints each finding with the commands that repeat and shrink it.
The exit status is 1 if there was one.  After an interrupt it prints the seed to continue from.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.simulation.many_seeds import GROUP_SEEDS, SeedResults, folder_in_memory, run_range, run_seeds
from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.rig.plan import RunPlan
from siterig.scenarios.simulation.shrink import shrink
from siterig.scenarios.simulation.simulation import RunResult, Simulator

_COMMAND = "python -m siterig.scenarios.simulation"
PROGRESS_S = 10.0
"""The time between two lines of progress."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--seed", "--from", type=int, default=1, metavar="SEED", help="the first seed (default: 1)")
    parser.add_argument("--seeds", type=int, default=1, help="the number of seeds (default: 1)")
    parser.add_argument("--processes", type=int, help="the number of processes (default: one for each processor)")
    parser.add_argument("--plan", help="run this plan, as a failed run printed it, instead of the plan of a seed")
    parser.add_argument("--shrink", action="store_true", help="search for the smallest plan that fails alike")
    parser.add_argument("--trace", action="store_true", help="print every call and fault")
    parser.add_argument("--twice", action="store_true", help="run each seed twice, and compare the hashes of the traces")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.seeds)
    watch = _Watch(seeds)
    if options.plan or options.trace or options.twice or options.shrink:
        chosen = [RunPlan.from_json(options.plan)] if options.plan else [plans.draw(seed) for seed in seeds]
        with folder_in_memory("siterig-simulation") as folder:
            return _run_alone(Simulator(Path(folder)), chosen, options, watch)
    if len(seeds) <= GROUP_SEEDS:
        with folder_in_memory("siterig-simulation") as folder:
            results = run_seeds(Simulator(Path(folder)), seeds)
        for result in results.failed:
            _print_findings(result)
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, watch.stop)
        processes = options.processes or len(os.sched_getaffinity(0))
        results = run_range(seeds, processes, watch.progress, lambda: watch.is_stopped)
    return watch.end(results)


class _Watch:
    """Prints the progress and the end.

    Attributes:
        is_stopped: True from the first signal on; a second one ends the process.
    """

    def __init__(self, seeds: range) -> None:
        self.is_stopped = False
        self._seeds = seeds
        self._begun_s, self._shown_s = _now_s(), -PROGRESS_S

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """Let no more seeds begin."""
        self.is_stopped = True
        signal.signal(number, signal.SIG_DFL)

    def progress(self, results: SeedResults, newest: SeedResults) -> None:
        """Print the findings of the newest seeds, and now and then the progress."""
        for result in newest.failed:
            _print_findings(result)
        now_s = _now_s()
        if now_s - self._shown_s >= PROGRESS_S:
            self._shown_s = now_s
            rate = results.seeds / (now_s - self._begun_s)
            left = len(self._seeds) - results.seeds
            print(
                f"{results.seeds} of {len(self._seeds)} seeds, {len(results.failed)} failed, {rate:.1f} a second, "
                f"{left / rate / 60:.0f} min left; next seed: {results.following}",
                flush=True,
            )

    def end(self, results: SeedResults) -> int:
        """Print the counts; return the exit status."""
        runs, seconds = max(1, results.seeds), _now_s() - self._begun_s
        print(
            f"{results.seeds} seeds, {len(results.failed)} failed, {results.points} recovery points compared, "
            f"{seconds:.1f} s ({results.processor_s / runs:.3f} s of a processor for a seed)"
        )
        for line in results.coverage.lines():
            print(line)
        if results.following < self._seeds.stop:
            left = self._seeds.stop - results.following
            print(f"interrupted; to continue: {_COMMAND} --from {results.following} --seeds {left}")
        return 1 if results.failed else 0


def _run_alone(simulator: Simulator, chosen: list[RunPlan], options: argparse.Namespace, watch: _Watch) -> int:
    """Run plans in this process, with all that is to be shown about them."""
    results, differ = SeedResults(), 0
    for plan in chosen:
        result = simulator.run(plan)
        results.note(result)
        if options.trace:
            print("\n".join(result.trace))
        if options.twice and simulator.run(plan).digest != result.digest:
            differ += 1
            print(f"seed {plan.seed}: two runs have different traces", flush=True)
        if result.findings:
            _print_findings(result)
            if options.shrink:
                _print_smallest(simulator, result)
    return max(watch.end(results), int(differ > 0))


def _now_s() -> float:
    return SYSTEM_CLOCK.monotonic_ns() / 1e9


def _print_findings(result: RunResult) -> None:
    print(f"seed {result.plan.seed}:")
    for finding in result.findings:
        print(f"  {finding}")
    for fault in result.plan.faults:
        print(f"  {fault}")
    for operation in result.plan.operations:
        print(f"  {operation}")
    print(f"  repeat: {_COMMAND} --seed {result.plan.seed} --trace; trace {result.digest}")
    print(f"  shrink: {_COMMAND} --seed {result.plan.seed} --shrink", flush=True)


def _print_smallest(simulator: Simulator, result: RunResult) -> None:
    invariant = result.findings[0].invariant

    def fails(plan: RunPlan) -> bool:
        return any(finding.invariant == invariant for finding in simulator.run(plan).findings)

    smallest = shrink(result.plan, fails)
    print(f"  smallest plan that breaks {invariant!r}:")
    for event in (*smallest.faults, *smallest.operations):
        print(f"    {event}")
    print(f"  repeat: {_COMMAND} --plan '{smallest.to_json()}'")


if __name__ == "__main__":
    sys.exit(main())
