"""Results of scenarios as JUnit XML and as a page: all texts are escaped, and failures are failures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from siterig.scenarios.contracts.results import Check
from siterig.scenarios.contracts.scenario_result import ScenarioMeasures, ScenarioMoment, ScenarioResult
from siterig.scenarios.faults.records import FaultVerdict
from siterig.scenarios.report.junit import is_failure, junit_xml
from siterig.scenarios.report.scenario_report import render_scenarios, timeline_data, verdict
from tests.support.samples import sample

EVIL = "<script>alert(1)</script> & \x1b[31m\x00 \ud800"


def result(**changes: object) -> ScenarioResult:
    moments = [
        ScenarioMoment(at_s=-2.0, end_s=-1.0, lane="rig", text="up"),
        ScenarioMoment(at_s=1.0, lane="fault", text=EVIL, severity="bad"),
        ScenarioMoment(at_s=2.0, end_s=4.5, lane="operation", text="lose-site"),
    ]
    values = {"skipped": None, "error": None, "without_mechanism": False, "moments": moments, "title": EVIL, **changes}
    made: ScenarioResult = sample(ScenarioResult).model_copy(update=values)
    return made


FAILED = Check(step="expect", name="ledger", ok=False, evidence=EVIL)


def test_junit_has_a_case_for_each_run() -> None:
    runs = [
        result(),
        result(ok=False, checks=[FAILED], error=f"timeline[1] {EVIL}"),
        result(skipped="program initdb is not installed"),
        result(without_mechanism=True),
        result(without_mechanism=True, ok=False),
        result(without_mechanism=True, error="the timeline did not begin"),
    ]
    assert [is_failure(run) for run in runs] == [False, True, False, True, False, True]
    suite = ET.fromstring(junit_xml(runs))[0]  # noqa: S314 (our own text)
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "3", "1")
    cases = list(suite.iter("testcase"))
    failures = [case.find("failure") for case in cases]
    assert [failure is not None for failure in failures] == [False, True, False, True, False, True]
    assert failures[1] is not None
    assert failures[1].text is not None
    assert failures[1].text.count("<script>alert(1)</script> & \\x1b[31m\\x00 \\xd800") == 2
    assert failures[3] is not None
    assert "switched off" in str(failures[3].text)
    assert failures[5] is not None
    assert failures[5].text == "it proves nothing: the timeline did not begin"
    assert [case.find("skipped") is not None for case in cases] == [False, False, True, False, False, False]
    assert "    1.00 s  fault" in str(cases[0].findtext("system-out"))


def test_the_verdict_of_a_proof_names_the_reason() -> None:
    failed = result(without_mechanism=True, ok=False, checks=[FAILED])
    assert verdict(failed) == f"It fails without its mechanism: ledger: {EVIL}"
    assert verdict(result(without_mechanism=True, ok=False, error="late")) == "It fails without its mechanism: late"
    assert verdict(result(without_mechanism=True)) == "It passed without the mechanism that it tests"
    assert verdict(result(without_mechanism=True, error="no rig")) == "It proves nothing: no rig"


def test_the_page_escapes_every_text() -> None:
    page = render_scenarios([result(ok=False, checks=[FAILED])])
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)""", page)


def test_the_timeline_has_a_row_for_each_kind_that_happened() -> None:
    data = timeline_data(result())
    assert (data["begin_s"], data["end_s"], data["rows"]) == (-2.0, 4.5, ["operation", "rig", "fault"])


def test_each_rule_that_fired_has_a_row() -> None:
    verdicts = [FaultVerdict(name=name, ok=True, fired=1, expected="any", text="") for name in ("a", "a: b", "never")]
    texts = ["armed: disk", "fault a: read", "fault a: b: write"]
    moments = [ScenarioMoment(at_s=1.0, lane="fault", text=text) for text in texts]
    data: Any = timeline_data(result(moments=moments, verdicts=verdicts))
    assert data["rows"] == ["fault", "fault a", "fault a: b"]
    assert [moment["row"] for moment in data["moments"]] == data["rows"]


def test_measures_and_the_kept_folder_are_on_the_page() -> None:
    page = render_scenarios([result(measures=ScenarioMeasures(rpo_s=2.25, lost=3), kept="/srv/<x>")])
    assert "RPO 2.2 s, acknowledged steps lost: 3" in page
    assert "the rig is kept in /srv/&lt;x&gt;" in page
