"""The page of a run of scenarios: one self-contained HTML file with a zoomable timeline for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from siterig.scenarios.contracts.scenario_result import ScenarioResult
from siterig.scenarios.report.charts import scripts
from siterig.scenarios.report.junit import is_failure
from siterig.scenarios.report.report import shown, shown_in, write_file

_HERE = Path(__file__).parent
LANES = ("operation", "rig", "workload", "fault", "clock", "event", "job", "health", "check")
"""The rows of a timeline, from the top."""


def write_scenario_report(path: Path, results: Sequence[ScenarioResult]) -> None:
    """Write the page.

    Raises:
        RigError: ``ReportUnwritable`` or ``ForeignFile``.
    """
    write_file(path, render_scenarios(results))


def render_scenarios(results: Sequence[ScenarioResult]) -> str:
    """Return the page.  Every text of a result is escaped, and hides or reorders nothing on the screen."""
    page = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=shown, trim_blocks=True, undefined=StrictUndefined
    ).get_template("scenario_report.html.jinja")
    return page.render(
        results=results,
        verdicts=[verdict(result) for result in results],
        good=[not is_failure(result) for result in results],
        style=Markup((_HERE / "report.css").read_text()),  # noqa: S704 (our own)
        charts=shown_in([timeline_data(result) for result in results]),
        libraries=scripts(_HERE / "scenario_report.js"),
    )


def verdict(result: ScenarioResult) -> str:
    """Return one sentence."""
    if result.skipped is not None:
        return f"Skipped: {result.skipped}"
    if result.without_mechanism and result.ok:
        return f"It proves nothing: {result.error}" if result.error else "It passed without the mechanism that it tests"
    if result.without_mechanism:
        return f"It fails without its mechanism: {_first_failure(result)}"
    if result.error is not None:
        return f"It did not come to its end: {result.error}"
    failed = sum(not check.ok for check in result.checks)
    return f"{failed} of {len(result.checks)} checks failed" if failed else f"All {len(result.checks)} checks held"


def _first_failure(result: ScenarioResult) -> str:
    if result.error is not None:
        return result.error
    return next((f"{check.name}: {check.evidence}" for check in result.checks if not check.ok), "no reason given")


def timeline_data(result: ScenarioResult) -> dict[str, object]:
    """Return what scenario_report.js draws, as JSON values; times in seconds since the timeline began."""
    moments = result.moments
    lanes = [lane for lane in LANES if any(moment.lane == lane for moment in moments)]
    ends = [moment.at_s if moment.end_s is None else moment.end_s for moment in moments]
    return {
        "begin_s": min([moment.at_s for moment in moments], default=0.0),
        "end_s": max([*ends, 1.0]),
        "lanes": lanes,
        "moments": [moment.model_dump() for moment in moments],
    }
