"""``siterig fault add``, ``list``, ``remove``, ``clear``, ``wait`` and so on: the rules that a rig or a mount has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import completion, exit_status, fault_director, output
from siterig.cli.commands.options import Dir, Json, example, seed_option

if TYPE_CHECKING:
    from siterig.core.fault_contract import FaultControl, FaultSummary
    from siterig.scenarios.faults.records import RuleStatus

T = TypeVar("T")
COLUMNS = ("fault", "layer", "state", "matched", "fired", "waiting", "last", "expected")
INJECTION_COLUMNS = ("number", "time", "fault", "operation", "done")
RuleName = Annotated[
    str, typer.Argument(metavar="FAULT", help="Name of the rule, as in the list.", autocompletion=completion.faults)
]

Mnt = Annotated[
    Path | None,
    typer.Option(
        "--mnt",
        metavar="DIR",
        help="Folder of siterig mount: its rules, in place of a rig's.",
        parser=Path,  # without a look at the folder, whose process may be stopped
    ),
]


def register(fault: typer.Typer) -> None:
    """Add these commands to ``siterig fault``."""
    add_example = example("siterig fault add disk web01/data write error=EIO times=3 name=journal")
    fault.command("add", epilog=add_example)(add)
    fault.command("list", epilog=example("siterig fault list"))(list_rules)
    fault.command("remove", epilog=example("siterig fault remove journal"))(remove)
    fault.command("clear", epilog=example("siterig fault clear"))(clear)
    fault.command("wait", epilog=example("siterig fault wait journal --fired 3 --timeout 60"))(wait)
    fault.command("mark", epilog=example("siterig fault mark loaded"))(mark)
    fault.command("injections", epilog=example("siterig fault injections --json"))(injections)
    fault.command("verdict", epilog=example("siterig fault verdict"))(verdict)


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a command's work; without a rig the error names ``--mnt``, too."""

    async def named() -> T:
        try:
            return await work()
        except RigError as error:
            if error.code != Code.NotUp:
                raise
            raise RigError(Code.NotUp, f"{error.message}; or name the folder of siterig mount: --mnt DIR") from None

    return exit_status.run(named)


def _print(summary: FaultSummary | None, *, as_json: bool) -> None:
    rules = [] if summary is None else summary.rules
    if as_json:
        output.print_json({"seed": None if summary is None else summary.seed, "faults": rules})
    else:
        output.print_table(COLUMNS, [_row(rule) for rule in rules], empty="no faults are armed")


def _row(rule: RuleStatus) -> tuple[object, ...]:
    return (rule.name, rule.layer, rule.state, rule.matched, rule.fired, rule.waiting, rule.last or "-", rule.expected)


def add(
    *,
    folder: Dir,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RULE]...",
            help="One rule as words: LAYER [TARGET] [OPERATION] [KEY=VALUE ...].",
            show_default=False,
            autocompletion=completion.fault_words,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="TOML file with [[fault]] tables, in place of words.")
    ] = None,
    seed: Annotated[
        int | None,
        seed_option("Seed of the random choices. Default: that of the file, rig or mount."),
    ] = None,
    mnt: Mnt = None,
    as_json: Json = False,
) -> None:
    """Arm fault rules in the rig or mount, all or none; they are in force when the command ends."""

    async def work() -> None:
        if file is not None and words:
            raise RigError(Code.BadRequest, f"--file {file} stands beside the words of a rule: write one of them")
        if file is None and not words:
            raise RigError(Code.BadRequest, "no rule: write its words, like: disk write error=EIO, or --file FILE")
        if file is not None:
            rules, chosen = fault_director.rules_of_file(file, seed)
        else:
            from siterig.scenarios.faults.rule_files import with_file_in
            from siterig.scenarios.faults.rules import FaultRule, read_rule
            from siterig.scenarios.faults.words import mapping_of_words

            rule: FaultRule = with_file_in(read_rule(mapping_of_words(words or [])), Path.cwd())
            rules, chosen = [rule.document()], seed
        director = await fault_director.started_director(folder, mnt)
        _print(await fault_director.add(director, rules, chosen), as_json=as_json)

    _run(work)


def list_rules(*, folder: Dir, mnt: Mnt = None, as_json: Json = False) -> None:
    """List the fault rules of the rig or mount: how many operations matched, how many met the fault, and the last time."""

    async def work() -> None:
        director = await fault_director.director_if_any(folder, mnt)
        _print(None if director is None else await director.list_faults(), as_json=as_json)

    _run(work)


def remove(*, folder: Dir, name: RuleName, mnt: Mnt = None, as_json: Json = False) -> None:
    """Remove a fault rule, and undo all that it keeps up: stopped roles and waiting operations continue."""

    async def work() -> None:
        director = await fault_director.known_director(folder, mnt, name)
        _print(await director.remove_fault(name=name), as_json=as_json)

    _run(work)


def clear(*, folder: Dir, mnt: Mnt = None, as_json: Json = False) -> None:
    """Remove all fault rules of the rig or mount."""

    async def work() -> None:
        director = await fault_director.director_if_any(folder, mnt)
        removed = 0 if director is None else await director.clear_faults()
        if as_json:
            output.print_json({"removed": removed})
        else:
            output.line(f"removed {removed} {'fault' if removed == 1 else 'faults'}")

    _run(work)


def wait(
    *,
    folder: Dir,
    name: RuleName,
    fired: Annotated[int, typer.Option("--fired", metavar="N", min=1, help="Number of faults to wait for.")] = 1,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Fail after this time. Default: never.")
    ] = None,
    mnt: Mnt = None,
    as_json: Json = False,
) -> None:
    """Wait until a fault rule has fired so often."""
    import trio

    from siterig.blockfs.core.clock import SYSTEM_CLOCK

    async def work() -> None:
        director = await fault_director.known_director(folder, mnt, name)
        try:
            with SYSTEM_CLOCK.fail_after(timeout_s) if timeout_s is not None else trio.CancelScope():
                status = await _fired(director, name, fired)
        except trio.TooSlowError:
            found = next((rule for rule in (await director.list_faults()).rules if rule.name == name), None)
            so_far = 0 if found is None else found.fired
            text = f"fault {name!r} has fired {so_far} of {fired} times within {timeout_s:g} s"
            raise RigError(Code.FaultNotFired, text) from None
        if as_json:
            output.print_json(status)
        else:
            output.print_table(COLUMNS, [_row(status)], empty="")

    _run(work)


async def _fired(director: FaultControl, name: str, times: int) -> RuleStatus:
    """Wait until a rule has fired so often, also while the director is killed and started again."""
    from siterig.rpc.client import GUIDE

    while True:
        guide = GUIDE.set(None)  # it would report that the director does not answer
        try:
            return await director.wait_fired(name=name, times=times)
        except RigError as error:
            if error.code != Code.RoleUnavailable:
                raise
        finally:
            GUIDE.reset(guide)
        await director.list_faults()  # returns when the next director answers


def mark(
    *,
    folder: Dir,
    name: Annotated[str, typer.Argument(metavar="MARK", help="Name of the mark.")],
    mnt: Mnt = None,
    as_json: Json = False,
) -> None:
    """Set a mark; the windows of rules with after = mark:NAME are open when the command ends, until = mark:NAME closed."""

    async def work() -> None:
        director = await fault_director.started_director(folder, mnt)
        await director.note_mark(name=name)
        if as_json:
            output.print_json({"mark": name})
        else:
            output.line(f"the mark {name} is set")

    _run(work)


def injections(
    *,
    folder: Dir,
    after: Annotated[int, typer.Option("--after", metavar="N", min=0, help="Only those with a number above N.")] = 0,
    mnt: Mnt = None,
    as_json: Json = False,
) -> None:
    """Show the faults that were injected since the rig or mount is up: the operation, and what was done to it."""

    async def work() -> None:
        director = await fault_director.director_if_any(folder, mnt)
        found = [] if director is None else await director.injections(after=after)
        if found and (gone := found[0].sequence - after - 1):
            output.notice(f"{gone} older injections are no longer kept")
        if as_json:
            output.print_json(found)
        else:
            rows = [(each.sequence, each.time, each.rule, each.operation, each.done) for each in found]
            output.print_table(INJECTION_COLUMNS, rows, empty="no fault was injected")

    _run(work)


def verdict(*, folder: Dir, mnt: Mnt = None, as_json: Json = False) -> None:
    """Judge each rule of the rig or mount, also removed ones; exit status 1 if one fired too rarely or too often."""

    async def work() -> bool:
        director = await fault_director.director_if_any(folder, mnt)
        found = [] if director is None else await director.verdicts()
        if as_json:
            output.print_json(found)
        else:
            rows = [("ok" if each.ok else "FAILED", each.name, each.fired, each.expected, each.text) for each in found]
            output.print_table(("verdict", "fault", "fired", "expected", "reason"), rows, empty="there was no fault rule")
        return all(each.ok for each in found)

    if not _run(work):
        raise typer.Exit(ExitStatus.FAILED)
