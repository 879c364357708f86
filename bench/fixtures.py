"""The time that a file system of its own costs a test: the fixture ``siterig_fs`` beside mkfs and mount in the test itself.

``python -m bench.fixtures [--tests N] [--size SIZE ...] [--json FILE]``, as root.  Both write one small file.  The tests run
in turn, in one run of pytest; the time of a test is that of its setup, call and teardown.  The first test of each kind is
left out: it starts the server and makes the template.  *plain* runs mkfs and mount on an image in ``tmp_path``; *logged*
does so on a disk of ``siterig mount --log``, which has crash states as ``siterig_fs`` has.  The target of 10x is for
*logged*, which gives the test the same as the fixture does; *plain* has neither states nor faults.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

RATIO_MIN = 10.0
FIXTURE_MS_MAX = 50.0
"""Targets for the fixture (issue 12): beside mkfs and mount, and the time of one test."""
_TESTS = """
import subprocess

import pytest

from siterig.testing.logged_disk import LoggedDisk, mkfs, mounted

SIZE = {size}


def work(folder):
    (folder / "file").write_text("text")


@pytest.mark.parametrize("number", range({tests}))
class TestAll:
    def test_fixture(self, siterig_fs, number):
        work(siterig_fs.path)

    def test_plain(self, tmp_path, number):
        image = tmp_path / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        with mounted(image, tmp_path / "guest") as guest:
            work(guest)

    def test_logged(self, tmp_path, number):
        with LoggedDisk(tmp_path, SIZE) as disk:
            mkfs(disk.path)
            with mounted(disk.path, tmp_path / "guest") as guest:
                work(guest)
"""
_CONFTEST = """
import json
import pathlib

TIMES = {}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.callspec.params["number"])


def pytest_runtest_logreport(report):
    assert report.passed, report.longreprtext
    name = report.nodeid.partition("::")[2].partition("[")[0].rpartition("_")[2]
    number = report.nodeid.partition("[")[2].rstrip("]")
    of = TIMES.setdefault(name, {})
    of[number] = of.get(number, 0) + report.duration


def pytest_sessionfinish(session):
    pathlib.Path("times.json").write_text(json.dumps({name: list(of.values())[1:] for name, of in TIMES.items()}))
"""


def measure(folder: Path, size_bytes: int, tests: int) -> dict[str, list[float]]:
    """Return the seconds of each test, by kind."""
    (folder / "test_all.py").write_text(_TESTS.format(size=size_bytes, tests=tests))
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'base'}", f"--siterig-size={size_bytes}"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    times: dict[str, list[float]] = json.loads((folder / "times.json").read_text())
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fixtures", description=__doc__)
    parser.add_argument("--tests", type=int, default=31)
    parser.add_argument("--size", type=int, nargs="+", default=[64 << 20, 1 << 30], metavar="BYTES")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    table = Table(title=f"milliseconds of a test, medians of {arguments.tests - 1}")
    for column in ("size", "siterig_fs", "plain", "logged", "plain / siterig_fs", "logged / siterig_fs", "target"):
        table.add_column(column)
    for size in arguments.size:
        with tempfile.TemporaryDirectory(prefix="siterig-bench-") as folder:
            times = found[size] = measure(Path(folder), size, arguments.tests)
        ms = {name: statistics.median(of) * 1000 for name, of in times.items()}
        ratios = [ms[name] / ms["fixture"] for name in ("plain", "logged")]
        met = ms["fixture"] < FIXTURE_MS_MAX and ratios[1] >= RATIO_MIN
        shown = [f"{ms[name]:.1f}" for name in ("fixture", "plain", "logged")] + [f"{ratio:.1f}x" for ratio in ratios]
        table.add_row(f"{size >> 20} MiB", *shown, "met" if met else "MISSED")
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
