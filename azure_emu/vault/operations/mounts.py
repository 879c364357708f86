"""The operations that show a state of a VM: mounted points and writable copies."""

from __future__ import annotations

from contextlib import nullcontext

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.inventory import azure_vms
from siterig.azure_emu.vault.model.api import MountApi
from siterig.azure_emu.vault.model.resources import MountedPoint, Vm
from siterig.azure_emu.vault.mounts import mounts
from siterig.azure_emu.vault.mounts.leases import Leases
from siterig.blockfs.core.host_process import HostProcess


class MountOperations(MountApi):
    """The operations on the mounted points and the copies of one vault; ``leases`` reclaims those of ended processes."""

    def __init__(self, context: VaultContext, leases: Leases) -> None:
        self._context = context
        self._leases = leases

    async def mount_point(
        self,
        *,
        vm: str,
        point: str | None = None,
        position: int | None = None,
        time: str | None = None,
        name: str | None = None,
        process: HostProcess | None = None,
    ) -> MountedPoint:
        async with nullcontext() if process is None else self._leases.lease(process):
            return await self._context.retry_while_away(
                "mount point",
                vm,
                lambda: mounts.mount(
                    self._context, vm, point=point, position=position, time=time, name=name, process=process
                ),
            )

    async def unmount_point(self, *, vm: str, name: str) -> None:
        await self._context.retry_while_away("unmount point", vm, lambda: mounts.unmount(self._context, vm, name))

    async def mounted_points(self, *, vm: str) -> list[MountedPoint]:
        return await mounts.mounted(self._context, vm)

    async def open_copy(self, *, vm: str, name: str, position: int, process: HostProcess) -> Vm:
        async with self._leases.lease(process):
            return await self._context.retry_while_away(
                "open copy", vm, lambda: azure_vms.open_copy(self._context, vm, name, position, process)
            )

    async def remove_copy(self, *, vm: str, name: str) -> None:
        await self._context.retry_while_away("remove copy", vm, lambda: azure_vms.remove_copy(self._context, vm, name))
