"""The contract of a workload in a scenario: it is started and stopped, and checks the disks of a recovered VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.workloads.ack_log import Ack, read_acks


@dataclass(frozen=True, slots=True)
class LoadPlace:
    """The place of a workload.

    Args:
        mounts: the mount point of each disk.
        position: the position file of the disks' host.
        folder: a folder for its own files, on no virtual disk.
        era: changes when the workload moves to other disks; each era has an acknowledgement log of its own.
    """

    mounts: Mapping[str, Path]
    position: Path
    folder: Path
    era: str


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """The findings of a check, and the counts: ``present`` steps on the disks, ``lost`` ones only acknowledged.

    ``newest_ns`` is the wall time of the newest acknowledged step that is on the disks; None if there is none.
    """

    findings: list[CheckFinding]
    acknowledged: int = 0
    present: int = 0
    lost: int = 0
    newest_ns: int | None = None


class Load(Protocol):
    """A workload of a scenario."""

    async def start(self, place: LoadPlace) -> None:
        """Start it; it continues after what the disks have.

        Raises:
            RigError: ``WorkloadFailed`` or ``LedgerFailed`` with the reason.
        """
        ...

    @property
    def is_running(self) -> bool:
        """False before the start, and after the end for any reason."""
        ...

    def acknowledged(self) -> int:
        """Return the number of steps that were acknowledged in this era; 0 for a workload without acknowledgements."""
        ...

    async def stop(self) -> str | None:
        """Stop it, and return the error with which it had ended before, or None.  Cancellation does not interrupt it."""
        ...

    async def check(self, mounts: Mapping[str, Path], folder: Path, era: str, cut: int | None) -> LoadVerdict:
        """Check its data on the mounted disks of a VM.

        Args:
            mounts: the mount point of each disk.
            folder: the folder of its own files.
            era: the era whose acknowledgements count.
            cut: the position of the state; None if everything acknowledged must be there.
        """
        ...


def due_at(acks: list[Ack], cut: int | None) -> list[Ack]:
    """Return the steps that the state at a position must have."""
    return [ack for ack in acks if cut is None or ack.end_position <= cut]


def acks_path(folder: Path, name: str, era: str) -> Path:
    """Return the acknowledgement log of a workload in one era."""
    return folder / f"{name}-{era}.acks"


def acknowledged(folder: Path, name: str, era: str) -> list[Ack]:
    """Return the acknowledged steps of one era."""
    return read_acks(acks_path(folder, name, era))
