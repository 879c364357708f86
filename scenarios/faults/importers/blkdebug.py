"""Fault files of QEMU's block driver blkdebug: ``[inject-error]`` and ``[set-state]``.

Its state machine becomes marks: a state is entered when the ``[set-state]`` that leads to it meets its event, and left by
the next one.  A chain of states can be imported; branches, circles and transitions from any state cannot, except one that
is the only transition.

An operation meets one ``[inject-error]`` at most, and one with ``once`` ends there.  Rules count by themselves, so equal
ones become one rule with ``times``, and others that overlap are refused.

Source: docs/devel/testing/blkdebug.rst, block/blkdebug.c and qapi/block-core.json of QEMU, read in November 2026.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.importers.imported import ImportedRules, check_keys, made_rule, not_imported, rule_set
from siterig.scenarios.faults.rules import FaultRule

_SECTOR_BYTES = 512
_FIRST_STATE = 1
_SECTIONS = {
    "inject-error": ("event", "state", "iotype", "errno", "sector", "once", "immediately"),
    "set-state": ("event", "state", "new_state"),
}
_EVENTS = {"read_aio": "read", "write_aio": "write", "pwritev": "write", "pwritev_zero": "zero", "flush_to_disk": "flush"}
_IO_TYPES = {"read": "read", "write": "write", "write-zeroes": "zero", "discard": "discard", "flush": "flush"}
_HEADER = re.compile(r'\s*\[\s*([A-Za-z0-9_-]+)\s*(?:"[^"]*"\s*)?\]\s*')
_SETTING = re.compile(r'\s*([A-Za-z0-9_.-]+)\s*=\s*(?:"([^"]*)"|([^"\s]+))\s*')
NOTES = (
    "blkdebug lies above an image format, a disk's rule below the guest: events of the format have no counterpart",
    "immediately is left out: it has no effect on a guest",
)


@dataclass(frozen=True, slots=True)
class _Section:
    kind: str
    place: str
    values: dict[str, str]

    def number(self, key: str, default: int) -> int:
        """Return a whole number, in decimal or with 0x."""
        value = self.values.get(key)
        try:
            found = default if value is None else int(value, 0)
        except ValueError:
            found = -1
        if found < 0:
            raise not_imported(f"{self.place}.{key}", f"{value!r} is not allowed: write a whole number")
        return found

    def switch(self, key: str) -> bool:
        """Return True for ``on``."""
        value = self.values.get(key, "off")
        if value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
            raise not_imported(f"{self.place}.{key}", f"{value!r} is not allowed: write on or off")
        return value in ("on", "yes", "true", "y")

    @property
    def state(self) -> int:
        return self.number("state", 0)


def import_blkdebug(name: str, source: str) -> ImportedRules:
    """Return the rules of a blkdebug file.

    Args:
        name: names the file in messages.
        source: its text.
    Raises:
        RigError: ``FaultNotImported``.
    """
    sections = _parsed(name, source)
    errors = [section for section in sections if section.kind == "inject-error"]
    if not errors:
        raise not_imported(name, "there is no [inject-error]")
    left_by = _transitions([section for section in sections if section.kind == "set-state"])
    rules = [(section.place, _state_rule(section, number)) for number, section in enumerate(left_by.values(), 1)]
    for number, (section, times) in enumerate(_distinct(errors), 1):
        rules.append((section.place, _error_rule(section, number, left_by, times)))
    return ImportedRules(rule_set(name, rules), NOTES)


def _distinct(errors: Sequence[_Section]) -> list[tuple[_Section, int]]:
    """Return the sections that are not equal to an earlier one, each with the times that it is there."""
    found: dict[tuple[object, ...], tuple[_Section, int]] = {}
    for section in errors:
        key = (*_met_by(section), section.number("errno", errno.EIO), section.switch("once"))
        found[key] = (found[key][0], found[key][1] + 1) if key in found else (section, 1)
    once = [section for section, _ in found.values() if section.switch("once")]
    for number, section in enumerate(once):
        for earlier in once[:number]:
            if _overlap(_met_by(earlier), _met_by(section)):
                why = f"an operation can meet {earlier.place}, too; no rule waits for the operation after it"
                raise not_imported(f"{section.place}.once", why)
    return list(found.values())


def _met_by(section: _Section) -> tuple[tuple[str, ...], int, int | None]:
    """Return the operations, the state (0: any) and the sector (None: any) of a section."""
    sector = section.number("sector", 0) if "sector" in section.values else None
    return tuple(_operations(section)), section.state, sector


def _overlap(one: tuple[tuple[str, ...], int, int | None], other: tuple[tuple[str, ...], int, int | None]) -> bool:
    """Return True if one operation can meet both."""
    is_state = one[1] == other[1] or 0 in (one[1], other[1])
    return bool(set(one[0]) & set(other[0])) and is_state and (one[2] == other[2] or None in (one[2], other[2]))


def _parsed(name: str, source: str) -> list[_Section]:
    sections: list[_Section] = []
    for number, line in enumerate(source.splitlines(), 1):
        place = f"{name}:{number}"
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if header := _HEADER.fullmatch(line):
            kind = header[1]
            if kind not in _SECTIONS:
                known = ", ".join(_SECTIONS)
                raise not_imported(place, f"the section [{kind}] is unknown{hint(kind, _SECTIONS)}; allowed: {known}")
            sections.append(_Section(kind, f"{place}: {kind}", {}))
        elif (setting := _SETTING.fullmatch(line)) and sections:
            section = sections[-1]
            check_keys(f"{place}: {section.kind}", {setting[1]: None}, _SECTIONS[section.kind])
            if setting[1] in section.values:
                raise not_imported(f"{place}: {section.kind}.{setting[1]}", "is there twice")
            section.values[setting[1]] = setting[2] if setting[2] is not None else setting[3]
        else:
            raise not_imported(place, f'{line.strip()[:60]!r} is no [SECTION], and no KEY = "VALUE" in a section')
    return sections


def _transitions(sections: Sequence[_Section]) -> dict[int, _Section]:
    """Return the transition that leaves each state; states are a chain from 1."""
    left_by: dict[int, _Section] = {}
    entered: set[int] = {_FIRST_STATE}
    if len(sections) == 1 and not sections[0].state:  # from any state, and there are two
        sections = [replace(sections[0], values=sections[0].values | {"state": str(_FIRST_STATE)})]
    for section in sections:
        if not section.state:
            raise not_imported(f"{section.place}.state", "is missing or 0: a transition from any state has no counterpart")
        if section.state in left_by:
            raise not_imported(f"{section.place}.state", f"'{section.state}' is left by two transitions: write one of them")
        if section.values.get("event") == "none":
            raise not_imported(f"{section.place}.event", "'none' has no counterpart for a transition: name an operation")
        new_state = section.number("new_state", 0)
        if new_state in entered:
            why = f"'{new_state}' is entered twice, or is the first one: states that come back have no counterpart"
            raise not_imported(f"{section.place}.new_state", why)
        left_by[section.state] = section
        entered.add(new_state)
    for state, section in left_by.items():
        if state not in entered:
            raise not_imported(f"{section.place}.state", f"'{state}' is never entered: no transition leads to it")
    return left_by


def _state_rule(section: _Section, number: int) -> FaultRule:
    new_state = section.number("new_state", 0)
    raw = {
        "name": f"blkdebug set-state {number}: {section.state} to {new_state}",
        "where": {"layer": "disk", "op": _operations(section)},
        "when": _while_in(section.state, {}) | {"times": 1},
        "what": {"mark": _mark(new_state)},
        "expect": {"fired": "any"},
    }
    return made_rule(section.place, raw)


def _error_rule(section: _Section, number: int, left_by: dict[int, _Section], times: int) -> FaultRule:
    state = section.state
    if state not in (0, _FIRST_STATE) and all(each.number("new_state", 0) != state for each in left_by.values()):
        raise not_imported(f"{section.place}.state", f"'{state}' is never entered: no transition leads to it")
    code = section.number("errno", errno.EIO)
    if code not in errno.errorcode:
        raise not_imported(f"{section.place}.errno", f"'{code}' is no errno of Linux")
    where: dict[str, Any] = {"layer": "disk", "op": _operations(section)}
    if "sector" in section.values:
        where |= {"start": section.number("sector", 0) * _SECTOR_BYTES, "length": _SECTOR_BYTES}
    section.switch("immediately")
    raw = {
        "name": f"blkdebug inject-error {number}: {errno.errorcode[code]}",
        "where": where,
        "when": _while_in(state, left_by) | ({"times": times} if section.switch("once") else {}),
        "what": {"error": errno.errorcode[code]},
    }
    return made_rule(section.place, raw)


def _operations(section: _Section) -> list[str]:
    event, io_type = section.values.get("event"), section.values.get("iotype")
    if event is None:
        raise not_imported(f"{section.place}.event", "is missing")
    if event not in (*_EVENTS, "none"):
        why = f"{event!r} has no counterpart{hint(event, _EVENTS)}; allowed: {', '.join((*_EVENTS, 'none'))}"
        raise not_imported(f"{section.place}.event", why)
    if io_type is not None and io_type not in _IO_TYPES:
        why = f"{io_type!r} has no counterpart{hint(io_type, _IO_TYPES)}; allowed: {', '.join(_IO_TYPES)}"
        raise not_imported(f"{section.place}.iotype", why)
    if event == "none":
        return list(_IO_TYPES.values()) if io_type is None else [_IO_TYPES[io_type]]
    if io_type is not None and _IO_TYPES[io_type] != _EVENTS[event]:
        why = f"{io_type!r} differs from the event {event!r}: an operation that follows an event has no counterpart"
        raise not_imported(f"{section.place}.iotype", why)
    return [_EVENTS[event]]


def _mark(state: int) -> str:
    return f"blkdebug-state-{state}"


def _while_in(state: int, left_by: dict[int, _Section]) -> dict[str, Any]:
    """Return the window of a rule that holds in one state; state 0 is every state."""
    when: dict[str, Any] = {}
    if state > _FIRST_STATE:
        when["after"] = f"mark:{_mark(state)}"
    if state in left_by:
        when["until"] = f"mark:{_mark(left_by[state].number('new_state', 0))}"
    return when
