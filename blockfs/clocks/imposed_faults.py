"""Faults of a rig's clock that last: what each one moved, so that it can be moved back.

Fault contract: the list of faults is in a file next to the page, written before the page within the lock of the page.  Each
entry has the number of the change that it comes with, and of the change that ends it; a change that is not on the page never
happened.  So a kill at any moment leaves a fault either imposed and known, or neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from siterig.blockfs.clocks.clock_page import ClockPage
from siterig.blockfs.clocks.clock_terms import ClockTerms, KernelTimes, RoleTerms
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file


class ImposedFault(WireModel):
    """One fault: the wall time that it added."""

    fault: str
    change: Whole
    """The number of the change of the page."""
    lifted: Whole | None = None
    """The number of the change that ends it."""
    jump_ns: int = 0
    """Added to the wall time of all roles."""
    slots: tuple[Whole, ...] = ()
    """The slots of the roles whose wall time differs by the following."""
    skew_ns: int = 0
    drift_ppm: int = 0
    drift_from_ns: Whole = 0

    @property
    def terms(self) -> RoleTerms:
        """The difference that it added to each of the roles."""
        return RoleTerms(self.skew_ns, self.drift_ppm, self.drift_from_ns)


_FILE: TypeAdapter[list[ImposedFault]] = TypeAdapter(list[ImposedFault])


class ImposedClockFaults:
    """The lasting faults of one page; ``path`` is the file that lists them."""

    def __init__(self, page: ClockPage, path: Path) -> None:
        self._page = page
        self._path = path

    def imposed(self) -> list[ImposedFault]:
        """Return the faults that are in force.

        Raises:
            RigError: ``StateUnreadable`` if the file is damaged.
        """
        try:
            found = _FILE.validate_json(read_small_file(self._path))
        except FileNotFoundError:
            return []
        except (ValidationError, FileTooLongError) as error:
            text = "remove it, then siterig clock reset ends all faults of the clock"
            raise RigError(Code.StateUnreadable, f"{self._path} is damaged: {text}") from error
        sequence = self._page.sequence
        return [
            each.model_copy(update={"lifted": None})
            for each in found
            if each.change <= sequence and (each.lifted is None or each.lifted > sequence)
        ]

    def impose_jump(self, fault: str, by_ns: int) -> int:
        """Move the wall time of all roles; return the number of the change."""

        def make(terms: ClockTerms, kernel: KernelTimes) -> ClockTerms:
            after = terms.jumped(by_ns, kernel)
            self._write([*self.imposed(), ImposedFault(fault=fault, change=after.generation, jump_ns=by_ns)])
            return after

        return self._page.change(make).generation

    def impose_skew(self, fault: str, roles: Iterable[str], skew_ns: int, *, drift_ppm: int = 0) -> int:
        """Add a skew and a drift to those that the roles have; return the number of the change."""
        slots = [self._page.claim(role).number for role in roles]

        def make(terms: ClockTerms, kernel: KernelTimes) -> ClockTerms:
            added = RoleTerms(skew_ns, drift_ppm, terms.monotonic_at(kernel))
            after = _with_added(terms, dict.fromkeys(slots, added), kernel)
            entry = ImposedFault(
                fault=fault,
                change=after.generation,
                slots=tuple(slots),
                skew_ns=skew_ns,
                drift_ppm=drift_ppm,
                drift_from_ns=added.drift_from_ns,
            )
            self._write([*self.imposed(), entry])
            return after

        return self._page.change(make).generation

    def lift(self, faults: Iterable[str] | None = None) -> int:
        """Move back what these faults moved, or all of them; return the number of the last change."""
        wanted = None if faults is None else set(faults)
        for each in self.imposed():
            if wanted is None or each.fault in wanted:
                self._lift(each)
        return self._page.sequence

    def reset(self) -> int:
        """Return to the system's wall time and speed, so that no fault has anything to move back; return the change."""

        def make(terms: ClockTerms, kernel: KernelTimes) -> ClockTerms:
            after = terms.as_system(kernel)
            if imposed := self.imposed():
                self._write([each.model_copy(update={"lifted": after.generation}) for each in imposed])
            return after

        return self._page.change(make).generation

    def _lift(self, lifted: ImposedFault) -> None:
        def make(terms: ClockTerms, kernel: KernelTimes) -> ClockTerms:
            imposed = self.imposed()
            if lifted not in imposed:  # another process was faster
                return terms
            if lifted.slots:
                skew_ns = -lifted.terms.skew_at(terms.monotonic_at(kernel))
                removed = RoleTerms(skew_ns, -lifted.drift_ppm, terms.monotonic_at(kernel))
                after = _with_added(terms, dict.fromkeys(lifted.slots, removed), kernel)
            else:
                after = terms.jumped(-lifted.jump_ns, kernel)
            ended = lifted.model_copy(update={"lifted": after.generation})
            self._write([ended if each == lifted else each for each in imposed])
            return after

        self._page.change(make)

    def _write(self, faults: list[ImposedFault]) -> None:
        write_atomically(self._path, json.dumps([each.model_dump() for each in faults]).encode())


def _with_added(terms: ClockTerms, added: Mapping[int, RoleTerms], kernel: KernelTimes) -> ClockTerms:
    now_ns = terms.monotonic_at(kernel)
    skews = {slot: terms.roles[slot].skew_at(now_ns) + each.skew_at(now_ns) for slot, each in added.items()}
    drifts = {slot: terms.roles[slot].drift_ppm + each.drift_ppm for slot, each in added.items()}
    return terms.with_skews(skews, kernel, drifts)
