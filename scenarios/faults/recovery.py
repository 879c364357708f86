"""The damage of which another copy stays: the rules that can have ``recoverable = true``, and the reasons for the others.

Copies of a block: on the site's disk, in the change log, in the cache account, on the managed disk.  The module
:mod:`siterig.scenarios.faults.atlas` divides them; the role that injects a fault knows which blocks it would damage.
"""

from __future__ import annotations

from collections.abc import Collection

from siterig.scenarios.faults.catalog import EFFECTS, IMMEDIATE, READS, LayerName

_BEFORE_LOG = (
    "the fault acts before the change log, so every copy gets the damage; allowed on disk: bad_sectors, or op = read"
)
_OF_RECORDS = "allowed on log: flip or tear with op = append and part = segment, or op = read"
_OF_WRITES = "allowed on store: flip or tear with op = write, part = checkpoint, or op = read"
_ALL_REGIONS = "the fault takes blocks of every region, also of those in which the disk at the site may have bad sectors"
_UNKNOWN = "it is not known which blocks the inverted bits belong to"
_MACHINE = {
    "delete": "the disks of the VM at the site are deleted, and it is not asked which blocks the recovery side has",
    "power": "lost writes are taken back by writes that the change log records, so every copy of a block gets them",
}


def destroys_nothing(operations: Collection[str], effects: Collection[str]) -> bool:
    """Return True if faults change no stored bytes: they change only what reads return."""
    return set(operations) <= READS and "bad_sectors" not in effects


def why_not_recoverable(
    layer: LayerName, part: str | None, effects: Collection[str], operations: Collection[str]
) -> str | None:
    """Return the reason for which the damage of a rule can be that of the last copy; None if it is limited.

    Args:
        layer: the layer of the rule.
        part: its part of a change log or of a managed disk; None for all of them.
        effects: its faults.
        operations: its operations.
    """
    for effect in effects:
        for op in operations if EFFECTS[effect].destroys else ():
            if not destroys_nothing([op], [effect]) and (why := _why_not(layer, part, effect, op)) is not None:
                return why
    return None


def _why_not(layer: LayerName, part: str | None, effect: str, op: str) -> str | None:
    if layer == "disk":
        return None if effect == "bad_sectors" else _BEFORE_LOG
    if layer == "log":
        return _why_not_log(part, effect, op)
    if layer == "store":
        return _why_not_store(part, effect, op)
    # The source of each upload is kept until the recovery side has it durably: it is sent again.
    return _MACHINE.get(effect)


def _why_not_log(part: str | None, effect: str, op: str) -> str | None:
    if op == "append":
        return None if part in (None, "segment") else f"the blocks are known of records in segments alone; {_OF_RECORDS}"
    return f"{_UNKNOWN if (effect, op) == ('flip', IMMEDIATE) else _ALL_REGIONS}; {_OF_RECORDS}"


def _why_not_store(part: str | None, effect: str, op: str) -> str | None:
    if "checkpoint" in (part, op):
        return None  # a cache, which has no copy of a block
    if part == "metadata":
        return f"a file of metadata belongs to all blocks of its disk; {_OF_WRITES}"
    if op == "write" and effect in ("flip", "tear"):
        return None
    return f"{_UNKNOWN if (effect, op) == ('flip', IMMEDIATE) else _ALL_REGIONS}; {_OF_WRITES}"
