"""The drill's report: ``report.json`` for programs, ``report.html`` for people, a table for the terminal."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

from siterig.azure_emu.vault.model.api import Job
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.json_text import json_text
from siterig.blockfs.files.os_errors import reason
from siterig.scenarios.contracts.results import Check, DrillResult, TimelineEvent
from siterig.scenarios.contracts.rig import Screen
from siterig.scenarios.report.report_charts import rpo_chart, timeline_chart
from siterig.scenarios.report.report_style import STYLE


def _html(text: str) -> str:
    """Text from outside: no markup, and no character that hides or reorders what follows."""
    return escape(printable(text))


_FILES = ("report.json", "report.html")
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_MARKS = {True: ('<span class="good">&#10003;</span>', "held"), False: ('<span class="bad">&#10007;</span>', "failed")}


def write_report(folder: Path, result: DrillResult) -> list[Path]:
    """Write ``report.json`` and ``report.html`` (one file that loads nothing) and return their paths.

    Errors of :func:`make_report_folder`.
    """
    texts = dict(zip(_FILES, (json_text(result, indent=2) + "\n", render_html(result)), strict=True))
    make_report_folder(folder)
    with _written_to(folder):
        for name, text in texts.items():
            write_atomically(folder / name, text.encode(), mode=_FILE_MODE)
    return [folder / name for name in texts]


def make_report_folder(folder: Path) -> None:
    """Make it, and see that a report can be written to it.

    ``ReportUnwritable`` names it and the reason; ``ForeignFile``: another user's link or file is in the way.
    """
    with _written_to(folder):
        safe_files.make_folder(folder, mode=_FOLDER_MODE, parents=True)
        with safe_files.held(folder) as held:
            for name in _FILES:
                held.check_free(name)
            probe = safe_files.temporary_name(_FILES[0])
            os.close(held.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            held.unlink(probe)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RigError(
            Code.ReportUnwritable, f"report folder {folder} cannot be written: {reason(error, folder)}"
        ) from error


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
        f'<div class="tile"><b>{_html(value)}</b><span>{_html(name)}</span></div>' for name, value in figures(result)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drill of {_html(result.vm)}: {"passed" if result.ok else "failed"}</title>
<style>{STYLE}</style>
</head>
<body>
<header class="{state}">
<h1>Site recovery drill of {_html(result.vm)}</h1>
<p class="verdict">{_html(verdict(result))}</p>
<p>{_html(result.started)}, replication interval {result.interval_s:g} s</p>
</header>
<main>
<section class="tiles">{tiles}</section>
<section><h2>Timeline</h2><figure>{timeline_chart(result)}</figure>
<details><summary>{len(result.timeline)} events</summary>{_events(result.timeline)}</details></section>
<section><h2>RPO over time</h2><figure>{rpo_chart(result)}</figure></section>
<section><h2>Checks</h2>{"".join(_step_checks(step, result.checks) for step in result.steps)}</section>
<section><h2>Jobs</h2>{_jobs(result.jobs)}</section>
<section><h2>What was tested</h2>{_tested(result)}</section>
</main>
</body>
</html>
"""


def _tested(result: DrillResult) -> str:
    rows = "".join(
        f'<tr><th>{_html(name)}</th><td class="evidence">{_html(value)}</td></tr>' for name, value in tested(result)
    )
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def tested(result: DrillResult) -> list[tuple[str, str]]:
    """Versions, machine, sizes and command line, ready to print."""
    about = result.tested
    if about is None:
        return [("siterig", "not recorded")]
    host = about.host
    return [
        ("siterig", f"{about.version}, commit {about.commit or 'unknown'}"),
        ("command line", shlex.join(about.command_line)),
        ("disks", f"os {_gib(about.os_bytes)}, data {_gib(about.data_bytes)}, with files of {_gib(about.corpus_bytes)}"),
        ("replication interval", f"{result.interval_s:g} s"),
        ("Python", about.python),
        ("Azurite", about.azurite or "unknown"),
        ("system", f"{host.system or 'unknown'}, Linux {host.kernel}"),
        ("CPUs", f"{host.cpus}, {host.cpu_model or 'unknown model'}"),
        ("memory", _gib(host.memory_bytes)),
        ("file system", host.file_system or "unknown"),
    ]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.3g} GiB"


def _events(events: list[TimelineEvent]) -> str:
    rows = "".join(
        f'<tr class="{event.severity}"><td class="number">{event.at_s:.1f} s</td><td>{_html(event.step)}</td>'
        f"<td>{_html(event.text)}</td></tr>"
        for event in events
    )
    return f'<div class="wide"><table><tr><th>at</th><th>step</th><th>what happened</th></tr>{rows}</table></div>'


def _step_checks(step: str, checks: list[Check]) -> str:
    mine = [check for check in checks if check.step == step]
    if not mine:
        return f'<h3>{_html(step)}</h3><p class="none">No check in this step, or it was not reached.</p>'
    rows = "".join(
        f'<tr class="{"" if check.ok else "failed"}"><td title="{_MARKS[check.ok][1]}">{_MARKS[check.ok][0]}</td>'
        f'<td>{_html(check.name)}</td><td class="evidence">{_html(check.evidence)}</td></tr>'
        for check in mine
    )
    return f'<h3>{_html(step)}</h3><div class="wide"><table class="checks">{rows}</table></div>'


def _jobs(jobs: list[Job]) -> str:
    rows = "".join(
        f"<tr><td>{_html(job.friendlyName)}</td><td>{_html(job.targetObjectName)}</td>"
        f'<td class="{"bad" if job.state == "Failed" else ""}">{_html(job.state)}</td>'
        f'<td class="number">{_html(job.startTime or "")}</td><td class="number">{_html(job.endTime or "")}</td>'
        f"<td>{'<br>'.join(f'{_html(task.name)} {_html(task.state)}' for task in job.tasks)}"
        f"{''.join(f'<br><b>{_html(error.code)}</b>: {_html(error.message)}' for error in job.errors)}</td></tr>"
        for job in jobs
    )
    head = "<tr><th>job</th><th>of</th><th>state</th><th>start</th><th>end</th><th>tasks</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'
