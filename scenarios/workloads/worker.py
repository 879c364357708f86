"""The process of a workload: numbered steps, each acknowledged when it is durable, until its standard input ends.

A new process continues after the newest step that the disks have.  It stops at a line or the end of its standard input (so
it ends with its parent), and when a disk fails.  It prints ``ready N`` (N: the newest step at the start) and at its end
``stopped N`` or ``failed N MESSAGE`` (N: last acknowledged).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.workloads.ack_log import AckWriter
from siterig.scenarios.workloads.mounted_folders import MountedFolders

_STOP_TIMEOUT_S = 10.0
Failures = tuple[type[Exception], ...]


class Steps(Protocol):
    """The steps of one workload."""

    failures: ClassVar[Failures]
    """The exceptions of a disk that fails."""
    newest: int
    """The newest step that is on the disks."""
    acknowledged: int
    """The newest step that this process has acknowledged; 0 before the first."""

    def step(self) -> None:
        """Do the next step, make it durable, and acknowledge it."""
        ...

    def close(self) -> None:
        """Close everything; the disks may be dead."""
        ...


def add_common_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options that every workload has: ``--acks``, ``--position``, ``--rate``."""
    for name in ("--acks", "--position"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--mounted", type=Path, action="append", default=[], help="a folder that must be a mount point")
    parser.add_argument("--rate", type=float, default=0.0, help="steps per second; 0: as many as possible")
    return parser


def _stop_on_input(stop: threading.Event, done: threading.Event) -> None:
    os.read(0, 1)
    stop.set()
    # A disk that hangs must not keep a process alive that nothing waits for.
    if not done.wait(_STOP_TIMEOUT_S):
        os._exit(2)


def run(steps: Steps, stop: threading.Event, rate_per_s: float, mounted: MountedFolders | None = None) -> str:
    """Work until ``stop`` is set or a disk fails or is unmounted, and return the last line of output."""
    check = MountedFolders().check if mounted is None else mounted.check
    clock = SYSTEM_CLOCK
    due_s = clock.monotonic_ns() / 1e9
    try:
        while not stop.is_set():
            check()
            steps.step()
            if rate_per_s > 0:
                now_s = clock.monotonic_ns() / 1e9
                due_s = max(due_s + 1 / rate_per_s, now_s - 1)
                stop.wait(due_s - now_s)
    except steps.failures as error:
        return f"failed {steps.acknowledged} {error}"
    return f"stopped {steps.acknowledged}"


def work(make: Callable[[AckWriter], Steps], failures: Failures, options: argparse.Namespace) -> int:
    """Make the steps and run them; exit status 0 if stopped, 1 if a disk failed, 2 if a disk hung.

    Args:
        make: makes the steps; it gets the acknowledgement log, which checks the mounts before each record.
        failures: the exceptions of a disk that fails.
        options: the options of :func:`add_common_options`.
    """
    # Ctrl-C reaches all processes of the terminal; only the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop, done = threading.Event(), threading.Event()
    threading.Thread(target=_stop_on_input, args=(stop, done), daemon=True).start()
    try:
        mounted = MountedFolders(options.mounted)
        steps = make(AckWriter(options.acks, mounted.check))
        mounted.check()  # it was unmounted meanwhile: the steps found, or made, their files on no disk
    except failures as error:
        print(f"failed 0 {error}", flush=True)
        return 1
    print(f"ready {steps.newest}", flush=True)
    last = run(steps, stop, options.rate, mounted)
    steps.close()
    done.set()
    with contextlib.suppress(OSError):
        print(last, flush=True)
    return 0 if last.startswith("stopped") else 1
