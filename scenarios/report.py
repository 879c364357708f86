"""The drill's report: ``report.json`` for programs, ``report.html`` for people, a table for the terminal."""

from __future__ import annotations

from html import escape
from pathlib import Path

from azure_emu.vault.api import Job
from blockfs.errors import RigError
from scenarios.ports import Screen
from scenarios.report_charts import rpo_chart, timeline_chart
from scenarios.report_style import STYLE
from scenarios.results import Check, DrillResult, TimelineEvent

_MARKS = {True: ('<span class="good">&#10003;</span>', "held"), False: ('<span class="bad">&#10007;</span>', "failed")}


def write_report(folder: Path, result: DrillResult) -> list[Path]:
    """Write ``report.json`` and ``report.html`` (one file that loads nothing) and return their paths.

    The folder is made; ``ReportUnwritable`` names it and the reason.
    """
    texts = {"report.json": result.model_dump_json(indent=2) + "\n", "report.html": render_html(result)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RigError("ReportUnwritable", f"report folder {folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in texts]


def print_summary(screen: Screen, result: DrillResult) -> None:
    """The table at the end: checks by step, failures with their evidence, the measured figures, the verdict."""
    rows = []
    for step in result.steps:
        checks = [check for check in result.checks if check.step == step]
        failed = sum(not check.ok for check in checks)
        rows.append((step, len(checks) - failed, failed))
    screen.table(("step", "held", "failed"), rows)
    for check in failed_checks(result):
        screen.line(("✗", "red"), f" {check.step}: {check.name} - {check.evidence}")
    screen.line(", ".join(f"{name} {value}" for name, value in figures(result)))
    screen.line((verdict(result), "bold green" if result.ok else "bold red"))


def failed_checks(result: DrillResult) -> list[Check]:
    """Checks that did not hold."""
    return [check for check in result.checks if not check.ok]


def verdict(result: DrillResult) -> str:
    """One sentence."""
    if result.error is not None:
        return f"The drill did not come to its end: {result.error}"
    failed = len(failed_checks(result))
    if failed:
        return f"{failed} of {len(result.checks)} checks failed"
    return f"All {len(result.checks)} checks held"


def figures(result: DrillResult) -> list[tuple[str, str]]:
    """The measured figures, ready to print; those that were not reached are "-"."""
    measures = result.measures
    return [
        ("RPO", _seconds(measures.rpo_s)),
        ("transactions lost", "-" if measures.rpo_transactions is None else str(measures.rpo_transactions)),
        ("RTO", _seconds(measures.rto_s)),
        ("failback", _seconds(measures.failback_s)),
        ("whole drill", _seconds(result.duration_s)),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def render_html(result: DrillResult) -> str:
    """The page; everything that came from outside is escaped."""
    state = "good" if result.ok else "bad"
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in figures(result)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drill of {escape(result.vm)}: {"passed" if result.ok else "failed"}</title>
<style>{STYLE}</style>
</head>
<body>
<header class="{state}">
<h1>Site recovery drill of {escape(result.vm)}</h1>
<p class="verdict">{escape(verdict(result))}</p>
<p>{escape(result.started)}, replication interval {result.interval_s:g} s</p>
</header>
<main>
<section class="tiles">{tiles}</section>
<section><h2>Timeline</h2><figure>{timeline_chart(result)}</figure>
<details><summary>{len(result.timeline)} events</summary>{_events(result.timeline)}</details></section>
<section><h2>RPO over time</h2><figure>{rpo_chart(result)}</figure></section>
<section><h2>Checks</h2>{"".join(_step_checks(step, result.checks) for step in result.steps)}</section>
<section><h2>Jobs</h2>{_jobs(result.jobs)}</section>
</main>
</body>
</html>
"""


def _events(events: list[TimelineEvent]) -> str:
    rows = "".join(
        f'<tr class="{event.severity}"><td class="number">{event.at_s:.1f} s</td><td>{escape(event.step)}</td>'
        f"<td>{escape(event.text)}</td></tr>"
        for event in events
    )
    return f'<div class="wide"><table><tr><th>at</th><th>step</th><th>what happened</th></tr>{rows}</table></div>'


def _step_checks(step: str, checks: list[Check]) -> str:
    mine = [check for check in checks if check.step == step]
    if not mine:
        return f'<h3>{escape(step)}</h3><p class="none">No check in this step, or it was not reached.</p>'
    rows = "".join(
        f'<tr class="{"" if check.ok else "failed"}"><td title="{_MARKS[check.ok][1]}">{_MARKS[check.ok][0]}</td>'
        f'<td>{escape(check.name)}</td><td class="evidence">{escape(check.evidence)}</td></tr>'
        for check in mine
    )
    return f'<h3>{escape(step)}</h3><div class="wide"><table class="checks">{rows}</table></div>'


def _jobs(jobs: list[Job]) -> str:
    rows = "".join(
        f"<tr><td>{escape(job.friendlyName)}</td><td>{escape(job.targetObjectName)}</td>"
        f'<td class="{"bad" if job.state == "Failed" else ""}">{escape(job.state)}</td>'
        f"<td>{escape(job.startTime or '')}</td><td>{escape(job.endTime or '')}</td>"
        f"<td>{'<br>'.join(f'{escape(task.name)} {escape(task.state)}' for task in job.tasks)}"
        f"{''.join(f'<br><b>{escape(error.code)}</b>: {escape(error.message)}' for error in job.errors)}</td></tr>"
        for job in jobs
    )
    head = "<tr><th>job</th><th>of</th><th>state</th><th>start</th><th>end</th><th>tasks</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'
