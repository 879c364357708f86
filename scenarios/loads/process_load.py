"""A workload that is a process with an acknowledgement log."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.loads.load import Load, LoadPlace, LoadVerdict, acknowledged, acks_path, due_at
from siterig.scenarios.workloads.ack_log import Ack
from siterig.scenarios.workloads.workload_process import WorkloadProcess


class PacedTable(Protocol):
    """The settings that every load of this kind has."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def rate(self) -> int:
        """The acknowledged steps a second at most."""
        ...


T = TypeVar("T", bound=PacedTable)


class ProcessLoad(Load, Generic[T]):
    """Base of workloads whose steps are numbered and acknowledged.

    Args:
        table: its settings, such as the workload in a scenario file.
        disks: the disks that it works on.
    """

    module: str
    """The module of the process."""

    def __init__(self, table: T, disks: Sequence[str]) -> None:
        self.table, self.disks = table, tuple(disks)
        self._process: WorkloadProcess | None = None

    @abstractmethod
    def arguments(self, place: LoadPlace) -> Sequence[object]:
        """Return the options of the process, and make the folders that it needs."""

    @abstractmethod
    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        """Check the data, in a thread; return the findings and the numbers of the steps that are there."""

    async def start(self, place: LoadPlace) -> None:
        arguments = await trio.to_thread.run_sync(self.arguments, place)
        mounted = await trio.to_thread.run_sync(self._mounted, place)
        self._process = await WorkloadProcess.launch(
            self.module,
            arguments,
            acks=acks_path(place.folder, self.table.name, place.era),
            position=place.position,
            rate_per_s=self.table.rate,
            mounted=mounted,
        )

    def _mounted(self, place: LoadPlace) -> list[Path]:
        """Return the folders of its disks with a file system; this blocks while the role of a disk is stopped."""
        return [place.mounts[disk] for disk in dict.fromkeys(self.disks) if place.mounts[disk].is_dir()]

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def found(self) -> int:
        """The newest step that the disks had at its last start; 0 while it does not run."""
        return 0 if self._process is None else self._process.found

    def acknowledged(self) -> int:
        return 0 if self._process is None else self._process.acknowledged_count()

    async def stop(self) -> str | None:
        if self._process is None:
            return None
        end = await self._process.stop()
        self._process = None
        return end.error

    async def check(self, mounts: Mapping[str, Path], folder: Path, era: str, cut: int | None) -> LoadVerdict:
        acks = acknowledged(folder, self.table.name, era)
        findings, present = await trio.to_thread.run_sync(self.findings, mounts, folder, acks, cut)
        kept = [ack.time_ns for ack in acks if ack.n in present]
        lost = sum(1 for ack in acks if ack.n not in present)
        return LoadVerdict(findings, len(acks), len(present), lost, max(kept, default=None))


def promises(what: str, acks: list[Ack], present: frozenset[int], cut: int | None) -> list[CheckFinding]:
    """Check that every due step is there, and none from after the state."""
    due = due_at(acks, cut)
    missing = [ack for ack in due if ack.n not in present]
    when = "" if cut is None else " before the state"
    text = f"{len(due)} of {len(acks)} acknowledged were due, all are there"
    if missing:
        text = f"{len(missing)} missing of {len(due)}, first {missing[0].n}, done at position {missing[0].end_position}"
        text += "" if cut is None else f", the state is {cut}"
    findings = [CheckFinding(f"every {what} acknowledged{when}", not missing, text)]
    if cut is not None:
        later = [ack for ack in acks if ack.begin_position >= cut]
        extra = [ack.n for ack in later if ack.n in present]
        text = f"{len(later)} began after position {cut}, " + (f"{extra[0]} is there" if extra else "none is there")
        findings.append(CheckFinding(f"no {what} from after the state", not extra, text))
    return findings
