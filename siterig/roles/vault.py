"""The Recovery Services vault."""

from __future__ import annotations

import sys
from functools import partial

import trio

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.authority.service import CertificateService
from siterig.azure_emu.contracts.account_keys import AccountKeyApi
from siterig.azure_emu.contracts.certificates import CertificateApi
from siterig.azure_emu.contracts.moments import MomentFeed
from siterig.azure_emu.contracts.reports import ApplierReports, DamageReports, RoleReports
from siterig.azure_emu.storage.account_keys import AccountKeyService, KeyProbe
from siterig.azure_emu.storage.azurite import StorageAccount, account_string
from siterig.azure_emu.vault.model.alert_api import AlertApi
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resync_window import OPTION, ResyncWindow
from siterig.azure_emu.vault.model.vm_status import ObservationApi
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.sides.host_certificates import HostCertificates, HostRegistration
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.core import metrics_address
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.rpc import directory, server, trust
from siterig.rpc.client import TLS_CALLS
from siterig.rpc.metrics_server import serve_metrics
from siterig.rpc.tls_server import serve_tls


async def run(
    layout: Layout,
    *,
    clock: Clock,
    health: Health,
    task_status: trio.TaskStatus[None],
    resync_window: ResyncWindow | None = None,
) -> None:
    """Serve until cancelled; in ``resync_window`` a resync that is due begins by itself."""
    vault = Vault(
        f"sqlite:///{layout.vault_db}",
        keys=layout.vault_keys,
        mail_password=layout.mail_password,
        provider=directory.provider(layout, "vault", clock),
        recovery=directory.recovery_side(layout, "vault"),
        azure_host=directory.azure(layout, "vault"),
        shut_down=loop_devices.shutdown,
        check_shut_down=loop_devices.check_shutdown,
        clock=clock,
        waits=health.waits,
        resync_window=resync_window,
    )
    own = {(role, name): trust.own_identity(layout, role) for role, name in trust.OWN_IDENTITIES.items()}
    hosts = {trust.HOST: directory.host_identity(layout, "vault", clock)}
    authority = Authority(layout.authority, clock)
    certificates = CertificateService(authority, own, hosts, vault.record_server_event, waits=health.waits, clock=clock)
    TLS_CALLS.set(partial(certificates.note_called, trust.HOST))
    site_faces = {
        "DataKeys": (DataKeys, vault.data_keys),
        "VaultLink": (VaultLink, vault.reports),
        "HostRegistration": (HostRegistration, certificates),
        "HostCertificates": (HostCertificates, certificates),
    }

    def probe(account: StorageAccount) -> KeyProbe:
        from siterig.azure_emu.storage.blob_cache import BlobCacheAccount  # noqa: PLC0415 (a rotation is rare)

        tls = trust.storage_tls(layout, clock)
        text = account_string(layout.azurite, account, is_tls=layout.storage_identity.exists())
        return BlobCacheAccount(text, tls=tls)

    async def rotated(name: str) -> None:
        text = f"both keys of the storage account {name} were replaced; it refuses the former ones"
        await vault.record_server_event("AccountKeysRotated", "OK", "storage", text)

    async def replaced(name: str) -> None:
        text = f"the rig uses another secret of the storage account {name} from now on"
        await vault.record_server_event("AccountSecretReplaced", "OK", "storage", text)

    account_keys = AccountKeyService(
        layout.keys, probe, rotated, replaced, layout.user_account, clock=clock, waits=health.waits
    )
    context = trust.vault_server_tls(layout, clock, certificates.note_failed_handshake)
    faces = {
        "AccountKeyApi": (AccountKeyApi, account_keys),
        "AlertApi": (AlertApi, vault.alerts),
        "CertificateApi": (CertificateApi, certificates),
        "VaultApi": (VaultApi, server.joined(VaultApi, vault.operations)),
        "ObservationApi": (ObservationApi, vault.observation),
        "VaultLink": (VaultLink, vault.reports),
        "ApplierReports": (ApplierReports, vault.reports),
        "DataKeys": (DataKeys, vault.data_keys),
        "DamageReports": (DamageReports, vault.reports),
        "RoleReports": (RoleReports, vault.reports),
        "MomentFeed": (MomentFeed, vault.context.database.moments),
    }
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vault.run)
            nursery.start_soon(vault.run_policies)
            nursery.start_soon(vault.watch_standstill)
            nursery.start_soon(vault.send_mail)
            nursery.start_soon(certificates.run)
            await nursery.start(serve_tls, site_faces, layout.port("vault"), context, certificates.guard)
            await nursery.start(
                serve_metrics, vault.observation.metrics, layout.port(metrics_address.ROLE), layout.metrics_token
            )
            await nursery.start(server.serve, faces, layout.socket("vault"))
            task_status.started()
    finally:
        vault.close()


def main() -> None:
    """Run the role in this process."""
    values = [word.partition("=")[2] for word in sys.argv if word.startswith(f"{OPTION}=")]
    window = ResyncWindow.parse(values[-1]) if values else None
    run_role("vault", partial(run, resync_window=window), holds_keys=True)


if __name__ == "__main__":
    main()
