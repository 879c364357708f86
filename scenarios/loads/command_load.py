"""Any command as a workload of a scenario, and as its check."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from siterig.blockfs.core.code_root import child_environment
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import Load, LoadPlace, LoadVerdict

OUTPUT_SHOWN = 300
_STOP_S = 10.0


def bound_words(command: str) -> list[str]:
    """Return the words of a process that runs a command of a shell until its standard input ends."""
    return [sys.executable, "-P", "-m", "siterig.scenarios.workloads.bound_command", command]


async def run_bound(command: str, variables: Mapping[str, str]) -> tuple[int, str]:
    """Run a command of a shell to its end, and return exit status and output; a cancellation ends it with its children."""
    process = await trio.lowlevel.open_process(
        bound_words(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={**child_environment(), **variables},
    )
    assert process.stdin is not None  # noqa: S101 (for the type checker)
    assert process.stdout is not None  # noqa: S101
    output = b""
    try:
        async for data in process.stdout:
            output = (output + data)[-100_000:]
        status = await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.wait()
            await process.stdout.aclose()
    return status, output.decode(errors="replace").strip()


class CommandLoad(Load):
    """A command that runs until it is stopped; exit status 0 of the check is success."""

    def __init__(self, table: WorkloadTable, disks: Sequence[str]) -> None:
        self.table, self.disks = table, tuple(disks)
        self._process: trio.Process | None = None
        self._log: Path | None = None

    def _variables(self, mounts: Mapping[str, Path], folder: Path) -> dict[str, str]:
        named = {f"SITERIG_DISK_{name}": str(mounts[name]) for name in self.disks}
        return {**named, "SITERIG_DISK": str(mounts[self.disks[0]]), "SITERIG_SCRATCH": str(folder)}

    async def start(self, place: LoadPlace) -> None:
        assert self.table.run is not None  # noqa: S101 (the schema demands it)
        self._log = place.folder / f"{self.table.name}.log"
        with self._log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                bound_words(self.table.run),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env=child_environment() | self._variables(place.mounts, place.folder),
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def acknowledged(self) -> int:
        return 0

    async def stop(self) -> str | None:
        process, self._process = self._process, None
        if process is None:
            return None
        ended = process.poll()
        with trio.CancelScope(shield=True):
            assert process.stdin is not None  # noqa: S101 (for the type checker)
            await process.stdin.aclose()
            with trio.move_on_after(_STOP_S) as patience:
                await process.wait()
            if patience.cancelled_caught:
                process.kill()
                await process.wait()
        if ended in (None, 0) or self._log is None:
            return None
        return f"exit status {ended}: {self._log.read_text(errors='replace').strip()[-OUTPUT_SHOWN:]}"

    async def check(self, mounts: Mapping[str, Path], folder: Path, era: str, cut: int | None) -> LoadVerdict:
        if self.table.check is None:
            return LoadVerdict([])
        status, output = await run_bound(self.table.check, self._variables(mounts, folder))
        text = f"exit status {status}" + (f": {output[-OUTPUT_SHOWN:]}" if output else "")
        return LoadVerdict([CheckFinding(f"the check of {self.table.name} succeeds", status == 0, text)])
