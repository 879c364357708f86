"""The rooms of the C core (``cext/src``): which file includes which, and calls functions of which.

The text is read with regular expressions: it is our own, and is formatted alike.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.repo import rooms

SOURCE_ROOT = rooms.ROOT / "cext" / "src"

_NO_CODE = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_ATTRIBUTE = re.compile(r"__attribute__\(\((?:[^()]|\([^()]*\))*\)\)")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
_FUNCTION = re.compile(r"^(?P<type>[A-Za-z_][\w *]*?[ *])(?P<name>\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
_NAME = re.compile(r"\b(?<!struct )(?<!enum )sr_\w+")


def allowed() -> dict[str, set[str]]:
    """Return the rooms that each room may include and call, by docs/rooms.toml."""
    return {room: set(names) for room, names in rooms.table("c_may_include").items()}


def files(root: Path = SOURCE_ROOT) -> dict[str, str]:
    """Return the text of each file by its name, which is like ``base/io.h``."""
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.glob("*/*.[ch]"))}


def functions(found: dict[str, str]) -> dict[str, str]:
    """Return the file of each function that other files can call: those that are not static, and all of the headers."""
    where = {}
    for name, text in found.items():
        for match in _FUNCTION.finditer(_code(text)):
            if name.endswith(".h") or "static" not in match["type"].split():
                where[match["name"]] = name
    return where


def uses(found: dict[str, str]) -> dict[str, set[str]]:
    """Return the other files that each file includes, or of which it calls functions."""
    where = functions(found)
    used = {}
    for name, text in found.items():
        called = {where[called] for called in _NAME.findall(_bodies(_code(text))) if called in where}
        used[name] = (set(_INCLUDE.findall(text)) | called) - {name}
    return used


def room_uses(found: dict[str, str]) -> dict[str, set[str]]:
    """Return the other rooms that the files of each room include or call."""
    used: dict[str, set[str]] = {room_of(name): set() for name in found}
    for name, targets in uses(found).items():
        used[room_of(name)] |= {room_of(target) for target in targets} - {room_of(name)}
    return used


def room_of(name: str) -> str:
    """Return the room of a file."""
    return name.split("/", maxsplit=1)[0]


def _code(text: str) -> str:
    """The text without comments, attributes, and what stands in quotation marks."""
    return _ATTRIBUTE.sub("", _NO_CODE.sub(" ", text))


def _bodies(code: str) -> str:
    """Return only the text in braces, which leaves prototypes out."""
    kept, depth = [], 0
    for piece in re.split(r"([{}])", code):
        depth += {"{": 1, "}": -1}.get(piece, 0)
        if depth > 0:
            kept.append(piece)
    return "".join(kept)
