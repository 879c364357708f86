"""Runs of pytest with the plugin that a test ends in the middle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.clock import SYSTEM_CLOCK

STARTED_S = 120.0
"""The longest wait for a run to reach the middle of its test, and to end."""
FROZEN = """
    import os
    import pathlib

    def test_waits({fixtures}):
        folder = {folder}
        siterig_faults.add("disk write pause=true name=ice")
        with (folder / "file").open("wb") as file:
            file.write(bytes(8192))
            file.flush()
            pathlib.Path({at!r}).touch()
            os.fsync(file.fileno())
"""
"""A test that waits in the kernel for a disk that a fault rule has frozen."""


def running(pytester: pytest.Pytester, until: Callable[[], bool], *options: str) -> subprocess.Popen[str]:
    """Start pytest in the folder, and return it when ``until`` is true."""
    command = [sys.executable, "-m", "pytest", f"--basetemp={pytester.path / 'base'}", *options]
    run = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _await(run, until)
    return run


def await_disk_wait(run: subprocess.Popen[str]) -> None:
    """Wait until the main thread of a run waits in the kernel for a disk."""
    status = Path(f"/proc/{run.pid}/status")
    _await(run, lambda: "State:\tD" in status.read_text())


def _await(run: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(STARTED_S * 1e9)
    while not until():
        assert run.poll() is None, run.communicate()[0]
        if SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
            run.kill()
            raise AssertionError(run.communicate()[0])
        SYSTEM_CLOCK.sleep_thread(0.02)
