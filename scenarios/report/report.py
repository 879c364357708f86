"""The drill's report: ``report.json`` for programs, ``report.html`` for people, a table for the terminal."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.json_text import json_text
from siterig.blockfs.files.os_errors import reason
from siterig.scenarios.contracts.results import Check, DrillResult
from siterig.scenarios.contracts.rig import Screen
from siterig.scenarios.report.charts import chart_data, chart_scripts

_FILES = ("report.json", "report.html")
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_HERE = Path(__file__).parent


def write_report(folder: Path, result: DrillResult) -> list[Path]:
    """Write ``report.json`` and ``report.html`` (one file that loads nothing) and return their paths.

    Errors of :func:`make_report_folder`.
    """
    texts = dict(zip(_FILES, (json_text(result, indent=2) + "\n", render_html(result)), strict=True))
    make_report_folder(folder)
    with written_to(folder):
        for name, text in texts.items():
            write_atomically(folder / name, text.encode(), mode=_FILE_MODE)
    return [folder / name for name in texts]


def write_file(path: Path, text: str) -> None:
    """Write one file of a report; raise ``ReportUnwritable`` or ``ForeignFile``."""
    with written_to(path.parent):
        write_atomically(path, text.encode(), mode=_FILE_MODE)


def make_report_folder(folder: Path) -> None:
    """Create the folder of a report, and check that a report can be written to it.

    Raises:
        RigError: ``ReportUnwritable`` names the folder and the reason; ``ForeignFile`` if another user's link or file has
            the name of one of the report's files.
    """
    with written_to(folder):
        safe_files.make_folder(folder, mode=_FOLDER_MODE, parents=True)
        _check_names(folder, _FILES)


def check_file(path: Path) -> None:
    """Check that one file of a report can be written later; errors of :func:`write_file`."""
    with written_to(path.parent):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _check_names(path.parent, (path.name,))


def _check_names(folder: Path, names: Sequence[str]) -> None:
    with safe_files.held(folder) as held:
        for name in names:
            held.check_free(name)
        probe = safe_files.temporary_name(names[0])
        os.close(held.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        held.unlink(probe)


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Report an ``OSError`` of the block as ``ReportUnwritable`` with the folder and the reason."""
    try:
        yield
    except OSError as error:
        raise RigError(
            Code.ReportUnwritable, f"report folder {folder} cannot be written: {reason(error, folder)}"
        ) from error


def print_summary(screen: Screen, result: DrillResult) -> None:
    """Print the table at the end: checks by step, failures with their evidence, the measured figures, the verdict."""
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
    """Return the checks that did not hold."""
    return [check for check in result.checks if not check.ok]


def verdict(result: DrillResult) -> str:
    """Return the verdict in one sentence."""
    if result.error is not None:
        return f"The drill did not come to its end: {result.error}"
    failed = len(failed_checks(result))
    if failed:
        return f"{failed} of {len(result.checks)} checks failed"
    return f"All {len(result.checks)} checks held"


def figures(result: DrillResult) -> list[tuple[str, str]]:
    """Return the measured figures, ready to print; those that were not reached are "-"."""
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
    """Return the page.  Every text of the result is escaped, and hides or reorders nothing on the screen."""
    page = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=shown, trim_blocks=True, undefined=StrictUndefined
    ).get_template("report.html.jinja")
    return page.render(
        result=result,
        style=Markup((_HERE / "report.css").read_text()),  # noqa: S704 (our own)
        verdict=verdict(result),
        figures=figures(result),
        steps=[(step, [check for check in result.checks if check.step == step]) for step in result.steps],
        tested=tested(result),
        charts=shown_in(chart_data(result)),
        libraries=chart_scripts(),
    )


def shown(value: object) -> object:
    """Text from outside without control characters; everything else, markup included, as it is."""
    return printable(value) if type(value) is str else value


def shown_in(value: object) -> object:
    """Do the same for every text in a JSON value."""
    if isinstance(value, dict):
        return {key: shown_in(inner) for key, inner in value.items()}
    return [shown_in(inner) for inner in value] if isinstance(value, list) else shown(value)


def tested(result: DrillResult) -> list[tuple[str, str]]:
    """Return versions, machine, sizes and command line, ready to print."""
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
