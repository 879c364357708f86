"""The command line ``siterig``; docs/reference has a page for each command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError
from typer.core import TyperGroup

from siterig.blockfs.core.errors import ExitStatus
from siterig.cli import output, provenance
from siterig.cli.summaries import SUMMARIES

SUBJECTS = {
    "commands.rig": ("doctor", "up", "down", "status"),
    "commands.setup": ("setup",),
    "commands.vms": ("vm", "protect", "unprotect", "points", "take-point"),
    "commands.points": ("point",),
    "trials.bisect": ("bisect",),
    "commands.disks": ("disk",),
    "commands.operations": ("failover", "cleanup", "commit", "failback", "reprotect", "resync", "pause", "resume"),
    "commands.verify": ("verify",),
    "administration.health_errors": ("error",),
    "administration.bandwidth": ("bandwidth",),
    "administration.policy": ("policy",),
    "administration.app_script": ("app-script",),
    "administration.metrics": ("metrics",),
    "administration.alert": ("alert",),
    "commands.records": ("jobs", "job", "events"),
    "security.keys": ("key",),
    "security.accounts": ("account",),
    "commands.roles": ("role", "site"),
    "security.certificates": ("certificate", "vault"),
    "commands.log": ("log",),
    "trials.fault": ("fault",),
    "trials.clock": ("clock",),
    "commands.mount": ("mount",),
    "trials.drill": ("drill",),
    "trials.power_loss": ("power-loss",),
    "trials.scenario": ("scenario",),
    "commands.shells": ("completion",),
    "commands.manual": ("man",),
}
"""The modules of commands in ``siterig.cli``, and the first words of their commands, as help shows them."""
HELP_OPTIONS = ("-h", "--help")


class _Program(TyperGroup):
    """All commands: a command line that cannot be read is reported like every other error."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> Any:
        """Run the command of ``args`` (default: this process's) and exit."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            sys.exit(super().main(words, prog_name="siterig", standalone_mode=False) or ExitStatus.OK)
        except NoArgsIsHelpError as error:
            output.help_text(error.format_message())
        except ClickException as error:
            output.set_json("--json" in words[: words.index("--") if "--" in words else None])
            context = getattr(error, "ctx", None)
            output.usage_error(_message(error), "" if context is None else context.get_usage())
        except typer.Abort:
            output.interrupted()
            sys.exit(ExitStatus.INTERRUPTED)
        sys.exit(ExitStatus.BAD_INPUT)


def _message(error: ClickException) -> str:
    """Return the message of a command line that cannot be read, with the value that is not allowed."""
    from pydantic import ValidationError

    text = error.format_message()
    problems = error.__cause__.errors(include_url=False) if isinstance(error.__cause__, ValidationError) else []
    hint, colon, reason = text.partition(": ")
    value = str(problems[0]["input"]) if problems else ""
    if not colon or not value or value in reason:
        return text.replace(": Value error, ", ": ", 1)
    return f"{hint}: {value!r} is not allowed: {reason[:1].lower()}{reason[1:]}"


def program(words: Sequence[str] = ()) -> typer.Typer:
    """Return the program with the commands that ``words`` need: loading all of them takes longer than most of them do."""
    app = typer.Typer(
        name="siterig",
        cls=_Program,
        help="A test rig for site recovery: virtual disks, change logs, replication, failover and failback on one Linux "
        "machine.",
        epilog="Example: siterig drill",
        no_args_is_help=True,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": list(HELP_OPTIONS)},
    )
    if words and words[0] in HELP_OPTIONS:
        _register_summaries(app)
    else:
        for subject in _subjects(words):
            importlib.import_module(f"siterig.cli.{subject}").register(app)
    app.callback()(_global)
    return app


def _subjects(words: Sequence[str]) -> Sequence[str]:
    return [name for name, first in SUBJECTS.items() if words and words[0] in first] or list(SUBJECTS)


def _register_summaries(app: typer.Typer) -> None:
    """Add every command by its name and its help alone."""
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary)(_no_command)


def _no_command() -> None:
    """Stands for a command in the list of all commands."""


def _global(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the versions of siterig, Python, the kernel and Azurite."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", is_eager=True, callback=output.set_json, help="With --version: print JSON.")
    ] = False,
) -> None:
    """Options of the program itself."""
    if version:
        provenance.print_versions(as_json=as_json)
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.fail("Missing command.")
