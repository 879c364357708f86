"""The cache account holds envelopes only; keys are asked for once, and again when they may have changed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from pydantic import TypeAdapter, ValidationError

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.data_keys import DataKeyGrant, DataKeys
from siterig.blockfs.transfer.part_cipher import ASK_AGAIN_S, KeyedPartCipher
from siterig.blockfs.transfer.part_name import Listing, PartName
from siterig.blockfs.transfer.sealed_account import SealedAccount

PART = PartName("4f1f0f5e-8f4b-4b52-a5c1-0123456789ab", 2, "log", 7, 9)
PACKED = b"a compressed segment" * 50


class CountedKeys(DataKeys):
    """Makes a key from a text, and counts the requests; ``trouble``, while set, is raised."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.salt = "first"
        self.trouble: RigError | None = None

    async def part_key(self, *, disk_id: str, generation: int) -> DataKeyGrant:
        self.asked.append((disk_id, generation))
        if self.trouble is not None:
            raise self.trouble
        secret = hashlib.sha256(f"{self.salt} {disk_id} {generation}".encode())
        return DataKeyGrant(key_id=str(uuid.UUID(bytes=secret.digest()[:16])), secret_hex=secret.hexdigest())

    async def disk_key(self, *, disk_id: str) -> DataKeyGrant:
        raise NotImplementedError


class Blobs(CacheAccount):
    """An account in memory."""

    def __init__(self) -> None:
        self.blobs: dict[PartName, bytes] = {}

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        known = part in self.blobs
        if not known or replace:
            self.blobs[part] = data
        return not known

    async def list(self, disk_id: str) -> Listing:
        return Listing.of(disk_id, ((part.blob(), len(blob)) for part, blob in self.blobs.items()))

    async def get(self, part: PartName) -> bytes:
        return self.blobs[part]

    async def delete(self, part: PartName) -> None:
        del self.blobs[part]


@pytest.fixture
def keys() -> CountedKeys:
    return CountedKeys()


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


def account_of(keys: CountedKeys, blobs: Blobs) -> SealedAccount:
    return SealedAccount(blobs, KeyedPartCipher(keys))


async def test_the_account_has_no_plaintext_and_another_role_reads_it(keys: CountedKeys, blobs: Blobs) -> None:
    account = account_of(keys, blobs)
    newer = dataclasses.replace(PART, generation=3)
    for part in (PART, newer):
        assert await account.put(part, PACKED)
        assert not await account.put(part, PACKED)
    assert not any(b"segment" in blob for blob in blobs.blobs.values())
    assert keys.asked == [(PART.disk_id, 2), (PART.disk_id, 3)]
    other = account_of(keys, blobs)
    assert [await other.get(part) for part in (PART, newer)] == [PACKED, PACKED]
    blobs.blobs[newer] = blobs.blobs[PART]
    with pytest.raises(RigError, match="is encrypted with key") as caught:
        await other.get(newer)
    assert caught.value.code == "PartCorrupt"


async def test_the_turn_of_a_part_begins_when_it_is_encrypted(keys: CountedKeys, blobs: Blobs) -> None:
    steps: list[str] = []

    class NotedCipher(KeyedPartCipher):
        def seal(self, part: PartName, packed: bytes) -> bytes:
            steps.append("sealed")
            return super().seal(part, packed)

    @contextlib.asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        steps.append(f"begun with {len(blobs.blobs)} blobs")
        yield
        steps.append(f"ended with {len(blobs.blobs)} blobs")

    account = SealedAccount(blobs, NotedCipher(keys))
    assert await account.put_in_turn(PART, PACKED, turn())
    assert steps == ["sealed", "begun with 0 blobs", "ended with 1 blobs"]
    assert not await account.put_in_turn(PART, PACKED, turn())
    await account.put_in_turn(PART, PACKED[1:], turn(), replace=True)
    assert await account.get(PART) == PACKED[1:]


async def test_a_part_without_encryption_is_not_accepted(keys: CountedKeys, blobs: Blobs) -> None:
    blobs.blobs[PART] = PACKED
    with pytest.raises(RigError, match="is not encrypted") as caught:
        await account_of(keys, blobs).get(PART)
    assert caught.value.code == "PartCorrupt"


async def test_a_key_that_has_changed_is_asked_for_again(keys: CountedKeys, blobs: Blobs) -> None:
    reader = account_of(keys, blobs)
    await reader.put(PART, PACKED)
    keys.salt = "after the disk was protected again"
    await account_of(keys, blobs).put(PART, PACKED, replace=True)
    assert await reader.get(PART) == PACKED


async def test_a_held_key_outlasts_the_vault_but_not_its_revocation(
    keys: CountedKeys, blobs: Blobs, autojump_clock: trio.testing.MockClock
) -> None:
    account = account_of(keys, blobs)
    await account.put(PART, PACKED)
    await trio.sleep(ASK_AGAIN_S + 1)
    keys.trouble = RigError(Code.RoleUnavailable, "the vault is down", recoverable=True)
    assert await account.get(PART) == PACKED
    assert len(keys.asked) == 2
    keys.trouble = RigError(Code.KeyRevoked, "version 1 was revoked")
    for _ in range(2):
        with pytest.raises(RigError) as caught:
            await account.get(PART)
        assert caught.value.code == "KeyRevoked"
    keys.trouble = None
    assert await account.get(PART) == PACKED


async def test_a_key_that_is_dropped_during_the_work_is_an_error_to_retry(keys: CountedKeys, blobs: Blobs) -> None:
    cipher = KeyedPartCipher(keys)
    await cipher.load_key(PART.disk_id, PART.generation)
    cipher.forget(str(uuid.UUID(int=1)))
    cipher.seal(PART, PACKED)
    cipher.forget()
    with pytest.raises(RigError) as caught:
        cipher.seal(PART, PACKED)
    assert (caught.value.code, caught.value.recoverable) == ("KeyDropped", True)


def test_neither_text_nor_errors_of_an_answer_show_the_secret() -> None:
    grant = DataKeyGrant(key_id=str(uuid.UUID(int=1)), secret_hex="ab" * 32)
    assert "abab" not in repr(grant) + str(grant)
    wrong = grant.model_dump_json().replace('"key_id":"0', '"key_id":"x').replace("abab", "ABab")
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(DataKeyGrant).validate_json(wrong)
    assert "ABab" not in str(caught.value)
