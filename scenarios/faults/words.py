"""A fault rule as a line of words, as the command line takes it: ``disk web01/data write error=EIO times=3``.

The form is ``LAYER [TARGET] [OPERATION,...] [KEY=VALUE ...]``.  The target is VM/DISK, a link, a pattern of blobs, a role or
a host.  The keys are those of TOML, without their table: each key is in one table only.  A key of an inner table has a dot
(``tear.parts=4``), a list commas (``tear.keep=1,3``).  A value with spaces is quoted as in a shell.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.catalog import (
    ALL_PLACES,
    EFFECTS,
    EXPECT_KEYS,
    LAYER_NAMES,
    LAYERS,
    WHEN_KEYS,
    LayerName,
    effects_of,
)

ROOT_KEYS = ("name", "seed")
TABLE_OF: dict[str, str] = {
    **dict.fromkeys(("layer", *ALL_PLACES), "where"),
    **dict.fromkeys(WHEN_KEYS, "when"),
    **dict.fromkeys(EFFECTS, "what"),
    **dict.fromkeys(EXPECT_KEYS, "expect"),
}
"""The table of each key; ``name`` and ``seed`` are in none."""
_FORM = "LAYER [TARGET] [OPERATION] [KEY=VALUE ...]"


def split_words(line: str) -> list[str]:
    """Split a line into words as a shell does; ``InvalidFault`` if a quotation mark is not closed."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise RigError(Code.InvalidFault, f"fault {line!r}: {str(error).lower()}") from None


def mapping_of_words(line: str | Sequence[str]) -> dict[str, Any]:
    """Return the mapping that a line of words, or its words, stand for; the schema checks the values.

    Raises:
        RigError: ``InvalidFault`` for a word that has no place in a rule.
    """
    words = split_words(line) if isinstance(line, str) else list(line)
    shown = line if isinstance(line, str) else shlex.join(words)
    pairs_begin = next((number for number, word in enumerate(words) if "=" in word), len(words))
    plain, pairs = words[:pairs_begin], words[pairs_begin:]
    if not words or words[0] not in LAYER_NAMES:
        given = f"{words[0]!r} is no layer{hint(words[0], LAYER_NAMES)}" if words else "there is no word"
        raise RigError(Code.InvalidFault, f"fault {shown!r}: {given}: write {_FORM}; layers: {', '.join(LAYER_NAMES)}")
    layer: LayerName = words[0]
    late = next((word for word in pairs if "=" not in word), None)
    if late is not None:
        raise RigError(Code.InvalidFault, f"fault {shown!r}: {late!r} stands after a KEY=VALUE: write {_FORM}")
    mapping: dict[str, Any] = {"where": {"layer": layer} | _target(layer, plain[1:], shown), "what": {}}
    for word in pairs:
        key, _, value = word.partition("=")
        _set(mapping, layer, key, value, shown)
    return mapping


def _target(layer: LayerName, plain: Sequence[str], shown: str) -> dict[str, Any]:
    """Return the keys of ``where`` that the words before the first KEY=VALUE stand for."""
    if len(plain) > 2:
        raise RigError(
            Code.InvalidFault,
            f"fault {shown!r}: {plain[2]!r} is one word too many before the first KEY=VALUE: write {_FORM}",
        )
    operations = LAYERS[layer].operations
    found: dict[str, Any] = {}
    targets = list(plain)
    if targets and (len(targets) == 2 or _are_operations(targets[0], operations)):
        last = targets.pop()
        if not operations:
            raise RigError(Code.InvalidFault, f"fault {shown!r}: the layer {layer} has no operations, so {last!r} is wrong")
        found["op"] = last
    if targets:
        keys = LAYERS[layer].target
        parts = targets[0].split("/") if len(keys) > 1 else [targets[0]]
        if len(parts) > len(keys) or not all(parts):
            raise RigError(Code.InvalidFault, f"fault {shown!r}: {targets[0]!r} is no {'/'.join(keys).upper()}")
        found |= dict(zip(keys, parts, strict=False))
    return found


def _are_operations(word: str, operations: Sequence[str]) -> bool:
    return all(part in operations for part in word.split(","))


def _set(mapping: dict[str, Any], layer: LayerName, key: str, value: str, shown: str) -> None:
    first, *inner = key.split(".")
    if first in ROOT_KEYS:
        table = mapping
    elif first in TABLE_OF:
        table = mapping.setdefault(TABLE_OF[first], {})
    else:
        known = (*ROOT_KEYS, *LAYERS[layer].places, *WHEN_KEYS, *effects_of(layer), *EXPECT_KEYS)
        raise RigError(
            Code.InvalidFault,
            f"fault {shown!r}: {first or repr(first)}: unknown key{hint(first, known)}; allowed: {', '.join(known)}",
        )
    for name in (first, *inner)[: len(inner)]:
        if name == "error" and str(table.get(name, "")).isdecimal():
            table[name] = {"status": table[name]}
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RigError(Code.InvalidFault, f"fault {shown!r}: {key}: {name} has the value {table!r} already")
    last = (first, *inner)[-1]
    if last in table:
        raise RigError(Code.InvalidFault, f"fault {shown!r}: {key}: is there twice")
    table[last] = value


# --- writing -------------------------------------------------------------------------------------------------------


def words_of_document(document: Mapping[str, Any]) -> str:
    """Return a rule, given as the mapping that TOML has, as a line of words."""
    where = dict(document["where"])
    layer: LayerName = where.pop("layer")
    words: list[str] = [layer]
    target = _target_word(layer, where)
    if target is not None:
        words.append(target)
        for key in LAYERS[layer].target:
            where.pop(key, None)
    op = where.pop("op", None)
    if op is not None:
        text = _value(op)
        words.append(text if target is not None or _are_operations(text, LAYERS[layer].operations) else f"op={text}")
    words += _pairs(where)
    for table in ("when", "what", "expect"):
        words += _pairs(document.get(table, {}))
    words += _pairs({key: document[key] for key in ROOT_KEYS if key in document})
    return " ".join(_quoted(word) for word in words)


def table_words(table: Mapping[str, Any]) -> str:
    """Return one table of a rule as words: ``occurrence=3 every=2``."""
    return " ".join(_quoted(word) for word in _pairs(table))


def _target_word(layer: LayerName, where: dict[str, Any]) -> str | None:
    """Return the word for the target; None if it would be read as something else."""
    keys = LAYERS[layer].target
    parts: list[str] = [where[key] for key in keys if key in where]
    if not parts or keys[0] not in where or (len(keys) > 1 and any("/" in part for part in parts)):
        return None
    word = "/".join(parts)
    if "=" in word or word.startswith("-") or _are_operations(word, LAYERS[layer].operations):
        return None
    return word


def _pairs(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    words = []
    for key, value in table.items():
        if isinstance(value, dict):
            words += _pairs(value, f"{prefix}{key}.") if value else [f"{prefix}{key}=true"]
        else:
            words.append(f"{prefix}{key}={_value(value)}")
    return words


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _quoted(word: str) -> str:
    """Quote only the value: ``name='web01 loses its journal'``."""
    key, equals, value = word.partition("=")
    return f"{key}={shlex.quote(value)}" if equals and shlex.quote(key) == key else shlex.quote(word)
