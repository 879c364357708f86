"""A benchmark of the disk engine alone: 4 KiB requests on one handle from Python, without a mount.

``python -m bench.engine [--before CHECKOUT] [--requests 200000] [--rounds 7]``

Prints the processor time of a request, and ratios to the engine of another checkout, which has its own ``.venv``.  The
subjects run in turn, each in a process of its own; only the ratios of one run are comparable.  Time in Python is the
same for all (about 0.3 microseconds a request), so the ratios are slightly too good.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = ("randwrite", "randread")
TARGETS = {("now", "before"): 0.98, ("armed", "now"): 0.95, ("matched", "now"): 0.0}
"""Least ratio of the first subject to the second; ``matched`` has a rule that matches and never fires, for comparison."""


def _in_process(checkout: Path | None, subject: str, requests: int) -> dict[str, float]:
    python = sys.executable if checkout is None else str(checkout / ".venv" / "bin" / "python")
    with tempfile.TemporaryDirectory(prefix="siterig-bench-") as folder:
        command = [python, str(Path(__file__).with_name("engine_process.py")), folder, subject, str(requests)]
        done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure all subjects in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout with its .venv")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    subjects = ["now", "armed", "matched", *(["before"] if options.before else [])]
    found: dict[str, dict[str, list[float]]] = {subject: {kind: [] for kind in KINDS} for subject in subjects}
    for number in range(options.rounds):
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            checkout = options.before.resolve() if subject == "before" else None
            for kind, value in _in_process(checkout, subject, options.requests).items():
                found[subject][kind].append(value)
    for kind in KINDS:
        print(kind, *(f"{subject} {statistics.median(found[subject][kind]):.3f} us" for subject in subjects), sep="  ")
        for (subject, peer), least in TARGETS.items():
            if subject in found and peer in found:
                ratio = statistics.median(found[peer][kind]) / statistics.median(found[subject][kind])
                print(f"  {subject} against {peer}: {ratio:.3f}x, at least {least:g}x")


if __name__ == "__main__":
    main()
