"""Checks of a whole rule: which keys, operations and counts fit to its layer and to each other.

Each problem has the path of the key in the rule, the value, and the allowed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from siterig.blockfs.documents.model_problems import KeyPath
from siterig.blockfs.documents.nearest import hint, unknown_key
from siterig.scenarios.faults.catalog import (
    ALL_PLACES,
    EFFECTS,
    EXPECT_KEYS,
    IMMEDIATE,
    LAYER_NAMES,
    LAYERS,
    PARTS,
    WHEN_KEYS,
    LayerName,
    effects_of,
)
from siterig.scenarios.faults.recovery import why_not_recoverable
from siterig.scenarios.faults.schema import FaultEffect, FaultExpectation, FaultMoment, FaultPlace

Problem = tuple[KeyPath, str]
_ONLY_ON = {"refuse": "connect", "slow-close": "close"}
"""Faults of a connection that one operation of a link alone can meet."""
_COUNTING = ("occurrence", "every", "probability", "times")


def unknown_keys(data: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each key in a table of a raw rule that its layer does not have."""
    where = data.get("where")
    layer = where.get("layer") if isinstance(where, Mapping) else None
    if layer not in LAYER_NAMES or not isinstance(where, Mapping):
        return []
    found = _strangers("where", where, ("layer", *LAYERS[layer].places), ("layer", *ALL_PLACES), layer)
    others = (("what", effects_of(layer), tuple(EFFECTS)), ("when", WHEN_KEYS, ()), ("expect", EXPECT_KEYS, ()))
    for section, allowed, all_keys in others:
        table = data.get(section)
        if isinstance(table, Mapping):
            found += _strangers(section, table, allowed, all_keys, layer)
    return found


def _strangers(
    section: str, table: Mapping[str, Any], allowed: tuple[str, ...], all_keys: tuple[str, ...], layer: str
) -> list[Problem]:
    found: list[Problem] = []
    for key in table:
        if key not in allowed:
            text = _not_on(layer, allowed) if key in all_keys else unknown_key(str(key), allowed)
            found.append(((section, str(key)), text))
    return found


def _not_on(layer: str, allowed: tuple[str, ...]) -> str:
    return f"the layer {layer} does not have it; allowed: {', '.join(allowed)}"


def main_effects(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Return the faults among the keys of ``what``, without the keys that qualify another one.

    A delay and a mark qualify every other fault, and torn writes a power loss.
    """
    faults = tuple(key for key in keys if not EFFECTS[key].needs)
    torn = {"tear"} if {"lose", "power"} & set(faults) else set()
    alone = tuple(key for key in faults if key not in {"delay", "mark", *torn})
    return alone or tuple(key for key in faults if key == "delay") or faults


def operations_of(where: FaultPlace, what: FaultEffect) -> tuple[str, ...]:
    """Return the operations that can meet a rule's fault; without ``op`` all that its layer has, or ``("-",)``."""
    if where.op is not None:
        return where.op
    if where.layer == "link" and what.connection in _ONLY_ON:
        return (_ONLY_ON[what.connection],)
    effects = main_effects(what.keys())
    if all(where.layer in EFFECTS[key].immediate for key in effects):
        return (IMMEDIATE,)
    return possible_operations(where.layer, effects)


def possible_operations(layer: LayerName, effects: tuple[str, ...]) -> tuple[str, ...]:
    """Return the operations of a layer that can meet all of these faults."""
    return tuple(op for op in LAYERS[layer].operations if all(op in EFFECTS[key].operations_on(layer) for key in effects))


def problems(
    name: str | None, where: FaultPlace, when: FaultMoment, what: FaultEffect, expect: FaultExpectation
) -> list[Problem]:
    """Return all problems of a rule whose values are right by themselves."""
    found = [*_place_problems(where), *_effect_problems(where, what), *_value_problems(where, what)]
    if found:
        return found
    is_immediate = operations_of(where, what) == (IMMEDIATE,)
    return [
        *_operation_problems(where, what),
        *(_waiting_problems(where, when) if is_immediate else _timing_problems(where, when, what)),
        *_count_problems(when, expect, is_immediate=is_immediate),
        *_trigger_problems(name, when),
        *_recovery_problems(where, what, expect),
    ]


def _place_problems(where: FaultPlace) -> Iterator[Problem]:
    layer = where.layer
    places = ("layer", *LAYERS[layer].places)
    for key in type(where).model_fields:
        if getattr(where, key) is not None and key not in places:
            yield ("where", key), _not_on(layer, places)
    parts = PARTS.get(layer, ())
    if where.part is not None and parts and where.part not in parts:
        yield ("where", "part"), f"{where.part!r} is unknown{hint(where.part, parts)}; allowed: {', '.join(parts)}"
    if where.file is not None and (where.start is not None or where.length is not None):
        yield ("where", "file"), "stands beside start or length: a file is mapped to its own ranges"
    if where.length == 0:
        yield ("where", "length"), "is 0: a range has at least one byte"
    if where.file is not None and not where.file.startswith("/"):
        yield ("where", "file"), f"{where.file!r} does not begin with /: write the path in the guest's file system"


def _effect_problems(where: FaultPlace, what: FaultEffect) -> Iterator[Problem]:
    layer, keys = where.layer, what.keys()
    allowed = effects_of(layer)
    for key in keys:
        if key not in allowed:
            yield ("what", key), _not_on(layer, allowed)
        elif EFFECTS[key].needs and not set(EFFECTS[key].needs) & set(keys):
            yield ("what", key), f"needs {' or '.join(EFFECTS[key].needs)} in the same rule"
    effects = tuple(key for key in keys if not EFFECTS[key].needs)
    if not effects:
        yield ("what",), f"has no fault; allowed: {', '.join(key for key in allowed if not EFFECTS[key].needs)}"
    for number, key in enumerate(effects):
        for other in effects[number + 1 :]:
            if not _go_together(key, other):
                yield ("what", other), f"stands beside {key}: write two rules"


def _go_together(one: str, other: str) -> bool:
    return "*" in (*EFFECTS[one].joins, *EFFECTS[other].joins) or other in EFFECTS[one].joins


def _value_problems(where: FaultPlace, what: FaultEffect) -> Iterator[Problem]:
    if what.error is not None:
        is_http = not isinstance(what.error, str)
        if is_http and where.layer != "blob":
            yield ("what", "error"), f"an HTTP status is for the layer blob; on {where.layer} write an errno like EIO"
        if not is_http and where.layer == "blob":
            yield ("what", "error"), f"{what.error!r} is an errno; on blob write a status like 503"
    only_on = None if what.connection is None or where.layer != "link" else _ONLY_ON.get(what.connection)
    if only_on is not None and where.op not in (None, (only_on,)):
        yield ("where", "op"), f"connection = {what.connection} is a fault of {only_on}; allowed: {only_on}"
    if what.connection == "slow-close" and what.close_after is None:
        yield ("what", "close_after"), "is missing: connection = slow-close needs the time"
    if what.close_after is not None and what.connection not in ("reset", "black-hole", "slow-close"):
        yield ("what", "close_after"), "is for connection = reset, black-hole or slow-close"
    if where.layer == "machine" and what.tear is not None and what.power is None:
        yield ("what", "tear"), "needs power in the same rule"
    if where.layer == "machine" and what.survive not in (None, "random"):
        yield ("what", "survive"), f"{list(what.survive or ())}: the writes of a whole host have no numbers; allowed: random"
    if where.layer == "machine" and what.survive is not None and what.power not in ("loss", "off"):
        yield ("what", "survive"), f"power = {what.power} loses no write; it is for: loss, off"
    if what.delete and where.vm is None:
        yield ("where", "vm"), "is missing: a fault that deletes a VM names it"
    if what.resize is not None and (where.vm is None or where.disk is None):
        yield ("where", "disk" if where.vm else "vm"), "is missing: a fault that grows a disk names VM and disk"
    if what.resize is not None and (what.resize == 0 or what.resize % 512):
        yield ("what", "resize"), f"{what.resize} bytes are not allowed: write a multiple of 512"


def _operation_problems(where: FaultPlace, what: FaultEffect) -> Iterator[Problem]:
    layer, effects = where.layer, main_effects(what.keys())
    known, possible = LAYERS[layer].operations, possible_operations(layer, effects)
    if not possible and not all(layer in EFFECTS[key].immediate for key in effects):
        yield ("what",), f"{' and '.join(effects)}: no operation of the layer {layer} meets both"
    for op in where.op or ():
        if op not in known:
            allowed = f"allowed: {', '.join(known)}" if known else f"the layer {layer} has no operations"
            yield ("where", "op"), f"{op!r} is no operation of {layer}{hint(op, known)}; {allowed}"
        elif op not in possible:
            allowed = f"allowed: {', '.join(possible)}" if possible else "leave op out"
            yield ("where", "op"), f"{op!r} does not meet {' and '.join(effects)}; {allowed}"


def _timing_problems(where: FaultPlace, when: FaultMoment, what: FaultEffect) -> Iterator[Problem]:
    effects = main_effects(what.keys())
    if when.timing == "after" and not any(EFFECTS[key].late for key in effects):
        known = [key for key in effects_of(where.layer) if EFFECTS[key].late]
        yield ("when", "timing"), f"'after' is not possible for {' and '.join(effects)}; it is for: {', '.join(known)}"


def _waiting_problems(where: FaultPlace, when: FaultMoment) -> Iterator[Problem]:
    name_one = "; name an operation in where.op" if LAYERS[where.layer].operations else ""
    for key in _COUNTING:
        if getattr(when, key) is not None:
            yield ("when", key), f"there is nothing to count: the fault happens once, at the moment of after{name_one}"
    if when.timing == "after":
        yield ("when", "timing"), f"'after' needs an operation{name_one}"


def _count_problems(when: FaultMoment, expect: FaultExpectation, *, is_immediate: bool) -> Iterator[Problem]:
    fired = expect.fired
    once = is_immediate or (when.occurrence is not None and when.every is None)
    most = 1 if once else when.times
    if when.times is not None and when.times > 1 and once and not is_immediate:
        yield ("when", "times"), "is more than one: occurrence alone means one operation; add every = 1 for those after it"
    if when.probability == 0 and fired.least:
        yield ("when", "probability"), f"is 0: the rule never fires, and expect.fired is '{fired}'"
    if most is not None and fired.least > most:
        yield ("expect", "fired"), f"'{fired}' cannot be reached: the rule fires at most {'once' if most == 1 else most}"


def _trigger_problems(name: str | None, when: FaultMoment) -> Iterator[Problem]:
    if when.after is not None and when.after == when.until:
        yield ("when", "until"), f"'{when.until}' is the same moment as after: the rule never fires"
    for key, trigger in (("after", when.after), ("until", when.until)):
        if trigger is not None and trigger.kind == "fault" and trigger.name == name:
            yield ("when", key), f"{trigger.name!r} is the rule itself"


def _recovery_problems(where: FaultPlace, what: FaultEffect, expect: FaultExpectation) -> Iterator[Problem]:
    if expect.recoverable and not any(EFFECTS[key].destroys for key in main_effects(what.keys())):
        possible = [key for key in effects_of(where.layer) if EFFECTS[key].destroys and _can_be_recoverable(where, key)]
        effects = ", ".join(main_effects(what.keys()))
        yield ("expect", "recoverable"), f"{effects} destroys no bytes; it is for: {', '.join(possible) or 'other layers'}"
    elif expect.recoverable:
        why = why_not_recoverable(where.layer, where.part, main_effects(what.keys()), operations_of(where, what))
        if why is not None:
            yield ("expect", "recoverable"), f"true: {why}"


def _can_be_recoverable(where: FaultPlace, effect: str) -> bool:
    operations = (IMMEDIATE, *EFFECTS[effect].operations_on(where.layer))
    return any(why_not_recoverable(where.layer, where.part, (effect,), (op,)) is None for op in operations)
