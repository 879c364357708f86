"""The faults of a mount as its user sees them: a note for each injection, and the verdicts at the end."""

from __future__ import annotations

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.cli import output
from siterig.images.image_mount import Mounted
from siterig.scenarios.faults.records import Injection

NOTES_PER_S = 20
"""More injections a second are counted only, so that notes do not slow down the disk; JSON has all of them."""


class ShownFaults:
    """Prints what happens to the rules of one mount.

    Args:
        as_json: print JSON lines on stdout in place of notes.
        clock: the clock by which notes are limited.
    """

    def __init__(self, *, as_json: bool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._as_json, self._clock = as_json, clock
        self._second = -1
        self._shown = self._hidden = 0

    def injected(self, injection: Injection) -> None:
        """Show one fault."""
        if self._as_json:
            output.print_json_line({"injected": injection})
            return
        second = self._clock.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._flush()
            self._second, self._shown = second, 0
        if self._shown == NOTES_PER_S:
            self._hidden += 1
            return
        self._shown += 1
        operation = "" if injection.operation == "-" else f"{injection.operation}: "
        output.notice(f"fault {injection.rule!r}: {operation}{injection.done}")

    def _flush(self) -> None:
        if self._hidden:
            output.notice(f"{self._hidden} more faults; siterig fault injections shows them")
            self._hidden = 0

    def ended(self, mounted: Mounted) -> None:
        """Show the verdicts, if there was a rule."""
        self._flush()
        if not self._as_json:
            for verdict in mounted.verdicts:
                output.notice(f"{'ok' if verdict.ok else 'FAILED'}: {verdict.text}")
