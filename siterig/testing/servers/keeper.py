"""The process that keeps a rig or an Azurite up while test processes use it.

Command: ``python -m siterig.core.quick_start siterig.testing.servers.keeper KIND DIR REPORT_FD``.
KIND is ``rig`` or ``azurite``.

Each user holds a shared lock on ``DIR/users`` (:mod:`siterig.testing.servers.shared_server`).  The keeper waits for the
exclusive lock: the kernel gives it when the last user has released its own, also by a kill.  So there is no count to keep.
A user that was killed while it waits in the kernel for a disk of the rig keeps its lock until the rig ends; the keeper looks
for that (:mod:`siterig.testing.servers.client_process`).

At the end, the keeper removes the files of its server, unless ``DIR/keep`` exists; then they are in ``DIR/rig``.

Fault contract: if the keeper is killed, the rig or Azurite ends by itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.storage.azurite import start_azurite
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.json_text import json_text
from siterig.blockfs.files.safe_files import make_folder
from siterig.core.failures import unwrap_rig_error
from siterig.core.lock import take_lock
from siterig.core.paths import Layout
from siterig.core.process_setup import forbid_core_dumps
from siterig.rpc.contract import check_socket_path
from siterig.supervisor import cleanup, launch
from siterig.supervisor.process_log import log_to_stderr
from siterig.testing.servers.client_process import LOOK_EVERY_S, ClientProcess, lock_holders
from siterig.testing.servers.server_process import ignore_end_signals, report_error, report_ready
from siterig.testing.servers.shared_server import KEEP

_log = structlog.get_logger(__name__)


def _log_state(role: str, state: str) -> None:
    _log.info("role_state", role=role, state=state)


def _remove_files(folder: Path) -> None:
    for name in ("rig", "azurite", "keys"):
        path = folder / name
        shutil.rmtree(path.resolve(), ignore_errors=True)
        path.unlink(missing_ok=True)  # a link


def _bring_home(folder: Path) -> None:
    """Move the files of a rig to ``folder/rig``, if they lie elsewhere because of the length of the path."""
    rig = folder / "rig"
    if rig.is_symlink():
        target = rig.resolve()
        rig.unlink()
        shutil.move(target, rig)


def _rig_folder(folder: Path) -> Path:
    """Return the state folder of the rig: ``folder/rig``, or a link of that name to a new folder with a shorter path."""
    rig = folder / "rig"
    try:
        check_socket_path(Layout(rig).socket("supervisor"))
    except RigError as error:
        if error.code != Code.PathTooLong:
            raise
        if not rig.exists():
            rig.symlink_to(tempfile.mkdtemp(prefix="siterig-"))
    return rig


@asynccontextmanager
async def _rig(folder: Path) -> AsyncIterator[dict[str, object]]:
    layout = Layout.of(_rig_folder(folder))
    launched = await launch.up(layout, until_eof=True, quick_retries=True, announce=_log_state)
    try:
        yield {"folder": str(layout.root)}
    finally:
        await launched.end()
        with trio.CancelScope(shield=True):
            lock = take_lock(layout.lock)
            try:
                for line in await cleanup.clear(layout):
                    _log.info("leftover_removed", action=line)
            finally:
                os.close(lock)


@asynccontextmanager
async def _azurite(folder: Path) -> AsyncIterator[dict[str, object]]:
    azurite = await start_azurite(folder / "azurite", folder / "keys")
    try:
        yield {"connection_string": azurite.connection_string}
    finally:
        await azurite.stop()


_KINDS: dict[str, Callable[[Path], AbstractAsyncContextManager[dict[str, object]]]] = {"rig": _rig, "azurite": _azurite}


async def _wait_for_last_user(users: Path, end: Callable[[], None]) -> None:
    # The descriptor stays open, and the lock held, to the end of this process: a new user waits until then.
    fd = os.open(users, os.O_RDWR | os.O_CLOEXEC)
    await trio.to_thread.run_sync(fcntl.flock, fd, fcntl.LOCK_EX, abandon_on_cancel=True)
    end()


async def _watch_users(users: Path, end: Callable[[], None]) -> None:
    """End when no user can release its lock: each one must end, and waits for a disk of the rig that a fault rule holds."""
    watched: dict[int, ClientProcess] = {}
    fd = os.open(users, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)
            pids = lock_holders(fd)
            watched = {pid: watched.get(pid) or ClientProcess(pid) for pid in pids}
            ending = [user.is_ending() for user in watched.values()]  # each one is looked at
            if pids and all(ending):
                _log.info("users_hang", pids=pids)
                end()
    finally:
        os.close(fd)


async def _wait_for_signal(end: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            end()


async def _keep(kind: str, folder: Path, report_fd: int) -> None:
    async with trio.open_nursery() as nursery:
        end = nursery.cancel_scope.cancel
        await nursery.start(_wait_for_signal, end)
        nursery.start_soon(_wait_for_last_user, folder / "users", end)
        nursery.start_soon(_watch_users, folder / "users", end)
        async with _KINDS[kind](folder) as values:
            write_atomically(folder / "ready.json", json_text(values).encode())
            try:
                report_ready(report_fd, **values)
                await trio.sleep_forever()
            finally:
                (folder / "ready.json").unlink()


def main() -> None:
    """Keep the server up until its last user has ended."""
    kind, folder, report_fd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(report_fd, False)
    log_to_stderr(folder / "log")
    ignore_end_signals()
    forbid_core_dumps(holds_keys=True)
    try:
        make_folder(folder, parents=True)
        alive = os.open(folder / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)  # held to the end of this process
        trio.run(_keep, kind, folder, report_fd)
        if (folder / KEEP).exists():
            _bring_home(folder)
        else:
            _remove_files(folder)
    except (RigError, ExceptionGroup) as error:
        failure = unwrap_rig_error(error)
        if failure is None:
            raise
        _log.error("server_failed", kind=kind, code=failure.code, reason=failure.message)
        report_error(report_fd, failure)
        sys.exit(1)


if __name__ == "__main__":
    main()
