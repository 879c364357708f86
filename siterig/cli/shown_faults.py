"""The faults of a mount as its user sees them: a note for each injection, and the verdicts at the end."""

from __future__ import annotations

import queue
import threading

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.cli import output
from siterig.images.image_mount import Mounted
from siterig.scenarios.faults.records import Injection

NOTES_PER_S = 20
"""More injections a second are counted only, so that notes do not slow down the disk; JSON has all of them."""
UNREAD_MAX = 100_000
"""Injections in JSON that wait for a slow reader; later ones are counted only."""


class ShownFaults:
    """Prints what happens to the rules of one mount.

    Args:
        as_json: print JSON lines on stdout in place of notes.
        clock: the clock by which notes are limited.
    """

    def __init__(self, *, as_json: bool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lines = _JsonLines() if as_json else None
        self._second = -1
        self._shown = self._hidden = 0

    def injected(self, injection: Injection) -> None:
        """Show one fault."""
        if self._lines is not None:
            self._lines.put({"injected": injection})
            return
        second = self._clock.monotonic_ns() // 1_000_000_000
        if second != self._second:
            self._flush()
            self._second, self._shown = second, 0
        if self._shown == NOTES_PER_S:
            self._hidden += 1
            return
        self._shown += 1
        output.notice(f"fault {injection.rule!r}: {injection.text}")

    def _flush(self) -> None:
        if self._hidden:
            output.notice(f"{self._hidden} more faults; siterig fault injections --mnt DIR shows them")
            self._hidden = 0

    def ended(self, mounted: Mounted) -> None:
        """Show the verdicts, if there was a rule."""
        self._flush()
        if self._lines is None:
            for verdict in mounted.verdicts:
                output.notice(f"{'ok' if verdict.ok else 'FAILED'}: {verdict.text}")

    def close(self) -> None:
        """Return when every line of JSON has been written, or its reader is gone."""
        if self._lines is not None:
            self._lines.close()


class _JsonLines:
    """Writes lines to stdout in a thread of its own: a reader that is slow or gone must not hold up the mount."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[object] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._is_over = False

    def put(self, value: object) -> None:
        """Write a value as one line, soon."""
        if self._is_over:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, daemon=True)
            self._thread.start()
        if self._waiting.qsize() < UNREAD_MAX:
            self._waiting.put(value)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Return when every line has been written, or the reader is gone."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        if self._dropped:
            output.notice(f"{self._dropped} faults were not printed: {UNREAD_MAX} lines waited for their reader")

    def _write(self) -> None:
        try:
            while (value := self._waiting.get()) is not None:
                output.print_json_line(value)
        except BrokenPipeError:
            self._is_over = True  # a script may have read the first line only
        except OSError as error:
            self._is_over = True
            output.notice(f"faults are printed no longer: stdout: {error.strerror}")
