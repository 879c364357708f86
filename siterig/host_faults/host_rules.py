"""The rules of change logs and managed disks in one process: which ones can be armed, and which operations meet them."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import ALWAYS, UNLIMITED, Turns
from siterig.core.fault_contract import DiskCopies, FaultCount, FaultPlan
from siterig.host_faults.places import HostFile, HostLayer
from siterig.host_faults.written_bytes import WrittenBytes
from siterig.scenarios.faults.atlas import FaultAtlas
from siterig.scenarios.faults.catalog import PARTS
from siterig.scenarios.faults.fitting import main_effects
from siterig.scenarios.faults.operations import FaultOperation, OperationMatcher, OperationRange
from siterig.scenarios.faults.rules import read_rule

PART_OPERATIONS: Mapping[HostLayer, Mapping[str, tuple[str, ...]]] = {
    "log": {
        "segment": ("open", "read", "append", "sync", "rotate"),
        "dirty-bitmap": ("open", "read", "sync"),
        "snapshot": ("open", "read", "append"),
    },
    "store": {
        "base": ("open", "read", "write", "sync", "compact"),
        "journal": ("open", "read", "write", "sync"),
        "checkpoint": ("open", "read", "write", "sync", "checkpoint"),
        "metadata": ("open", "read", "write", "sync"),
    },
}
"""The operations that each part has.  The bits of a dirty bitmap are set through a memory map, which no call can fail."""
_CHAINED: Mapping[HostLayer, tuple[str, ...]] = {"log": ("segment",), "store": ("journal",)}
_EFFECT_PARTS: Mapping[str, Mapping[HostLayer, tuple[str, ...]]] = {
    "tear": _CHAINED,
    "broken_chain": _CHAINED,
    "full_after": {"log": ("segment", "snapshot"), "store": tuple(PARTS["store"])},
}
"""The parts of the faults that not every part can meet."""


class HostRule:
    """One rule that is armed, with its counts.  Its user holds a lock."""

    def __init__(self, plan: FaultPlan) -> None:
        """Arm a rule.

        Args:
            plan: the rule, its name and its seed.
        Raises:
            RigError: ``InvalidFault``.
        """
        self.name = plan.name
        self.rule = read_rule(plan.rule)
        self.is_open = plan.is_open
        self.matched, self.fired = self._before = plan.matched_before, plan.fired_before
        self.spared = self.filled_bytes = 0
        self.last_ns: int | None = None
        self._last_before_ns: int | None = None
        when, what = self.rule.when, self.rule.what
        self.effects = main_effects(what.keys())
        self.atlas = None if plan.atlas_seed is None else FaultAtlas(plan.atlas_seed)
        self.turns = Turns(
            stream=decisions.stream_of(self.rule.seed if self.rule.seed is not None else plan.seed, plan.name),
            occurrence=when.occurrence or 0,
            every=when.every or 0,
            threshold=ALWAYS if when.probability is None else decisions.threshold_of(when.probability),
            times=1 if self.rule.is_immediate else UNLIMITED if when.times is None else when.times,
        )
        self._matcher = OperationMatcher(self.rule)
        self._parts = self._possible_parts()
        self._while_file = Path(when.while_file) if when.while_file is not None else None

    @property
    def layer(self) -> HostLayer:
        """The layer of the rule."""
        return "log" if self.rule.where.layer == "log" else "store"

    def _possible_parts(self) -> frozenset[str]:
        parts = set(PART_OPERATIONS[self.layer])
        for effect in self.effects:
            parts &= set(_EFFECT_PARTS.get(effect, {}).get(self.layer, parts))
        return frozenset(parts)

    def check(self, layers: Collection[HostLayer]) -> None:
        """Check that the rule can be armed in this process, which has the files of these layers.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        for key, why in self._problems(layers):
            raise RigError(Code.FaultNotPossible, f"fault {self.name!r}: {key}: {why}")

    def _problems(self, layers: Collection[HostLayer]) -> Iterator[tuple[str, str]]:
        where, rule = self.rule.where, self.rule
        if where.layer not in layers:
            yield "where.layer", f"{where.layer!r} has no files in this process; allowed: {', '.join(sorted(layers))}"
            return
        operations, part = PART_OPERATIONS[self.layer], where.part
        effects = " and ".join(self.effects)
        if part is not None and part not in self._parts:
            yield "where.part", f"{part!r} does not meet {effects}; allowed: {', '.join(sorted(self._parts))}"
        elif part is not None and not rule.is_immediate:
            for op in where.op or ():
                if op not in operations[part]:
                    yield "where.op", f"{part!r} has no operation {op!r}; allowed: {', '.join(operations[part])}"
            if not set(rule.operations) & set(operations[part]):
                yield "where.part", f"{part!r} has no operation that meets {effects}"

    # --- deciding -------------------------------------------------------------------------------------------------

    def is_about(self, file: HostFile) -> bool:
        """Return True if operations on this file can match."""
        where, place = self.rule.where, file.place
        return (
            file.layer == where.layer
            and file.part in self._parts
            and all(
                (pattern := getattr(where, key)) is None or pattern == "*" or _matches(pattern, place.get(key))
                for key in ("vm", "disk", "part")
            )
        )

    def matches(self, operation: FaultOperation) -> bool:
        """Return True if the rule is open and the operation is at its place."""
        return (
            self.is_open
            and operation.place.get("part", "") in self._parts
            and self._matcher.matches(operation)
            and (self._while_file is None or self._while_file.exists())
        )

    def overlap(self, start: int, length: int) -> tuple[int, int]:
        """Return the part of a range, start and end, that the rule is for."""
        where = self.rule.where
        first = where.start or 0
        end = first + where.length if where.length is not None else start + length
        return max(start, first), min(start + length, max(end, first))

    def take_space(self, new_bytes: int | None) -> bool:
        """Take space for new bytes on a disk that becomes full; return False if it is full.

        Args:
            new_bytes: bytes that have no place yet; None for an allocation, whose bytes are counted when they are written.
        """
        free = self.rule.what.full_after or 0
        if new_bytes is None:
            return self.filled_bytes < free
        if new_bytes and self.filled_bytes + new_bytes > free:
            return False
        self.filled_bytes += new_bytes
        return True

    def decide(self, now_ns: int) -> int | None:
        """Count an operation that matches; return its number if it meets the fault."""
        self.matched += 1
        if not self.turns.fires(self.matched, self.fired):
            return None
        self.fired += 1
        self._last_before_ns, self.last_ns = self.last_ns, now_ns
        return self.matched

    def take_back(self) -> None:
        """Undo the last decision: the fault did not happen."""
        self.fired -= 1
        self.last_ns = self._last_before_ns

    def spare(self) -> None:
        """Undo the last decision: the damage might have been that of the last copy."""
        self.take_back()
        self.spared += 1

    def may_damage(self, file: HostFile, written: Sequence[WrittenBytes], copies: DiskCopies) -> list[OperationRange]:
        """Return start and length of the bytes of a write, in the file, that have another copy: the rule may damage them.

        Args:
            file: the file.
            written: the bytes of the disk that the write stores.
            copies: the disks that the other side has.
        """
        disk, atlas = file.owner, self.atlas
        if file.layer == "store" and (atlas is None or not file.vm or disk not in copies.at_site):
            return []
        found: list[OperationRange] = []
        for each in written:
            allowed = [(each.disk_at, each.disk_length)]  # without an atlas it is a mount: the disk itself has the block
            if atlas is not None:
                allowed = list(atlas.within("copies", disk, each.disk_at, each.disk_length))
            if each.is_whole:
                allowed = [(each.disk_at, each.length)] if allowed == [(each.disk_at, each.disk_length)] else []
            for start, length in allowed:
                first, end = self.overlap(each.at + start - each.disk_at, length)
                if first < end:
                    found.append((first, end - first))
        return found

    @property
    def fails_operation(self) -> bool:
        """True if an operation that meets the fault fails before it is done, or in its middle."""
        late = self.rule.when.timing == "after"
        return bool({"tear", "full_after"} & set(self.effects)) or ("error" in self.effects and not late)

    def count(self) -> FaultCount:
        """Return the counts of this process."""
        matched, fired = self._before
        return FaultCount(matched=self.matched - matched, fired=self.fired - fired, last_ns=self.last_ns, spared=self.spared)


def _matches(pattern: str, name: str | None) -> bool:
    return name is not None and fnmatch.fnmatchcase(name, pattern)
