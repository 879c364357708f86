"""The client of a user's account follows the file: a new secret is used at once, and a refusal is explained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.azure_emu.user_account.following_account import FollowingAccount
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.stored_account import FILE_NAME, UserAccount, new_place, store
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName

PART = PartName("0f0e0d0c-0000-4000-8000-000000000001", 1, "log", 1, 7)
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rwdl&se={}&sig={}"


def user(signature: str, expiry: str = "2099-01-01") -> UserAccount:
    return new_place(parse_secret("https://acme1.blob.core.windows.net?" + SAS.format(expiry, signature)))


class Client:
    """A client with one secret; ``folder`` gets a new one in the middle of its requests if ``successor`` is set."""

    def __init__(self, own: UserAccount, accepted: str, code: Code) -> None:
        self.own, self.accepted, self.code = own, accepted, code
        self.is_closed = False
        self.successor: tuple[Path, UserAccount] | None = None

    async def get(self, part: PartName) -> bytes:
        if self.successor is not None:
            store(*self.successor)
        if self.own.secret.sas["sig"] != self.accepted:
            raise RigError(self.code, f"cannot get {part.blob()}: refused")
        return b"data"

    def close(self) -> None:
        self.is_closed = True


class Service:
    def __init__(self, folder: Path) -> None:
        self.folder, self.accepted, self.code = folder, "one", Code.CacheAuthentication
        self.clients: list[Client] = []
        self.account = FollowingAccount(folder, self.open, SYSTEM_CLOCK)

    def open(self, own: UserAccount) -> BlobCacheAccount:
        self.clients.append(Client(own, self.accepted, self.code))
        return cast(BlobCacheAccount, cast(Any, self.clients[-1]))


async def test_a_new_secret_is_used_by_the_next_request(tmp_path: Path) -> None:
    service = Service(tmp_path)
    first = user("one")
    store(tmp_path, first)
    assert [await service.account.get(PART) for _ in range(3)] == [b"data"] * 3
    assert len(service.clients) == 1
    service.accepted = "two"
    store(tmp_path, replace(first, secret=user("two").secret))
    assert await service.account.get(PART) == b"data"
    assert [client.is_closed for client in service.clients] == [True, False]
    service.account.close()
    assert service.clients[-1].is_closed


async def test_a_request_that_is_refused_during_the_change_is_repeated(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.accepted = "two"
    store(tmp_path, user("one"))
    with pytest.raises(RigError):
        await service.account.get(PART)
    service.clients[0].successor = (tmp_path, user("two"))
    assert await service.account.get(PART) == b"data"


@pytest.mark.parametrize("code", [Code.CacheAuthentication, Code.CacheForbidden])
async def test_a_refusal_is_retried_and_names_the_remedy(tmp_path: Path, code: Code) -> None:
    service = Service(tmp_path)
    service.code = code
    store(tmp_path, user("wrong"))
    with pytest.raises(RigError) as caught:
        await service.account.get(PART)
    assert (caught.value.code, caught.value.recoverable) == (code, True)
    assert "siterig account set" in caught.value.message and "wrong" not in caught.value.message


async def test_a_sas_that_has_expired_is_the_reason(tmp_path: Path) -> None:
    service = Service(tmp_path)
    store(tmp_path, user("wrong", "2001-01-01"))
    with pytest.raises(RigError, match="the SAS expired at 2001-01-01") as caught:
        await service.account.get(PART)
    assert (caught.value.code, caught.value.recoverable) == ("SasExpired", True)


async def test_a_damaged_file_fails_requests_until_it_is_whole(tmp_path: Path) -> None:
    service = Service(tmp_path)
    store(tmp_path, user("one"))
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[:50])
    with pytest.raises(RigError, match="is damaged"):
        await service.account.get(PART)
    (tmp_path / FILE_NAME).write_bytes(whole)
    assert await service.account.get(PART) == b"data"
