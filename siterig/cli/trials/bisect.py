"""Find the change of a VM's disks from which on a check fails."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.bisect.runner import Bisection, BisectRequest, ChangeSeen, Report, Trial
from siterig.bisect.states import BisectState, MountedStates, make_label
from siterig.blockfs.core.clock import rfc3339, rfc3339_or_none
from siterig.blockfs.core.host_process import HostProcess
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import POINTS, Dir, Json, VmName, example
from siterig.cli.light_commands import running
from siterig.rpc import directory

SHOWN_CHANGES_MAX = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("siterig bisect web01 --good POINT --bad latest-processed -- e2fsck -fn {os}"))(bisect)


def bisect(
    *,
    folder: Dir,
    vm: VmName,
    command: Annotated[
        list[str],
        typer.Argument(metavar="CMD...", help="The check, after --. {NAME} is replaced by the image of disk NAME."),
    ],
    good: Annotated[
        str,
        typer.Option(
            "--good", metavar="POINT", help=f"A state at which CMD passes: {POINTS}.", autocompletion=completion.points
        ),
    ],
    bad: Annotated[
        str,
        typer.Option(
            "--bad",
            metavar="POINT",
            help="A newer state at which CMD fails; forms as for --good.",
            autocompletion=completion.points,
        ),
    ] = "latest-processed",
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Time limit of a run of CMD; a longer run has failed."),
    ] = None,
    writable: Annotated[
        bool, typer.Option("--writable", help="Give CMD writable copies of the disks; they are discarded after each run.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the last passing and first failing state mounted.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what every run of CMD prints.")] = False,
    as_json: Json = False,
) -> None:
    """Find the write that broke something: run CMD on states between two points until the first bad state is known.

    CMD passes with exit status 0, fails with 1 to 127, and skips a state with 125.
    """

    async def work() -> None:
        layout = running(folder)
        states = MountedStates(
            directory.vault(layout),
            directory.recovery_side(layout),
            directory.azure(layout),
            vm,
            make_label(),
            process=HostProcess.own(),
            keep=keep,
        )
        request = BisectRequest(good, bad, command, timeout_s, writable, keep, verbose)
        trials: list[Trial] = []

        def tell(trial: Trial) -> None:
            trials.append(trial)
            output.progress(trial_line(len(trials), trial))

        report = await Bisection(states, request, tell, output.notice).run()
        if as_json:
            output.print_json(report_json(vm, report, trials, keep=keep))
        else:
            print_report(report, verbose=verbose, keep=keep)

    exit_status.run(work)


def trial_line(number: int, trial: Trial) -> str:
    """Return the line of progress about trial ``number``, which counts from 1."""
    left = f"; about {trial.left} to go" if trial.left else ""
    when = f" ({rfc3339(trial.time_ns)})" if trial.time_ns is not None else ""
    took = "" if trial.outcome is None else f" in {trial.outcome.took_s:.2f} s"
    what = trial.verdict if trial.outcome is None else str(trial.outcome)
    return f"{number}. position {trial.position}{when}: {what}{took}{left}"


# --- for people -----------------------------------------------------------------------------------------------------


def print_report(report: Report, *, verbose: bool, keep: bool) -> None:
    """Print the result for people: the edge, the points around it, and the changed bytes.

    The output of the check goes to standard error, unless ``verbose`` has shown it already.
    """
    if not verbose and report.failing.output:
        lost = report.failing.output_bytes - len(report.failing.output)
        output.progress(f"--- output of CMD when it failed last{f', without the first {lost} bytes' if lost else ''}:")
        output.foreign(report.failing.output)
        output.progress("---")
    good, bad = report.good, report.bad
    if report.undecided:
        skipped = f"CMD was skipped at {len(report.undecided)} positions"
        output.line(f"{skipped}: the first bad position is one of these, or the one in the next line")
    output.line(f"first bad position: {_named(bad)}")
    output.line(f"last good position: {_named(good)}")
    for label, point in (("point before", report.point_before), ("point after", report.point_after)):
        output.line(f"{label}: {_point_text(point)}")
    for seen in report.changes[:SHOWN_CHANGES_MAX]:
        output.print_lines(["", *_change_lines(seen)])
    more = len(report.changes) - SHOWN_CHANGES_MAX
    if more > 0:
        text = f"and {more}{'' if report.all_changes else ' or more'} other changes (--json has them)"
        output.print_lines(["", text])
    if keep:
        mounted = f"mounted: {bad.name} (bad), {good.name} (good); siterig point unmount VM NAME ends that"
        output.print_lines(["", mounted])
        for name in sorted(bad.images):
            output.print_lines([f"  {bad.images[name]}", f"  {good.images[name]}"])


def _named(state: BisectState) -> str:
    return str(state.position) + ("" if state.time_ns is None else f" ({rfc3339(state.time_ns)})")


def _point_text(point: RecoveryPoint | None) -> str:
    if point is None:
        return "-"
    return f"{point.id}, {point.name or point.type}, {point.time}, position {point.position}"


def _change_lines(seen: ChangeSeen) -> list[str]:
    change, difference = seen.change, seen.difference
    if difference is None:
        return [f"{change.kind} of disk {seen.disk}, to {change.length} bytes"]
    head = f"{change.kind} on disk {seen.disk}: {change.length} bytes at {change.offset} ({change.offset:#x})"
    if difference.looked_bytes < change.length:
        head += f", of which the first {difference.looked_bytes} were compared"
    if not difference.changed_bytes:
        return [head, "  changed nothing: each byte had that value already"]
    lines = [head, f"  changed {difference.changed_bytes} bytes; before (-) and after (+):"]
    lines += [f"  {line}" for line in difference.lines()]
    more = difference.changed_rows - len(difference.rows)
    return lines if more == 0 else [*lines, f"  and {more} more lines differ"]


# --- for scripts ----------------------------------------------------------------------------------------------------


def report_json(vm: str, report: Report, trials: list[Trial], *, keep: bool) -> dict[str, object]:
    """Return the document of ``--json``; with ``keep`` it names the states that stay mounted."""
    return {
        "vm": vm,
        "first_bad": _state_json(report.bad, keep=keep),
        "last_good": _state_json(report.good, keep=keep),
        "undecided": [step.position for step in report.undecided],
        "changes": [_change_json(seen) for seen in report.changes],
        "all_changes": report.all_changes,
        "point_before": report.point_before,
        "point_after": report.point_after,
        "trials": [_trial_json(trial) for trial in trials],
    }


def _state_json(state: BisectState, *, keep: bool) -> dict[str, object]:
    mounted = {name: str(path) for name, path in state.images.items()} if keep else None
    return {
        "position": state.position,
        "time": rfc3339_or_none(state.time_ns),
        "mounted": None if mounted is None else {"name": state.name, "disks": mounted},
    }


def _change_json(seen: ChangeSeen) -> dict[str, object]:
    change, found = seen.change, seen.difference
    return {
        "disk": seen.disk,
        "position": change.position,
        "kind": change.kind,
        "offset": change.offset,
        "length": change.length,
        "changed_bytes": None if found is None else found.changed_bytes,
        "compared_bytes": None if found is None else found.looked_bytes,
        "lines": []
        if found is None
        else [{"offset": row.offset, "before": row.before.hex(), "after": row.after.hex()} for row in found.rows],
    }


def _trial_json(trial: Trial) -> dict[str, object]:
    outcome = trial.outcome
    return {
        "position": trial.position,
        "time": rfc3339_or_none(trial.time_ns),
        "verdict": trial.verdict,
        "status": None if outcome is None else outcome.status,
        "took_s": None if outcome is None else round(outcome.took_s, 3),
    }
