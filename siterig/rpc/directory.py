"""The directory of the rig's services: each Protocol that a role serves, and the role's socket.

The deadlines of the calls stand on the methods of the Protocols (:mod:`siterig.blockfs.core.deadlines`).
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from siterig.azure_emu.contracts.account_keys import AccountKeyApi
from siterig.azure_emu.contracts.certificates import CertificateApi
from siterig.azure_emu.contracts.moments import MomentFeed
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.contracts.reports import ApplierReports, DamageReports, RoleReports
from siterig.azure_emu.vault.model.alert_api import AlertApi
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.vm_status import ObservationApi
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.sides.host_certificates import HostCertificates, HostIdentityControl, HostRegistration, HostSetup
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.core.fault_contract import FaultControl, FaultInjector, RoleRules
from siterig.core.paths import Layout
from siterig.core.supervisor_contract import RoleStarts, SupervisorControl
from siterig.rpc.client import proxy
from siterig.rpc.trust import way_between_sides

T = TypeVar("T")

CLI = "cli"
"""The client that is no role: commands, and tests."""
AZURITE = "azurite"
CLIENTS = {
    "agent": ("site", "vault", AZURITE),
    "applier": ("vault", AZURITE),
    "azure": ("vault",),
    "vault": ("agent", "applier", "azure"),
    "supervisor": ("vault",),
    CLI: ("vault", "site", "azure", "applier"),
}
"""The links of a rig that faults can be in: each client with its servers.

The links between the sides are TCP with TLS: agent-vault, vault-agent and CLIENT-azurite.  The others are Unix sockets.
Commands always reach the supervisor and the director of the faults: a rule can be removed, and a rig ended, whatever rules
there are.
"""
LINKS = tuple(f"{client}-{server}" for client, servers in CLIENTS.items() for server in servers)
"""The names of the links."""


class Service(Generic[T]):
    """A Protocol that a role serves; call it with the rig's layout to get a proxy."""

    def __init__(self, protocol: type[T], role: str) -> None:
        self.protocol = protocol
        self.role = role

    def __call__(self, layout: Layout, client: str = CLI, clock: Clock = SYSTEM_CLOCK) -> T:
        """Return an object that implements the Protocol by calls to the role, over the link of this client to it.

        Args:
            layout: the rig.
            client: the role that calls.
            clock: on a link between the sides, tells whether certificates are valid.
        """
        if (way := way_between_sides(layout, client, self.role, clock)) is not None:
            return proxy(self.protocol, way)
        return proxy(self.protocol, layout.socket(self.role), link=layout.link(client, self.role), keeps=client != CLI)


vault = Service(VaultApi, "vault")
"""The operations of the vault."""
observation = Service(ObservationApi, "vault")
"""The questions of a person who looks at a VM, or watches the vault."""
vault_link = Service(VaultLink, "vault")
"""The reports and questions of the site's agent to the vault."""
applier_reports = Service(ApplierReports, "vault")
"""The reports and questions of the applier to the vault."""
data_keys = Service(DataKeys, "vault")
"""The questions of the agent and the applier for data keys."""
damage_reports = Service(DamageReports, "vault")
"""The reports of damage to the vault, by every role that reads managed disks."""
role_reports = Service(RoleReports, "vault")
"""The reports of the supervisor to the vault."""
site = Service(DiskHostControl, "site")
"""The disk host that serves the source VMs."""
azure = Service(DiskHostControl, "azure")
"""The disk host that serves the recovered VMs."""
provider = Service(Provider, "agent")
"""The provider and agent on the Hyper-V host."""
alerts = Service(AlertApi, "vault")
"""The operations on the alert settings."""
account_keys = Service(AccountKeyApi, "vault")
"""The operations on the keys of the storage account."""
certificates = Service(CertificateApi, "vault")
"""The operations on certificates."""
host_certificates = Service(HostCertificates, "vault")
"""The requests of a registered host for a new certificate."""
host_registration = Service(HostRegistration, "vault")
"""The request of a host for its first certificate; only a vault credentials file opens it."""
host_identity = Service(HostIdentityControl, "agent")
"""The certificate of the Hyper-V host, as the vault rotates it."""
host_setup = Service(HostSetup, "agent")
"""The registration of the Hyper-V host by a command on it."""
recovery_side = Service(RecoverySide, "applier")
"""The applier with its managed disks."""
supervisor = Service(SupervisorControl, "supervisor")
"""The supervisor of the rig's processes."""
moments = Service(MomentFeed, "vault")
"""The moments of the vault that fault rules wait for."""
faults = Service(FaultControl, "faults")
"""The director of the rig's faults; the role is started by the first command that needs it."""
role_starts = Service(RoleStarts, "faults")
"""The questions of the supervisor to the director of faults."""
role_rules = Service(RoleRules, "faults")
"""The questions of roles that start to the director of faults."""
site_faults = Service(FaultInjector, "site")
"""The injector of the faults of the site's disk host."""
azure_faults = Service(FaultInjector, "azure")
"""The injector of the faults of the disk host of the recovery side."""
applier_faults = Service(FaultInjector, "applier")
"""The injector of the faults of managed disks in the applier."""
agent_faults = Service(FaultInjector, "agent")
"""The injector of the faults that the agent meets when it reads change logs."""

SERVICES: tuple[Service[Any], ...] = (
    vault,
    observation,
    vault_link,
    applier_reports,
    data_keys,
    damage_reports,
    role_reports,
    site,
    azure,
    provider,
    alerts,
    account_keys,
    certificates,
    host_certificates,
    host_registration,
    host_identity,
    host_setup,
    recovery_side,
    supervisor,
    moments,
    faults,
    role_starts,
    role_rules,
    site_faults,
    azure_faults,
    applier_faults,
    agent_faults,
)
"""All services of a rig."""
