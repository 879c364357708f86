"""Results of scenarios as JUnit XML, as CI systems read it: one test case for each run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from siterig.scenarios.contracts.scenario_result import ScenarioResult
from siterig.scenarios.report.xml_text import xml_text


def junit_xml(results: Sequence[ScenarioResult]) -> str:
    """Return the document; a run without its mechanism is a failure if it passed."""
    suite = ET.Element(
        "testsuite",
        name="siterig scenarios",
        tests=str(len(results)),
        failures=str(sum(is_failure(result) for result in results)),
        errors="0",
        skipped=str(sum(result.skipped is not None for result in results)),
        time=f"{sum(result.duration_s for result in results):.3f}",
    )
    for result in results:
        suite.append(_case(result))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def is_failure(result: ScenarioResult) -> bool:
    """Return True if a run did not do what it should: pass, or fail without its mechanism."""
    return result.skipped is None and result.ok == result.without_mechanism


def failure_text(result: ScenarioResult) -> str:
    """Return the reasons for which a run failed, a line each."""
    if result.without_mechanism and result.error is not None:
        return f"it proves nothing: {result.error}"
    if result.without_mechanism:
        return "it passed although the mechanism that it tests was switched off"
    failed = [f"{check.step}: {check.name}: {check.evidence}" for check in result.checks if not check.ok]
    return "\n".join(([result.error] if result.error else []) + failed)


def _case(result: ScenarioResult) -> ET.Element:
    case = ET.Element("testcase", classname="siterig.scenario", name=xml_text(result.name), time=f"{result.duration_s:.3f}")
    properties = ET.SubElement(case, "properties")
    for name, value in (("title", result.title), ("seed", str(result.seed)), ("file", result.file)):
        ET.SubElement(properties, "property", name=name, value=xml_text(value))
    if result.skipped is not None:
        ET.SubElement(case, "skipped", message=xml_text(result.skipped))
    elif is_failure(result):
        text = failure_text(result)
        ET.SubElement(case, "failure", message=xml_text(text.partition("\n")[0])).text = xml_text(text)
    lines = [f"{moment.at_s:8.2f} s  {moment.lane:9}  {moment.text}" for moment in result.moments]
    ET.SubElement(case, "system-out").text = xml_text("\n".join(lines))
    return case
