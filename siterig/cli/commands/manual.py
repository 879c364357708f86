"""The manual pages of all commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import trio
import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.host_errors import os_errors_as
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Json, example
from siterig.manual import markdown, roff
from siterig.manual.page import Page, pages


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("man", epilog=example("siterig man vm create"))(man)


def man(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND...", help="A command, for example vm create.")
    ] = None,
    *,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Write the pages of all commands into DIR/man1.", file_okay=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the manual page of a command, or write all pages."""

    async def work() -> None:
        known = _known()
        if to is not None:
            files = await trio.to_thread.run_sync(_write, known, to)
            if as_json:
                output.print_json({"files": [str(path) for path in files]})
            else:
                output.line(f"{to / 'man1'}: {len(files)} pages; man --local-file or MANPATH={to} finds them")
            return
        matches = _named(known, command or [])
        if as_json:
            output.print_json({"pages": [_as_json(page) for page in matches]})
        elif not command:
            output.print_table(("command", "purpose"), [(page.command, page.summary) for page in matches], empty="no pages")
        else:
            for page in matches:
                _show(page)

    exit_status.run(work)


def _known() -> list[Page]:
    from siterig.cli.app import program

    return pages(program())


def _named(known: list[Page], words: list[str]) -> list[Page]:
    wanted = tuple(word for name in words for word in name.removeprefix("siterig-").split("-" if name.count("-") else None))
    found = [page for page in known if page.words[: len(wanted)] == wanted or page.words == tuple(words)]
    if not found:
        raise RigError(Code.Usage, f"command: there is no command {' '.join(words)!r}; siterig man lists all")
    return found


def _as_json(page: Page) -> dict[str, str]:
    return {"name": page.name, "summary": page.summary, "text": markdown.render(page)}


def _show(page: Page) -> None:
    """Print the page: with man(1) on a terminal, else as Markdown."""
    viewer = shutil.which("man")
    if viewer is not None and output.is_terminal(sys.stdout):
        subprocess.run([viewer, "-l", "-"], input=roff.render(page, version("siterig")), text=True, check=False)
    else:
        output.print_lines(markdown.render(page).splitlines())


def _write(known: list[Page], to: Path) -> list[Path]:
    folder = to / "man1"
    files = [folder / f"{page.name}.1" for page in known]
    with os_errors_as(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for page, path in zip(known, files, strict=True):
            path.write_text(roff.render(page, version("siterig")))
    return files
