"""Parts of the documents that tests compare with the program: links, command lines, and tables of JSON keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from siterig.cli import output
from siterig.cli.app import program
from tests.support.repo.rooms import ROOT

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
COMMANDS = REFERENCE / "commands"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
_PROGRAM = re.compile(r"(?:^|(?<=[\s(;&|\"]))(?:\./rig|siterig) (?=[a-z-])")
_END = re.compile(r"^(?:[|;&)<>]+|[<>].*|\d>.*)$")


def pages() -> list[Path]:
    """Return all pages below ``docs/``; a hidden folder has none: a user who runs an example gets a cache of pytest."""
    return sorted(
        path for path in DOCS.rglob("*.md") if not any(part.startswith(".") for part in path.parts[len(DOCS.parts) :])
    )


def documents() -> list[Path]:
    """Return README, CONTRIBUTING and all pages."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages()]


def named(path: Path) -> str:
    """Return the file's name in messages."""
    return str(path.relative_to(ROOT))


# --- links ----------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """Return the text without code blocks; their lines stay, empty."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = set[str]()
    for title in re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.M):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        number = sum(1 for known in found if known == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", known))
        found.add(slug if number == 0 else f"{slug}-{number}")
    return frozenset(found)


def broken_links(path: Path) -> Iterator[str]:
    """Yield the links of a page that lead nowhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", without_code(path.read_text()))):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        if not to.exists() or (anchor and to.suffix == ".md" and anchor not in anchors(to)):
            yield f"{named(path)}: {target}"


# --- command lines --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommandLine:
    """One command line of a document; ``complete`` is False for a mention in the text, which may lack arguments."""

    where: str
    words: tuple[str, ...]
    complete: bool


def command_lines(path: Path) -> Iterator[CommandLine]:
    """Yield all command lines of siterig in a page: lines of code blocks, and code in the text."""
    text = path.read_text()
    for match in _FENCE.finditer(text):
        if match[1] in ("mermaid", "json", "python", "toml"):
            continue
        block = match[2].replace("\\\n", " ")
        for line in block.splitlines():
            yield from _in_line(line, named(path), complete=True)
    for code in re.findall(r"`([^`\n]+)`", without_code(text)):
        if re.match(r"(\./rig|siterig) [a-z-]", code):
            yield from _in_line(code, named(path), complete=False)


def _in_line(line: str, where: str, *, complete: bool) -> Iterator[CommandLine]:
    for match in _PROGRAM.finditer(line):
        if "[OPTIONS]" in line or line.startswith("usage:"):
            continue
        lexer = shlex.shlex(line[match.end() :], posix=True, punctuation_chars=";&|()<>")
        lexer.commenters, lexer.whitespace_split = "#", True
        words = list[str]()
        try:
            for word in lexer:
                if _END.match(word):
                    break
                words.append(word)
        except ValueError:  # a quotation that continues behind the program's part: $(siterig ... --json)"
            words = line[match.end() :].split(")", maxsplit=1)[0].split()
        if words and words[0] != "test":  # ./rig test is no command of siterig
            yield CommandLine(f"{where}: {line.strip()}", tuple(words), complete)


@cache
def _root() -> Any:
    return typer.main.get_command(program())


def problem(line: CommandLine) -> str | None:
    """Return why the program would refuse this command line; None if it would not."""
    command, words = _root(), list(line.words)
    path = ["siterig"]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        path.append(words[0])
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return None if len(path) > 1 or words in (["--help"], ["--version"], ["--version", "--json"]) else "no command"
        return None if words[0].isupper() or words[0] == "..." else f"there is no command {' '.join(path[1:] + words[:1])!r}"
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("-")} | {"--help", "-h"}
    if not line.complete:
        given = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        unknown = [word for word in given if word not in options]
        return f"unknown option {unknown[0]}" if unknown else None
    if "--help" in words:
        return None
    try:
        command.make_context(" ".join(path), words)
    except Exception as error:
        return str(error)
    finally:
        output.set_json(False)
    return None


# --- JSON -----------------------------------------------------------------------------------------------------------


def key_paths(value: object, before: str = "") -> Iterator[str]:
    """Yield the path of each key in a JSON document, as the tables write it: ``disks[].name``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{before}.{key}" if before else str(key)
            yield path
            yield from key_paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from key_paths(inner, f"{before}[]" if before else "")


def section(text: str, title: str, level: str = "##") -> str:
    """Return the text below a heading; empty if there is none."""
    match = re.search(rf"^{level} {re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S)
    return match[1] if match else ""


def keys_of(text: str) -> dict[str, str]:
    """Return the rows of the tables whose first column is ``key``: the path of the key, and its kind of value."""
    found = dict[str, str]()
    for table in re.findall(r"^\| key \|.*\n\| ---.*\n((?:\|.*\n?)+)", text, re.M):
        for row in table.splitlines():
            key, value, *_ = (cell.strip() for cell in row.strip("|").split(" | "))
            found[key.strip("` ")] = value
    return found


def shared_keys(value: str) -> dict[str, str]:
    """Return the keys of an object of docs/reference/json.md to which a table links."""
    match = re.search(r"\((?:\.\./)?(?:json\.md)?#([\w-]+)\)", value)
    if match is None:
        return {}
    text = (REFERENCE / "json.md").read_text()
    (title,) = [t for t in re.findall(r"^## (.+)$", text, re.M) if t.lower().replace(" ", "-") == match[1]]
    return expanded(keys_of(section(text, title)))


def expanded(keys: dict[str, str]) -> dict[str, str]:
    """Return all paths of a table, those of the shared objects included to which it links."""
    found = dict(keys)
    for key, value in keys.items():
        dots = "[]." if value.startswith("list of") else "."
        found |= {f"{key}{dots}{inner}": kind for inner, kind in shared_keys(value).items()}
    return found


def documented_keys(page: str) -> dict[str, str]:
    """Return all paths of JSON keys on a command's page; those of a shared object if the document is one."""
    text = section((COMMANDS / f"{page}.md").read_text(), "JSON")
    found = expanded(keys_of(text))
    for link in re.findall(r"^(?:The|A list of[\w' ]*) \[[^\]]+\]\([^)]*\)", text, re.M):
        found |= shared_keys(link)
    return found
