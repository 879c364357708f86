"""The reference page of one command: its parts from the program itself, and what ``commands/NAME.md`` adds to them.

A file ``commands/NAME.md`` holds text in Markdown: first the description, then sections ``## Examples``, ``## Options``
(with a ``### --option`` for each option that needs more text), ``## JSON``, ``## Exit status`` and ``## See also``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import typer
from typer._click.core import Context

from siterig.blockfs.core.errors import ExitStatus

PROGRAM = "siterig"
SECTIONS = ("Examples", "Options", "JSON", "Exit status", "See also")
_ENDS = {
    ExitStatus.OK: "The command succeeded.",
    ExitStatus.FAILED: "The operation or a check failed.",
    ExitStatus.BAD_INPUT: "The command line or an input is wrong.",
    ExitStatus.NOT_UP: "The rig is not up, or one of its roles does not answer.",
    ExitStatus.ENVIRONMENT: "This machine lacks something; `siterig doctor` names it.",
    ExitStatus.INTERRUPTED: "Ctrl-C, SIGTERM, or the terminal was closed.",
}


class ManualError(Exception):
    """A text under ``commands/`` does not fit the program."""


@dataclass(frozen=True)
class Item:
    """An argument or option: its form, its help, and additional text."""

    form: str
    help: str
    more: str = ""


@dataclass
class Page:
    """One command's reference page.  All texts are Markdown; links are relative to ``docs/reference/commands``."""

    words: tuple[str, ...]
    summary: str
    synopsis: str
    description: str
    examples: str
    arguments: list[Item] = field(default_factory=list)
    options: list[Item] = field(default_factory=list)
    json: str = ""
    exit_status: str = ""
    see_also: str = ""

    @property
    def command(self) -> str:
        """The command as it is written in a shell."""
        return " ".join((PROGRAM, *self.words))

    @property
    def name(self) -> str:
        """The page's name, as for ``man``."""
        return "-".join((PROGRAM, *self.words))


def pages(program: typer.Typer) -> list[Page]:
    """Return the pages of all commands, in the order of the program's help.

    Raises:
        ManualError: a text is missing, or names an option that does not exist.
    """
    return [page_of(command, words) for words, command in _commands(typer.main.get_command(program), ())]


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
    for name, each in (inner or {}).items():
        if not each.hidden:
            yield from _commands(each, (*words, name))


def page_of(command: Any, words: tuple[str, ...]) -> Page:
    """Return the page of one command.

    Raises:
        ManualError: a text is missing, or names an option that does not exist.
    """
    lead, sections = _sections(words)
    options = _split(sections.get("Options", ""), "###")[1]
    context = Context(command, info_name=" ".join((PROGRAM, *words)))
    help_text = _sentences(command.help or "")
    page = Page(
        words=words,
        summary=help_text.split("\n\n")[0].split(". ")[0].rstrip("."),
        synopsis=_synopsis(command, context, words),
        description="\n\n".join(filter(None, (help_text, lead))),
        examples="\n\n".join(filter(None, (_example(command), sections.get("Examples", "")))),
        json=sections.get("JSON", ""),
        exit_status=sections.get("Exit status", "") or _exit_status(command),
        see_also=sections.get("See also", ""),
    )
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or parameter.hidden:
            continue
        form, text = record
        if parameter.param_type_name == "option":
            page.options.append(Item(form, _tidy(text), options.pop(parameter.opts[0], "")))
        else:
            page.arguments.append(Item(_argument(parameter), _tidy(text)))
    if options:
        raise ManualError(f"commands/{'-'.join(words)}.md: {page.command} has no option {', '.join(options)}")
    return page


def _sentences(help_text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in help_text.split("\n\n"))


def _tidy(text: str) -> str:
    return re.sub(r"\s*\[required\]$", " Required.", " ".join(text.split()))


def _synopsis(command: Any, context: Any, words: tuple[str, ...]) -> str:
    required, arguments = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            arguments.append(_argument(parameter))
        elif parameter.required:
            form = parameter.get_help_record(context)[0]
            required.append(f"{form}..." if parameter.multiple else form)
    dashes = ["--"] if any(argument.startswith("CMD") for argument in arguments) else []
    plain = [argument for argument in arguments if not argument.startswith("CMD")]
    tail = [argument for argument in arguments if argument.startswith("CMD")]
    return " ".join([PROGRAM, *words, *plain, *required, "[OPTIONS]", *dashes, *tail])


def _argument(parameter: Any) -> str:
    form = str(parameter.metavar or parameter.name.upper())
    return form if parameter.required or form.startswith("[") else f"[{form}]"


def _example(command: Any) -> str:
    text = (command.epilog or "").removeprefix("Example: ").strip()
    return f"```\n{text}\n```" if text else ""


def _exit_status(command: Any) -> str:
    of_rig = any("--dir" in parameter.opts for parameter in command.params)
    rows = [f"| {int(status)} | {text} |" for status, text in _ENDS.items() if of_rig or status != ExitStatus.NOT_UP]
    return "\n".join(["| status | meaning |", "| --- | --- |", *rows])


def _sections(words: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    name = "-".join(words)
    source = files("siterig.manual") / "commands" / f"{name}.md"
    if not source.is_file():
        raise ManualError(f"commands/{name}.md is missing: the page of {PROGRAM} {' '.join(words)}")
    lead, sections = _split(source.read_text(encoding="utf-8"), "##")
    if unknown := set(sections) - set(SECTIONS):
        raise ManualError(
            f"commands/{name}.md: unknown section {', '.join(sorted(unknown))}; allowed: {', '.join(SECTIONS)}"
        )
    return lead, sections


def _split(text: str, mark: str) -> tuple[str, dict[str, str]]:
    """The text before the first heading of this level, and the text below each heading."""
    lead, *rest = re.split(rf"^{mark} (.+)\n", text, flags=re.M)
    return lead.strip(), {title.strip().strip("`"): body.strip() for title, body in zip(rest[::2], rest[1::2], strict=True)}
