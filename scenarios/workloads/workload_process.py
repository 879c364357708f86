"""Start, watch and stop the process of a workload from a trio program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trio

from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.workloads.ack_log import RECORD_BYTES

_STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class WorkloadEnd:
    """The end of a workload: the last acknowledged step, and the error of a disk (None: the workload was stopped)."""

    acknowledged: int
    error: str | None


class WorkloadProcess:
    """A running workload; ``found`` is the newest step that its disks had at its start."""

    title = "workload"

    def __init__(self, process: trio.Process, acks: Path, code: Code) -> None:
        self._process, self._code = process, code
        self._acks = acks
        self._end: WorkloadEnd | None = None
        self._ending = trio.Lock()
        self._output = b""
        self.found = 0

    @classmethod
    async def launch(
        cls,
        module: str,
        arguments: Sequence[object],
        *,
        acks: Path,
        position: Path,
        rate_per_s: float = 0,
        mounted: Sequence[Path] = (),
        code: Code = Code.WorkloadFailed,
    ) -> Self:
        """Start a workload, and return when its first step can begin.

        Args:
            module: a module of this package that calls :func:`siterig.scenarios.workloads.worker.work`.
            arguments: its own options.
            acks: the acknowledgement log.
            position: the position file of the disks' host.
            rate_per_s: steps a second; 0 for as many as possible.
            mounted: folders that must be mount points; it ends when one is not.
            code: the code of the error if it does not start.
        Raises:
            RigError: ``code`` with the reason.
        """
        more = ["--acks", acks, "--position", position, "--rate", rate_per_s]
        more += [word for folder in mounted for word in ("--mounted", folder)]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", f"siterig.scenarios.workloads.{module}", *map(str, [*arguments, *more])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=child_environment(),
        )
        started = cls(process, acks, code)
        try:
            await started._ready()
        except BaseException:
            await started.stop()
            raise
        return started

    async def _ready(self) -> None:
        first = await self._first_line()
        if not first.startswith("ready "):
            raise RigError(self._code, f"the {self.title} did not start: {first or 'it reported nothing'}")
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
        """False after the workload has ended for any reason."""
        return self._process.poll() is None

    def acknowledged_count(self) -> int:
        """Return the number of records in the acknowledgement log."""
        try:
            return self._acks.stat().st_size // RECORD_BYTES
        except FileNotFoundError:
            return 0

    async def stop(self) -> WorkloadEnd:
        """Stop the workload and wait for its end; kill it if it hangs.

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

    async def ended(self) -> WorkloadEnd:
        """Wait until the workload ends: by :meth:`stop`, or because a disk failed."""
        assert self._process.stdout is not None  # noqa: S101
        async with self._ending:
            if self._end is None:
                async for more in self._process.stdout:
                    self._output += more
                status = await self._process.wait()
                await self._process.stdout.aclose()
                self._end = self._parse(self._output.decode(errors="replace"), status)
            return self._end

    def _parse(self, output: str, status: int) -> WorkloadEnd:
        word, _, rest = (output.strip().splitlines() or [""])[-1].partition(" ")
        if word == "stopped":
            return WorkloadEnd(int(rest), None)
        if word == "failed":
            number, _, message = rest.partition(" ")
            return WorkloadEnd(int(number), message)
        return WorkloadEnd(self.acknowledged_count(), f"ended with status {status}: {output.strip()[-300:]}")
