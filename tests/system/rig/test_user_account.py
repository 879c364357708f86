"""A rig whose parts go through a storage account of a user: a second Azurite over HTTPS, with its own keys and authority.

One rig is used for all steps: wrong secrets, protection, points, a new secret under load, faults of the link and of the blob
service, a SAS that expires, failover with a comparison of all bytes, and the removal of the rig's blobs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from siterig.accounts.account_choice import AccountChoice
from siterig.accounts.admission import replaced
from siterig.accounts.rig_account import open_user_account
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.stored_account import load, store
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.core.paths import Layout
from siterig.scenario_runs.scenario_rig import OwnRig
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.files.topology import Topology
from siterig.supervisor import launch
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.rigs.other_account import OtherAccount, other_account

pytestmark = pytest.mark.system

VM = "web01"
DISK_BYTES = 4 << 20
WITHIN_S = 120
"""The time limit of a wait, far beyond the promised times: a loaded machine is slow, and no test asserts a duration."""


def write(disk: Path, seed: int) -> None:
    fd = os.open(disk, os.O_RDWR)
    try:
        os.pwrite(fd, bytes([seed]) * 65536 + os.urandom(4096), seed * 131072)
        os.fsync(fd)
    finally:
        os.close(fd)


async def points_come(rig: Testbed) -> None:
    seen = (await rig.vault.points(vm=VM, limit=1))[0].position
    with trio.fail_after(WITHIN_S):
        while (await rig.vault.points(vm=VM, limit=1))[0].position <= seen:  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.2)


def give_unchecked(rig: Testbed, text: str) -> None:
    """Give the rig another secret that the account will refuse soon."""
    former = load(rig.layout.keys)
    store(rig.layout.keys, replaced(former, parse_secret(text), None))


async def give(rig: OwnRig, text: str) -> None:
    """Give the rig another secret, as siterig account set does."""
    source = rig.folder.parent / "secret"
    source.touch(mode=0o600)
    source.write_text(text)
    await rig.set_account(str(source))


async def wrong_secrets_leave_nothing(layout: Layout, other: OtherAccount) -> None:
    authority = other.authority.read_text()
    wrong_key = other.by_key.replace("AccountKey=", "AccountKey=AAAA")
    for text, pem, code in (
        (wrong_key, authority, "CacheAuthentication"),
        (other.by_sas("rl"), authority, "AccountPermissionMissing"),
        (other.by_sas(life_s=-1), authority, "SasExpired"),
        (other.by_container_sas("missing"), authority, "ContainerMissing"),
        (other.by_sas(), None, "PeerRefused"),
        (other.by_key.replace(f":{other.azurite.port}/", ":1/"), authority, "CacheUnreachable"),
    ):
        with pytest.raises(RigError) as caught:
            await launch.up(layout, account=AccountChoice(parse_secret(text), pem))
        assert caught.value.code == code and other.azurite.account.key not in caught.value.message
        assert not layout.root.exists(), "nothing is made for an account that cannot be used"


def secret_is_only_in_its_file(layout: Layout, secret: str) -> None:
    files = [
        path for folder in (layout.log("").parent, layout.keys, layout.agent) for path in folder.rglob("*") if path.is_file()
    ]
    holders = [path for path in (*files, layout.state) if secret.encode() in path.read_bytes()]
    assert holders == [layout.user_account] and layout.user_account.stat().st_mode & 0o777 == 0o600
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert secret.encode() not in process.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


async def has_error(rig: Testbed, code: str) -> bool:
    return code in {error.errorCode for item in await rig.vault.items() for error in item.healthErrors}


async def an_expired_sas_is_replaced(rig: OwnRig, other: OtherAccount, disk: Path) -> None:
    give_unchecked(rig, other.by_sas(life_s=-1))
    await trio.to_thread.run_sync(write, disk, 5)
    with trio.fail_after(WITHIN_S):
        while not await has_error(rig, "SasExpired"):  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.2)
    await give(rig, other.by_key)
    await points_come(rig)
    log = await trio.to_thread.run_sync(rig.layout.log("agent").read_text)
    ended_waits = [line for line in log.splitlines() if "retries_at_once" in line and VM in line]
    assert ended_waits, "a new secret ends the wait for a retry"


async def a_fault_of_the_blob_service_meets_the_agent(rig: Testbed, disk: Path) -> None:
    director = await rig.start_faults()
    words = "blob PutBlob blob=asr-cache/* role=agent error=503 times=2 name=busy"
    await director.add_faults(rules=[read_rule(words).document()])
    await trio.to_thread.run_sync(write, disk, 6)
    with trio.fail_after(WITHIN_S):
        await director.wait_fired(name="busy", times=2)
    await director.clear_faults()
    await points_come(rig)


async def test_replication_by_an_account_of_a_user_over_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with other_account(tmp_path / "other") as other:
        layout = Layout.of(tmp_path / "rig")
        await wrong_secrets_leave_nothing(layout, other)
        monkeypatch.setenv("SITERIG_TEST_SECRET", other.by_sas())
        topology = {"account": "env:SITERIG_TEST_SECRET", "account_authority": str(other.authority)}
        rig = OwnRig(layout.root, Topology.model_validate(topology))
        await rig.start(lambda _role, _state: None)
        try:
            (disk,) = (await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])).disks
            source = Path(disk.path)
            await trio.to_thread.run_sync(write, source, 1)
            await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=1))
            secret_is_only_in_its_file(layout, load(layout.keys).secret.secret)
            await an_expired_sas_is_replaced(rig, other, source)
            await a_fault_of_the_blob_service_meets_the_agent(rig, source)
            job = await ended(rig, await rig.vault.planned_failover(vm=VM))
            assert job.result is not None
            recovered = await trio.to_thread.run_sync(Path(job.result.disks[0].path).read_bytes)
            assert recovered == await trio.to_thread.run_sync(source.read_bytes)
        finally:
            await rig.stop()
        await rig.remove_blobs()
        account = open_user_account(load(layout.keys))
        try:
            assert await account.remove_blobs() == 0
        finally:
            account.close()
