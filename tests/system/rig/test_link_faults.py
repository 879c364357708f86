"""Faults of links and of the blob service in a real rig: each one is visible in its status, and is healed by its removal."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.core.fault_contract import DIRECTOR, FaultControl
from siterig.rpc import directory
from siterig.scenarios.faults.records import Injection
from siterig.scenarios.faults.rules import read_rule
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.rigs.protected_vm import is_healthy

pytestmark = pytest.mark.system

VM = "web01"
DISK_BYTES = 16 << 20
INTERVAL_S = 2
WITHIN_S = 120
"""The time limit of a wait, far beyond the promised times."""


class FaultedRig:
    """A rig with a protected VM, and the director of its faults."""

    def __init__(self, rig: Testbed, director: FaultControl) -> None:
        self.rig, self.director = rig, director

    @asynccontextmanager
    async def fault(self, words: str) -> AsyncIterator[None]:
        await self.director.add_faults(rules=[read_rule(f"{words} name=it").document()])
        yield
        await self.director.remove_fault(name="it")
        assert not any(self.rig.layout.link("", "").parent.iterdir())

    async def done(self, after: int = 0) -> list[Injection]:
        return await self.director.injections(after=after)

    async def item(self) -> ProtectedItem:
        (item,) = await self.rig.vault.items()
        return item

    async def write(self) -> None:
        disk = self.rig.layout.site_mount / VM / "os.img"

        def work() -> None:
            with disk.open("r+b") as file:
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())

        await trio.to_thread.run_sync(work)

    async def new_point_comes(self) -> None:
        """Write, and wait for a point that contains the write: earlier ones may be on their way."""
        await self.write()
        written = await self.rig.site.position()

        async def has_come() -> bool:
            return (await self.rig.vault.points(vm=VM, limit=1))[0].position >= written

        await until(f"a point at or after {written}", has_come)

    async def healthy(self) -> None:
        await until("Normal health", partial(is_healthy, self.rig, VM))

    async def waits_of(self, role: str) -> list[str]:
        (found,) = [each for each in (await self.rig.supervisor.status()).roles if each.name == role]
        return [f"{wait.code}: {wait.reason}" for wait in found.waits]

    async def has_error(self, code: str, text: str) -> None:
        async def reported() -> bool:
            return any(
                error.errorCode == code and text in error.summaryMessage for error in (await self.item()).healthErrors
            )

        await until(f"the health error {code} with {text!r}", reported)


async def until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    with trio.move_on_after(WITHIN_S):
        while not await check():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.5)
        return
    pytest.fail(f"{what}: not within {WITHIN_S} s")


async def test_faults_of_links_and_blobs_are_reported_and_healed(tmp_path: Path) -> None:
    async with Testbed.up(tmp_path / "rig") as rig:
        await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])
        await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=INTERVAL_S))
        await rig.supervisor.start_role(name=DIRECTOR)
        director = directory.faults(rig.layout)
        faulted = FaultedRig(rig, director)
        for check in (
            black_hole,
            server_busy,
            lost_blob,
            key_rotated,
            deleted_container,
            killed_director,
            killed_in_handshakes,
            revoked_host,
        ):
            await check(faulted)
            await faulted.healthy()
        await faulted.new_point_comes()
        assert all(verdict.ok for verdict in await director.verdicts())


async def black_hole(faulted: FaultedRig) -> None:
    """The wait names the link; data still goes to the account meanwhile."""
    async with faulted.fault("link agent-vault connection=black-hole stream=upstream"):
        await faulted.write()

        async def named() -> bool:
            return any("over the link agent-vault" in wait for wait in await faulted.waits_of("agent"))

        await until("a wait that names the link", named)


async def server_busy(faulted: FaultedRig) -> None:
    """The agent's attempts are at least Retry-After apart, though its own table begins with one second."""
    before = len(await faulted.done())
    async with faulted.fault("blob error.status=503 error.retry_after=7 role=agent"):
        await faulted.has_error("CacheUnreachable", "(503 ServerBusy), and asks to wait 7 s")

        async def again() -> bool:
            return len(rounds(await faulted.done(before))) >= 2

        await until("a second attempt", again)
    first, second, *_ = rounds(await faulted.done(before))
    assert (second - first).total_seconds() >= 6.5


def rounds(injections: list[Injection]) -> list[datetime]:
    """Return the times at which attempts began: one attempt has several requests."""
    begun: list[datetime] = []
    last: datetime | None = None
    for injection in injections:
        at = datetime.fromisoformat(injection.time)
        if last is None or (at - last).total_seconds() > 3:
            begun.append(at)
        last = at
    return begun


async def lost_blob(faulted: FaultedRig) -> None:
    """A part that the account acknowledged and lost is sent again, without a resync."""
    async with faulted.fault("blob asr-cache/*/log/* PutBlob lost=true times=1 role=agent"):
        await faulted.write()
        await faulted.director.wait_fired(name="it", times=1)
        await faulted.new_point_comes()


async def key_rotated(faulted: FaultedRig) -> None:
    """Authentication fails at the first attempt, and nothing is retried until a person acts."""
    async with faulted.fault("blob account=key-rotated"):
        await faulted.write()
        await faulted.has_error("CacheAuthentication", "AuthenticationFailed")
        assert (await faulted.item()).replicationHealth == "Critical"
    await faulted.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="after the key")


async def deleted_container(faulted: FaultedRig) -> None:
    """The next upload creates the container, and its lost parts are sent again."""
    async with faulted.fault("blob account=container-deleted"):
        assert (await faulted.done())[-1].done == "deleted the containers asr-cache"
        await faulted.new_point_comes()


async def killed_director(faulted: FaultedRig) -> None:
    """Without its director a rig works by direct ways; the next director puts the rule in force again."""
    supervisor = faulted.rig.supervisor
    async with faulted.fault("link *-azurite send delay=20ms jitter=10ms distribution=pareto rate=4MiB/s"):
        await supervisor.kill_role(name=DIRECTOR, hold=True)
        await faulted.new_point_comes()
        await supervisor.start_role(name=DIRECTOR)
        seen = len(await faulted.done())
        await faulted.new_point_comes()
        assert len(await faulted.done()) > seen


async def killed_in_handshakes(faulted: FaultedRig) -> None:
    """Both sides are killed while their handshakes hang, and work again when the link does."""
    supervisor = faulted.rig.supervisor
    async with faulted.fault("link agent-vault send connection=black-hole"):
        await faulted.write()

        async def hangs() -> bool:
            return any("over the link agent-vault" in wait for wait in await faulted.waits_of("agent"))

        await until("a handshake that hangs", hangs)
        for role in ("agent", "vault"):
            await supervisor.kill_role(name=role)
            await supervisor.wait_for_steady_state(name=role)
    await faulted.new_point_comes()


async def revoked_host(faulted: FaultedRig) -> None:
    """A revoked host waits with the reason, its refusal is an event, and a new registration lets it continue."""
    layout = faulted.rig.layout
    certificates = directory.certificates(layout)
    await certificates.revoke_certificates(role="host", name="site", reason="of a test")
    await faulted.write()

    async def waits() -> bool:
        return any(wait.startswith("PeerRefused: ") and ": of a test" in wait for wait in await faulted.waits_of("agent"))

    await until("a wait with the reason", waits)
    events = [event for event in await faulted.rig.vault.events() if event.eventCode == "PeerRefused"]
    assert [event.affectedObject for event in events] == ["the host site"]
    credentials = await certificates.issue_credentials(site="site")
    assert await directory.host_setup(layout).register(credentials=credentials) == "site"
    await faulted.new_point_comes()
    assert not any(wait.startswith("PeerRefused") for wait in await faulted.waits_of("agent"))
