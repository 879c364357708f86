"""Tests of tutorials and how-to pages: a reader who copies their blocks gets the results that the pages name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import needs_program
from tests.support.repo.documents import DOCS

pytestmark = pytest.mark.system
LIMIT_S = 300.0


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def environment() -> dict[str, str]:
    """Return an environment in which ``siterig`` is the program under test."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_the_mount_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    script = "set -eu\n" + "\n".join(blocks("tutorials/mount.md", "sh"))
    done = run(["bash", "-c", script], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^  every write is logged, generation 1: .*disk\.000001\.hrl", done.stdout, re.M)
    assert re.search(r"^\d+\s+\d+\s+\S+Z\s+WRITE", done.stdout, re.M)
    assert re.search(r"^total: 1 files, all ok: \d+ records", done.stdout, re.M)
    assert re.search(r"^equal$", done.stdout, re.M)
    assert re.search(r"^earlier\.img: applied records 1 to \d+, up to position 300", done.stdout, re.M)
    assert not (tmp_path / "m").exists()


def test_the_crash_test_passes_and_can_fail(tmp_path: Path) -> None:
    test, change = blocks("tutorials/crash-test.md", "python")
    assert test.count('SYNCHRONOUS = "EXTRA"') == 1
    (tmp_path / "test_sqlite.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'runs'}"]
    good = run([*command, "test_sqlite.py"], tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "1 passed" in good.stdout
    (tmp_path / "test_off.py").write_text(test.replace('SYNCHRONOUS = "EXTRA"\n', change))
    bad = run([*command, "test_off.py"], tmp_path)
    assert bad.returncode == 1
    assert re.search(r"AssertionError: position \d+: \[0, 1, .*were acknowledged and are lost", bad.stdout), bad.stdout
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@needs_program("initdb")
def test_the_crash_test_of_postgresql_passes_and_can_fail(tmp_path: Path) -> None:
    (test,) = (block for block in blocks("how-to/database-under-a-crash.md", "python") if block.startswith('"""PostgreSQL'))
    assert test.count('FSYNC = "on"') == 1
    (tmp_path / "test_on.py").write_text(test)
    (tmp_path / "test_off.py").write_text(test.replace('FSYNC = "on"', 'FSYNC = "off"'))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'runs'}"]
    good = run([*command, "test_on.py"], tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run([*command, "test_off.py"], tmp_path)
    assert bad.returncode == 1
    assert re.search(r"^1 failed", bad.stdout, re.M), bad.stdout


def test_the_rig_of_a_python_program_loses_its_site_and_is_recovered(tmp_path: Path) -> None:
    (program,) = (block for block in blocks("how-to/database-under-a-crash.md", "python") if "Testbed.up" in block)
    done = run([sys.executable, "-c", program], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+$", done.stdout, re.M)
    assert "azure/mnt/db01/data.img" in done.stdout
