"""The promises about disks that join the replication of a VM and leave it: which points have a disk, and which lack it.

A point shows the disks that it lacks.  That never changes, and a point after the end of a job is as the job promised: with
the disks that it added, and without those that it removed.  Positions that were drawn while a job ran promise nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from siterig.azure_emu.vault.model.resources import RecoveryPoint

_NEVER = 2**63 - 1


class DiskPromises:
    """The promises of one run, about disks by name."""

    def __init__(self) -> None:
        self._begins: dict[str, int] = {}
        """The position up to which no state can have an attached disk."""
        self._promised: dict[str, list[tuple[int, bool | None]]] = {}
        """For each disk, in order: points after the position have it (True), lack it (False), or either (None)."""
        self._due: set[str] = set()
        """The added disks that the newest point has."""
        self._lacking: dict[int, frozenset[str]] = {}
        """The disks that each point lacked at its first look."""

    def attached(self, name: str) -> None:
        """Note that a disk was attached to the VM; it is not replicated."""
        self._begins[name] = _NEVER

    def asked(self, names: Iterable[str], position: int | None, *, joins: bool) -> None:
        """Note that a job begins that adds or removes disks; ``position`` is the newest one of the site, if it is known."""
        for name in names:
            self._promised[name] = [] if position is None else [*self._promised.get(name, []), (position, None)]
            if joins:
                self._begins[name] = min(self._begins.get(name, -1), -1 if position is None else position)
            self._due.discard(name)

    def succeeded(self, names: Iterable[str], position: int | None, *, has: bool, in_newest: bool) -> None:
        """Note that a job has succeeded: points after ``position`` have its disks, or lack them.

        ``in_newest``: the newest point has them already.
        """
        for name in names:
            if position is not None:
                self._promised[name] = [*self._promised.get(name, []), (position, has)]
            if in_newest:
                self._due.add(name)

    def in_point(self, name: str, point: RecoveryPoint) -> bool:
        """Return True if a point has a disk of the VM."""
        return name not in point.lacking_disks and point.position > self._begins.get(name, -1)

    def broken_by(self, points: Iterable[RecoveryPoint]) -> list[str]:
        """Return descriptions of the promises that the VM's points, newest first, break."""
        found = []
        for number, point in enumerate(points):
            lacking = frozenset(point.lacking_disks)
            known = self._lacking.setdefault(point.position, lacking)
            if known != lacking:
                found.append(f"position {point.position} lacks {sorted(lacking)}, and lacked {sorted(known)} before")
            for name, promises in self._promised.items():
                promised = next((has for at, has in reversed(promises) if at < point.position), None)
                if promised is not None and promised != (name not in lacking):
                    text = "lacks an added" if promised else "has a removed"
                    found.append(f"position {point.position} {text} disk {name}")
            if number == 0:
                found += [f"the newest position {point.position} lacks disk {name}" for name in self._due & lacking]
        return found
