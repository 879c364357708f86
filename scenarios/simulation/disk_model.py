"""The model of a source disk: its bytes at every position, from the writes that the guest made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Write:
    position: int
    offset: int
    data: bytes


class DiskModel:
    """One disk.  A loss of power begins the history again with the bytes that were found afterwards."""

    def __init__(self, size_bytes: int) -> None:
        self._bases: list[tuple[int, int, bytes]] = [(-1, 0, bytes(size_bytes))]
        """Position, number of the writes before it, and bytes, of each beginning."""
        self._writes: list[_Write] = []
        self._durable = 0
        """The number of the writes that a flush has made durable."""
        self._last = (-1, 0, bytearray(size_bytes))
        """Number of the base, number of the next write, and the bytes, where the last question ended."""

    def copied(self) -> DiskModel:
        """Return a model with the same history, which is continued apart from this one."""
        other = DiskModel(self.size_bytes)
        other._bases, other._writes, other._durable = list(self._bases), list(self._writes), self._durable
        return other

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""
        return len(self._bases[-1][2])

    def write(self, position: int, offset: int, data: bytes) -> None:
        """Add a write; ``position`` is the newest position after it.  A disk that has no log draws no new ones."""
        self._writes.append(_Write(position, offset, data))

    def begin_again(self, position: int, data: bytes) -> None:
        """Begin again after a loss of power: from this position on the disk has ``data`` and later writes."""
        self._bases.append((position, len(self._writes), data))

    def at(self, position: int) -> bytes:
        """Return the bytes at a position; questions with rising positions are quick."""
        base = max(number for number, each in enumerate(self._bases) if each[0] <= position)
        last_base, following, found = self._last
        if base != last_base or (following and self._writes[following - 1].position > position):
            _, following, data = self._bases[base]
            found = bytearray(data)
        while following < len(self._writes) and self._writes[following].position <= position:
            write = self._writes[following]
            found[write.offset : write.offset + len(write.data)] = write.data
            following += 1
        self._last = (base, following, found)
        return bytes(found)

    def now(self) -> bytes:
        """Return the newest bytes."""
        return self.at(1 << 62)

    def flushed(self) -> None:
        """Note that all writes so far are durable."""
        self._durable = len(self._writes)

    def lost(self, data: bytes) -> int | None:
        """Return the first byte that a loss of power has changed although it was durable; None if there is none.

        Args:
            data: the bytes after the loss.
        """
        _, first, base = self._bases[-1]
        durable = max(first, self._durable)
        expected, actual = bytearray(base), bytearray(data)
        for write in self._writes[first:durable]:
            expected[write.offset : write.offset + len(write.data)] = write.data
        for write in self._writes[durable:]:  # each of them may be there, or not, or in part
            end = write.offset + len(write.data)
            expected[write.offset : end] = actual[write.offset : end]
        return next((at for at in range(len(actual)) if actual[at] != expected[at]), None) if actual != expected else None
