"""Text from outside, made safe for a terminal and a log: one record stays one line, and nothing moves the cursor.

Names of files, disks and points, and messages of other programs may hold any character.  All output of siterig passes
through :func:`printable` (``siterig/cli/show.py``, tests/unit/repo/test_output_rules.py).
"""

from __future__ import annotations

_BYTE_FIRST, _BYTE_LAST = 0xDC80, 0xDCFF
"""Python decodes a byte of a file name that is not UTF-8 as a lone surrogate: 0xDC00 plus the byte."""


def printable(text: str) -> str:
    r"""``text`` with every character escaped that is not printable: ``\n``, ``\x1b``, ``\u202e``; a byte that is not
    UTF-8 as ``\xff``.

    Escaped are control characters (C0, C1), line and paragraph separators, bidirectional controls, other invisible
    characters, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def printable_lines(text: str) -> str:
    """Like :func:`printable`, but line breaks and tabs stay: for the output of another program, shown as it is."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def valid_unicode(text: str) -> str:
    """``text`` with lone surrogates escaped, which UTF-8 and JSON cannot carry; every other character stays."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return "".join(_escape(char) if "\ud800" <= char <= "\udfff" else char for char in text)


def _escape(char: str) -> str:
    if _BYTE_FIRST <= ord(char) <= _BYTE_LAST:
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1]
