"""The virtual machine of a simulation, over failovers and failbacks: its side, and the bytes that its disks must have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class RunningVm:
    """The VM that the guest writes in.

    Attributes:
        side: the side on which it runs; None while it is off.
        recovered: the bytes of each disk of the recovered VM by name; empty if there is none, or one that is not known.
        has_site_disks: False from the start of a failback until it has succeeded: the disks of the site are being replaced.
        adopted: the jobs whose results are known already, by name.
    """

    side: Literal["site", "azure"] | None = "site"
    recovered: dict[str, bytearray] = field(default_factory=dict)
    has_site_disks: bool = True
    adopted: set[str] = field(default_factory=set)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """Note a write to the recovered VM."""
        self.recovered[disk][offset : offset + len(data)] = data
