"""The rooms of the code, and which may import which: test_architecture compares docs/rooms.toml with the code.

``python -m tests.support.repo.rooms`` writes the table in docs/internals/architecture.md and the last line of
each room's ``__init__``.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
LINE_CHARS = 125
FOLDERS = ("cext", "blockfs", "replication", "azure_emu", "scenarios", "siterig")
COMPILED = "siterig.cext._core"
PAGE = ROOT / "docs" / "internals" / "architecture.md"
BEGIN, END = "<!-- rooms: written by python -m tests.support.repo.rooms -->", "<!-- end of rooms -->"


@cache
def table(key: str) -> dict[str, Any]:
    """Return a table of docs/rooms.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "docs" / "rooms.toml").read_text())[key]
    return found


def allowed() -> dict[str, set[str]]:
    """Return the rooms that each room may import, by the table; rooms are named like ``blockfs.core``."""
    return {room: set(names) for room, names in table("may_import").items()}


def modules() -> dict[str, Path]:
    """Return all modules by the name that imports use; the ``__init__`` of a room is the room."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] == "siterig" else ("siterig", *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(module: str, rooms: set[str]) -> str:
    """Return the innermost room that a module is in.

    Raises:
        KeyError: it is in none.
    """
    name = module if module == "siterig" or module.split(".")[1] not in FOLDERS[:-1] else module.partition(".")[2]
    while name not in rooms:
        if "." not in name:
            raise KeyError(module)
        name = name.rpartition(".")[0]
    return name


@cache
def imports(path: Path) -> set[str]:
    """Return the dotted names that a module imports, also those for type checking alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used(rooms: set[str]) -> dict[str, set[str]]:
    """Return the rooms that each room does import."""
    known = modules()
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for name, path in known.items():
        room = room_of(name, rooms)
        targets = {i for i in imports(path) if i == COMPILED or (i in known and not is_empty_package(known[i]))}
        found[room] |= {room_of(target, rooms) for target in targets} - {room}
    return found


@cache
def is_empty_package(path: Path) -> bool:
    """Return True for an ``__init__`` without code: to import such a package is no dependency."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def folder_of(room: str) -> Path:
    """Return the folder of a room."""
    return ROOT / room.replace(".", "/")


def description(room: str) -> str:
    """Return the first paragraph of the room's ``__init__``, in one line."""
    text = ast.get_docstring(ast.parse((folder_of(room) / "__init__.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def import_line(names: set[str]) -> str:
    """Return the last line of a room's ``__init__``."""
    return f"Imports {', '.join(sorted(names))}." if names else "Imports no other room."


def page_part() -> str:
    """Return the part of the architecture page between the two marks."""
    rows = ["| room | what lives there | imports |", "| --- | --- | --- |"]
    for room, names in allowed().items():
        rows.append(f"| `{room.replace('.', '/')}` | {description(room)} | {', '.join(sorted(names)) or 'none'} |")
    c_rows = ["| room of the C core | what lives there | includes and calls |", "| --- | --- | --- |"]
    for room, about in table("c_rooms").items():
        c_rows.append(f"| `cext/src/{room}` | {about} | {', '.join(sorted(table('c_may_include')[room])) or 'none'} |")
    return "\n".join([BEGIN, "", *rows, "", *c_rows, "", END])


def init_of(room: str, names: set[str]) -> str:
    """Return the docstring at the beginning of a room's ``__init__``; in most rooms there is nothing else in it."""
    about, imported = (textwrap.wrap(text, LINE_CHARS - 5) for text in (description(room), import_line(names)))
    return '"""' + "\n".join([*about, "", *imported]) + '\n"""\n'


def main() -> None:
    """Write what is drawn from the table."""
    for room, names in allowed().items():
        path = folder_of(room) / "__init__.py"
        text = path.read_text()
        path.write_text(init_of(room, names) + text[text.index('"""', 3) + 4 :])
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + page_part() + rest.split(END)[1])


if __name__ == "__main__":
    main()
