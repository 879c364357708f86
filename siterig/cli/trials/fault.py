"""``siterig fault check`` and ``siterig fault import``: files of fault rules, without a rig.

:mod:`siterig.cli.trials.armed_faults` has the commands for rules that are armed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from siterig.cli import exit_status, output
from siterig.cli.commands.options import Json, example
from siterig.cli.trials import armed_faults
from siterig.cli.trials.new_file import write_new_file

if TYPE_CHECKING:
    from siterig.scenarios.faults.rules import FaultRule, FaultRules

COLUMNS = ("fault", "where", "when", "what", "expected")
FormatName = Literal["lazyfs", "toxiproxy", "blkdebug"]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    fault = typer.Typer(no_args_is_help=True)
    fault.command("check", epilog=example("siterig fault check faults.toml"))(check)
    fault.command("import", epilog=example("siterig fault import toxiproxy toxiproxy.json --to faults.toml"))(import_faults)
    armed_faults.register(fault)
    app.add_typer(
        fault,
        name="fault",
        help="Arm faults, see what they did, and check files of fault rules.",
        epilog=example("siterig fault list"),
    )


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML file with [[fault]] tables.")], as_json: Json = False
) -> None:
    """Check a file of fault rules, and show its rules as a table; exit status 2 if a rule is not allowed."""
    from siterig.scenarios.faults.rule_files import read_rules

    with exit_status.reporting():
        rules = read_rules(file)
        if as_json:
            output.print_json(rules_json(rules))
        else:
            output.print_table(COLUMNS, [cells(rule) for rule in rules.fault], empty="")


def import_faults(
    format_name: Annotated[FormatName, typer.Argument(metavar="FORMAT", help="lazyfs, toxiproxy or blkdebug.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of the other tool.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="PATH", help="New file for the rules. Default: standard output.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Translate a fault file of another tool into fault rules; a fault that has no counterpart is named.

    LazyFS: the [[injection]] tables of its TOML configuration. Toxiproxy: the JSON of its proxies. QEMU blkdebug: its .conf.
    """
    from siterig.scenarios.faults.importers.formats import import_file
    from siterig.scenarios.faults.rule_files import rules_text

    with exit_status.reporting():
        imported = import_file(format_name, file)
        text = rules_text(imported.rules, imported.notes)
        if to is not None:
            write_new_file(to, text)
        if as_json:
            output.print_json(rules_json(imported.rules) | {"notes": list(imported.notes)})
        elif to is None:
            output.print_lines(text.splitlines())
        else:
            for note in imported.notes:
                output.notice(note)
            count = len(imported.rules.fault)
            output.line(f"{to}: {count} {'fault' if count == 1 else 'faults'}")


def cells(rule: FaultRule) -> tuple[str, ...]:
    """Return the row of a rule: its name, where, when, what, and how often it must fire."""
    from siterig.scenarios.faults.words import table_words, words_of_document

    document = rule.document()
    return (
        "-" if rule.name is None else rule.name,
        words_of_document({"where": document["where"]}),
        table_words(document.get("when", {})) or "always",
        table_words(document["what"]),
        str(rule.expect.fired) + (", recoverable" if rule.expect.recoverable else ""),
    )


def rules_json(rules: FaultRules) -> dict[str, Any]:
    """Return the JSON document of a set of rules."""
    return {
        "seed": rules.seed,
        "faults": [
            {
                "name": rule.label,
                "words": rule.words(),
                "layer": rule.where.layer,
                "operations": list(rule.operations),
                "is_immediate": rule.is_immediate,
                "fired": str(rule.expect.fired),
                "recoverable": rule.expect.recoverable,
            }
            for rule in rules.fault
        ],
    }
