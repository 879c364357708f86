"""The applier of the recovery side: it applies parts from the cache account to managed disks."""

from __future__ import annotations

from functools import partial

import trio

from siterig.accounts.rig_account import open_account
from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.transfer.bundled_account import BundledAccount
from siterig.blockfs.transfer.part_cipher import KeyedPartCipher
from siterig.blockfs.transfer.sealed_account import SealedAccount
from siterig.core.fault_contract import FaultInjector
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.roles.fault_injection import RoleInjector, of_applier
from siterig.rpc import directory, server


async def run(layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    account = open_account(layout, "applier", clock)
    keys = directory.data_keys(layout, "applier")
    cipher = KeyedPartCipher(keys, clock)
    cache = SealedAccount(BundledAccount(account, clock), cipher)
    applier = Applier(
        layout.managed_disks, cache, directory.applier_reports(layout, "applier"), health.waits, clock, keys=keys
    )
    service = RecoveryService(applier, cache, cipher.forget)
    injector = RoleInjector(partial(of_applier, layout, clock))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(injector.run)
            await injector.begin(layout, "applier", clock)
            await nursery.start(service.run)
            faces = {"RecoverySide": (RecoverySide, service), "FaultInjector": (FaultInjector, injector)}
            await nursery.start(server.serve, faces, layout.socket("applier"))
            task_status.started()
    finally:
        account.close()


def main() -> None:
    """Run the role in this process."""
    run_role("applier", run, holds_keys=True, reuses_memory=True)


if __name__ == "__main__":
    main()
