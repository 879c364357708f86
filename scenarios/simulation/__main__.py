"""The command of developers: ``python -m siterig.scenarios.simulation --seeds 1000``.

It runs seeds one after the other and prints each finding with the command that repeats it.  The exit status is 1 if there
was one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.rig.plan import RunPlan
from siterig.scenarios.simulation.shrink import shrink
from siterig.scenarios.simulation.simulation import RunResult, Simulator

MEMORY = Path("/dev/shm")  # noqa: S108 (the folders in it are made by mkdtemp)
_COMMAND = "python -m siterig.scenarios.simulation"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--seeds", type=int, default=1, help="the number of seeds (default: 1)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="run only the seeds whose remainder by N is I")
    parser.add_argument("--plan", help="run this plan, as a failed run printed it, instead of the plan of a seed")
    parser.add_argument("--shrink", action="store_true", help="search for the smallest plan that fails alike")
    parser.add_argument("--trace", action="store_true", help="print every call and fault")
    parser.add_argument("--twice", action="store_true", help="run each seed twice, and compare the hashes of the traces")
    options = parser.parse_args(arguments)
    shard, shards = (int(word) for word in options.shard.split("/"))
    seeds = [seed for seed in range(options.seed, options.seed + options.seeds) if seed % shards == shard]
    chosen: Iterable[RunPlan] = [RunPlan.from_json(options.plan)] if options.plan else map(plans.draw, seeds)
    prefix = f"siterig-simulation-{os.getpid()}-"  # a test that starts deletes the folders of processes that have ended
    with tempfile.TemporaryDirectory(prefix=prefix, dir=MEMORY if MEMORY.is_dir() else None) as folder:
        return _run_all(Simulator(Path(folder)), chosen, options)


def _run_all(simulator: Simulator, chosen: Iterable[RunPlan], options: argparse.Namespace) -> int:
    begun_ns = SYSTEM_CLOCK.monotonic_ns()
    runs, failed, points, resyncs = 0, 0, 0, Counter[str]()
    kinds, operations = Counter[str](), Counter[str]()
    for plan in chosen:
        result = simulator.run(plan)
        runs += 1
        points += result.points
        resyncs.update(result.resyncs)
        kinds.update(fault.kind for fault in plan.faults)
        operations.update(operation.kind for operation in plan.operations)
        if options.trace:
            print("\n".join(result.trace))
        if options.twice and simulator.run(plan).digest != result.digest:
            failed += 1
            print(f"seed {plan.seed}: two runs have different traces", flush=True)
        if result.findings:
            failed += 1
            _print_findings(result)
            if options.shrink:
                _print_smallest(simulator, result)
    seconds = (SYSTEM_CLOCK.monotonic_ns() - begun_ns) / 1e9
    print(
        f"{runs} seeds, {failed} failed, {points} recovery points compared, {seconds:.1f} s "
        f"({seconds / max(1, runs):.3f} s a seed)"
    )
    print("faults:", ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none")
    print("operations:", ", ".join(f"{kind} {count}" for kind, count in sorted(operations.items())) or "none")
    print("resyncs:", ", ".join(f"{reason} {count}" for reason, count in sorted(resyncs.items())) or "none")
    return 1 if failed else 0


def _print_findings(result: RunResult) -> None:
    print(f"seed {result.plan.seed}:")
    for finding in result.findings:
        print(f"  {finding}")
    for fault in result.plan.faults:
        print(f"  {fault}")
    for operation in result.plan.operations:
        print(f"  {operation}")
    print(f"  repeat: {_COMMAND} --seed {result.plan.seed} --trace; trace {result.digest}", flush=True)


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
