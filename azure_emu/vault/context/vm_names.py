"""The names of the VMs that failovers of a protected VM make, as far as the vault's database knows them.

A user can choose them; the default is the name of the source VM, and that name with ``-test``.  A VM that exists keeps its
name until it is removed.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import AzureVmRow, ItemRow

AzureVmKind = Literal["TestFailover", "Recovered", "Copy"]


def test_vm_name(vm: str) -> str:
    """Return the default name of the VM that a test failover makes, if a failover makes ``vm``."""
    return f"{vm}-test"


def chosen(item: ItemRow, kind: AzureVmKind) -> str:
    """Return the name that a VM of this kind is to have: the user's choice, or the default."""
    recovered = item.recovery_vm_name or item.vm
    if kind == "Recovered":
        return recovered
    return item.test_vm_name or test_vm_name(recovered)


def current(session: Session, item: ItemRow, kind: AzureVmKind) -> str:
    """Return the name of the VM of this kind, or of the one that a failover would make."""
    query = select(AzureVmRow.name).where(AzureVmRow.owner == item.vm, AzureVmRow.kind == kind)
    return session.scalars(query.order_by(AzureVmRow.name)).first() or chosen(item, kind)
