"""Operations that may meet faults, and the rules that they match."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from siterig.scenarios.faults.catalog import IMMEDIATE, LayerName
from siterig.scenarios.faults.rules import FaultRule

_PATTERNS = ("vm", "disk", "part", "host", "role", "link", "blob")
_NAMES = ("host", "vm", "disk", "part", "link", "blob")
"""The places that name the object of an operation, in the order in which words have them."""
OperationRange = tuple[int, int]
"""Start and length in bytes."""


@dataclass(frozen=True, slots=True)
class FaultOperation:
    """One operation of a layer.

    Args:
        layer: the layer.
        op: its name, one of the layer's operations.
        place: values of the keys ``vm``, ``disk``, ``part``, ``host``, ``role``, ``link``, ``blob``, as far as the layer has
            them; a rule with a pattern for a key that is not there does not match.
        stream: on links the direction, ``upstream`` or ``downstream``.
        start: the first byte; None for an operation without bytes (a flush, a connection).
        length: number of bytes.
        position: the position of the host at that time; None if the layer has none.
    """

    layer: LayerName
    op: str
    place: Mapping[str, str] = field(default_factory=dict)
    stream: str | None = None
    start: int | None = None
    length: int = 0
    position: int | None = None

    def title(self) -> str:
        """Return the operation as words: ``write web01/data, 512 bytes at 4096``, ``PutBlob cache/a by agent, 9 bytes``."""
        names = "/".join(self.place[key] for key in _NAMES if key in self.place)
        role = self.place.get("role", "")
        if role and names:
            role = "" if self.layer == "link" else f"by {role}"  # the name of a link begins with its client
        words = [self.op if self.op != IMMEDIATE else "", names, role, self.stream or ""]
        text = " ".join(word for word in words if word) or IMMEDIATE
        if self.start is None and not self.length:
            return text
        return f"{text}, {self.length} bytes{'' if self.start is None else f' at {self.start}'}"


class OperationMatcher:
    """The ``where`` of a rule, compiled.

    Args:
        rule: the rule.
        ranges: the ranges of the file that ``where.file`` names, as it was mapped when the rule was armed; None if the
            rule names no file.
    """

    def __init__(self, rule: FaultRule, ranges: Sequence[OperationRange] | None = None) -> None:
        where = rule.where
        self.layer, self.operations = where.layer, frozenset(rule.operations)
        self._patterns = [
            (key, re.compile(fnmatch.translate(pattern)))
            for key in _PATTERNS
            if (pattern := getattr(where, key)) is not None and pattern != "*"
        ]
        self._stream = None if where.stream in (None, "both") else where.stream
        self._ranges = ranges
        if ranges is None and (where.start is not None or where.length is not None):
            start = where.start or 0
            self._ranges = [(start, where.length if where.length is not None else (1 << 63) - start)]

    def matches(self, operation: FaultOperation) -> bool:
        """Return True if the operation is at the rule's place; an operation without bytes is in every range."""
        return (
            operation.layer == self.layer
            and operation.op in self.operations
            and (self._stream is None or operation.stream == self._stream)
            and all(key in operation.place and pattern.match(operation.place[key]) for key, pattern in self._patterns)
            and self._is_in_range(operation)
        )

    def _is_in_range(self, operation: FaultOperation) -> bool:
        if self._ranges is None or operation.start is None:
            return True
        end = operation.start + operation.length
        return any(start < end and operation.start < start + length for start, length in self._ranges)
