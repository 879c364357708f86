"""Which service answers where: the one list of the roles' sockets and the Protocols on them.

A role that hangs must not hang the others: what a role answers out of what it has, has a deadline.  What may rightly take
long (whatever copies, reads a disk, waits for a job or for a freeze) has none, for nobody can tell it from one that hangs.
"""

from __future__ import annotations

from siterig.azure_emu.contracts.ports import ApplierReports, DamageReports, Provider, RecoverySide, RoleReports
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.core.control import SupervisorControl
from siterig.core.layout import Layout
from siterig.replication.contracts.ports import VaultLink
from siterig.rpc.client import proxy

ANSWER_S = 20.0
"""For what a role answers by itself; hosts under load have taken seconds."""
REPORT_S = 5.0
"""For what passes between the supervisor and the vault or a user: it works on nothing else."""
ASKING_S = 2 * ANSWER_S
"""For what it asks another role for first, so that the one that hangs is named."""
ASKING_BOTH_S = 5 * ANSWER_S
"""For what the vault asks both sides for, one after the other."""

_VAULT = dict.fromkeys(("items", "points", "managed_disks", "jobs", "job", "events"), ANSWER_S) | {
    "mounted_points": ASKING_S,
    "progress": ASKING_S,
    "list_vms": ASKING_BOTH_S,
}
_VAULT_LINK = dict.fromkeys(
    ("watermarks", "may_replicate", "point_sent", "replication_error", "replication_recovered", "resync_required"), ANSWER_S
)
_APPLIER_REPORTS = dict.fromkeys(
    ("applied", "store_older", "apply_failed", "replicating_disks", "account_seen", "send_again"), ANSWER_S
)
_DAMAGE_REPORTS = dict.fromkeys(("damage_met", "scrubbed", "vm_disk_changed"), ANSWER_S)
_ROLE_REPORTS = {"report_roles": REPORT_S}
_HOST = dict.fromkeys(("list_disks", "position", "counters", "segments", "list_mounted_points"), ANSWER_S)
_PROVIDER = {"progress": ANSWER_S, "list_vms": ASKING_S}
_RECOVERY_SIDE = dict.fromkeys(("retain", "disk_state", "position_at", "export_progress"), ANSWER_S)
STARTING_S = 180.0
"""For the start of a role, which may fail a few times before it succeeds."""
_SUPERVISOR = {"status": REPORT_S, "kill_role": ANSWER_S, "start_role": STARTING_S}

# mypy wants a concrete class where a Protocol's class object is the point: hence the ignores, all of them here.


def vault(layout: Layout) -> VaultApi:
    """The vault's operations."""
    return proxy(VaultApi, layout.socket("vault"), deadlines=_VAULT)  # type: ignore[type-abstract]


def vault_link(layout: Layout) -> VaultLink:
    """The vault as the site's agent sees it."""
    return proxy(VaultLink, layout.socket("vault"), deadlines=_VAULT_LINK)  # type: ignore[type-abstract]


def applier_reports(layout: Layout) -> ApplierReports:
    """The vault as the applier sees it."""
    return proxy(ApplierReports, layout.socket("vault"), deadlines=_APPLIER_REPORTS)  # type: ignore[type-abstract]


def damage_reports(layout: Layout) -> DamageReports:
    """The vault as who reads managed disks sees it."""
    return proxy(DamageReports, layout.socket("vault"), deadlines=_DAMAGE_REPORTS)  # type: ignore[type-abstract]


def role_reports(layout: Layout) -> RoleReports:
    """The vault as the supervisor sees it."""
    return proxy(RoleReports, layout.socket("vault"), deadlines=_ROLE_REPORTS)  # type: ignore[type-abstract]


def site(layout: Layout) -> DiskHostControl:
    """The disk host that serves the source VMs."""
    return proxy(DiskHostControl, layout.socket("site"), deadlines=_HOST)  # type: ignore[type-abstract]


def azure(layout: Layout) -> DiskHostControl:
    """The disk host that serves the failed-over VMs."""
    return proxy(DiskHostControl, layout.socket("azure"), deadlines=_HOST)  # type: ignore[type-abstract]


def provider(layout: Layout) -> Provider:
    """The provider and agent on the Hyper-V host."""
    return proxy(Provider, layout.socket("agent"), deadlines=_PROVIDER)  # type: ignore[type-abstract]


def recovery_side(layout: Layout) -> RecoverySide:
    """The applier with its managed disks."""
    return proxy(RecoverySide, layout.socket("applier"), deadlines=_RECOVERY_SIDE)  # type: ignore[type-abstract]


def supervisor(layout: Layout) -> SupervisorControl:
    """The supervisor of the rig's processes."""
    return proxy(SupervisorControl, layout.socket("supervisor"), deadlines=_SUPERVISOR)  # type: ignore[type-abstract]
