"""Groups of the changes between two positions, in as few rows as a binary search needs.

For a long range, the header of a frame describes all its changes as one group.  Then neither the bytes that are read from
the journal nor the size of the result grow with the number of changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from siterig.azure_emu.contracts.recovery_side import ChangeStep
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.journal import read_index
from siterig.azure_emu.disks.loader import StoreState

READ_ENTRIES_MAX = 20_000
READ_FRAMES_MAX = 8
"""Up to so many frames, or frames with so few changes, each change is read.  The minimum is three: the first and the last
frame may have no change in the range, and then there would be only one group."""
STEPS_MAX = 2000


@dataclass(frozen=True, slots=True)
class _FrameRange:
    """The changes of a frame with ``after < position <= upto``."""

    frame: Frame
    after: int
    upto: int

    @property
    def is_by_header(self) -> bool:
        """True if the frame's header describes the group; for a single change its exact position is needed instead."""
        whole = self.after < self.frame.first_position and self.frame.position <= self.upto
        return whole and self.frame.part.stream == "log" and self.frame.entries > 1


def change_steps(state: StoreState, after: int, upto: int) -> list[ChangeStep]:
    """Return the positions with ``after < position <= upto`` at which the disk changed, ascending, or groups of them.

    If there are at least two positions, there are at least two groups.

    Raises:
        RigError: ``InvalidPosition`` if one of the two positions is not valid.
    """
    state.epoch_of(after)
    ranges = _frame_ranges(state, after, upto)
    entries = sum(span.frame.entries for span in ranges)
    if entries <= READ_ENTRIES_MAX or len(ranges) <= READ_FRAMES_MAX:
        return _grouped(_distinct([step for span in ranges for step in _positions_in(state, span)]))
    return _distinct([step for span in ranges for step in _as_group(state, span)])


def _frame_ranges(state: StoreState, after: int, upto: int) -> list[_FrameRange]:
    history = state.history
    newest = state.epoch_of(upto).generation
    found = []
    for frame in history.frames:
        if frame.part.generation > newest:
            break
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        if frame.entries and frame.position > max(after, contained) and frame.first_position <= upto:
            found.append(_FrameRange(frame, max(after, contained), upto))
    return found


def _positions_in(state: StoreState, span: _FrameRange) -> list[ChangeStep]:
    """Return each position of the range once."""
    frame = span.frame
    raw = read_index(state.folder, frame, state.history.size_before(frame)).entries
    times = {position: time_ns for position, time_ns, *_ in ENTRY.iter_unpack(raw)}
    return [
        ChangeStep(position=position, time_ns=time_ns, count=1)
        for position, time_ns in times.items()
        if span.after < position <= span.upto
    ]


def _as_group(state: StoreState, span: _FrameRange) -> list[ChangeStep]:
    """Return the range as one group; an empty list if it has no change."""
    frame = span.frame
    if span.is_by_header:
        return [ChangeStep(position=frame.position, time_ns=frame.time_ns, count=frame.entries)]
    if frame.part.stream == "sync":  # all records of a sync part have one position
        return [ChangeStep(position=frame.position, time_ns=frame.time_ns, count=1)]
    inside = _positions_in(state, span)
    return [ChangeStep(position=inside[-1].position, time_ns=inside[-1].time_ns, count=len(inside))] if inside else []


def _distinct(steps: list[ChangeStep]) -> list[ChangeStep]:
    """Remove repeated positions: all parts of a resync have the same one."""
    return [step for number, step in enumerate(steps) if number == 0 or step.position != steps[number - 1].position]


def _grouped(steps: list[ChangeStep]) -> list[ChangeStep]:
    size = -(-len(steps) // STEPS_MAX)
    if size <= 1:
        return steps
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    return [ChangeStep(position=each[-1].position, time_ns=each[-1].time_ns, count=len(each)) for each in groups]
