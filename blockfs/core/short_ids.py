"""Short ids: the first characters of an id (a UUID), accepted wherever only one id begins with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from siterig.blockfs.core.errors import Code, RigError

UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
SHORT_CHARS = 8
"""Characters of an id that are shown where space is limited, if they are unique."""
PREFIX_CHARS_MIN = 4
"""A text with fewer characters is never taken for the beginning of an id."""
_CANDIDATES_MAX = 10
_PREFIX = re.compile(rf"[0-9a-f-]{{{PREFIX_CHARS_MIN},}}")


def shortened(ids: Iterable[str]) -> dict[str, str]:
    """Return a short form of each id; no short form is the beginning of another id."""
    ordered = sorted(set(ids))
    short = {}
    for number, name in enumerate(ordered):
        neighbours = (*ordered[max(number - 1, 0) : number], *ordered[number + 1 : number + 2])
        count = SHORT_CHARS
        while any(other[:count] == name[:count] for other in neighbours):
            count += 1
        short[name] = name[:count]
    return short


def find(what: str, text: str, ids: Iterable[str]) -> str | None:
    """Return the only id that begins with ``text``, ignoring case; None if there is none.

    The result is also None if ``text`` cannot be the beginning of an id.

    Raises:
        RigError: ``AmbiguousId`` if several ids begin with it; the message lists them.
    """
    beginning = text.lower()
    if _PREFIX.fullmatch(beginning) is None:
        return None
    found = sorted(name for name in set(ids) if UUID.fullmatch(name) and name.startswith(beginning))
    if len(found) > 1:
        shown = ", ".join(found[:_CANDIDATES_MAX])
        more = f" and {len(found) - _CANDIDATES_MAX} more" if len(found) > _CANDIDATES_MAX else ""
        raise RigError(
            Code.AmbiguousId, f"{what} {text!r} is the beginning of {len(found)} ids: {shown}{more}; give more characters"
        )
    return found[0] if found else None
