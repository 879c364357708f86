"""A command that is ended by a signal cleans up and exits with status 130."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WAITING = """
import signal, sys, trio, typer
for number in map(int, sys.argv[1:]):
    signal.signal(number, signal.SIG_IGN)
from siterig.cli import exit_status

app = typer.Typer()

async def work() -> None:
    try:
        print("ready", flush=True)
        await trio.sleep_forever()
    finally:
        print("cleaned up", flush=True)

@app.command()
def wait() -> None:
    exit_status.run(work)

app([])
"""


def start(*ignored: signal.Signals) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WAITING, *(str(int(number)) for number in ignored)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [(), (signal.SIGINT, signal.SIGQUIT)], ids=["plain", "in a script's background"])
def test_a_signal_ends_a_command_with_status_130_after_it_has_cleaned_up(
    ignored: tuple[signal.Signals, ...], number: signal.Signals
) -> None:
    process = start(*ignored)
    process.send_signal(number)
    try:
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (stdout, stderr, process.returncode) == ("cleaned up\n", "siterig: interrupted\n", 130)


def test_a_closed_terminal_does_not_end_a_command_under_nohup() -> None:
    process = start(signal.SIGHUP)
    [ignored] = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    process.kill()
    process.communicate()
    assert int(ignored, 16) & 1 << signal.SIGHUP - 1
