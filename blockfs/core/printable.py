"""Makes text from outside safe for a terminal and a log: one record stays one line, and nothing moves the cursor.

Names of files, disks and points, and messages of other programs may contain any character.  All output of siterig passes
through :func:`printable` (``siterig/cli/output.py``, tests/unit/repo/test_output_rules.py).
"""

from __future__ import annotations

_BYTE_FIRST, _BYTE_LAST = 0xDC80, 0xDCFF
"""Python decodes a byte of a file name that is not UTF-8 as a lone surrogate: 0xDC00 plus the byte."""


def printable(text: str) -> str:
    r"""Return ``text`` with every character escaped that is not printable, for example ``\n``, ``\x1b`` or ``\u202e``.

    Escaped characters are control characters (C0, C1), line and paragraph separators, bidirectional controls, other
    invisible characters, and lone surrogates.  A byte that is not UTF-8 becomes ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def printable_lines(text: str) -> str:
    """Return ``text`` escaped like :func:`printable`, but with its line breaks and tabs; for output of other programs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def valid_unicode(text: str) -> str:
    """Return ``text`` with lone surrogates escaped, which UTF-8 and JSON cannot carry; other characters stay."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return "".join(_escape(char) if "\ud800" <= char <= "\udfff" else char for char in text)


def _escape(char: str) -> str:
    if _BYTE_FIRST <= ord(char) <= _BYTE_LAST:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1]
