"""Calls to the process of a mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from siterig.blockfs.core.errors import Code, RigError
from siterig.images.mount_sockets import FoundMount, find_mount, socket_of
from siterig.rpc.client import proxy

T = TypeVar("T")


class _MountCalls:
    """The proxy of a mount's process, which reports a process that was killed as a dead mount, and a stopped one."""

    def __init__(self, mount: FoundMount, calls: object) -> None:
        self._mount, self._calls = mount, calls

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._calls, name)

        async def call(**arguments: Any) -> Any:
            try:
                return await method(**arguments)
            except RigError as error:
                if error.code != Code.RoleUnavailable:
                    raise
                socket_of(self._mount)  # it reports a process that was killed
                text = f"{self._mount.point}: {error.message}; its process runs, and is stopped or busy"
                raise RigError(error.code, text, recoverable=True) from error

        return call


def of_mount(where: Path, protocol: type[T]) -> T:
    """Return an object that implements a Protocol by calls to the process of the mount at a folder.

    Raises:
        RigError: ``NotAMount``; ``DeadMount`` if the process was killed, which also the calls raise.
    """
    mount = find_mount(where)
    return cast(T, _MountCalls(mount, proxy(protocol, socket_of(mount), guided=False, patient=False)))
