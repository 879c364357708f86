"""Processor time of the start of commands and roles, each beside a reference of the same kind, side by side in one run.

``python -m bench.startup [--rounds N]`` prints for each subject the least and the median of the rounds, and the ratio of
the least to that of ``python -c 'import typer'``.  Load of other processes makes the median worse, and the least hardly.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

REFERENCE = "python -c 'import typer'"
COMMAND_S_MAX, COMMAND_RATIO_MAX = 0.30, 2.5
"""Targets for a command that only reads (issue 11)."""
ROLES = ("azurite", "site", "azure", "vault", "applier", "agent")
_LOAD = "from siterig.core.quick_start import load; load({!r})"


def subjects(folder: Path) -> dict[str, list[str]]:
    """Return the command line of each subject; ``folder`` holds no rig."""
    python, siterig = sys.executable, str(Path(sys.executable).with_name("siterig"))
    commands = {"--version": [], "--help": [], "vm list": ["--dir", str(folder)], "status": ["--dir", str(folder)]}
    loads = {f"role {role}": f"siterig.roles.{role}" for role in ROLES} | {"supervisor": "siterig.supervisor.main"}
    return (
        {"python": [python, "-c", "pass"], REFERENCE: [python, "-c", "import typer"]}
        | {f"siterig {words}": [siterig, *words.split(), *more] for words, more in commands.items()}
        | {name: [python, "-P", "-c", _LOAD.format(module)] for name, module in loads.items()}
    )


def processor_s(command: list[str]) -> float:
    """Run a command; return the processor time of its process and its children in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        commands = subjects(Path(folder) / "none")
        measured: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                measured[name].append(processor_s(command))
    reference_s = min(measured[REFERENCE])
    table = Table(title=f"processor time of {rounds} starts, {os.cpu_count()} cores")
    for column in ("start of", "least", "median", f"least, as a multiple of {REFERENCE}", "target"):
        table.add_column(column)
    for name, times in measured.items():
        least_s = min(times)
        target = ""
        if name.startswith("siterig "):
            target = "met" if least_s <= min(COMMAND_S_MAX, COMMAND_RATIO_MAX * reference_s) else "MISSED"
        row = (name, f"{least_s:.3f} s", f"{statistics.median(times):.3f} s", f"{least_s / reference_s:.2f}", target)
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
