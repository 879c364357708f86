"""The contract of a storage account of a user: every promise that replication needs, by each kind of secret.

``SITERIG_ACCOUNT=FILE ./rig test tests/contract`` runs it against a real account: the file is that of ``up --account``, and
``SITERIG_ACCOUNT_AUTHORITY`` that of ``--account-authority``.  Without the variable only an Azurite is used, over HTTPS,
with an authority of its own.  All blobs are in a place of its own, which is empty in the end; the container stays.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from siterig.accounts.admission import check_account
from siterig.accounts.rig_account import open_user_account
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.source import looks_like_secret, read_authority, read_source
from siterig.azure_emu.user_account.stored_account import UserAccount, new_place
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.bundle import BundleName
from siterig.blockfs.transfer.part_name import PartName
from tests.support.rigs.other_account import UnsignedCredential, other_account

pytestmark = pytest.mark.system

VARIABLE = "SITERIG_ACCOUNT"
DISK, OTHER = (f"0f0e0d0c-0000-4000-8000-00000000000{digit}" for digit in "12")
PART, LATER, ELSEWHERE = PartName(DISK, 1, "log", 1, 7), PartName(DISK, 1, "log", 8, 9), PartName(OTHER, 1, "sync", 1, 1)
AZURITE = ("key", "SAS", "container SAS", "token")


def given_account() -> UserAccount:
    """Return the account that the variable names; skip the test without one."""
    source = os.environ.get(VARIABLE, "")
    if not source:
        pytest.skip(f"{VARIABLE} names no storage account: a file as for siterig up --account")
    authority = os.environ.get(f"{VARIABLE}_AUTHORITY", "")
    secret = parse_secret(source if looks_like_secret(source) else read_source(source))
    return new_place(secret, read_authority(Path(authority)) if authority else "")


@pytest.fixture(params=[*(f"Azurite by {kind}" for kind in AZURITE), f"the account of {VARIABLE}"])
async def user(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[UserAccount]:
    """Return a new place in an account."""
    kind = str(request.param).removeprefix("Azurite by ")
    if kind not in AZURITE:
        yield given_account()
        return
    async with other_account(tmp_path) as other:
        by_key = other.place(other.by_key)
        await check_account(by_key)  # it creates the container
        texts = {"SAS": other.by_sas(), "container SAS": other.by_container_sas("siterig"), "token": other.endpoint}
        monkeypatch.setattr("siterig.accounts.rig_account.default_credential", UnsignedCredential)
        yield other.place(texts[kind]) if kind in texts else by_key


@pytest.fixture
async def account(user: UserAccount) -> AsyncIterator[BlobCacheAccount]:
    """Return a client of the account; its place is empty in the end."""
    await check_account(user)
    client = open_user_account(user)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await client.remove_blobs()
        client.close()


async def test_the_account_keeps_the_promises_that_replication_needs(account: BlobCacheAccount, user: UserAccount) -> None:
    assert (await account.list(DISK)).parts == []
    assert await account.put(PART, b"first") is True
    assert await account.put(PART, b"second") is False, "a part is written once"
    assert await account.get(PART) == b"first"
    assert await account.put(PART, b"repaired", replace=True) is True
    assert await account.get(PART) == b"repaired"
    data = os.urandom(3 << 20)
    assert await account.put(LATER, data) and await account.put(ELSEWHERE, b"")
    listing = await account.list(DISK)
    assert listing.sizes == {PART: 8, LATER: 3 << 20} and listing.foreign == ()
    both = await account.list_all([DISK, OTHER])
    assert [found.parts for found in both.values()] == [[PART, LATER], [ELSEWHERE]]
    assert await account.get(LATER) == data
    bundle = BundleName.of([PART], 0)
    assert await account.put(bundle, b"several parts") is True
    assert await account.put(bundle, b"others") is False
    everything = await account.list_with_bundles([OTHER])
    assert everything.disks[OTHER].parts == [ELSEWHERE] and everything.bundles == {bundle: 13}
    assert await account.get(bundle) == b"several parts"
    await account.delete(bundle)
    await account.delete(PART)
    await account.delete(PART)
    with pytest.raises(RigError) as caught:
        await account.get(PART)
    assert caught.value.code == "PartNotFound"
    await another_place_is_not_seen(account, user)


async def another_place_is_not_seen(account: BlobCacheAccount, user: UserAccount) -> None:
    """Show that two rigs in one container neither see nor delete the blobs of each other."""
    neighbour = open_user_account(new_place(user.secret, user.authority))
    try:
        assert (await neighbour.list(DISK)).parts == []
        await neighbour.put(LATER, b"of the neighbour")
        assert await account.remove_blobs() == 2
        assert await neighbour.get(LATER) == b"of the neighbour"
    finally:
        assert await neighbour.remove_blobs() == 1
        neighbour.close()
