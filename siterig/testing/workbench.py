"""Everything that tests of one process use of siterig: disks, file systems, an Azurite, a rig and its VMs.

The fixtures of the pytest plugin are made of it.  It also works without pytest:

    with Workbench(Path("bench")) as bench, bench.fs(size="64MiB") as fs:
        (fs / "file").write_text("text")
        for position in fs.positions(20):
            with fs.state(position) as folder:
                ...  # the file system as a power cut would have left it

Servers are processes of their own.  They start with the first use, and end with the block.

Fault contract: if this process is killed, its servers notice it, release all mounts and loop devices, and end.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from siterig.blockfs.core.errors import Code, RigError
from siterig.images import mountpoint
from siterig.testing.disk_handles import DiskHandle, FileSystemHandle
from siterig.testing.needs import require_mounts
from siterig.testing.servers.disk_client import DiskClient, PendingCall
from siterig.testing.servers.shared_server import SharedServer
from siterig.testing.settings import Setup, TestingSettings
from siterig.testing.templates import Templates

if TYPE_CHECKING:
    from siterig.testing.rig_handles import RigHandle, VmHandle

_NAME_CHARS_MAX = 40


class Workbench:
    """The servers of one test process; use it as a context manager.

    Attributes:
        folder: its folder.
        settings: the settings that count where a call names no other value.
    """

    def __init__(self, folder: Path, settings: TestingSettings | None = None, *, shared: Path | None = None) -> None:
        """Make a workbench; nothing is started yet.

        Args:
            folder: a folder for its files; it is created, and its disks and templates are removed at the end.
            settings: the settings; without it the defaults.
            shared: a folder that all workers of a test session name: templates are shared in it, and with the setting
                ``share`` the rig and the Azurite, too.
        """
        self.folder = folder.absolute()
        self.settings = settings or TestingSettings()
        self._shared = (shared or folder).absolute()
        self._is_alone = shared is None
        self._numbers = itertools.count(1)
        self._disks: DiskClient | None = None
        self._servers: dict[tuple[str, bool], SharedServer] = {}
        self._templates = Templates(self._shared / "templates", self._client, self.folder / "fs", self._remove)
        self._rigs = 1
        self._ahead: dict[tuple[int, Path | None, bool], tuple[str, list[PendingCall]]] = {}
        self._removals: deque[tuple[str, PendingCall]] = deque()

    def __enter__(self) -> Workbench:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_templates()  # of a former process that was killed: the input of a setup may have changed since
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all servers of this process, and remove the disks; does nothing the second time."""
        with ExitStack() as stack:
            for server in self._servers.values():
                stack.callback(server.leave)
            self._servers = {}
            if self._disks is not None:
                stack.callback(self._end_disks, self._disks)
                self._disks = None
            self._remove_templates()

    def _remove_templates(self) -> None:
        """Remove the templates, unless others use them."""
        if self._is_alone:
            shutil.rmtree(self.folder / "templates", ignore_errors=True)

    def _end_disks(self, disks: DiskClient) -> None:
        disks.end()
        for name in ("disks", "fs", "mnt", "states"):
            with suppress(OSError):  # a mount that a program still uses
                shutil.rmtree(self.folder / name)

    # --- disks --------------------------------------------------------------------------------------------------

    def _client(self) -> DiskClient:
        if self._disks is not None and not self._disks.is_running():
            self._disks.end()
            self._disks = None
        if self._disks is None:
            mountpoint.check_fuse()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._disks = DiskClient(self.folder, limit_s=self.settings.timeout)
            self._ahead.clear()
            self._removals.clear()
        return self._disks

    def _remove(self, name: str) -> None:
        """Have the server remove a disk; it does so while this process continues."""
        if self._disks is not None:
            self._removals.append((name, self._disks.begin("remove_vm", vm=name)))

    def _remove_again(self) -> None:
        """Repeat removals that came too early: the kernel closes a disk a moment after its last use has ended."""
        for _ in range(len(self._removals) - 1):  # the newest one may not be answered yet
            name, removal = self._removals.popleft()
            try:
                removal.result()
            except RigError as error:
                if error.code != Code.DiskInUse:
                    raise
                self._remove(name)

    def _new_name(self, name: str) -> str:
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-_")[:_NAME_CHARS_MAX]
        return f"{stem or 'disk'}-{next(self._numbers)}"

    @contextmanager
    def disk(
        self,
        *,
        size: str | int | None = None,
        fs: str | None = None,
        setup: Setup = None,
        log: bool | None = None,
        timeout: float | None = None,
    ) -> Iterator[DiskHandle]:
        """Make a disk for the time of the block.

        Args:
            size: its size, like ``64MiB`` or a number of bytes.
            fs: ``ext4`` or ``xfs``: the disk begins with this file system, as a copy of a template; None: with zeros.
            setup: fills the file system of the template: a shell command, or a function that gets its folder.
            log: record every write, so that the disk has crash states.
            timeout: the longest wait for the server in seconds, if it is not up.

        Raises:
            RigError: ``FuseMissing``, ``NotPermitted``, ``ToolMissing`` and others if the machine cannot do it.
        """
        settings = self.settings.but(size=size, fs=fs, setup=setup, log=log, timeout=timeout)
        if fs is None and setup is not None:
            raise RigError(Code.BadRequest, "setup= needs a file system: give fs=, too; allowed: ext4, xfs")
        with self._disk(settings, fs) as disk:
            self._begin_next(disk)
            yield disk

    @contextmanager
    def _disk(self, settings: TestingSettings, fs: str | None) -> Iterator[DiskHandle]:
        template = None
        if fs is not None:
            if settings.setup is not None:
                require_mounts(settings.fs)
            template = self._templates.find(size_bytes=settings.size, fs=settings.fs, setup=settings.setup)
        disk = self._new_disk(settings, template, fs)
        try:
            yield disk
        finally:
            disk.remove_states()
            self._remove(disk.name)
        if self._disks is not None and not self._disks.is_running():
            raise self._disks.failed("ended while a test used it")

    def _new_disk(self, settings: TestingSettings, template: Path | None, fs: str | None) -> DiskHandle:
        """Return the disk that the server has made ahead, or a new one."""
        client = self._client()
        self._remove_again()
        key = (settings.size, template, settings.log)
        name, pending = self._ahead.pop(key) if key in self._ahead else self._begin_disk(client, *key)
        for call in pending:
            call.result()
        return DiskHandle(
            client,
            name,
            size_bytes=settings.size,
            template=template,
            fs=fs,
            logged=settings.log,
            states=self.folder / "states",
        )

    def _begin_next(self, disk: DiskHandle) -> None:
        """Have the server make another disk of this kind while the test runs."""
        key = (disk.size_bytes, disk.template, disk.is_logged)
        if self._disks is not None and key not in self._ahead:
            self._ahead[key] = self._begin_disk(self._disks, *key)

    def _begin_disk(
        self, client: DiskClient, size_bytes: int, template: Path | None, log: bool
    ) -> tuple[str, list[PendingCall]]:
        name = f"disk-{next(self._numbers)}"
        backing = {} if template is None else {"backing": {"path": str(template), "format": "raw"}}
        pending = [client.begin("create_disk", vm=name, name="disk", size_bytes=size_bytes, **backing)]
        if log:
            pending.append(client.begin("start_tracking", vm=name))
        return name, pending

    @contextmanager
    def fs(
        self,
        *,
        size: str | int | None = None,
        fs: str | None = None,
        setup: Setup = None,
        log: bool | None = None,
        timeout: float | None = None,
    ) -> Iterator[FileSystemHandle]:
        """Make a disk with a file system, a copy of a template, and mount it for the time of the block.

        The arguments are those of :meth:`disk`; without ``fs`` and ``setup`` the settings count.

        Raises:
            RigError: as :meth:`disk`; ``VmBusy`` at the end if a program still uses the file system.
        """
        settings = self.settings.but(size=size, fs=fs, setup=setup, log=log, timeout=timeout)
        require_mounts(settings.fs)
        with self._disk(settings, settings.fs) as disk:
            handle = FileSystemHandle(disk, self.folder / "fs" / disk.name, settings.fs)
            handle.mount()
            self._begin_next(disk)  # not before: the mount would wait for it
            failed = True
            try:
                yield handle
                failed = False
            finally:
                handle.unmount(even_if_used=failed)
                if not failed:
                    handle.path.rmdir()

    def keep_rig(self, folder: Path) -> None:
        """Keep the files of a rig when it has ended, in :meth:`rig_files`.

        Args:
            folder: the state folder of the rig.
        """
        for server in self._servers.values():
            if server.values.get("folder") == str(folder):
                server.keep_files()

    def rig_files(self, folder: Path) -> Path:
        """Return the folder in which the files of a rig stay, if they are kept.

        Args:
            folder: the state folder of the rig, which may lie elsewhere while the rig is up.
        """
        for server in self._servers.values():
            if server.values.get("folder") == str(folder):
                return server.folder / "rig"
        return folder

    # --- servers ------------------------------------------------------------------------------------------------

    def _server(self, kind: str, *, share: bool | None, timeout: float | None) -> SharedServer:
        settings = self.settings.but(share=share, timeout=timeout)
        key = kind, settings.share
        server = self._servers.get(key)
        if server is not None and not server.is_up():
            server.leave()
            server = None
        if server is None:
            folder = self._shared / kind if settings.share else self.folder / f"{kind}-{self._rigs}"
            server = SharedServer(
                "rig" if kind == "rig" else "azurite", folder, limit_s=settings.timeout, shared=settings.share
            )
            self._servers[key] = server
        return server

    def azurite(self, *, share: bool | None = None, timeout: float | None = None) -> str:
        """Return the connection string of an Azurite, which this process uses until the workbench ends.

        Args:
            share: one Azurite for all workers of a test session.
            timeout: the longest wait for its start in seconds.

        Raises:
            RigError: ``AzuriteMissing``, ``NodeMissing``, ``TestServerFailed``.
        """
        return str(self._server("azurite", share=share, timeout=timeout).values["connection_string"])

    @contextmanager
    def rig(
        self, *, share: bool | None = None, interval: float | None = None, timeout: float | None = None
    ) -> Iterator[RigHandle]:
        """Use a rig that is up for the time of the block; it stays up until the workbench ends.

        At the end of the block, a lost site is restored, and the VMs of the handle are removed.  If that fails (the vault
        keeps a VM that was failed over), the rig is ended, and the next block starts another one.  A shared rig stays up.

        Args:
            share: one rig for all workers of a test session.
            interval: the replication interval of protected VMs in seconds.
            timeout: the longest wait for its start, and for each job, in seconds.

        Raises:
            RigError: ``MachineUnfit``, ``NotPermitted`` and others if the machine cannot run a rig; ``TestServerFailed``.
        """
        from siterig.testing.rig_handles import RigHandle  # noqa: PLC0415 (disks are used without the libraries of the vault)

        settings = self.settings.but(interval=interval, timeout=timeout)
        server = self._server("rig", share=share, timeout=timeout)
        handle = RigHandle(
            Path(server.values["folder"]),
            interval_s=settings.interval,
            timeout_s=settings.timeout,
            is_shared=server.shared,
        )
        try:
            yield handle
        finally:
            try:
                handle.clear()
            except (RigError, OSError):
                # In a shared rig, the VM stays: other processes use the rig, and their VMs have other names.
                if not server.shared and self._servers.get(("rig", False)) is server:
                    self._rigs += 1
                    self._servers.pop(("rig", False)).leave()

    @contextmanager
    def vm(
        self,
        rig: RigHandle,
        name: str = "vm",
        *,
        size: str | int | None = None,
        fs: str | None = None,
        setup: Setup = None,
        disks: tuple[str, ...] = ("data",),
    ) -> Iterator[VmHandle]:
        """Make a VM at the site of a rig, whose disks begin as copies of a template; the rig's block removes it.

        Args:
            rig: the rig.
            name: the beginning of its name.
            size: the size of each disk.
            fs: the file system of each disk.
            setup: fills the file system of the template.
            disks: the names of the disks.

        Raises:
            RigError: as :meth:`disk`, and errors of the vault.
        """
        from siterig.blockfs.contracts.control import BackingImage  # noqa: PLC0415 (as in rig)
        from siterig.blockfs.contracts.disk_spec import DiskSpec  # noqa: PLC0415

        settings = self.settings.but(size=size, fs=fs, setup=setup)
        require_mounts(settings.fs)
        template = self._templates.find(size_bytes=settings.size, fs=settings.fs, setup=settings.setup)
        backing = BackingImage(path=str(template), format="raw")
        specs = {disk: DiskSpec(name=disk, size_bytes=settings.size, backing=backing) for disk in disks}
        handle = rig.vm(f"{self._new_name(name)}-{os.getpid()}", specs)  # workers may share the rig
        failed = True
        try:
            yield handle
            failed = False
        finally:
            handle.release(even_if_used=failed)
