"""pytest starts as fast with the plugin as without: it is loaded by every run of pytest in its environment."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from siterig.testing import plugin

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

LOAD_MS_MAX = 30.0
MEASURE = """
import json, sys, time
import pytest
before = set(sys.modules)
began = time.process_time_ns()
import siterig.testing.plugin
took_ms = (time.process_time_ns() - began) / 1e6
print(json.dumps({"ms": took_ms, "modules": sorted(set(sys.modules) - before)}))
"""


def test_the_plugin_loads_fast_and_loads_no_library() -> None:
    """The least of some runs, in processor time, because other processes make each one slower."""
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    assert min(run["ms"] for run in runs) < LOAD_MS_MAX
    foreign = {name for name in runs[0]["modules"] if name.partition(".")[0] not in (*sys.stdlib_module_names, "siterig")}
    assert foreign == set()
    assert not [name for name in runs[0]["modules"] if "cext" in name or "vault" in name]


def test_pytest_shows_a_text_for_each_fixture() -> None:
    fixtures = [value for name, value in vars(plugin).items() if name.startswith("siterig_")]
    assert len(fixtures) == 9
    assert [value for value in fixtures if not inspect.getdoc(value.__wrapped__)] == []


def test_the_testing_package_works_without_pytest() -> None:
    program = """
import sys
sys.modules["pytest"] = None
from siterig import testing
from siterig.testing import DiskHandle, RigHandle, TestingSettings, Workbench
try:
    testing.disk()
except ImportError:
    print("needs pytest")
try:
    testing.dsk
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "needs pytest"
    assert "has no attribute 'dsk'; it has: ClockHandle, " in done.stdout


def test_a_wrong_setting_ends_the_run_before_the_first_test(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsiterig_keep = sometimes\n")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "ERROR: siterig: siterig_keep: 'sometimes' is not allowed; allowed: never, failed, always"
    result.stderr.fnmatch_lines([text])


def test_the_plugin_passes_strict_runs_and_shows_its_seed(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error\nsiterig_seed = 7\n")
    pytester.makepyfile("import pytest\n@pytest.mark.siterig_crash\ndef test_it(siterig_seed): assert siterig_seed == 7")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["siterig: --siterig-seed=7"])
    shown = pytester.runpytest_subprocess("--help").stdout.str()
    assert "--siterig-keep=KEEP" in shown
    assert not list(Path(pytester.path).glob("**/siterig*"))
