"""The states of the rig's roles in the vault, and the waits of operations for a role that is away.

The supervisor reports the states (:class:`siterig.azure_emu.contracts.reports.RoleReports`).  They are kept in memory only,
for they are about now.  All methods run on the trio thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.blockfs.core.errors import Code, RigError

T = TypeVar("T")

ROLE_WAIT_S = 120.0
"""How long an operation waits for a role that is away: the supervisor starts one that ended again."""
REPORT_DELAY_S = 1.0
"""How long the report of a role's end may take to get here after a call to the role failed."""
ABSENCE_EFFECT_S = 60.0
"""For so long after a role came back, a failure that may pass is taken for a consequence of its absence."""
PROGRESS_S = 5.0
"""An attempt after a wait that has lasted so long has got further than the one before: it waits for nothing."""
_DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)

_ROLE_OF_CODE = {
    Code.RoleUnavailable: None,
    Code.RoleHung: None,
    Code.CacheUnreachable: "azurite",
    Code.DiskHostUnreachable: None,
}
"""Errors that say that a role is away, and the role where the error itself does not name it."""
_ENDED_FOR_GOOD: tuple[RoleState, ...] = ("failed", "held", "stopped")

_log = structlog.get_logger("siterig.azure_emu.vault.context.roles")


def role_error(role: RoleStatus) -> RigError | None:
    """Why a role cannot be used now, and what to do about it; None if it is ready."""
    name, why = role.name, f": {role.detail}" if role.detail else ""
    restart = f"siterig role restart {name}"
    if role.state == "ready":
        return None
    if role.state == "failed":
        return RigError(
            Code.RoleFailed, f"role {name} failed and is not started again{why}; start it with {restart}", role=name
        )
    if role.state == "held":
        text = f"role {name} is down on purpose; start it with {restart}, or a lost site with siterig site restore"
        return RigError(Code.RoleHeld, text, role=name)
    if role.state == "hung":
        text = f"role {name} is hung{why}; if it does not recover: {restart}"
        return RigError(Code.RoleHung, text, recoverable=True, role=name)
    return RigError(Code.RoleUnavailable, f"role {name} is {role.state}{why}", recoverable=True, role=name)


class Roles:
    """The known states of the roles; changed by the supervisor's reports."""

    def __init__(self) -> None:
        self._roles: dict[str, RoleStatus] = {}
        self._away_since: dict[str, float] = {}
        self._away_at: dict[str, float] = {}
        """Begin, and last sight, of the absence of a role, on trio's clock."""
        self._changed = trio.Event()
        self.reported_ns: int | None = None
        """When the last report came, wall clock; None: there was none since the vault started."""

    def update(self, roles: list[RoleStatus], now_ns: int) -> bool:
        """Take the place of all that was known; whether the state of a role changed."""
        before, self._roles = self._roles, {role.name: role for role in roles}
        self.reported_ns = now_ns
        changed = False
        for role in roles:
            known = before.get(role.name)
            started_again = known is not None and known.pid != role.pid
            if role.state == "ready":
                self._away_since.pop(role.name, None)
            else:
                self._away_since.setdefault(role.name, trio.current_time())
            if role.state != "ready" or started_again:
                self._away_at[role.name] = trio.current_time()
            changed |= known is None or started_again or known.state != role.state
        if changed:
            self._changed.set()
            self._changed = trio.Event()
        return changed

    def all(self) -> list[RoleStatus]:
        """Every role, in the supervisor's order; empty before the first report."""
        return list(self._roles.values())

    def get(self, name: str) -> RoleStatus | None:
        """One role; None if it is not known."""
        return self._roles.get(name)

    def role_error(self, name: str) -> RigError | None:
        """The same as :func:`role_error`; None also if the role is not known."""
        role = self._roles.get(name)
        return None if role is None else role_error(role)

    def require(self, *names: str) -> None:
        """``RoleFailed`` if one of these roles was abandoned by the supervisor: a wait for what it does has no end."""
        for name in names:
            role = self._roles.get(name)
            error = role_error(role) if role is not None and role.state == "failed" else None
            if error is not None:
                raise error

    def role_cause(self, error: RigError) -> RigError | None:
        """The error of a call, if it says that a role is away or follows from that; None if it has another reason.

        It is not one code that tells: any failure that may pass counts while a role is away, and shortly after.
        """
        if error.code in _ROLE_OF_CODE:
            name = error.role or _ROLE_OF_CODE[error.code]
            found = None if name is None else self.role_error(name)
            return found or error
        if not error.recoverable:
            return None
        now = trio.current_time()
        for name, away_at in self._away_at.items():
            if now - away_at <= ABSENCE_EFFECT_S:
                return self.role_error(name) or error
        return None

    def is_any_away(self) -> bool:
        """True if a role is known not to be ready."""
        return bool(self._away_since)

    def lasting_trouble(self, least_s: float) -> RigError | None:
        """The role that is away for longest, if for at least so long; one that is down on purpose does not count."""
        for name, since in sorted(self._away_since.items(), key=lambda item: item[1]):
            error = self.role_error(name)
            if error is not None and error.code != Code.RoleHeld and trio.current_time() - since >= least_s:
                return error
        return None

    async def wait_for_change(self, limit_s: float) -> None:
        """Until the state of a role changes, at most so long."""
        with trio.move_on_after(limit_s):
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
        """Do ``work``; while a role that it needs is away, again and again for ``limit_s``.

        ``on_wait(reason)`` is called before each wait, and with None when the next attempt has lasted ``PROGRESS_S``.
        ``lost_is_final``: a role that does not come back by itself (failed,
        held, or not known) ends it at once; else only one that failed does.  ``repeatable``: ``work`` may be done twice; if
        not, it is repeated only if it is certain that it was not done.
        """
        gone_since: float | None = None
        attempt = 0
        while True:
            began = trio.current_time()
            try:
                return await (work() if attempt == 0 else _in_time(work, lambda: on_wait(None)))
            except RigError as error:
                if self.role_cause(error) is None or (error.uncertain and not repeatable):
                    raise
                await self._await_report(error)
                reason = self.role_cause(error) or error
                now = trio.current_time()
                if gone_since is None or now - began > _DELAYS_S[-1]:
                    gone_since, attempt = now, 0  # the role had been there for a while: a new absence
                self._raise_if_final(reason, error, lost_is_final=lost_is_final)
                if now - gone_since >= limit_s:
                    raise (reason if reason.role is not None else error) from error
                on_wait(reason)
                delay_s = _DELAYS_S[min(attempt, len(_DELAYS_S) - 1)]
                attempt += 1
                _log.info("role_awaited", role=reason.role, reason=reason.message, next_try_s=delay_s)
                await self.wait_for_change(delay_s)

    async def _await_report(self, error: RigError) -> None:
        """Give the supervisor's report of what just happened the time to come in."""
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


async def _in_time(work: Callable[[], Awaitable[T]], lasts: Callable[[], None]) -> T:
    """Do ``work``; call ``lasts`` if it takes longer than ``PROGRESS_S``."""

    async def later() -> None:
        await trio.sleep(PROGRESS_S)
        lasts()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        try:
            result = await work()
        except Exception as error:
            # Raised below, for a nursery would wrap it.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
