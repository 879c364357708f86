"""``siterig bisect``: runs a check on states until it finds the first change after which the check fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from siterig.azure_emu.contracts.recovery_side import Change
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.bisect import hexdiff
from siterig.bisect.check_command import CheckCommand, CheckOutcome
from siterig.bisect.hexdiff import Difference
from siterig.bisect.search import ChangeGroup, CheckVerdict, search, trials_left
from siterig.bisect.states import CHANGES_MAX, BisectState, States, check_released
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason

CLOSE_S = 60.0
"""The longest time for the release of all states at the end."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the check on one state; ``left`` is the expected number of further trials."""

    position: int
    time_ns: int | None
    outcome: CheckOutcome | None
    verdict: CheckVerdict
    left: int


@dataclass(frozen=True, slots=True)
class ChangeSeen:
    """A change between the last state that passes and the first that fails; ``difference`` is None for a RESIZE."""

    disk: str
    change: Change
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a search: the last state that passes, the first that fails, and the changes between them.

    ``all_changes`` is False if there were more changes than ``changes`` holds.
    """

    good: BisectState
    bad: BisectState
    undecided: tuple[ChangeGroup, ...]
    changes: tuple[ChangeSeen, ...]
    all_changes: bool
    point_before: RecoveryPoint | None
    point_after: RecoveryPoint | None
    failing: CheckOutcome
    trials: int


@dataclass(frozen=True, slots=True)
class BisectRequest:
    """The request for one search; ``keep`` leaves the two states at the edge mounted."""

    good: str
    bad: str
    words: list[str]
    timeout_s: float | None
    writable: bool
    keep: bool
    verbose: bool


class Bisection:
    """One search; call :meth:`run` once.  ``tell`` receives each trial, ``note`` remarks for the user."""

    def __init__(
        self, states: States, request: BisectRequest, tell: Callable[[Trial], None], note: Callable[[str], None]
    ) -> None:
        self._states = states
        self._request = request
        self._tell = tell
        self._note = note
        self._open: list[BisectState] = []
        self._trials = 0
        self._failing: CheckOutcome | None = None

    async def run(self) -> Report:
        """Find the edge between passing and failing states.

        All states are unmounted at the end, also after an error; with ``keep`` two of them stay mounted.

        Raises:
            RigError: ``CheckFails`` at the good point, ``CheckPasses`` at the bad point, ``NothingChanged``, and errors
                of the vault and the check.
        """
        kept: list[BisectState] = []
        try:
            report = await self._search()
            if self._request.keep:
                kept = [report.good, report.bad]
            return report
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await self._close_all(kept)

    async def _close_all(self, states: list[BisectState]) -> None:
        """Close all open states; a failure becomes a remark, so that it does not hide the first error."""
        for give_back in [self._states.discard, *(_closing(self._states, s) for s in self._open if s not in states)]:
            try:
                await give_back()
            except RigError as error:
                self._note(f"a state could not be removed: {error.message}")

    # --- the search -----------------------------------------------------------------------------------------------

    async def _search(self) -> Report:
        request = self._request
        good = await self._remember(self._states.open_point(request.good))
        bad = await self._remember(self._states.open_point(request.bad))
        if good.position >= bad.position:
            raise RigError(
                Code.BadRequest,
                f"--good {request.good} (position {good.position}) is not older than --bad {request.bad} "
                f"(position {bad.position})",
            )
        self._command = CheckCommand(request.words, bad.images.keys(), timeout_s=request.timeout_s, echo=request.verbose)
        if not self._command.names_a_disk:
            names = ", ".join(f"{{{name}}}" for name in sorted(bad.images))
            self._note(
                f"CMD names no disk ({names}): it checks the same data in each state, unless it finds the disks by itself"
            )
        await self._check_ends(good, bad)
        self._good, self._bad = good, bad
        edge = await search(self._states, self._judge, good=good.position, bad=bad.position)
        if self._bad.position != edge.first_bad.position:  # nothing changed from there to the bad point
            await self._replace_bad(await self._remember(self._states.open(edge.first_bad.position, edge.first_bad.time_ns)))
        if self._bad.time_ns is None:
            self._bad = _timed(self._bad, edge.first_bad.time_ns)
        assert self._failing is not None  # noqa: S101 (it failed at the bad point)
        changes = await self._states.changes(self._good.position, self._bad.position)
        before, after = await self._states.points_around(self._bad.position)
        return Report(
            good=self._good,
            bad=self._bad,
            undecided=edge.undecided,
            changes=tuple([await self._seen(disk, change) for disk, change in changes]),
            all_changes=len(changes) < CHANGES_MAX,
            point_before=before,
            point_after=after,
            failing=self._failing,
            trials=self._trials,
        )

    async def _check_ends(self, good: BisectState, bad: BisectState) -> None:
        left = trials_left(sum(step.count for step in await self._states.steps(good.position, bad.position)))
        outcome = await self._try(good, left + 1)
        if outcome.verdict != "passed":
            raise RigError(
                Code.CheckFails,
                f"CMD does not pass at the good point {self._request.good} (position {good.position}): {outcome}; "
                f"{_said(outcome)}",
            )
        outcome = await self._try(bad, left)
        if outcome.verdict != "failed":
            raise RigError(
                Code.CheckPasses,
                f"CMD does not fail at the bad point {self._request.bad} (position {bad.position}): {outcome}; "
                "no first bad write exists between them",
            )

    async def _judge(self, step: ChangeGroup, trials_left: int) -> CheckVerdict:
        try:
            state = await self._remember(self._states.open(step.position, step.time_ns))
        except RigError as error:
            if error.code != Code.InvalidPosition:
                raise
            self._note(f"position {step.position} is skipped: {error.message}")
            self._tell(Trial(step.position, step.time_ns, None, "skipped", trials_left))
            return "skipped"
        outcome = await self._try(state, trials_left)
        if outcome.verdict == "passed":
            await self._close(self._good)
            self._good = state
        elif outcome.verdict == "failed":
            await self._replace_bad(state)
        else:
            await self._close(state)
        return outcome.verdict

    async def _replace_bad(self, state: BisectState) -> None:
        await self._close(self._bad)
        self._bad = state

    async def _try(self, state: BisectState, trials_left: int) -> CheckOutcome:
        images = await self._states.writable(state) if self._request.writable else state.images
        outcome = await self._command.run(images)
        await check_released(images)
        if self._request.writable:
            await self._states.discard()
        self._trials += 1
        if outcome.verdict == "failed":
            self._failing = outcome
        self._tell(Trial(state.position, state.time_ns, outcome, outcome.verdict, trials_left))
        return outcome

    # --- states ---------------------------------------------------------------------------------------------------

    async def _remember(self, opening: Awaitable[BisectState]) -> BisectState:
        with trio.CancelScope(shield=True):  # a cancelled opening could leave a state open that the list lacks
            state = await opening
        self._open.append(state)
        await trio.lowlevel.checkpoint()
        return state

    async def _close(self, state: BisectState) -> None:
        await self._states.close(state)
        self._open.remove(state)

    async def _seen(self, disk: str, change: Change) -> ChangeSeen:
        if change.kind == "RESIZE":
            return ChangeSeen(disk, change, None)
        return ChangeSeen(disk, change, await self._compare(disk, change.offset, change.length))

    async def _compare(self, disk: str, offset: int, length: int) -> Difference:
        before, after = (state.images[disk] for state in (self._good, self._bad))
        try:
            return await trio.to_thread.run_sync(hexdiff.compare, before, after, offset, length)
        except OSError as exc:
            raise RigError(Code.HostIoError, f"{after} cannot be compared with {before}: {reason(exc, after)}") from exc


def _closing(states: States, state: BisectState) -> Callable[[], Awaitable[None]]:
    return lambda: states.close(state)


def _timed(state: BisectState, time_ns: int) -> BisectState:
    return BisectState(state.name, state.position, time_ns, state.images, state.point)


def _said(outcome: CheckOutcome) -> str:
    lines = outcome.output.decode(errors="replace").strip().splitlines()
    return f"it said last: {lines[-1][:200]}" if lines else "it printed nothing"
