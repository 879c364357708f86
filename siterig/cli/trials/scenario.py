"""``siterig scenario``: the library of scenarios, and runs of scenario files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example, seed_option
from siterig.cli.trials.new_file import write_new_file

if TYPE_CHECKING:
    from siterig.scenario_runs.batch import BatchOptions
    from siterig.scenarios.contracts.scenario_result import ScenarioResult, ScenarioSetup
    from siterig.scenarios.files.scenario_files import ScenarioFile

COLUMNS = ("scenario", "sentences", "title")
_MARKS = {"info": ("·", "dim"), "good": ("✓", "green"), "bad": ("✗", "bold red")}


def _scenarios(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Complete names of the library."""
    from siterig.scenarios.files.scenario_files import library_names

    return [(name, "scenario of the library") for name in library_names() if name.startswith(incomplete)]


Named = Annotated[
    str,
    typer.Argument(metavar="SCENARIO", help="Name in the library, or path of a file.", autocompletion=_scenarios),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    scenario = typer.Typer(no_args_is_help=True)
    scenario.command("list", epilog=example("siterig scenario list"))(list_scenarios)
    scenario.command("describe", epilog=example("siterig scenario describe site-lost-under-load"))(describe)
    scenario.command("validate", epilog=example("siterig scenario validate my.toml"))(validate)
    scenario.command("new", epilog=example("siterig scenario new my.toml"))(new)
    scenario.command("run", epilog=example("siterig scenario run site-lost-under-load --seed 1"))(run)
    app.add_typer(
        scenario,
        name="scenario",
        help="Run scenario files: a rig, workloads, faults and operations over time, and what must hold.",
        epilog=example("siterig scenario run site-lost-under-load"),
    )


def list_scenarios(*, as_json: Json = False) -> None:
    """List the scenarios of the library."""
    from siterig.scenarios.files.scenario_files import library

    with exit_status.reporting():
        files = library()
        if as_json:
            output.print_json([_summary(file) for file in files])
        else:
            rows = [(file.name, ", ".join(file.scenario.sentences), file.scenario.title) for file in files]
            output.print_table(COLUMNS, rows, empty="the library is empty")


def _summary(file: ScenarioFile) -> dict[str, object]:
    return {
        "name": file.name,
        "title": file.scenario.title,
        "sentences": list(file.scenario.sentences),
        "file": str(file.path),
    }


def describe(name: Named, *, as_json: Json = False) -> None:
    """Show the title, the description and the timeline of a scenario."""
    from siterig.scenarios.files.scenario_files import find_scenario

    with exit_status.reporting():
        file = find_scenario(name)
        if as_json:
            output.print_json(_summary(file) | _contents(file))
            return
        output.line((file.scenario.title, "bold"))
        output.print_lines([[line] for line in ["", *file.scenario.description.strip().splitlines(), ""]])
        for key, text in _facts(file):
            output.print_lines(output.detail(key, text))


def _contents(file: ScenarioFile) -> dict[str, object]:
    scenario = file.scenario
    return {
        "description": scenario.description.strip(),
        "vms": [vm.name for vm in scenario.topology.vm],
        "workloads": [load.name for load in scenario.workload],
        "faults": [rule.words() for rule in scenario.fault],
        "timeline": [entry.label for entry in scenario.timeline],
    }


def _facts(file: ScenarioFile) -> list[tuple[str, str]]:
    scenario = file.scenario
    facts = [("file", str(file.path)), ("sentences", ", ".join(scenario.sentences) or "none")]
    facts += [("VM", f"{vm.name}: {', '.join(disk.name for disk in vm.disk)}") for vm in scenario.topology.vm]
    facts += [("workload", f"{load.name} ({load.kind}) in {load.vm}") for load in scenario.workload]
    facts += [("fault", f"{rule.label}: {rule.words()}") for rule in scenario.fault]
    facts += [("timeline", entry.label) for entry in scenario.timeline]
    return facts


def validate(
    names: Annotated[
        list[str],
        typer.Argument(metavar="SCENARIO...", help="Names in the library, or paths of files.", autocompletion=_scenarios),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Check scenario files, without a rig; exit status 2 if one is not allowed."""
    from siterig.scenarios.files.scenario_files import find_scenario

    with exit_status.reporting():
        files = [find_scenario(name) for name in names]
        if as_json:
            output.print_json([_summary(file) for file in files])
        else:
            for file in files:
                output.line(f"{file.path}: {len(file.scenario.timeline)} entries, {len(file.scenario.fault)} faults")


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file; its name ends with .toml.")],
    *,
    source: Annotated[
        str,
        typer.Option("--from", metavar="SCENARIO", help="The scenario to begin with.", autocompletion=_scenarios),
    ] = "site-lost-under-load",
    as_json: Json = False,
) -> None:
    """Write a new scenario file, as a copy of one in the library."""
    from siterig.scenarios.files.scenario_files import SUFFIX, find_scenario

    with exit_status.reporting():
        if file.suffix != SUFFIX:
            raise RigError(Code.InvalidName, f"{file}: the name of a scenario file ends with {SUFFIX}")
        write_new_file(file, find_scenario(source).path.read_text())
        if as_json:
            output.print_json({"file": str(file), "source": source})
        else:
            output.line(f"{file}: a copy of {source}; run it with  siterig scenario run {_as_path(file)}")


def _as_path(file: Path) -> str:
    return str(file) if "/" in str(file) else f"./{file}"


def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCENARIO...",
            help="Names in the library, or paths of files; all of the library if none is given.",
            autocompletion=_scenarios,
        ),
    ] = None,
    *,
    folder: Dir,
    seed: Annotated[
        int | None,
        seed_option("Seed of all random choices; default: of the file."),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", min=1, help="Run each N times; the seed rises by 1 each time.")
    ] = 1,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, max=64, help="Run N rigs at once.")] = 1,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="PATH", dir_okay=False, help="Write the results as JUnit XML.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="PATH", dir_okay=False, help="Write a page with the timeline of each run."),
    ] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Switch off the mechanism that each scenario tests: each must fail."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run scenarios, each on a rig of its own; exit status 1 if something that was expected does not hold.

    The rigs get their folders in a new folder next to DIR; a rig in DIR is not touched.
    """

    async def work() -> list[ScenarioResult]:
        from siterig.scenario_runs.batch import BatchOptions
        from siterig.scenarios.files.scenario_files import find_scenario, library

        files = [find_scenario(name) for name in names] if names else library()
        options = BatchOptions(seed=seed, repeat=repeat, jobs=jobs, prove=prove)
        return await _run(files, options, folder, junit, html, as_json=as_json)

    results = exit_status.run(work)
    from siterig.scenarios.report.junit import is_failure

    if any(is_failure(result) for result in results):
        raise typer.Exit(ExitStatus.FAILED)


async def _run(
    files: Sequence[ScenarioFile],
    options: BatchOptions,
    folder: Path,
    junit: Path | None,
    html: Path | None,
    *,
    as_json: bool,
) -> list[ScenarioResult]:
    import trio

    from siterig.cli import doctor
    from siterig.scenario_runs.batch import Batch
    from siterig.scenarios.report.junit import junit_xml
    from siterig.scenarios.report.report import check_file, write_file
    from siterig.scenarios.report.scenario_report import write_scenario_report

    for path in (junit, html):
        if path is not None:  # not only after all runs
            await trio.to_thread.run_sync(check_file, path)
    # With the process id, for two runs may begin in the same second.
    parent = folder.with_name(f"{folder.name}-runs-{SYSTEM_CLOCK.utc():%H%M%S}-{os.getpid()}")
    new = [each for each in (parent, *parent.absolute().parents) if not each.exists()]
    doctor.require(await trio.to_thread.run_sync(doctor.checks, parent))
    screen = _screen(names_shown=options.jobs > 1, as_json=as_json)
    try:
        results = await Batch(options, screen, parent=parent, tested=_tested).run(files)
    finally:
        with suppress(OSError):  # a folder that is kept is in it, or another run made one there
            for each in new:
                each.rmdir()
    if as_json:
        output.print_json(results)
    else:
        _print_summary(results)
    if junit is not None:
        await trio.to_thread.run_sync(write_file, junit, junit_xml(results))
    if html is not None:
        await trio.to_thread.run_sync(write_scenario_report, html, results)
    return results


def _tested(folder: Path) -> ScenarioSetup:
    from siterig.cli import provenance
    from siterig.scenarios.contracts.results import Host
    from siterig.scenarios.contracts.scenario_result import ScenarioSetup

    found = provenance.versions()
    return ScenarioSetup(
        version=found["version"] or "",
        commit=found["commit"],
        python=found["python"] or "",
        azurite=found["azurite"],
        host=Host.model_validate({**provenance.host(folder), "kernel": found["kernel"]}),
    )


def _screen(*, names_shown: bool, as_json: bool) -> Any:
    """Return the output of the runs: stdout, or stderr with --json."""
    from siterig.scenario_runs.batch import BatchScreen

    class RunScreen(BatchScreen):
        def begin(self, name: str, title: str, seed: int) -> None:
            self._line([("", "dim"), (name, "bold cyan"), " ", (title, "bold"), (f"  seed {seed}", "dim")])

        def line(self, name: str, at_s: float, severity: Any, text: str, evidence: str) -> None:
            parts: list[Any] = [(f"{at_s:7.1f} s", "dim"), "  ", _MARKS[severity], " ", text]
            parts = [(f"{name:30} ", "cyan"), *parts] if names_shown else parts
            self._line([*parts, (f" - {evidence}", "dim")] if evidence else parts)

        def end(self, result: ScenarioResult) -> None:
            self._line([*_result_line(result)])

        @staticmethod
        def _line(parts: list[Any]) -> None:
            if not as_json:
                output.line(*parts)
            else:
                output.progress("".join(part if isinstance(part, str) else part[0] for part in parts).strip())

    return RunScreen()


def _result_line(result: ScenarioResult) -> list[Any]:
    from siterig.scenarios.report.junit import is_failure
    from siterig.scenarios.report.scenario_report import verdict

    mark = _MARKS["info" if result.skipped else "bad" if is_failure(result) else "good"]
    return [mark, " ", (result.name, "bold"), f": {verdict(result)} ({result.duration_s:.1f} s, seed {result.seed})"]


def _print_summary(results: Sequence[ScenarioResult]) -> None:
    from siterig.scenarios.report.junit import is_failure

    failed = [result for result in results if is_failure(result)]
    skipped = sum(result.skipped is not None for result in results)
    if len(results) > 1:
        output.line("")
        for result in failed:
            output.line(*_result_line(result))
    passed = len(results) - len(failed) - skipped
    output.line(f"{passed} as expected, {len(failed)} failed, {skipped} skipped")
    for result in failed:
        if result.kept is not None:
            output.line(f"The rig's logs of {result.name} are in {result.kept}/log; remove the folder when done")
