"""The guide of a command: if a role does not answer, it asks the supervisor, waits if that helps, and names the role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.context.roles import ROLE_WAIT_S, role_error
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc.client import WAIT_REPORTED_S, Guide, proxy

SUPERVISOR = "supervisor"
NAMED_AGAIN_S = 30.0
"""The time after which a wait that lasts is named again."""


class RoleGuide(Guide):
    """The guide of one command; ``note(text)`` prints a remark for its user."""

    def __init__(self, sockets: Path, note: Callable[[str], None], clock: Clock = SYSTEM_CLOCK) -> None:
        self._supervisor = proxy(SupervisorControl, sockets / f"{SUPERVISOR}.sock", guided=False, clock=clock)
        self._note = note
        self._clock = clock

    async def report_wait(self, role: str, vm: str | None) -> None:
        """Print that the command waits for an answer of the role, and the error of each role that has one.

        Then print each wait of a role for the VM when it is seen first, and again every ``NAMED_AGAIN_S`` while it lasts,
        until this is cancelled.
        """
        self._note(f"waiting for the {role} ...")
        if role == SUPERVISOR:
            return
        for status in await self._roles():
            error = role_error(status)
            if error is not None and error.code != Code.RoleHeld:
                self._note(error.message)
        named_ns: dict[tuple[str, str, str], int] = {}
        while vm is not None:
            for status in await self._roles():
                now_ns = self._clock.monotonic_ns()
                for wait in status.waits:
                    key = (status.name, wait.code, wait.reason)
                    is_due = key not in named_ns or now_ns - named_ns[key] >= NAMED_AGAIN_S * SECOND_NS
                    if wait.vm == vm and is_due:
                        named_ns[key] = now_ns
                        self._note(f"{status.name}: {wait.reason} ({wait.code}{_lasts(wait, now_ns)})")
            await self._clock.sleep(WAIT_REPORTED_S)

    async def wait_until_back(self, role: str, error: RigError, *, again: bool) -> None:
        if role == SUPERVISOR:
            text = f"{error.message}; if it does not recover: siterig down, then siterig up"
            raise RigError(error.code, text, recoverable=True, role=role, uncertain=error.uncertain) from error
        reason = next((role_error(status) for status in await self._roles() if status.name == role), error)
        if reason is error or (reason is not None and not _is_coming_back(reason)):
            raise reason from error
        if not again:
            raise error
        if reason is not None:
            await self._wait(role, reason, error)

    async def _wait(self, role: str, reason: RigError, error: RigError) -> None:
        with self._clock.move_on_after(ROLE_WAIT_S) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._note_later, f"{reason.message}; waiting until it is back ...")
                try:
                    status = await self._supervisor.wait_for_steady_state(name=role)
                finally:
                    nursery.cancel_scope.cancel()
        if patience.cancelled_caught:
            raise reason from error
        again = role_error(status)
        if again is not None:
            raise again from error

    async def _note_later(self, text: str) -> None:
        await self._clock.sleep(WAIT_REPORTED_S)
        self._note(text)

    async def _roles(self) -> list[RoleStatus]:
        """Return the states of the roles; an empty list if the supervisor does not answer either."""
        try:
            return (await self._supervisor.status()).roles
        except RigError:
            return []


def _lasts(wait: Wait, now_ns: int) -> str:
    """Return for how long a wait has lasted; nothing if its role does not report it."""
    began_ns = wait.since_monotonic_ns
    return "" if began_ns is None else f", for {max(0, now_ns - began_ns) // SECOND_NS} s"


def _is_coming_back(reason: RigError) -> bool:
    return reason.code == Code.RoleUnavailable
