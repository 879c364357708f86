"""The names of the VMs that failovers make, and their conflicts with other VMs of the recovery side.

As in the service, a name that another VM has is modified, with a warning: a failover must not depend on it.
"""

from __future__ import annotations

import uuid

from siterig.azure_emu.vault.context import vm_names
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.context.vm_names import AzureVmKind
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.inventory import azure_vms
from siterig.blockfs.contracts.names import NAME_CHARS_MAX
from siterig.blockfs.core.errors import Code, RigError

SUFFIX_CHARS = 8
"""Characters of a random id behind a name that is changed because another VM has it."""


async def name_of(context: VaultContext, owner: str, kind: AzureVmKind) -> str:
    """Return the name of the VM of this kind, or of the one that a failover would make."""
    return await context.database.transact(lambda session: vm_names.current(session, find_item(session, owner), kind))


async def is_taken(context: VaultContext, owner: str, name: str, kind: AzureVmKind) -> bool:
    """Return True if another VM of the recovery side has this name."""
    exists = bool(await azure_vms.disks_of(context, name))
    try:
        await context.database.transact(lambda session: azure_vms.require_ours(session, owner, name, kind, exists=exists))
    except RigError as error:
        if error.code != Code.VmExists:
            raise
        return True
    return False


async def free_name(context: VaultContext, owner: str, kind: AzureVmKind) -> tuple[str, RigError | None]:
    """Return a name for a VM of this kind, and a warning if it is not the chosen one."""
    name = await name_of(context, owner, kind)
    if not await is_taken(context, owner, name, kind):
        return name, None
    changed = f"{name[: NAME_CHARS_MAX - SUFFIX_CHARS - 1]}-{uuid.uuid4().hex[:SUFFIX_CHARS]}"
    text = f"the VM name {name!r} was modified to {changed!r} to avoid name conflicts"
    return changed, RigError(Code.VmNameModified, text)


async def unavailable(context: VaultContext, owner: str) -> RigError | None:
    """Return a warning about the chosen names that another VM has; None if there is none."""
    kinds: tuple[AzureVmKind, ...] = ("Recovered", "TestFailover")
    names = [await name_of(context, owner, kind) for kind in kinds]
    taken = [name for name, kind in zip(names, kinds, strict=True) if await is_taken(context, owner, name, kind)]
    if not taken:
        return None
    texts = [f"the virtual machine name {name!r} is unavailable" for name in taken]
    return RigError(Code.VmNameUnavailable, f"{' and '.join(texts)}: a failover of VM {owner!r} would modify it")


async def remove(context: VaultContext, owner: str, kind: AzureVmKind) -> None:
    """Remove the VM of this kind (``DiskInUse`` if its disks are in use); do nothing if there is none."""
    await azure_vms.remove(context, owner, await name_of(context, owner, kind))
