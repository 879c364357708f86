"""The Recovery Services agent and the provider on the Hyper-V host."""

from __future__ import annotations

import sys
from contextlib import aclosing
from functools import partial

import trio

from siterig.accounts.rig_account import open_account
from siterig.blockfs.contracts.upload_limits import UploadLimits
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.sides.host_certificates import HostIdentityControl, HostSetup
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.transfer.bundled_account import BundledAccount
from siterig.blockfs.transfer.part_cipher import KeyedPartCipher
from siterig.blockfs.transfer.sealed_account import SealedAccount
from siterig.blockfs.watch.file_existence import versions
from siterig.core.fault_contract import FaultInjector
from siterig.core.paths import Layout
from siterig.core.upload_options import upload_limits_of
from siterig.replication.engine.retry import OFFICIAL_DELAYS_S
from siterig.replication.hyperv.agent import HyperVAgent
from siterig.roles.entry import Health, run_role
from siterig.roles.fault_injection import RoleInjector, of_agent
from siterig.roles.host_identity import HostIdentity
from siterig.rpc import directory, server, trust
from siterig.rpc.client import TLS_CALLS
from siterig.rpc.tls_server import serve_tls
from siterig.supervisor.launch import QUICK_RETRIES

QUICK_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 10.0)
"""The delays of a rig whose replication interval is shorter than any official one."""


async def run(
    layout: Layout,
    *,
    retry_delays_s: tuple[float, ...] = OFFICIAL_DELAYS_S,
    uploads: UploadLimits,
    clock: Clock,
    health: Health,
    task_status: trio.TaskStatus[None],
) -> None:
    """Serve until cancelled."""
    # One more than uploads: a list does not wait for the end of an upload.
    account = open_account(layout, "agent", clock, in_flight_max=uploads.per_host + 1)
    cipher = KeyedPartCipher(directory.data_keys(layout, "agent", clock), clock)
    identity = HostIdentity(layout, directory.host_certificates(layout, "agent", clock), clock, health.waits)
    TLS_CALLS.set(identity.note_called)
    injector = RoleInjector(partial(of_agent, layout, clock))

    async def follow_secret() -> None:
        async with aclosing(versions(layout.user_account, clock=clock.real)) as seen:
            await anext(seen)
            async for _ in seen:
                agent.retry_now("the secret of the storage account was replaced")

    async def serve_vault(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await identity.is_registered.wait()
        context = trust.host_tls(layout, clock, is_server=True, refused=identity.note_failed_handshake)
        faces = {"Provider": (Provider, agent), "HostIdentityControl": (HostIdentityControl, identity)}
        await serve_tls(faces, layout.port("agent"), context, identity.guard, task_status=task_status)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(injector.run)
            await injector.begin(layout, "agent", clock)
            agent = HyperVAgent(
                host=directory.site(layout, "agent"),
                cache=SealedAccount(BundledAccount(account, clock, is_writer=True), cipher),
                vault=directory.vault_link(layout, "agent", clock),
                folder=layout.agent,
                retry_delays_s=retry_delays_s,
                clock=clock,
                waits=health.waits,
                drop_keys=cipher.forget,
                uploads=uploads,
            )
            faces = {
                "Provider": (Provider, agent),
                "HostSetup": (HostSetup, identity),
                "FaultInjector": (FaultInjector, injector),
            }
            await nursery.start(server.serve, faces, layout.socket("agent"))
            await nursery.start(identity.run)
            await nursery.start(agent.run)
            if layout.user_account.exists():
                nursery.start_soon(follow_secret)
            if identity.is_registered.is_set():
                await nursery.start(serve_vault)
            else:
                nursery.start_soon(serve_vault)
            task_status.started()
    finally:
        account.close()


def main() -> None:
    """Run the role in this process."""
    delays_s = QUICK_DELAYS_S if QUICK_RETRIES in sys.argv else OFFICIAL_DELAYS_S
    run_role("agent", partial(run, retry_delays_s=delays_s, uploads=upload_limits_of(sys.argv)), holds_keys=True)


if __name__ == "__main__":
    main()
