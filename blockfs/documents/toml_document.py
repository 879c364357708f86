"""TOML files that users write: read with messages that name file and line, and written.

The lines of keys are found by a scan of the text, which is only done for a message: :func:`line_of`.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.model_problems import DocumentProblem, KeyPath

DOCUMENT_BYTES_MAX = 16 << 20
_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_SHOWN_MAX = 5


class TomlDocument:
    """One TOML file in memory.

    Args:
        name: names the file in messages.
        text: its contents.
        code: the code of errors.
    Raises:
        RigError: ``code`` if the text is no TOML.
    """

    def __init__(self, name: str, text: str, code: Code) -> None:
        self.name, self.text, self._code = name, text, code
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RigError(code, f"{name}: this is no TOML: {_first_line(error)}") from None

    @classmethod
    def read(cls, path: Path, code: Code) -> TomlDocument:
        """Read a file; a file that cannot be read is a ``RigError`` with ``code``, too.

        Only a regular file is read: a FIFO could wait for ever, and a device could have no end.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise RigError(code, f"{path}: the file cannot be read: it is no regular file")
                if status.st_size > DOCUMENT_BYTES_MAX:
                    raise RigError(code, f"{path}: the file has more than {DOCUMENT_BYTES_MAX >> 20} MiB")
                with open(fd, encoding="utf-8", closefd=False) as file:
                    return cls(str(path), file.read(), code)
            finally:
                os.close(fd)
        except OSError as error:
            raise RigError(code, f"{path}: the file cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise RigError(
                code, f"{path}: the file is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"
            ) from None

    def error(self, problems: list[DocumentProblem]) -> RigError:
        """Return the error for problems of this file: each with its line, at most five."""
        shown = "; ".join(self.located(problem) for problem in problems[:_SHOWN_MAX])
        more = f"; and {len(problems) - _SHOWN_MAX} more" if len(problems) > _SHOWN_MAX else ""
        return RigError(self._code, shown + more)

    def located(self, problem: DocumentProblem) -> str:
        """Return a problem as ``file:line: key: text``."""
        line = line_of(self.text, problem.path)
        return f"{self.name}{'' if line is None else f':{line}'}: {problem}"


def line_of(text: str, path: KeyPath) -> int | None:
    """Return the line, from 1, of a key or of the nearest table around it; None if there is none.

    Keys within inline tables have the line of their table.  A line of a multi-line string that looks like a key can
    mislead the scan.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.fullmatch(line)
        if header:
            table = _numbered(_parts(header[2]), counts, is_item=header[1] == "[[")
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            parts = _parts(key[1])
            for end in range(1, len(parts) + 1):
                lines.setdefault((*table, *parts[:end]), number)
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"""[^."']+|"[^"]*"|'[^']*'""", dotted) if part.strip())


def _numbered(parts: tuple[str, ...], counts: dict[KeyPath, int], *, is_item: bool) -> KeyPath:
    """Return the path of a header, with the number of each item of an array of tables on the way."""
    path: KeyPath = ()
    for place, part in enumerate(parts, 1):
        path = (*path, part)
        if is_item and place == len(parts):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _first_line(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]


def toml_text(data: Mapping[str, Any]) -> str:
    """Return a document as TOML."""
    return tomli_w.dumps(data)
