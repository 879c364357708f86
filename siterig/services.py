"""Which service answers where: the one list of the roles' sockets and the Protocols on them."""

from __future__ import annotations

from azure_emu.ports import ApplierReports, DamageReports, Provider, RecoverySide
from azure_emu.vault.api import VaultApi
from blockfs.control import DiskHostControl
from replication.ports import VaultLink
from siterig.control import SupervisorControl
from siterig.layout import Layout
from siterig.rpc_client import proxy

# mypy wants a concrete class where a Protocol's class object is the point: hence the ignores, all of them here.


def vault(layout: Layout) -> VaultApi:
    """The vault's operations."""
    return proxy(VaultApi, layout.socket("vault"))  # type: ignore[type-abstract]


def vault_link(layout: Layout) -> VaultLink:
    """The vault as the site's agent sees it."""
    return proxy(VaultLink, layout.socket("vault"))  # type: ignore[type-abstract]


def applier_reports(layout: Layout) -> ApplierReports:
    """The vault as the applier sees it."""
    return proxy(ApplierReports, layout.socket("vault"))  # type: ignore[type-abstract]


def damage_reports(layout: Layout) -> DamageReports:
    """The vault as who reads managed disks sees it."""
    return proxy(DamageReports, layout.socket("vault"))  # type: ignore[type-abstract]


def site(layout: Layout) -> DiskHostControl:
    """The disk host that serves the source VMs."""
    return proxy(DiskHostControl, layout.socket("site"))  # type: ignore[type-abstract]


def azure(layout: Layout) -> DiskHostControl:
    """The disk host that serves the failed-over VMs."""
    return proxy(DiskHostControl, layout.socket("azure"))  # type: ignore[type-abstract]


def provider(layout: Layout) -> Provider:
    """The provider and agent on the Hyper-V host."""
    return proxy(Provider, layout.socket("agent"))  # type: ignore[type-abstract]


def recovery_side(layout: Layout) -> RecoverySide:
    """The applier with its managed disks."""
    return proxy(RecoverySide, layout.socket("applier"))  # type: ignore[type-abstract]


def supervisor(layout: Layout) -> SupervisorControl:
    """The supervisor of the rig's processes."""
    return proxy(SupervisorControl, layout.socket("supervisor"))  # type: ignore[type-abstract]
