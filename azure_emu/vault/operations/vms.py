"""The operations on virtual machines of both sides."""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.inventory import attached_disks, azure_vms, inventory
from siterig.azure_emu.vault.jobs import engine, job_wire, vm_tasks
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.model.api import VmApi
from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.model.resources import Job, Vm
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError


class VmOperations(VmApi):
    """The operations on the virtual machines of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter) -> None:
        self._context = context
        self._starter = starter

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> Vm:
        azure_vms.check_vm_name(vm)
        made = await self._context.retry_while_away(
            "create VM", vm, lambda: self._context.site.create_vm(vm=vm, disks=disks), repeatable=False
        )
        made_vm = Vm(name=vm, side="site", state=inventory.UNPROTECTED, disks=[azure_vms.to_vm_disk(disk) for disk in made])
        try:
            await self._context.database.transact(lambda session: inventory.cache_vm(session, made_vm))
        except RigError as error:
            # The VM exists, and list_vms records it later.
            if error.code != Code.DiskFull:
                raise
        return made_vm

    async def attach_disk(self, *, vm: str, disk: DiskSpec) -> Vm:
        try:
            made = await self._context.retry_while_away(
                "disk attach", vm, lambda: self._context.site.attach_disk(vm=vm, disk=disk), repeatable=False
            )
        except RigError as error:
            if error.code == Code.DiskExists:  # a killed vault may not have recorded it
                await attached_disks.record(self._context, await self._context.site.list_vms())
            raise
        await attached_disks.record(self._context, made)

        def state(session: Session) -> str:
            item = session.get(ItemRow, vm)
            return inventory.UNPROTECTED if item is None else item.protection_state

        disks = [azure_vms.to_vm_disk(known) for known in made]
        return Vm(name=vm, side="site", state=await self._context.database.transact(state), disks=disks)

    async def list_vms(self) -> list[Vm]:
        return await inventory.list_fabric(self._context, "site") + await inventory.list_fabric(self._context, "azure")

    async def delete_vm(self, *, vm: str, side: Side | None = None) -> Job:
        if side is None:
            sides = await vm_tasks.sides_of(self._context, vm)
            if not sides:
                known = ", ".join(sorted({found.name for found in await self.list_vms()})) or "none"
                text = f"there is no VM {vm!r}; VMs: {known}; one whose disks cannot be opened is not listed"
                raise RigError(Code.VmNotFound, f"{text}: name its side with --side site or --side azure")
            if len(sides) > 1:
                raise RigError(
                    Code.BadRequest,
                    f"both sides have a VM {vm!r}: select one with --side site or --side azure",
                )
            (side,) = sides

        def insert(session: Session) -> Job:
            vm_tasks.require_deletable(session, vm, side)
            variables = vm_tasks.variables_of_delete(side)
            return job_wire.to_wire(engine.enqueue(session, vm_tasks.DELETE, vm, variables, self._context.clock.wall_ns()))

        return await self._starter.start(insert)

    async def rename_vm(self, *, vm: str, name: str) -> Job:
        azure_vms.check_vm_name(name)
        if name == vm:
            raise RigError(Code.VmExists, f"VM {vm!r} is to be renamed to {name!r}: the names are the same")
        sides = await vm_tasks.sides_of(self._context, vm)

        def insert(session: Session) -> Job:
            if not sides and session.get(ItemRow, vm) is None:
                raise RigError(Code.VmNotFound, f"there is no VM {vm!r}")
            vm_tasks.require_renamable(session, vm, name)
            variables = vm_tasks.variables_of_rename(name)
            return job_wire.to_wire(engine.enqueue(session, vm_tasks.RENAME, vm, variables, self._context.clock.wall_ns()))

        return await self._starter.start(insert)
