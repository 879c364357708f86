"""Rules that were made from the file of another tool, and the refusal of faults that a rule cannot express."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.model_problems import problems_of
from siterig.blockfs.documents.nearest import unknown_key
from siterig.scenarios.faults.rules import FaultRule, FaultRules, read_rule

IMPORT_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class ImportedRules:
    """The rules of a file of another tool.

    Args:
        rules: the rules.
        notes: differences to the other tool that a user should know, one line each.
    """

    rules: FaultRules
    notes: tuple[str, ...] = ()


def not_imported(place: str, why: str) -> RigError:
    """Return the error for a fault that a rule cannot express.

    Args:
        place: file and fault, and the key.
        why: the value, and what can be imported.
    """
    return RigError(Code.FaultNotImported, f"{place}: {why}")


def check_keys(place: str, table: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raise ``FaultNotImported`` for an unknown or a missing key."""
    names = list(known)
    for key in table:
        if key not in names:
            raise not_imported(f"{place}.{key}", unknown_key(str(key), names))
    for key in required:
        if key not in table:
            raise not_imported(f"{place}.{key}", "is missing")


def whole(place: str, table: Mapping[str, Any], key: str, default: int | None = None, least: int = 0) -> int:
    """Return a whole number of a table; ``FaultNotImported`` if the value is another one, or below ``least``."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise not_imported(f"{place}.{key}", f"{value!r} is not allowed: write a whole number of at least {least}")
    return value


def text(place: str, table: Mapping[str, Any], key: str) -> str:
    """Return a text of a table; ``FaultNotImported`` if the value is another one, or empty."""
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise not_imported(f"{place}.{key}", f"{value!r} is not allowed: write a text")
    return value


def made_rule(place: str, raw: Mapping[str, Any]) -> FaultRule:
    """Return a rule from its mapping; a value that the schema refuses is ``FaultNotImported`` with the place."""
    try:
        return read_rule(raw)
    except RigError as error:
        raise not_imported(place, error.message) from None


def rule_set(name: str, rules: Sequence[tuple[str, FaultRule]]) -> FaultRules:
    """Return rules as a set; two of one name, as a file of the other tool may have them, are ``FaultNotImported``.

    Args:
        name: names the file in messages.
        rules: each rule with its place in the file.
    """
    places: dict[str, str] = {}
    for place, rule in rules:
        if (first := places.setdefault(rule.label, place)) != place:
            raise not_imported(place, f"the rule would have the name {rule.label!r}, as that of {first}: rename one of them")
    try:
        return FaultRules(fault=tuple(rule for _, rule in rules))
    except ValidationError as error:
        raise not_imported(name, "; ".join(map(str, problems_of(error, FaultRules)))) from None


def literal(text_: str) -> str:
    """Return the pattern that matches a text of another tool, which has no patterns there."""
    return re.sub(r"([*?\[])", r"[\1]", text_)


def read_text(path: Path) -> str:
    """Return the text of a file; ``FaultNotImported`` if it cannot be read."""
    try:
        if path.stat().st_size > IMPORT_BYTES_MAX:
            raise not_imported(str(path), f"the file has more than {IMPORT_BYTES_MAX >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_imported(str(path), f"the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise not_imported(str(path), f"the file is not UTF-8: byte {error.start}") from None
