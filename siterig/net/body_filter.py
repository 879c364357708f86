"""Damages one body while it is streamed: flips bits, and ends it early."""

from __future__ import annotations

from collections.abc import Callable

from siterig.net.blob_faults import BodyDamage

_NAMED_MAX = 8
"""An effect in words lists at most so many offsets."""


class BodyFilter:
    """Applies one damage to one body.

    Where the length of the body is not known before its end (chunked), the bits are those of its first piece.
    """

    def __init__(
        self,
        damage: BodyDamage,
        body_bytes: int | None,
        name: str,
        note: Callable[[str], None],
        note_nothing: Callable[[str], None],
    ) -> None:
        """Begin with the first byte.

        Args:
            damage: the damage.
            body_bytes: length of the body; None if it is not known.
            name: the body in words.
            note: gets each effect in words, before the first byte that it changes.
            note_nothing: gets the reason if the body is too short for any effect.
        """
        self._damage = damage
        self._name = name
        self._note = note
        self._done = 0
        self._masks: dict[int, int] | None = None
        self.bytes_kept = damage.bytes_kept
        """The length to which the body is cut; None if it is not cut."""
        if body_bytes is not None:
            self._choose(body_bytes)
            if self.bytes_kept is not None and self.bytes_kept >= body_bytes:
                self.bytes_kept = None
            if not self._masks and self.bytes_kept is None:
                note_nothing(f"{name} has {body_bytes} bytes")
        if self.bytes_kept is not None:
            of = "" if body_bytes is None else f" of {body_bytes}"
            note(f"{name} ends after {self.bytes_kept}{of} bytes")

    @property
    def is_hidden(self) -> bool:
        """True if the client must not see that bytes are missing."""
        return self._damage.is_hidden and self.bytes_kept is not None

    def _choose(self, body_bytes: int) -> dict[int, int]:
        self._masks = self._damage.flips(body_bytes)
        if self._masks:
            offsets = sorted(self._masks)
            named = ", ".join(map(str, offsets[:_NAMED_MAX])) + (", ..." if len(offsets) > _NAMED_MAX else "")
            bits = sum(mask.bit_count() for mask in self._masks.values())
            self._note(f"{bits} bits of {self._name} are flipped, in bytes {named}")
        return self._masks

    def apply(self, data: bytes) -> tuple[bytes, bool]:
        """Return the next piece as it is to be sent, and True if the body ends after it."""
        masks = self._choose(len(data)) if self._masks is None else self._masks
        begin, end = self._done, self._done + len(data)
        self._done = end
        if inside := [offset for offset in masks if begin <= offset < end]:
            changed = bytearray(data)
            for offset in inside:
                changed[offset - begin] ^= masks[offset]
            data = bytes(changed)
        if self.bytes_kept is None or self.bytes_kept > end:
            return data, False
        return data[: self.bytes_kept - begin], True
