"""Scenarios as a user runs them: a rig of their own, results in each form, and nothing left, also after Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from siterig.scenarios.contracts.scenario_result import ScenarioResult
from tests.support.leftovers import await_no_leftovers

pytestmark = pytest.mark.system

SITERIG = (sys.executable, "-m", "siterig", "scenario", "run")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short name, because the paths of sockets are limited."""
    return tmp_path_factory.mktemp("s")


def test_a_scenario_passes_reports_and_leaves_nothing(folder: Path) -> None:
    html, junit = folder / "out.html", folder / "out.xml"
    options = ["--dir", str(folder / "rig"), "--seed", "4", "--html", str(html), "--junit", str(junit), "--json"]
    done = subprocess.run(
        [*SITERIG, "planned-failover-loses-nothing", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (document,) = json.loads(done.stdout)
    result = ScenarioResult.model_validate(document)
    assert (result.ok, result.error, result.seed, result.measures.lost) == (True, None, 4, 0)
    assert {check.name for check in result.checks} >= {"every file acknowledged before the state", "files"}
    assert [job.scenarioName for job in result.jobs if job.scenarioName == "PlannedFailover"] == ["PlannedFailover"]
    assert {moment.lane for moment in result.moments} == {"rig", "operation", "workload", "event", "job", "health", "check"}
    assert min(moment.at_s for moment in result.moments) < 0 < max(moment.at_s for moment in result.moments)
    (case,) = ET.parse(junit).getroot().iter("testcase")  # noqa: S314 (our own file)
    assert (case.get("name"), case.find("failure")) == ("planned-failover-loses-nothing", None)
    assert "A planned failover under load loses nothing" in html.read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["out.html", "out.xml"]
    await_no_leftovers(folder)


WAITING = """\
title = "It waits"
description = "A workload runs until somebody presses Ctrl-C."
[[topology.vm]]
name = "web01"
[[topology.vm.disk]]
name = "data"
size = "16MiB"
filesystem = "ext4"
[[workload]]
name = "tree"
kind = "files"
vm = "web01"
[[workload]]
name = "sleeper"
kind = "command"
vm = "web01"
run = 'touch "$SITERIG_DISK/here"; while :; do sleep 1000; done'
[[timeline]]
do = "mark"
mark = "ready"
when.workload = { name = "tree", more = ">=3" }
[[timeline]]
do = "wait"
at = "500s"
"""


def test_ctrl_c_ends_a_scenario_and_leaves_nothing(folder: Path) -> None:
    file = folder / "waiting.toml"
    file.write_text(WAITING)
    command = [*SITERIG, str(file), "--dir", str(folder / "new" / "rig"), "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "mark ready" in line:
                process.send_signal(signal.SIGINT)
        status = process.wait()
    assert status == 130, said
    assert [path.name for path in folder.iterdir()] == ["waiting.toml"]
    await_no_leftovers(folder, 5)
