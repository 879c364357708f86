"""The rotation of the account's keys: at each moment the first key works, and in the end the former ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.azure_emu.storage.account_keys import PATIENCE_S, AccountKeyService
from siterig.azure_emu.storage.azurite import ACCOUNT_KEYS, StorageAccount, load_or_create_account
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits


class Account:
    """An account that reads the file of its keys some requests later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = load_or_create_account(folder)
        self.late = 0
        self.failure: RigError | None = None
        self.asked = trio.Event()

    def accepts(self, key: str) -> bool:
        self.asked.set()
        newest = load_or_create_account(self.folder)
        assert newest.key in (self.known.key, self.known.other_key), "a client that reads the file would be refused"
        if self.late:
            self.late -= 1
        else:
            self.known = newest
        return key in (self.known.key, self.known.other_key)


class Probe:
    def __init__(self, account: Account, key: str) -> None:
        self.account, self.key = account, key

    async def ensure_container(self) -> None:
        if self.account.failure is not None:
            raise self.account.failure
        if not self.account.accepts(self.key):
            raise RigError(Code.CacheAuthentication, "refused")

    def close(self) -> None:
        return


def service(account: Account, events: list[str], waits: Waits | None = None) -> AccountKeyService:
    async def record(name: str) -> None:
        events.append(name)

    def probe(tried: StorageAccount) -> Probe:
        return Probe(account, tried.key)

    return AccountKeyService(
        account.folder,
        probe,
        record,
        record,
        account.folder / "user-account.json",
        clock=SYSTEM_CLOCK,
        waits=waits or Waits(),
    )


@pytest.mark.parametrize("late", [0, 3])
async def test_both_keys_are_new_and_the_former_ones_are_refused(
    tmp_path: Path, autojump_clock: MockClock, late: int
) -> None:
    account = Account(tmp_path)
    events: list[str] = []
    account.late = late
    former = load_or_create_account(tmp_path)
    first = await service(account, events).rotate_account_keys()
    once = load_or_create_account(tmp_path)
    await service(account, events).rotate_account_keys()
    twice = load_or_create_account(tmp_path)
    keys = [former.key, once.key, once.other_key, twice.key, twice.other_key]
    assert len(set(keys)) == 5 and "" not in keys
    assert [account.accepts(key) for key in keys] == [False, False, False, True, True]
    assert (first.account, events) == (former.name, [former.name, former.name])
    assert (tmp_path / ACCOUNT_KEYS).stat().st_mode & 0o077 == 0


async def test_a_rotation_that_fails_leaves_a_key_that_works(tmp_path: Path) -> None:
    account, waits = Account(tmp_path), Waits()
    events: list[str] = []
    former = load_or_create_account(tmp_path)
    account.failure = RigError(Code.CacheError, "broken")
    with pytest.raises(RigError, match="broken"):
        await service(account, events, waits).rotate_account_keys()
    left = load_or_create_account(tmp_path)
    assert (left.key, events, waits.list()) == (former.key, [], [])
    account.failure = None
    await service(account, events).rotate_account_keys()
    assert not account.accepts(former.key)


async def test_the_keys_of_an_account_of_the_user_are_not_rotated(tmp_path: Path) -> None:
    account = Account(tmp_path)
    former = load_or_create_account(tmp_path)
    (tmp_path / "user-account.json").touch()
    with pytest.raises(RigError, match="then siterig account set") as caught:
        await service(account, []).rotate_account_keys()
    assert caught.value.code == "AccountKeysOfUser"
    assert load_or_create_account(tmp_path) == former


async def test_a_second_rotation_at_the_same_time_is_refused(tmp_path: Path) -> None:
    account, waits = Account(tmp_path), Waits()
    events: list[str] = []
    account.late = 1000
    keys = service(account, events, waits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.rotate_account_keys)
        await account.asked.wait()
        with pytest.raises(RigError) as caught:
            await keys.rotate_account_keys()
        assert caught.value.code == "AccountKeysBusy"
        assert PATIENCE_S > 1 and [wait.code for wait in waits.list()] == ["CacheAuthentication"]
        account.late = 0


@pytest.mark.parametrize("text", ["name:", "name:short", "name:" + "k" * 40 + ":" + "k" * 40 + ":" + "k" * 40])
def test_a_damaged_file_of_keys_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / ACCOUNT_KEYS).write_text(text)
    with pytest.raises(RigError, match="does not hold NAME:KEY or NAME:KEY:KEY") as caught:
        load_or_create_account(tmp_path)
    assert "kkkk" not in caught.value.message
