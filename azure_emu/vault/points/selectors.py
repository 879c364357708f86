"""The selectors of a VM's states, and therefore the names that a point cannot have.

One parser decides both: a name is refused unless :func:`parse` reads it as a name, so every name can be selected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from siterig.blockfs.core.errors import Code, RigError

LATEST = "Latest"
LATEST_PROCESSED = "LatestProcessed"
LATEST_APPLICATION_CONSISTENT = "LatestApplicationConsistent"
WORDS = {LATEST: "latest", LATEST_PROCESSED: "latest-processed", LATEST_APPLICATION_CONSISTENT: "latest-app"}
"""Words whose point changes with time: in the API, and on the command line."""
NAME_CHARS_MAX = 100

_SPELLINGS = {
    "latest": LATEST,
    "latestprocessed": LATEST_PROCESSED,
    "latestapp": LATEST_APPLICATION_CONSISTENT,
    "latestappconsistent": LATEST_APPLICATION_CONSISTENT,
    "latestapplicationconsistent": LATEST_APPLICATION_CONSISTENT,
}
_POSITION = re.compile(r"@(\d{1,19})", re.ASCII)
_LIKE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]", re.ASCII)
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PointSelector:
    """A parsed selector; ``text`` is the API's word, the id in lower case, the position's digits, or the time or name."""

    kind: Literal["word", "position", "time", "id", "name"]
    text: str


def parse(text: str) -> PointSelector:
    """Parse a selector (``InvalidPosition`` if it begins with ``@`` and no number follows)."""
    spelling = re.sub(r"[-_ ]", "", text).casefold()
    if spelling in _SPELLINGS:
        return PointSelector("word", _SPELLINGS[spelling])
    if text.startswith("@"):
        position = _POSITION.fullmatch(text)
        if position is None:
            raise RigError(Code.InvalidPosition, f"position {text!r} is not understood: write @ and a number, e.g. @13")
        return PointSelector("position", position[1])
    if _LIKE_TIME.match(text.strip()) is not None:
        return PointSelector("time", text.strip())
    if _ID.fullmatch(text) is not None:
        return PointSelector("id", text.lower())
    return PointSelector("name", text)


def check_name(name: str) -> None:
    """Check that a point with this name can be shown in one line and selected by the name.

    Raises:
        RigError: ``InvalidName``.
    """
    shown = ascii(name[: 2 * NAME_CHARS_MAX])
    if not (name.isprintable() and 0 < len(name) <= NAME_CHARS_MAX):
        raise RigError(
            Code.InvalidName,
            f"point is named {shown}; allowed: 1 to {NAME_CHARS_MAX} printable characters, spaces included",
        )
    if name != name.strip() or name.startswith(("-", "@")) or parse(name).kind != "name":
        raise RigError(
            Code.InvalidName,
            f"point is named {shown}, and cannot be selected by this name; reserved: latest, latest-processed and "
            "latest-app in any spelling, ids, names that begin like a time (2026-11-21T...), with @ or -, "
            "and names with spaces "
            "at the beginning or end",
        )
