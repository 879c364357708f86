"""Starts the supervisor of a rig, and ends a rig, from another process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from siterig.accounts import account_choice
from siterig.accounts.account_choice import AccountChoice
from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.storage import azurite_files
from siterig.azure_emu.vault.context.roles import role_error
from siterig.azure_emu.vault.model.resync_window import OPTION, ResyncWindow
from siterig.blockfs.contracts.upload_limits import UploadLimits
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import doctor
from siterig.core.fuse_options import FuseOptions
from siterig.core.limits import Limits
from siterig.core.lock import ENDING, already_up, is_locked, take_ending, take_lock
from siterig.core.paths import Layout, check_format, create, restore_state
from siterig.core.supervisor_contract import SupervisorControl
from siterig.core.upload_options import upload_words
from siterig.rpc import directory
from siterig.rpc.contract import check_socket_path, error_of
from siterig.supervisor import cleanup, new_rig, process
from siterig.supervisor.process import last_line

END_TIMEOUT_S = 90.0
HUNG_END_TIMEOUT_S = 15.0
"""The limit for a supervisor that did not answer within its deadline, ``ASKED_MAX`` times."""
ASKED_MAX = 3
KILL_TIMEOUT_S = 10.0
QUICK_RETRIES = "--quick-retries"
UNTIL_EOF = "--until-eof"
RESYNC_WINDOW = OPTION


@dataclass
class Launched:
    """A supervisor that is a child of this process."""

    popen: subprocess.Popen[bytes]

    async def end(self) -> None:
        """End the rig even if guests use it, and wait; cannot be cancelled.  Does nothing if the rig has ended."""
        with trio.CancelScope(shield=True):
            self.popen.terminate()
            await trio.to_thread.run_sync(self.popen.wait)
            if self.popen.stdin is not None:
                self.popen.stdin.close()


def _spawn(layout: Layout, report_fd: int, options: list[str]) -> subprocess.Popen[bytes]:
    return process.start_module(
        "siterig.supervisor.main",
        [str(layout.root), *options, str(report_fd)],
        log=layout.log("supervisor"),
        fd=report_fd,
        stdin=subprocess.PIPE if UNTIL_EOF in options else subprocess.DEVNULL,
        variables=azurite_files.environment(),  # its roles have another working directory
    )


async def up(
    layout: Layout,
    *,
    until_eof: bool = False,
    quick_retries: bool = False,
    fuse_options: FuseOptions | None = None,
    limits: Limits | None = None,
    resync_window: ResyncWindow | None = None,
    uploads: UploadLimits | None = None,
    account: AccountChoice | None = None,
    announce: Callable[[str, str], None] = lambda _role, _state: None,
) -> Launched:
    """Start the rig and wait until every role is ready.

    If that fails, nothing is left running, and a new rig is removed.  Requirements that this machine lacks are reported
    before anything is made or started (:func:`siterig.cli.doctor.require_fit`).

    Args:
        layout: the rig.
        until_eof: the rig ends when this process ends, in any way.
        quick_retries: the agent retries after seconds instead of minutes.
        front_end: the way in which the disks are served.
        limits: the limits of all disks, until the rig is down.
        resync_window: the hours in which a resync that is due begins by itself; None: never.
        uploads: the limits of the agent's uploads, until then.
        account: the storage account of a user, in place of Azurite; it is checked before anything is made or started.
        announce: called with (role, state) as roles become ready, and with the last lines of the logs if a new rig fails.
    Raises:
        RigError: ``AlreadyUp``, ``StateVersion``, ``NotARig``, ``AccountFixed``, the errors of the account
            (:func:`siterig.accounts.admission.check_account`), or the error with which a role failed.
    """
    check_socket_path(layout.socket("supervisor"))
    check_format(layout)
    if is_up(layout) and not is_locked(layout.lock, ENDING):
        raise await _already_up(layout)
    needs_azurite = account is None and not layout.user_account.exists()
    fit = partial(doctor.require_fit, layout.root, is_new=not layout.state.exists(), needs_azurite=needs_azurite)
    await trio.to_thread.run_sync(fit)
    is_new, had_folder = new_rig.is_new(layout), layout.root.is_dir()
    store_account = None if needs_azurite else await account_choice.admitted(layout, account, announce)
    create(layout)
    try:
        if store_account is not None:
            store_account()
        return await _launch(
            layout,
            announce,
            until_eof=until_eof,
            quick_retries=quick_retries,
            words=[
                *(fuse_options or FuseOptions()).words(),
                *(limits or Limits()).words(),
                *_window_words(resync_window),
                *upload_words(uploads or UploadLimits()),
            ],
            reports_logs=is_new,
        )
    except BaseException as error:
        # With AlreadyUp the new rig belongs to another process.
        if is_new and not (isinstance(error, RigError) and error.code == Code.AlreadyUp):
            with trio.CancelScope(shield=True):
                await new_rig.remove(layout, had_folder=had_folder)
        raise


def _window_words(window: ResyncWindow | None) -> list[str]:
    return [] if window is None else [f"{RESYNC_WINDOW}={window.text}"]


async def _launch(
    layout: Layout,
    announce: Callable[[str, str], None],
    *,
    until_eof: bool,
    quick_retries: bool,
    words: list[str],
    reports_logs: bool,
) -> Launched:
    report_r, report_w = os.pipe2(os.O_CLOEXEC)
    try:
        flags = {UNTIL_EOF: until_eof, QUICK_RETRIES: quick_retries}
        options = [option for option, on in flags.items() if on]
        options += words
        popen = _spawn(layout, report_w, options)
    except BaseException:
        os.close(report_r)
        raise
    finally:
        os.close(report_w)
    launched = Launched(popen)
    starting: list[str] = []

    def note(role: str, state: str) -> None:
        announce(role, state)
        if state == "starting":
            starting.append(role)
        elif role in starting:
            starting.remove(role)

    try:
        async with trio.lowlevel.FdStream(report_r) as reports:
            await _await_up(layout, reports, note)
    except BaseException as error:
        await launched.end()
        if reports_logs and isinstance(error, RigError):
            new_rig.report_logs(layout, starting or ["supervisor"], announce)
        raise
    return launched


async def _already_up(layout: Layout) -> RigError:
    """Return ``AlreadyUp`` with the errors of the roles of the running rig."""
    error = already_up(layout.lock)
    roles: list[RoleStatus] = []
    with contextlib.suppress(RigError):
        roles = (await directory.supervisor(layout).status()).roles
    role_errors = [found.message for found in map(role_error, roles) if found is not None]
    return RigError(error.code, "; ".join([error.message, *role_errors]))


async def _await_up(layout: Layout, reports: trio.lowlevel.FdStream, announce: Callable[[str, str], None]) -> None:
    pending = b""
    async for data in reports:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            if "error" in report:
                raise error_of(report["error"])
            if "up" in report:
                return
            announce(report["role"], report["state"])
    raise RigError(Code.SupervisorFailed, f"the supervisor ended: {last_line(layout.log('supervisor'))}")


def is_up(layout: Layout) -> bool:
    """Return True if a supervisor holds the rig's lock; does not take the lock."""
    return is_locked(layout.lock)


def _send(layout: Layout, number: signal.Signals) -> None:
    """Send a signal to the supervisor; do nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError, ValueError):
        pidfd = os.pidfd_open(int(layout.lock.read_text()))
        try:
            if is_up(layout):  # so the descriptor is the holder of the lock, and no later process with its number
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


async def _ended(layout: Layout, limit_s: float) -> bool:
    """Wait until no supervisor holds the lock; return True if it is free within the limit."""
    with SYSTEM_CLOCK.move_on_after(limit_s):
        # A wait for the lock in the kernel would block a thread that cannot be cancelled.  There is no descriptor of the
        # supervisor to wait for either: another process may have started it.
        while is_up(layout):
            await SYSTEM_CLOCK.sleep(0.05)
    return not is_up(layout)


async def _stop_supervisor(layout: Layout) -> list[str]:
    """End the supervisor with its roles; return one line for each action.

    A supervisor that does not answer is starting, ending or hanging.  It is killed if it does not end by itself.

    Raises:
        RigError: ``VmBusy``.
    """
    supervisor = directory.supervisor(layout)
    limit_s = END_TIMEOUT_S
    done: list[str] = []
    try:
        await _wait_for_answer(supervisor)
        done = await supervisor.stop_all()
    except RigError as error:
        if error.code != Code.RoleUnavailable:
            raise
        limit_s = HUNG_END_TIMEOUT_S if error.uncertain else END_TIMEOUT_S
        _send(layout, signal.SIGTERM)
    if not await _ended(layout, limit_s):
        _send(layout, signal.SIGKILL)
        done.append(f"killed the supervisor, which did not end within {limit_s:g} s")
        await _ended(layout, KILL_TIMEOUT_S)
    return done


async def _wait_for_answer(supervisor: SupervisorControl) -> None:
    """Raise ``RoleUnavailable`` if it does not answer ``ASKED_MAX`` times; the call that ends it has no deadline."""
    for asked in range(1, ASKED_MAX + 1):
        try:
            await supervisor.status()
        except RigError as error:
            if asked == ASKED_MAX or not error.uncertain:
                raise
        else:
            return


async def down(layout: Layout) -> list[str]:
    """End the rig and release all it holds on this host, also if its supervisor was killed.

    A supervisor that does not answer is killed.  A rig that is down already is no error.

    Returns:
        One line for each action.
    Raises:
        RigError: ``VmBusy`` if a guest's mount is in use; then the rig stays up.
    """
    restored = restore_state(layout)
    check_format(layout)
    if not layout.state.exists():
        return []
    done = [] if restored is None else [restored]
    ending = await trio.to_thread.run_sync(take_ending, layout.lock)
    try:
        if is_up(layout):
            done += await _stop_supervisor(layout)
        lock = take_lock(layout.lock, waits=False)
        try:
            return done + await cleanup.clear(layout)
        finally:
            os.close(lock)
    finally:
        os.close(ending)
