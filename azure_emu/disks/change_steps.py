"""Where between two positions a disk changed, in as few rows as a search by halving needs.

Of a long range whole frames of the journal are told as one group each, by their headers: what is read of the journal, and
what is answered, does not grow with the number of changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from siterig.azure_emu.contracts.ports import ChangeStep
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.journal import read_index
from siterig.azure_emu.disks.loader import StoreState

READ_ENTRIES_MAX = 20_000
READ_FRAMES_MAX = 8
"""Of so few frames, or of frames with so few changes, each change is looked at.  At least three: of the first and the last
frame there may be nothing that was asked for, and then there would be one group."""
STEPS_MAX = 2000


@dataclass(frozen=True, slots=True)
class _FrameRange:
    """The part of a frame's changes that is asked for: positions above ``after`` up to ``upto``."""

    frame: Frame
    after: int
    upto: int

    @property
    def is_by_header(self) -> bool:
        """Whether the frame's header tells of it: not if it is one change, whose position is to be known."""
        whole = self.after < self.frame.first_position and self.frame.position <= self.upto
        return whole and self.frame.part.stream == "log" and self.frame.entries > 1


def change_steps(loaded: StoreState, after: int, upto: int) -> list[ChangeStep]:
    """Positions with ``after < position <= upto`` at which the disk changed, in order, or groups of them.

    If there are at least two, there are at least two steps.  Both positions must be valid (``InvalidPosition``).
    """
    loaded.epoch_of(after)
    ranges = _frame_ranges(loaded, after, upto)
    entries = sum(span.frame.entries for span in ranges)
    if entries <= READ_ENTRIES_MAX or len(ranges) <= READ_FRAMES_MAX:
        return _grouped(_once([step for span in ranges for step in _steps_of(loaded, span)]))
    return _once([step for span in ranges for step in _group_of(loaded, span)])


def _frame_ranges(loaded: StoreState, after: int, upto: int) -> list[_FrameRange]:
    history = loaded.history
    newest = loaded.epoch_of(upto).generation
    found = []
    for frame in history.frames:
        if frame.part.generation > newest:
            break
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        if frame.entries and frame.position > max(after, contained) and frame.first_position <= upto:
            found.append(_FrameRange(frame, max(after, contained), upto))
    return found


def _steps_of(loaded: StoreState, span: _FrameRange) -> list[ChangeStep]:
    """Each position, once."""
    frame = span.frame
    raw = read_index(loaded.folder, frame, loaded.history.size_before(frame)).entries
    times = {position: time_ns for position, time_ns, *_ in ENTRY.iter_unpack(raw)}
    return [
        ChangeStep(position=position, time_ns=time_ns, count=1)
        for position, time_ns in times.items()
        if span.after < position <= span.upto
    ]


def _group_of(loaded: StoreState, span: _FrameRange) -> list[ChangeStep]:
    """All of it as one group; none if nothing is asked for."""
    frame = span.frame
    if span.is_by_header:
        return [ChangeStep(position=frame.position, time_ns=frame.time_ns, count=frame.entries)]
    if frame.part.stream == "sync":  # all of it has one position
        return [ChangeStep(position=frame.position, time_ns=frame.time_ns, count=1)]
    inside = _steps_of(loaded, span)
    return [ChangeStep(position=inside[-1].position, time_ns=inside[-1].time_ns, count=len(inside))] if inside else []


def _once(steps: list[ChangeStep]) -> list[ChangeStep]:
    """Each position once: all parts of a resync have the same."""
    return [step for number, step in enumerate(steps) if number == 0 or step.position != steps[number - 1].position]


def _grouped(steps: list[ChangeStep]) -> list[ChangeStep]:
    size = -(-len(steps) // STEPS_MAX)
    if size <= 1:
        return steps
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    return [ChangeStep(position=each[-1].position, time_ns=each[-1].time_ns, count=len(each)) for each in groups]
