"""The states of the rig's roles in the vault, and the waits of operations for a role that is away.

The supervisor reports the states (:class:`siterig.azure_emu.contracts.reports.RoleReports`).  They are kept in memory only,
because they are about the present.  All methods run on the trio thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError

T = TypeVar("T")

ROLE_WAIT_S = 120.0
"""The time for which an operation waits for a role that is away; the supervisor restarts a role that has ended."""
REPORT_DELAY_S = 1.0
"""The time that the report of a role's end can take to arrive after a call to the role failed."""
ABSENCE_EFFECT_S = 60.0
"""For this time after the return of a role, a recoverable failure counts as a consequence of its absence."""
PROGRESS_S = 5.0
"""An attempt that has lasted this long has passed the point of the former failure, so its wait is over."""
HELD_BY_FAULT = "held down by fault"
"""In the detail of a role that a fault rule holds down."""
_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)

_ROLE_OF_CODE = {
    Code.RoleUnavailable: None,
    Code.RoleHung: None,
    Code.CacheUnreachable: "azurite",
    Code.DiskHostUnreachable: None,
}
"""Codes of errors that mean that a role is away, and the role if the error itself does not name it."""
_ENDED_FOR_GOOD: tuple[RoleState, ...] = ("failed", "held", "stopped")

_log = structlog.get_logger(__name__)


def role_error(role: RoleStatus) -> RigError | None:
    """Return an error with the reason for which a role cannot be used now, and the remedy; None if it is ready."""
    name, why = role.name, f": {role.detail}" if role.detail else ""
    restart = f"siterig role restart {name}"
    if role.state == "ready":
        return None
    if role.state == "failed":
        return RigError(
            Code.RoleFailed, f"role {name} failed and is not started again{why}; start it with {restart}", role=name
        )
    if role.state == "held" and HELD_BY_FAULT in role.detail:
        return RigError(Code.RoleHeld, f"role {name} is {role.detail}; siterig fault remove ends it", role=name)
    if role.state == "held":
        text = f"role {name} is down on purpose; start it with {restart}, or a lost site with siterig site restore"
        return RigError(Code.RoleHeld, text, role=name)
    if role.state == "hung":
        text = f"role {name} is hung{why}; if it does not recover: {restart}"
        return RigError(Code.RoleHung, text, recoverable=True, role=name)
    return RigError(Code.RoleUnavailable, f"role {name} is {role.state}{why}", recoverable=True, role=name)


class Roles:
    """The states of the roles as the supervisor reported them."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._roles: dict[str, RoleStatus] = {}
        self._away_since: dict[str, float] = {}
        self._away_at: dict[str, float] = {}
        """The times at which the absence of a role began and was last seen (:meth:`Clock.trio_time_s`)."""
        self._changed = trio.Event()
        self.reported_ns: int | None = None
        """The wall time of the last report; None if there was none since the vault started."""

    def update(self, roles: list[RoleStatus], now_ns: int) -> bool:
        """Replace all known states; return True if the state of a role changed."""
        before, self._roles = self._roles, {role.name: role for role in roles}
        self.reported_ns = now_ns
        changed = False
        for role in roles:
            known = before.get(role.name)
            started_again = known is not None and known.pid != role.pid
            if role.state == "ready":
                self._away_since.pop(role.name, None)
            else:
                self._away_since.setdefault(role.name, self._clock.trio_time_s())
            if role.state != "ready" or started_again:
                self._away_at[role.name] = self._clock.trio_time_s()
            changed |= known is None or started_again or known.state != role.state
        if changed:
            self._changed.set()
            self._changed = trio.Event()
        return changed

    def all(self) -> list[RoleStatus]:
        """Return every role, in the supervisor's order; an empty list before the first report."""
        return list(self._roles.values())

    def get(self, name: str) -> RoleStatus | None:
        """Return one role; None if it is not known."""
        return self._roles.get(name)

    def role_error(self, name: str) -> RigError | None:
        """Return the error of a role (:func:`role_error`); None also if the role is not known."""
        role = self._roles.get(name)
        return None if role is None else role_error(role)

    def require(self, *names: str) -> None:
        """Check that the supervisor has not abandoned one of these roles, because a wait for its work would never end.

        Raises:
            RigError: ``RoleFailed``.
        """
        for name in names:
            role = self._roles.get(name)
            error = role_error(role) if role is not None and role.state == "failed" else None
            if error is not None:
                raise error

    def role_cause(self, error: RigError) -> RigError | None:
        """Return the absence of a role that caused the error of a call; None if the error has another reason.

        Not only the code decides: each recoverable error counts while a role is away, and shortly after.
        """
        if error.code in _ROLE_OF_CODE:
            name = error.role or _ROLE_OF_CODE[error.code]
            found = None if name is None else self.role_error(name)
            return found or error
        if not error.recoverable:
            return None
        now = self._clock.trio_time_s()
        for name, away_at in self._away_at.items():
            if now - away_at <= ABSENCE_EFFECT_S:
                return self.role_error(name) or error
        return None

    def is_any_away(self) -> bool:
        """Return True if a role is known not to be ready."""
        return bool(self._away_since)

    def lasting_error(self, least_s: float) -> RigError | None:
        """Return the error of the role that is away for longest, at least ``least_s``; a held role does not count."""
        for name, since in sorted(self._away_since.items(), key=lambda item: item[1]):
            error = self.role_error(name)
            if error is not None and error.code != Code.RoleHeld and self._clock.trio_time_s() - since >= least_s:
                return error
        return None

    async def wait_for_change(self, limit_s: float) -> None:
        """Wait until the state of a role changes, at most ``limit_s``."""
        with self._clock.move_on_after(limit_s):
            await self._changed.wait()

    async def retry_while_away(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        on_wait: Callable[[RigError | None], None],
        lost_is_final: bool = False,
        repeatable: bool = True,
        limit_s: float = ROLE_WAIT_S,
    ) -> T:
        """Do ``work``, and repeat it for ``limit_s`` while a role that it needs is away.

        Args:
            work: the work; it may be done several times.
            on_wait: called with the reason before each wait, and with None when the next attempt has lasted ``PROGRESS_S``.
            lost_is_final: fail at once if the role does not come back by itself (failed, held or unknown); otherwise only
                if it failed.
            repeatable: False if ``work`` must not be done twice; it is then repeated only if it was certainly not done.
            limit_s: the time for which the work is repeated.
        Raises:
            RigError: the error of the role or of ``work``.
        """
        gone_since: float | None = None
        attempt = 0
        while True:
            began = self._clock.trio_time_s()
            try:
                return await (work() if attempt == 0 else _with_progress(self._clock, work, lambda: on_wait(None)))
            except RigError as error:
                if self.role_cause(error) is None or (error.uncertain and not repeatable):
                    raise
                await self._await_report(error)
                reason = self.role_cause(error) or error
                now = self._clock.trio_time_s()
                if gone_since is None or now - began > _DELAYS_S[-1]:
                    gone_since, attempt = now, 0  # the role was present for a while: a new absence begins
                self._raise_if_final(reason, error, lost_is_final=lost_is_final)
                if now - gone_since >= limit_s:
                    raise (reason if reason.role is not None else error) from error
                on_wait(reason)
                delay_s = _DELAYS_S[min(attempt, len(_DELAYS_S) - 1)]
                attempt += 1
                _log.info("role_awaited", role=reason.role, reason=reason.message, next_try_s=delay_s)
                await self.wait_for_change(delay_s)

    async def _await_report(self, error: RigError) -> None:
        """Wait for the supervisor's report of the end of the role."""
        known = self._roles.get(error.role or _ROLE_OF_CODE.get(error.code) or "")
        if known is not None and known.state == "ready":
            await self.wait_for_change(REPORT_DELAY_S)

    def _raise_if_final(self, reason: RigError, error: RigError, *, lost_is_final: bool) -> None:
        role = None if reason.role is None else self._roles.get(reason.role)
        if role is None:
            if lost_is_final and error.code in _ROLE_OF_CODE:
                raise error
        elif role.state == "failed" or (lost_is_final and role.state in _ENDED_FOR_GOOD):
            raise reason from error


async def _with_progress(clock: Clock, work: Callable[[], Awaitable[T]], on_progress: Callable[[], None]) -> T:
    """Do ``work``; call ``on_progress`` when it has lasted ``PROGRESS_S``."""

    async def later() -> None:
        await clock.sleep(PROGRESS_S)
        on_progress()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        try:
            result = await work()
        except Exception as error:
            # It is raised below, because a nursery would wrap it.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
