"""Checks of the outcome of recovery after a crash."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_state import DiskState
from tests.crash.crash_workload import NAME, Known, World
from tests.crash.recording import SECTOR_BYTES
from tests.crash.states import State
from tests.support.disks.disk_model import replay_files

Crash = Literal["power loss", "kill"]
_STEP_BYTES = 16 * SECTOR_BYTES


class InvariantViolation(AssertionError):  # noqa: N818
    """The disk reports something untrue about itself, or has lost data that it must keep."""


def require(true: bool, why: str) -> None:
    """Raise :class:`InvariantViolation` unless the condition is true."""
    if not true:
        raise InvariantViolation(why)


def judge(world: World, state: State, known: Known, crash: Crash) -> str:
    """Recover the state in the world's folder, and return the outcome.

    Raises:
        InvariantViolation: the outcome is untrue.
    """
    world.put(state)
    stored = DiskState.load(world.paths.file("disk"))
    noted = _abandoned(world, stored)
    try:
        disk, positions = world.open()
    except RigError as exc:
        raise InvariantViolation(f"cannot be opened: {exc}") from exc
    try:
        return _Case(world, known, crash, stored, noted, disk, positions).judge()
    finally:
        disk.abandon()
        positions.close()


def _abandoned(world: World, stored: DiskState) -> str | None:
    """Return the reason in the dirty file, if the file belongs to the log that the state file names."""
    try:
        found = dirty_bitmap.read(world.paths.file("dirty"))
    except RigError:
        return None
    return found.reason if (found.disk_id, found.generation) == (stored.disk_id, stored.generation) else None


@dataclass
class _Case:
    """One recovered disk and the facts about it.

    ``stored`` is the state file as the crash left it; ``noted`` is the reason in the dirty file why the log was abandoned.
    """

    world: World
    known: Known
    crash: Crash
    stored: DiskState
    noted: str | None
    disk: Disk
    positions: PositionCounter

    def judge(self) -> str:
        """Check the recovered disk, and return the outcome."""
        disk, known, stored = self.disk, self.known, self.stored
        self.content = disk.read(0, disk.size_bytes)
        if self.crash == "kill":
            self._check_bytes_after_kill()
        else:
            self._check_bytes_after_power_loss()
            self._check_flushed_log()
        reason = disk.state.needs_resync
        if disk.tracking.active:
            outcome = "continues"
            self._check_log()
        elif reason is not None:
            outcome = reason
            self._check_resync(reason)
        else:
            outcome = "not tracked"
            require(not stored.tracked and (not known.tracked or known.turning), "tracking has ended without a reason")
        generation = disk.state.generation
        disk.tracking.start(new_generation=False)
        require(disk.tracking.active and disk.state.needs_resync is None, "tracking cannot begin again")
        require(
            disk.state.generation == generation + (outcome != "continues"), f"the next generation is {disk.state.generation}"
        )
        require(self.positions.draw() > known.position, f"position {self.positions.value} is drawn after {known.position}")
        return outcome

    # --- the bytes ------------------------------------------------------------------------------------------------

    def _check_bytes_after_kill(self) -> None:
        content, known = self.content, self.known
        possible = known.versions if known.phase == "opening" else known.possible
        if content in possible:
            return
        logged = known.tracked and not known.faulty and self.noted is None
        before = possible[0]
        # Without a log nothing completes an interrupted write; but the bytes that it did not reach are unchanged.
        if (
            logged
            or len(content) != len(before)
            or any(byte not in possible_bytes for byte, *possible_bytes in zip(content, *possible, strict=False))
        ):
            raise InvariantViolation(f"acknowledged data is missing: {_difference(content, before)}")

    def _check_bytes_after_power_loss(self) -> None:
        content, unsure = self.content, self.known.unsure
        require(
            any(len(content) == len(version) for version in unsure), f"the disk has {len(content)} bytes, which it never had"
        )
        sure = unsure[0].ljust(len(content), b"\0")
        for start in range(0, len(content), _STEP_BYTES):
            if content[start : start + _STEP_BYTES] == sure[start : start + _STEP_BYTES]:
                continue
            for at in range(start, min(start + _STEP_BYTES, len(content)), SECTOR_BYTES):
                sector = _sector(content, at)
                require(
                    sector == _sector(sure, at) or any(_sector(version, at) == sector for version in unsure),
                    f"the sector at {at} has contents that it has not had since the last flush",
                )

    # --- the log --------------------------------------------------------------------------------------------------

    def _check_log(self) -> None:
        disk, known, stored = self.disk, self.known, self.stored
        require(self.noted is None, f"an abandoned log continues ({self.noted})")
        require(disk.state.generation == stored.generation, "another generation continues")
        if self.crash == "power loss":
            require(known.phase != "open", "a power loss is taken for a clean end")
            require(self.content in known.versions, "the disk is a mixture of its versions")
        if known.turning:  # the records on the recovery side are not defined while a log begins or ends
            return
        require(disk.state.generation == known.generation, "an older generation continues")
        if self.crash == "kill":
            require(
                known.next_seq <= disk.tracking.log.next_seq <= known.next_seq + 4,
                f"the next record is {disk.tracking.log.next_seq}",
            )
        self.check_replay()

    def check_replay(self) -> None:
        """Check that the recovery side's copy and the rest of the log give the disk."""
        known, paths, first = self.known, [], None
        for number, path in find_segments(self.disk.paths.folder, NAME):
            if number < self.stored.first_segment:
                continue
            with SegmentReader(path) as reader:
                if reader.header.generation == self.stored.generation:
                    paths.append(path)
                    first = first or reader.header.first_seq
        require((first or 0) <= known.remote_seq + 1, f"records {known.remote_seq + 1} to {first} are missing")
        replayed = replay_files(known.remote, paths, after_seq=known.remote_seq, cipher=self.world.cipher)
        if replayed != self.content:
            raise InvariantViolation(f"the log does not give the disk: {_difference(replayed, self.content)}")

    def _check_flushed_log(self) -> None:
        """Flushed records are in the log, unless the disk's state gives the reason why the log ended."""
        known = self.known
        abandoned = known.abandoned or self.noted or self.stored.needs_resync
        if not known.tracked or known.turning or abandoned or known.sure_seq <= known.remote_seq:
            return
        found = set[int]()
        for path in self.disk.paths.folder.glob(f"{NAME}.*"):
            if path.suffix not in (".hrl", ".spare"):
                continue
            with contextlib.suppress(RigError), SegmentReader(path) as reader:
                if reader.header.generation == known.generation:
                    for record in reader.records():
                        found.add(record.seq)
        missing = set(range(known.remote_seq + 1, known.sure_seq + 1)) - found
        require(not missing, f"flushed records {sorted(missing)} are not in the log")

    def _check_resync(self, reason: str) -> None:
        known, stored = self.known, self.stored
        require(not (known.tracked and known.phase == "closed"), f"a clean end is taken for {reason}")
        sure = self.crash == "kill" and not known.turning and not known.torn
        if sure:
            require(not stored.tracked or self.noted == reason, f"a kill is taken for {reason}")
        try:
            ranges = self.disk.tracking.dirty_ranges()
        except RigError as exc:
            require(exc.code == "NotTracked", str(exc))
            require(not sure or self.noted is None, "the changes are not known any more after a kill")
            return
        if not known.turning:
            copy = bytearray(known.remote.ljust(len(self.content), b"\0"))
            for offset, length in ranges:
                copy[offset : offset + length] = self.content[offset : offset + length]
            if copy != self.content:
                raise InvariantViolation(
                    f"a change is not reported: {_difference(bytes(copy), self.content)}; reported is {ranges}"
                )


def judge_damaged(world: World, state: State, known: Known, damaged: str) -> str:
    """Recover a state after a kill whose file ``damaged`` has changed, and return the outcome.

    Raises:
        InvariantViolation: there is no allowed outcome.
    """
    world.put(state)
    try:
        disk, positions = world.open()
    except RigError as exc:
        require(damaged in exc.message, f"{damaged} is damaged, but not named: {exc.message}")
        return exc.code
    try:
        segments = [path.name for _, path in find_segments(world.folder, NAME)]
        if disk.tracking.active and damaged in segments[:-2] and not known.turning:  # the last but one was the current one
            stored = DiskState.load(world.paths.file("disk"))
            case = _Case(world, known, "kill", stored, None, disk, positions)
            case.content = disk.read(0, disk.size_bytes)
            case.check_replay()
        return disk.state.needs_resync or ("continues" if disk.tracking.active else "not tracked")
    finally:
        disk.abandon()
        positions.close()


def _sector(data: bytes, at: int) -> bytes:
    return data[at : at + SECTOR_BYTES]


def _difference(found: bytes, expected: bytes) -> str:
    if len(found) != len(expected):
        return f"{len(found)} bytes, not {len(expected)}"
    at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), None)
    return f"first at byte {at}"
