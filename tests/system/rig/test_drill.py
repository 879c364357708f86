"""Tests of the drill as a user runs it: one command, with a rig that is removed afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from siterig.scenarios.contracts.results import DrillResult
from siterig.scenarios.drill.drill import STEPS
from siterig.supervisor import cleanup

pytestmark = pytest.mark.system

SITERIG = (sys.executable, "-m", "siterig")
SMALL = ("--os-size", "128MiB", "--data-size", "320MiB", "--corpus", "32MiB", "--interval", "2")


def drill(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*SITERIG, "drill", "--dir", str(folder / "rig"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def traces(folder: Path) -> list[str]:
    """Return all mounts, loop devices and processes of rigs below ``folder`` that are left on this host."""
    command = ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"]
    loops = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line for line in loops if line.startswith(str(folder))]
    found += [str(mount) for mount in cleanup.mounts_below(folder)]
    for entry in Path("/proc").iterdir():
        try:
            command_line = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue  # the process ended meanwhile
        if entry.name != str(os.getpid()) and str(folder) in command_line:
            found.append(command_line.replace("\0", " "))
    return found


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short name: it contains a socket, and the kernel allows 107 bytes for the socket's path."""
    return tmp_path_factory.mktemp("d")


def test_a_drill_keeps_every_promise_reports_and_leaves_nothing(folder: Path) -> None:
    report = folder / "report"
    done = drill(folder, *SMALL, "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr

    result = DrillResult.model_validate_json((report / "report.json").read_text())
    assert (result.ok, result.error) == (True, None)
    assert result.interval_s == 2.0
    steps = [step.name for step in STEPS]
    assert result.steps == steps
    assert list(dict.fromkeys(event.step for event in result.timeline)) == steps
    assert {check.step for check in result.checks} == set(steps), "a step checks nothing"
    assert [check.name for check in result.checks if not check.ok] == []
    assert all(job.state == "Succeeded" for job in result.jobs)
    assert None not in result.measures.model_dump().values()

    html = (report / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    # The policy forbids the browser every request, so scripts can load nothing; the markup around them does not try to.
    assert html.index("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">") < html.index("<style>")
    markup = re.sub(r"(<(script|style)\b[^>]*>).*?(</\2>)", r"\1\3", html, flags=re.DOTALL)
    assert markup.count("<script>") >= 1
    assert re.findall(r"""\b(?:src|href|action|data)\s*=\s*["']?(?!#|data:)[^"'>\s)]+|<link""", markup) == []
    assert "://" not in markup
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "report.json"]

    assert traces(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["report"], "the drill left its folder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--os-size", "100"), "size '100' is 100 bytes: it must be a positive multiple of 512 (InvalidDiskSize)"),
        (("--interval", "0"), "interval 0 s: it must be positive; the service has 30, 300, 900 (InvalidPolicy)"),
        (
            ("--corpus", "1GiB", "--data-size", "512MiB"),
            "--corpus 1GiB does not fit: at most the smaller disk's size, 512 MiB (BadRequest)",
        ),
    ],
)
def test_impossible_settings_are_refused_before_anything_starts(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    done = drill(folder, *options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"siterig: error: {message}\n")
    assert list(folder.iterdir()) == []
