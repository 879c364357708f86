"""The drill: a rig of its own, from nothing to a site lost, recovered and taken back."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import doctor, exit_status, output, provenance
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.tables import Part
from siterig.core.interruption import interrupted
from siterig.core.parsing import format_size, interval_notice, parse_size
from siterig.core.paths import Layout
from siterig.scenarios.contracts.rig import Screen
from siterig.supervisor import launch
from siterig.testing.testbed import Testbed

if TYPE_CHECKING:
    from siterig.scenarios.contracts.results import Setup
    from siterig.scenarios.drill.drill_run import DrillSettings
    from siterig.scenarios.drill.narrator import Narrator


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("siterig drill --report ~/report"))(drill)


def drill(
    *,
    folder: Dir,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FOLDER", file_okay=False, help="Write report.json and report.html there."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the rig up at the end.")] = False,
    os_size: Annotated[str, typer.Option("--os-size", metavar="SIZE", help="Size of the ext4 disk os.")] = "1GiB",
    data_size: Annotated[str, typer.Option("--data-size", metavar="SIZE", help="Size of the XFS disk data.")] = "1GiB",
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus", metavar="SIZE", help="Total size of the files of this machine that are copied to the disks."
        ),
    ] = "200MiB",
    interval_s: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="Replication interval.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Run everything once: protect a VM under load, lose the site, recover, fail back; exit 0 if all checks passed.

    The drill has its own rig, in a new folder next to DIR; it does not touch a rig in DIR.
    """

    async def work() -> bool:
        settings = _settings(os_size=os_size, data_size=data_size, corpus=corpus, interval_s=interval_s)
        # A sibling, not a child: siterig down looks for what it has to give back below DIR.
        # With the process id, for two drills may begin in the same second.
        name = f"{folder.name}-drill-{SYSTEM_CLOCK.utc():%Y%m%d-%H%M%S}-{os.getpid()}"
        fresh = Layout.of(folder.with_name(name))
        try:
            return await _drill(fresh, settings, report, keep=keep, as_json=as_json)
        except BaseException as error:
            if interrupted(error):
                shutil.rmtree(fresh.root, ignore_errors=True)
            raise

    if not exit_status.run(work):
        raise typer.Exit(ExitStatus.FAILED)


def _settings(*, os_size: str, data_size: str, corpus: str, interval_s: float) -> DrillSettings:
    """Parse the options.

    Raises:
        RigError: ``InvalidDiskSize``, ``InvalidPolicy``, or ``BadRequest`` if the files do not fit on the disks.
    """
    # Here, for the plots' library takes longer to load than most commands to run.
    from siterig.scenarios.drill.drill_run import DrillSettings

    interval_notice(interval_s)  # the drill prints the remark itself
    settings = DrillSettings(
        os_bytes=parse_size(os_size),
        data_bytes=parse_size(data_size),
        corpus_bytes=parse_size(corpus),
        interval_s=interval_s,
    )
    # Each disk gets half of it, and must have room for its file system and the ledger too.
    smallest = min(settings.os_bytes, settings.data_bytes)
    if settings.corpus_bytes > smallest:
        raise RigError(
            Code.BadRequest, f"--corpus {corpus} does not fit: at most the smaller disk's size, {format_size(smallest)}"
        )
    return settings


class _Screen(Screen):
    """The output of the drill: stdout, or stderr with --json."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def line(self, *parts: Part) -> None:
        if not self._as_json:
            output.line(*parts)
        elif text := "".join(part if isinstance(part, str) else part[0] for part in parts).strip():
            output.progress(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if not self._as_json:
            output.print_table(columns, rows, empty="no steps")

    @contextmanager
    def bar(self, title: str) -> Iterator[Callable[[int, int], None]]:
        with output.bar(title, None) as advance:
            shown_bytes = 0

            def update(done_bytes: int, total_bytes: int) -> None:
                nonlocal shown_bytes
                advance(done_bytes - shown_bytes, total_bytes or None)
                shown_bytes = done_bytes

            yield update


async def _check_machine(layout: Layout, narrator: Narrator, steps: int) -> None:
    """Print every check; raise an error if one failed."""
    narrator.step(1, steps, "Check the machine")
    found = await trio.to_thread.run_sync(doctor.checks, layout.root)
    for check in found:
        mark = "ok" if check.ok else "MISSING"
        text = f"  {mark:8}{check.name}: {check.found}{'' if check.ok else f'; {check.remedy}'}"
        narrator.screen.line(text)
    doctor.require(found)


def _clock(layout: Layout) -> str | None:
    """Return the clock of the drill's rig in words; None for the system's."""
    from siterig.blockfs.clocks import quick_look

    state = quick_look.changed_clock(layout.clock)
    return None if state is None else quick_look.words_of(quick_look.document_of(state))


def _tested(layout: Layout, settings: DrillSettings) -> Setup:
    from siterig.scenarios.contracts.results import Host, Setup  # as below

    found = provenance.versions()
    return Setup(
        version=found["version"] or "",
        commit=found["commit"],
        python=found["python"] or "",
        azurite=found["azurite"],
        host=Host.model_validate({**provenance.host(layout.root), "kernel": found["kernel"]}),
        command_line=["siterig", *sys.argv[1:]],
        os_bytes=settings.os_bytes,
        data_bytes=settings.data_bytes,
        corpus_bytes=settings.corpus_bytes,
    )


async def _drill(layout: Layout, settings: DrillSettings, report: Path | None, *, keep: bool, as_json: bool) -> bool:
    # Here, for the plots' library takes longer to load than most commands to run.
    from siterig.scenarios.drill.drill import STEP_COUNT, run_drill
    from siterig.scenarios.drill.narrator import Narrator
    from siterig.scenarios.report.report import make_report_folder, print_summary, write_report

    screen = _Screen(as_json=as_json)
    narrator = Narrator(screen)
    await _check_machine(layout, narrator, STEP_COUNT)
    if report is not None:
        await trio.to_thread.run_sync(make_report_folder, report)
    narrator.step(2, STEP_COUNT, "Start the rig")

    def announce(role: str, state: str) -> None:
        if state == "ready":
            screen.line(f"  {role} is ready")
        elif state != "starting":
            screen.line(f"  {role}: {state}")

    # A rig that is kept must outlive this process; any other ends with it, however it ends.
    launched = await launch.up(layout, until_eof=not keep, quick_retries=True, announce=announce)
    is_kept = False
    try:
        result = await run_drill(Testbed(layout), settings, narrator)
        tested = await trio.to_thread.run_sync(_tested, layout, settings)
        result = result.model_copy(update={"tested": tested, "clock": _clock(layout)})
        narrator.step(STEP_COUNT, STEP_COUNT, "Report")
        print_summary(screen, result)
        if report is not None:
            for path in await trio.to_thread.run_sync(write_report, report, result):
                screen.line(f"written: {path}")
        if as_json:
            output.print_json(result)
        is_kept = keep
    finally:
        if not is_kept:
            await launched.end()
    if is_kept:
        screen.line(f"The rig is up: look at it with  siterig status --dir {layout.root}")
        screen.line(f"End it with  siterig down --dir {layout.root}")
    elif result.ok:
        await trio.to_thread.run_sync(shutil.rmtree, layout.root)
    else:
        screen.line(f"The rig's logs are in {layout.log('').parent}; remove the folder when done")
    return result.ok
