"""Start, watch and stop a ledger workload from a trio program."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.workloads.ack_log import RECORD_BYTES

_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class LedgerEnd:
    """The end of a ledger: the last acknowledged transaction, and the error of a disk (None: the ledger was stopped)."""

    acknowledged: int
    error: str | None


class LedgerProcess:
    """A running ledger; ``found`` is the newest transaction in the databases at its start."""

    def __init__(self, process: trio.Process, acks: Path) -> None:
        self._process = process
        self._acks = acks
        self._end: LedgerEnd | None = None
        self._ending = trio.Lock()
        self._output = b""
        self.found = 0

    @classmethod
    async def start(cls, *, os_db: Path, data_db: Path, acks: Path, position: Path, rate_per_s: float = 0) -> LedgerProcess:
        """Start a ledger, and return when its first transaction can begin.

        Raises:
            RigError: ``LedgerFailed`` if the databases cannot be opened.
        """
        arguments = ["--os-db", os_db, "--data-db", data_db, "--acks", acks, "--position", position, "--rate", rate_per_s]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "siterig.scenarios.workloads.ledger", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=child_environment(),
        )
        ledger = cls(process, acks)
        try:
            await ledger._ready()
        except BaseException:
            await ledger.stop()
            raise
        return ledger

    async def _ready(self) -> None:
        first = await self._first_line()
        if not first.startswith("ready "):
            raise RigError(Code.LedgerFailed, f"the ledger did not start: {first or 'it reported nothing'}")
        self.found = int(first.split()[1])

    async def _first_line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 (for the type checker)
        while b"\n" not in self._output:
            more = await self._process.stdout.receive_some()
            if not more:
                break
            self._output += more
        line, _, self._output = self._output.partition(b"\n")
        return line.decode(errors="replace")

    @property
    def running(self) -> bool:
        """False after the ledger has ended for any reason."""
        return self._process.poll() is None

    def acknowledged_count(self) -> int:
        """Return the number of records in the acknowledgement log."""
        return self._acks.stat().st_size // RECORD_BYTES

    async def stop(self) -> LedgerEnd:
        """Stop the ledger and wait for its end; kill it if it hangs.

        A second call returns the same end.  Cancellation does not interrupt it.
        """
        with trio.CancelScope(shield=True):
            assert self._process.stdin is not None  # noqa: S101
            await self._process.stdin.aclose()
            with trio.move_on_after(_STOP_TIMEOUT_S) as patience:
                await self.ended()
            if patience.cancelled_caught:
                self._process.kill()
            end = await self.ended()
        return end  # noqa: RET504 (mypy: a cancel scope may swallow)

    async def ended(self) -> LedgerEnd:
        """Wait until the ledger ends: by :meth:`stop`, or because a disk failed."""
        assert self._process.stdout is not None  # noqa: S101
        async with self._ending:
            if self._end is None:
                async for more in self._process.stdout:
                    self._output += more
                status = await self._process.wait()
                await self._process.stdout.aclose()
                self._end = self._parse(self._output.decode(errors="replace"), status)
            return self._end

    def _parse(self, output: str, status: int) -> LedgerEnd:
        word, _, rest = (output.strip().splitlines() or [""])[-1].partition(" ")
        if word == "stopped":
            return LedgerEnd(int(rest), None)
        if word == "failed":
            number, _, message = rest.partition(" ")
            return LedgerEnd(int(number), message)
        return LedgerEnd(self.acknowledged_count(), f"ended with status {status}: {output.strip()[-300:]}")
