"""The nearest known word for a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that a user most likely meant, or None."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def hint(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean X?)"``, or an empty text if no known word is near."""
    found = nearest(word, known)
    return f" (did you mean {found}?)" if found else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key: the nearest known key, and all known ones."""
    names = list(known)
    return f"unknown key{hint(key, names)}; allowed: {', '.join(names)}"
