"""The process that serves the disks of a workbench.

Command: ``python -m siterig.core.quick_start siterig.testing.servers.disk_server DIR CONTROL_FD CLIENT_PID REPORT_FD``.

``DIR/disks`` has the disks, ``DIR/mnt`` is their mount, and ``DIR/fs`` has the mount points of file systems that the client
mounts.  The client sends one line of JSON for each call of :class:`siterig.blockfs.contracts.control.DiskHostControl`
(``{"call": NAME, "arguments": {...}}``) and receives one line (``{"result": ...}`` or ``{"error": ...}``).  The calls of
:class:`siterig.core.fault_contract.FaultControl` concern the fault rules of all disks; they are loaded at the first one.

Fault contract: the server ends when its client ends, in any way, or closes the connection.  First it releases everything
that uses its disks: mounts below ``DIR/fs`` and loop devices on its disks, also if a program still uses them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from pydantic import ValidationError

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.json_text import json_text
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext import linux
from siterig.core.failures import unwrap_rig_error
from siterig.core.process_setup import allow_many_files, forbid_core_dumps
from siterig.rpc.contract import Method, error_body, method_names
from siterig.supervisor import cleanup
from siterig.supervisor.process_log import log_to_stderr
from siterig.testing.servers.client_process import LOOK_EVERY_S, ClientProcess
from siterig.testing.servers.server_process import ignore_end_signals, report_error, report_ready

if TYPE_CHECKING:
    from siterig.core.fault_contract import FaultControl

_log = structlog.get_logger(__name__)
_NAMES = frozenset(method_names(DiskHostControl))
_methods: dict[str, Method] = {}


class _Faults:
    """The fault rules of the disks, made at the first call that concerns them."""

    def __init__(self, host: DiskHost, client_pid: int, nursery: trio.Nursery) -> None:
        self._host, self._client_pid, self._nursery = host, client_pid, nursery
        self._control: FaultControl | None = None

    async def method(self, name: str) -> tuple[FaultControl, Method] | None:
        """Return a method of the contract of faults, and its object; None if it has none of this name."""
        from siterig.core.fault_contract import FaultControl  # noqa: PLC0415 (disks without faults start faster)

        if name not in method_names(FaultControl):
            return None
        if name not in _methods:
            _methods[name] = Method.of(FaultControl.__name__, getattr(FaultControl, name))
        return await self._started(), _methods[name]

    async def _follow_client(self) -> None:
        """Remove all rules when the client must end: a thread of it that waits for a rule keeps it from ending."""
        client = ClientProcess(self._client_pid)
        while True:
            await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)
            if client.is_ending():
                await self.clear()

    async def _started(self) -> FaultControl:
        if self._control is None:
            from siterig.faults.armed_disk_rule import disks_of_host  # noqa: PLC0415 (as above)
            from siterig.host_faults.log_files import DiskHostLogs  # noqa: PLC0415
            from siterig.images.mount_faults import LocalFaults  # noqa: PLC0415

            faults = LocalFaults(lambda: disks_of_host(self._host), [DiskHostLogs(self._host.root)])
            await self._nursery.start(faults.run)
            self._control = faults.control
            self._nursery.start_soon(self._follow_client)
        return self._control

    async def clear(self) -> None:
        """Remove all rules, so that no use of a disk waits for one."""
        if self._control is not None:
            with trio.CancelScope(shield=True):
                await self._control.clear_faults()


def _method(name: str) -> Method:
    """Return a method of the contract; its types are read at the first call."""
    if name not in _methods:
        if name not in _NAMES:
            raise RigError(Code.BadRequest, f"unknown call {name!r}; allowed: {', '.join(sorted(_NAMES))}")
        _methods[name] = Method.of(DiskHostControl.__name__, getattr(DiskHostControl, name))
    return _methods[name]


async def _answer(host: DiskHost, faults: _Faults, line: bytes) -> str:
    try:
        request = json.loads(line)
        target: object = host
        if request["call"] not in _NAMES and (found := await faults.method(request["call"])) is not None:
            target, method = found
        else:
            method = _method(request["call"])
        arguments = method.arguments.validate_python(request["arguments"])
        result = await getattr(target, method.name)(**arguments)
        return '{"result": ' + method.result.dump_json(result).decode() + "}"
    except ValidationError as exc:
        problem = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        return json_text({"error": error_body(RigError(Code.BadRequest, f"argument {where}: {problem['msg']}"))})
    except (RigError, ExceptionGroup) as exc:
        failure = unwrap_rig_error(exc)
        if failure is None:
            raise
        return json_text({"error": error_body(failure)})


async def _answer_calls(host: DiskHost, faults: _Faults, control: trio.SocketStream, end: Callable[[], None]) -> None:
    rest = b""
    try:
        async for data in control:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                await control.send_all((await _answer(host, faults, line)).encode() + b"\n")
    except (trio.BrokenResourceError, OSError):
        pass
    end()


async def _wait_for_client(pidfd: int, end: Callable[[], None]) -> None:
    await trio.lowlevel.wait_readable(pidfd)
    end()


async def _wait_for_signal(end: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            end()


async def _release(folder: Path) -> None:
    """Release all uses of the disks, while these still answer; a use by a program ends with the program."""
    with trio.CancelScope(shield=True):
        await _unmount_below(folder / "fs")
        for use in loop_devices.loop_uses():
            if Path(use.disk).is_relative_to(folder / "mnt"):
                for where in reversed(use.mountpoints):
                    await _unmount_below(Path(where))
                await trio.run_process(
                    ["losetup", "--detach", str(use.loop)], capture_stderr=True, check=False, start_new_session=True
                )
                _log.info("leftover_removed", loop=use.loop, disk=use.disk)


async def _unmount_below(where: Path) -> None:
    try:
        for line in await cleanup.unmount_stale(where):
            _log.info("leftover_removed", action=line)
    except RigError as error:
        _log.warning("leftover_stays", reason=error.message)


async def _run(folder: Path, control: socket.socket, client_pid: int, client_pidfd: int, report_fd: int) -> None:
    host = DiskHost(folder / "disks", folder / "mnt", policy=LogPolicy(kept_share_max=None))
    try:
        async with trio.open_nursery() as nursery:
            served = trio.CancelScope()

            async def serve_files(*, task_status: trio.TaskStatus[None]) -> None:
                with served:
                    await serve(host, host.mountpoint, source="siterig:tests", task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve_files)
            faults = _Faults(host, client_pid, nursery)
            try:
                async with trio.open_nursery() as until:
                    end = until.cancel_scope.cancel
                    await until.start(_wait_for_signal, end)
                    until.start_soon(_wait_for_client, client_pidfd, end)
                    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
                    until.start_soon(_answer_calls, host, faults, stream, end)
                    report_ready(report_fd, mount=str(host.mountpoint))
            finally:
                await faults.clear()
                await _release(folder)
                served.cancel()
    finally:
        host.close()


def main() -> None:
    """Serve until the client ends."""
    folder, control_fd, client_pid, report_fd = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    os.set_inheritable(report_fd, False)
    os.set_inheritable(control_fd, False)
    log_to_stderr(folder / "log")
    try:
        client_pidfd = os.pidfd_open(client_pid)
        if os.getppid() != client_pid:
            return  # it ended before this process could watch it
        ignore_end_signals()
        linux.forgo_sync()  # a test's disk takes most of its time for syncs, and nobody needs it after a power loss
        allow_many_files()
        forbid_core_dumps(holds_keys=False)
        trio.run(_run, folder, socket.socket(fileno=control_fd), client_pid, client_pidfd, report_fd)
    except ProcessLookupError:
        return
    except (RigError, ExceptionGroup) as error:
        failure = unwrap_rig_error(error)
        if failure is None:
            raise
        _log.error("disk_server_failed", code=failure.code, reason=failure.message)
        report_error(report_fd, failure)
        sys.exit(1)


if __name__ == "__main__":
    main()
