"""The Recovery Services vault."""

from __future__ import annotations

import trio

from azure_emu.ports import ApplierReports, DamageReports, RoleReports
from azure_emu.vault.api import VaultApi
from azure_emu.vault.vault import Vault
from blockfs import hostmounts
from replication.ports import VaultLink
from siterig import rpc_server, services
from siterig.layout import Layout
from siterig.roles.entry import Health, main


async def run(layout: Layout, *, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    vault = Vault(
        f"sqlite:///{layout.vault_db}",
        provider=services.provider(layout),
        recovery=services.recovery_side(layout),
        azure_host=services.azure(layout),
        shut_down=hostmounts.shutdown,
        check_shut_down=hostmounts.check_shutdown,
        waits=health.waits,
    )
    faces = {
        "VaultApi": (VaultApi, vault),
        "VaultLink": (VaultLink, vault),
        "ApplierReports": (ApplierReports, vault),
        "DamageReports": (DamageReports, vault),
        "RoleReports": (RoleReports, vault),
    }
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vault.run)
            nursery.start_soon(vault.keep_policies)
            nursery.start_soon(vault.watch_standstill)
            await nursery.start(rpc_server.serve, faces, layout.socket("vault"))
            task_status.started()
    finally:
        vault.close()


if __name__ == "__main__":
    main(run)
