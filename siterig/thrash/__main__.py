"""The command of developers: ``python -m siterig.thrash --vms 8 --disks 2 --minutes 30``.

It runs real roles, mounts and an Azurite under random faults, and compares every recovery point at the end.  The seed is
printed first, and with a failure the command that repeats it.  The exit status is 1 if something was found.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.core.interruption import interrupted, listen
from siterig.thrash.run import Thrash, ThrashOptions, ThrashResult

_COMMAND = "python -m siterig.thrash"
_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--vms", type=_count, default=8, help="the number of VMs (default: 8)")
    parser.add_argument("--disks", type=_count, default=2, help="the number of disks of each VM (default: 2)")
    parser.add_argument("--minutes", type=_minutes, default=30.0, help="for how long faults strike (default: 30)")
    parser.add_argument("--seed", type=int, help="the seed of all choices (default: a random one)")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the rig also after a success")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    repeat = f"{_COMMAND} --vms {options.vms} --disks {options.disks} --minutes {options.minutes:g} --seed {seed}"
    print(f"seed {seed}", flush=True)
    listen()
    # The name is short: sockets are below the folder, and the kernel allows 107 bytes for their paths.
    folder = Path(tempfile.mkdtemp(prefix="thrash-"))
    kept = True
    try:
        settings = ThrashOptions(seed, options.vms, options.disks, options.minutes * 60)
        began_ns = SYSTEM_CLOCK.monotonic_ns()
        result = trio.run(Thrash(folder, settings, lambda text: print(text, flush=True)).run)
        kept = options.keep or bool(result.findings)
        _print_result(result, (SYSTEM_CLOCK.monotonic_ns() - began_ns) / 1e9)
        if result.findings:
            print(f"repeat: {repeat}", flush=True)
    except BaseException as error:
        kept = options.keep or not interrupted(error)
        print(f"{'interrupted' if interrupted(error) else 'failed'}; repeat: {repeat}", flush=True)
        if interrupted(error):
            return _INTERRUPTED
        raise
    else:
        return 1 if result.findings else 0
    finally:
        if kept:
            print(f"the folder of the rig is kept: {folder}", flush=True)
        else:
            shutil.rmtree(folder)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: 1 to 64")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a number above 0, and up to 10000")
    return minutes


def _print_result(result: ThrashResult, seconds: float) -> None:
    print(
        f"{result.acknowledged} steps acknowledged, {result.points_compared} recovery points compared in {result.checks} "
        f"checks, {result.reboots} restarts of VMs, {len(result.findings)} findings, {seconds:.0f} s"
    )
    print("faults:", _counts(result.faults))
    print("points by hand:", _counts(result.taken), "; not taken:", _counts(result.not_taken))
    print("resyncs:", _counts(result.resyncs), flush=True)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
