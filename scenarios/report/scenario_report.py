"""The page of a run of scenarios: one self-contained HTML file with a zoomable timeline for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from siterig.scenarios.contracts.scenario_result import ScenarioMoment, ScenarioResult
from siterig.scenarios.report.charts import scripts
from siterig.scenarios.report.junit import is_failure
from siterig.scenarios.report.report import shown, shown_in, write_file

_HERE = Path(__file__).parent
LANES = ("operation", "rig", "workload", "fault", "clock", "event", "job", "health", "check")
"""The rows of a timeline, from the top; below that of faults each rule that fired has one."""
RULE_ROWS_MAX = 12


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
        facts=[facts(result) for result in results],
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


def facts(result: ScenarioResult) -> list[str]:
    """Return the measures, and the folder of a rig that was kept, a line each; nothing that was not reached."""
    measures = result.measures
    lines = [
        *([] if measures.rpo_s is None else [f"RPO {measures.rpo_s:.1f} s"]),
        *([] if measures.rto_s is None else [f"RTO {measures.rto_s:.1f} s"]),
        *([] if measures.lost is None else [f"acknowledged steps lost: {measures.lost}"]),
    ]
    return [*([", ".join(lines)] if lines else []), *([f"the rig is kept in {result.kept}"] if result.kept else [])]


def timeline_data(result: ScenarioResult) -> dict[str, object]:
    """Return what scenario_report.js draws, as JSON values; times in seconds since the timeline began.

    Each moment has the name of its row: that of its lane, or of its fault rule.
    """
    moments = result.moments
    rules = [verdict.name for verdict in result.verdicts][:RULE_ROWS_MAX]
    rows = {lane: [lane, *(f"fault {rule}" for rule in rules if lane == "fault")] for lane in LANES}
    placed = [(moment, _row(moment, rows[moment.lane])) for moment in moments]
    filled = {row for _, row in placed}
    ends = [moment.at_s if moment.end_s is None else moment.end_s for moment in moments]
    return {
        "begin_s": min([moment.at_s for moment in moments], default=0.0),
        "end_s": max([*ends, 1.0]),
        "rows": [row for lane in LANES for row in rows[lane] if row in filled],
        "moments": [{**moment.model_dump(), "row": row} for moment, row in placed],
    }


def _row(moment: ScenarioMoment, rows: list[str]) -> str:
    """Return the rule's row, the longest if the name of one rule begins with that of another; otherwise the lane's."""
    return max([rows[0], *(row for row in rows[1:] if moment.text.startswith(f"{row}: "))], key=len)
