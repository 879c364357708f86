"""Reading a file that a role serves to its end, also if the role ends meanwhile: the role restarts and serves the same file.

When a role ends, a read fails as if the disk were damaged: the kernel reports only that the file system went away.  The
process of the role shows the difference: after a restart it is another one.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.context.roles import ROLE_WAIT_S, role_error
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.supervisor_contract import SupervisorControl

ATTEMPTS_MAX = 5
"""A role that ends each time while this file is read, and not otherwise, may end because of it."""
_AGAIN_S = 0.2
_READ_ERRORS = (Code.ReadFailed, Code.ConvertFailed, Code.HostIoError)


async def read_served(
    supervisor: SupervisorControl, role: str, served: Path, read: Callable[[], Awaitable[None]], note: Callable[[str], None]
) -> None:
    """Call ``read``, which reads the file ``served`` of the role; again from its start if the role ended meanwhile.

    ``note(text)`` prints that.  The role is waited for ``ROLE_WAIT_S``; ``RoleFailed``, ``RoleHeld``, ``RoleHung``,
    ``RoleUnavailable`` say that it did not come back, and that the command is to be given again.
    """
    for attempt in range(1, ATTEMPTS_MAX + 1):
        before = await _known_status(supervisor, role)
        try:
            await read()
        except RigError as error:
            if error.code not in _READ_ERRORS or attempt == ATTEMPTS_MAX or before is None:
                raise
            if not await _ended(supervisor, before, served):
                raise
            note(f"role {role} ended while {served} was read; waiting until it is back, then reading it again ...")
            await _back(supervisor, role, served, error)
        else:
            return


async def _known_status(supervisor: SupervisorControl, role: str) -> RoleStatus | None:
    """None: the supervisor does not answer.  The file can be read without it."""
    try:
        return await _status(supervisor, role)
    except RigError:
        return None


async def _status(supervisor: SupervisorControl, role: str) -> RoleStatus:
    return next(status for status in (await supervisor.status()).roles if status.name == role)


async def _ended(supervisor: SupervisorControl, before: RoleStatus, served: Path) -> bool:
    """Return True if the process of the role was replaced or ended; the file vanishes before the supervisor knows it."""
    now = await _status(supervisor, before.name)
    return now.pid != before.pid or now.state != "ready" or not await _is_there(served)


async def _is_there(served: Path) -> bool:
    """Return True if the file can be opened; the kernel caches the attributes of files that no longer exist."""

    def look() -> None:
        os.close(os.open(served, os.O_RDONLY | os.O_CLOEXEC))

    try:
        await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    except OSError:
        return False
    return True


async def _back(supervisor: SupervisorControl, role: str, served: Path, error: RigError) -> None:
    status = await _status(supervisor, role)
    with trio.move_on_after(ROLE_WAIT_S):
        while True:
            status = await supervisor.wait_for_steady_state(name=role)
            if role_error(status) is not None or await _is_there(served):
                break
            await SYSTEM_CLOCK.sleep(_AGAIN_S)  # its mount is in another process
    gone = role_error(status)
    if gone is not None:
        text = f"{gone.message}; it ended while {served} was read: give the command again when it is back"
        raise RigError(gone.code, text, recoverable=True, role=role) from error
