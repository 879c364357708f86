"""The check of ``siterig bisect``: the words of the command, one run of it, and the meaning of its exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from siterig.bisect.search import CheckVerdict
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.cli import output

SKIP_STATUS = 125
DIED_STATUS_MIN = 128
OUTPUT_BYTES_MAX = 64 << 10
"""The number of bytes kept from the end of the output of a run."""
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """The result of one run: ``status`` is the exit status or None after a timeout, ``output`` the end of the output."""

    verdict: CheckVerdict
    status: int | None
    took_s: float
    output: bytes
    output_bytes: int

    def __str__(self) -> str:
        why = "time ran out" if self.status is None else f"exit status {self.status}"
        return self.verdict if self.status == 0 else f"{self.verdict} ({why})"


class CheckCommand:
    """Words in which ``{NAME}`` stands for the image of disk ``NAME``; ``{{`` and ``}}`` are braces."""

    def __init__(self, words: list[str], disks: Collection[str], *, timeout_s: float | None, echo: bool) -> None:
        """Parse the words; ``echo`` copies the output of the command to stderr.

        Raises:
            RigError: ``BadRequest`` if the command names an unknown disk.
        """
        self._words = words
        self._timeout_s = timeout_s
        self._echo = echo
        self.names_a_disk = False
        for word in words:
            for part in _PARTS.finditer(word):
                if part[0] in ("{{", "}}"):
                    continue
                if part[1] not in disks:
                    known = ", ".join(f"{{{disk}}}" for disk in sorted(disks))
                    raise RigError(
                        Code.BadRequest,
                        f"CMD: {part[0]} in {word!r} names no disk: there are {known}; a brace is written {{{{ or }}}}",
                    )
                self.names_a_disk = True

    def __str__(self) -> str:
        return " ".join(self._words)

    def words(self, images: Mapping[str, Path]) -> list[str]:
        """Return the words with the images of a state filled in."""

        def filled(part: re.Match[str]) -> str:
            return part[0][0] if part[0] in ("{{", "}}") else str(images[part[1]])

        return [_PARTS.sub(filled, word) for word in self._words]

    async def run(self, images: Mapping[str, Path]) -> CheckOutcome:
        """Run the command once.

        Raises:
            RigError: ``CommandUnusable`` if it cannot be started, ``CommandDied`` if a signal ended it or its exit status
                is 128 or more, as in ``git bisect run``.
        """
        words = self.words(images)
        # A file and not a pipe: a background process of the command would keep a pipe open.
        with tempfile.TemporaryFile() as file:
            began_ns = SYSTEM_CLOCK.monotonic_ns()
            status = await self._run(words, file)
            took_s = (SYSTEM_CLOCK.monotonic_ns() - began_ns) / 1e9
            output_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, output_bytes - OUTPUT_BYTES_MAX))
            kept = file.read()
        if self._echo and kept:
            output.foreign(kept)
        if status is not None and (status < 0 or status >= DIED_STATUS_MIN):
            how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
            raise RigError(
                Code.CommandDied,
                f"CMD {how}: that is neither passed (0) nor failed (1 to 127) nor skipped ({SKIP_STATUS}); {_tail(kept)}",
            )
        return CheckOutcome(_verdict(status), status, took_s, kept, output_bytes)

    async def _run(self, words: list[str], file: IO[bytes]) -> int | None:
        try:
            process = await trio.lowlevel.open_process(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as exc:
            raise RigError(Code.CommandUnusable, f"CMD: {words[0]} cannot be run: {reason(exc, words[0])}") from exc
        try:
            with trio.move_on_after(float("inf") if self._timeout_s is None else self._timeout_s):
                return await process.wait()
            return None
        finally:
            if process.returncode is None:  # the time ran out, or Ctrl-C; its children go with it
                os.killpg(process.pid, signal.SIGKILL)
                with trio.CancelScope(shield=True):
                    await process.wait()


def _verdict(status: int | None) -> CheckVerdict:
    if status == 0:
        return "passed"
    return "skipped" if status == SKIP_STATUS else "failed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return f"it said last: {lines[-1][:200]}" if lines else "it printed nothing"
