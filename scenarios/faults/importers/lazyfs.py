"""Fault files of LazyFS: the ``[[injection]]`` tables of its TOML configuration.

Source: the README and ``libs/libpcache/src/config/config.cpp`` of dsrhaslab/lazyfs, read in November 2026.

- ``torn-op`` becomes a power loss with a torn write: ``lose`` and ``tear``.
- ``torn-seq`` becomes a power loss in which some writes survive: ``lose`` and ``survive``.
- ``clear-cache`` becomes a power loss: ``lose`` and ``crash``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.importers.imported import (
    ImportedRules,
    check_keys,
    literal,
    made_rule,
    not_imported,
    rule_set,
    text,
    whole,
)
from siterig.scenarios.faults.rules import FaultRule

_SETTINGS = ("faults", "cache", "file system", "filesystem")
_OPERATIONS = {"read": "read", "write": "write", "fsync": "flush", "fdatasync": "flush"}
_TORN_OP = ("type", "file", "op", "occurrence", "parts", "parts_bytes", "persist")
_TORN_SEQ = ("type", "file", "op", "occurrence", "persist")
_CLEAR = ("type", "from", "to", "timing", "op", "occurrence", "crash")
NOTES = (
    "LazyFS counts the calls of programs; a disk counts the requests that reach it, after the guest's page cache",
    "an fsync of a file is a flush of the whole disk",
    "a path of LazyFS begins at its root folder on the host, or is relative to it; that of a rule begins at the root of the "
    "guest's file system",
)


def import_lazyfs(name: str, source: str) -> ImportedRules:
    """Return the rules of a LazyFS configuration.

    Args:
        name: names the file in messages.
        source: its text.
    Raises:
        RigError: ``FaultNotImported``.
    """
    try:
        data = tomllib.loads(re.sub(r"(?m)^\[file system\]", '["file system"]', source))  # as its README has it
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise not_imported(name, f"this is no TOML: {error}") from None
    check_keys(name, data, (*_SETTINGS, "injection"))
    injections = data.get("injection", [])
    if not isinstance(injections, list) or not all(isinstance(each, dict) for each in injections):
        raise not_imported(f"{name}: injection", "is not an array of tables: write [[injection]]")
    if not injections:
        raise not_imported(name, "there is no [[injection]]: commands that are sent to the FIFO are not in the file")
    places = {f"{name}: injection[{number}]": (number, each) for number, each in enumerate(injections, 1)}
    rules = rule_set(name, [(place, _rule(place, number, each)) for place, (number, each) in places.items()])
    settings = [key for key in _SETTINGS if key in data]
    ignored = (f"settings of LazyFS itself were left out: {', '.join(settings)}",) if settings else ()
    return ImportedRules(rules, (*NOTES, *ignored))


def _rule(place: str, number: int, table: Mapping[str, Any]) -> FaultRule:
    kinds = {"torn-op": _torn_op, "torn-seq": _torn_seq, "clear-cache": _clear, "clear": _clear}
    kind = text(place, table, "type")
    if kind not in kinds:
        raise not_imported(f"{place}.type", f"{kind!r} is unknown{hint(kind, kinds)}; allowed: {', '.join(kinds)}")
    raw = kinds[kind](place, table)
    return made_rule(place, raw | {"name": f"lazyfs {number}: {kind} {table.get('file', table.get('from', ''))}".strip()})


def _torn_op(place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(place, table, _TORN_OP, ("file", "occurrence", "persist"))
    if table.get("op", "write") != "write":
        raise not_imported(f"{place}.op", f"{table['op']!r} is not allowed: only a write can be torn")
    if ("parts" in table) == ("parts_bytes" in table):
        raise not_imported(place, "has both of parts and parts_bytes, or none: write one of them")
    sizes = {"sizes": table["parts_bytes"]} if "parts_bytes" in table else {"parts": table["parts"]}
    return {
        "where": _write_of(place, table),
        "when": {"occurrence": whole(place, table, "occurrence", least=1)},
        "what": {"tear": sizes | {"keep": table["persist"]}, "lose": "unflushed"},
    }


def _torn_seq(place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(place, table, _TORN_SEQ, ("file", "op", "occurrence", "persist"))
    if table["op"] != "write":
        raise not_imported(f"{place}.op", f"{table['op']!r} is not allowed: only writes wait for a flush")
    if whole(place, table, "occurrence", least=1) != 1:
        why = "is not 1: a disk does not see which flush belongs to the file, so groups of its writes cannot be counted"
        raise not_imported(f"{place}.occurrence", why)
    persist = table["persist"]
    if not isinstance(persist, list) or not persist or not all(type(each) is int and each > 0 for each in persist):
        raise not_imported(f"{place}.persist", f"{persist!r} is not allowed: write a list of numbers from 1")
    return {
        "where": _write_of(place, table),
        "when": {"occurrence": max(persist), "timing": "after"},
        "what": {"lose": "unflushed", "survive": persist},
    }


def _clear(place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(place, table, _CLEAR, ("timing", "op", "occurrence", "crash"))
    op = text(place, table, "op")
    if op not in _OPERATIONS:
        why = f"{op!r} has no counterpart: a disk sees no names of files; allowed: {', '.join(_OPERATIONS)}"
        raise not_imported(f"{place}.op", why)
    if table.get("to"):
        raise not_imported(f"{place}.to", f"{table['to']!r} has no counterpart: a disk sees no names of files")
    if table["timing"] not in ("before", "after"):
        raise not_imported(f"{place}.timing", f"{table['timing']!r} is not allowed: write before or after")
    if not isinstance(table["crash"], bool):
        raise not_imported(f"{place}.crash", f"{table['crash']!r} is not allowed: write true or false")
    where: dict[str, Any] = {"layer": "disk", "op": _OPERATIONS[op]}
    if table.get("from") and _OPERATIONS[op] != "flush":
        where["file"] = _path(text(place, table, "from"))
    return {
        "where": where,
        "when": {"occurrence": whole(place, table, "occurrence", least=1), "timing": table["timing"]},
        "what": {"lose": "unflushed", "crash": table["crash"]},
    }


def _write_of(place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    return {"layer": "disk", "op": "write", "file": _path(text(place, table, "file"))}


def _path(file: str) -> str:
    return literal(file if file.startswith("/") else f"/{file}")
