"""The applier encrypts managed disks with the vault's keys, and stops when a key is revoked until it is restored."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.disks.view import is_encrypted, open_disk, open_view
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.data_keys import DataKeyGrant, DataKeys
from siterig.blockfs.transfer.envelope import DataKey
from siterig.cext.checksums import KEY_BYTES, chunk_tag
from siterig.cext.packed_tags import unpack
from tests.support.disks.disk_history import CHUNK_BYTES, DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig
from tests.support.stores.managed_disk import assert_same, whole

KEY = DataKey(uuid.UUID(int=9), bytes((7 * i + 3) % 256 for i in range(64)))
REVOKED = RigError(Code.KeyRevoked, "version 1 was revoked")


class Keys(DataKeys):
    """Gives out one key for all managed disks; ``trouble``, while set, is raised."""

    def __init__(self) -> None:
        self.trouble: RigError | None = None
        self.asked = 0

    async def part_key(self, *, disk_id: str, generation: int) -> DataKeyGrant:
        raise NotImplementedError

    async def disk_key(self, *, disk_id: str) -> DataKeyGrant:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return DataKeyGrant(key_id=str(KEY.key_id), secret_hex=KEY.secret.hex())


class EncryptedRig(Rig):
    """A rig whose managed disks are encrypted."""

    def __init__(self, tmp_path: Path) -> None:
        self.keys = Keys()
        self.dropped: list[str | None] = []
        super().__init__(tmp_path)
        self.service = self.new_service(self.keys)

    def new_service(self, keys: Keys | None) -> RecoveryService:
        applier = Applier(self.disks, self.cache, self.vault, self.waits, keys=keys)
        return RecoveryService(applier, self.cache, self.dropped.append)

    async def apply(self, name: str) -> None:
        """Write, tag, and apply."""
        self.cache.hold([self.log(name)])
        await self.service.process_latest(disk_ids=[DISK_ID])

    def check(self, key: DataKey | None = KEY) -> None:
        """Check that the newest position reads as the site's disk."""
        assert_same(
            whole(open_disk(self.disks / DISK_ID, self.disk.position, key)), bytes(self.disk.data), "the newest state"
        )


@pytest.fixture
def rig(tmp_path: Path) -> EncryptedRig:
    return EncryptedRig(tmp_path)


async def test_a_managed_disk_is_encrypted_and_asks_for_its_key_once(rig: EncryptedRig) -> None:
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold(rig.disk.sync())
    await rig.apply("one")
    await rig.apply("two")
    rig.check()
    assert rig.keys.asked == 1
    assert whole(open_view(rig.disks / DISK_ID, rig.disk.position)) != rig.disk.data
    rig.service = rig.new_service(rig.keys)  # a restart
    await rig.apply("three")
    rig.check()
    assert rig.keys.asked == 2
    await rig.service.delete_managed_disk(disk_id=DISK_ID)
    assert rig.dropped == [DISK_ID]


async def test_a_revoked_key_stops_applying_until_it_is_restored(rig: EncryptedRig) -> None:
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold(rig.disk.sync())
    await rig.apply("one")
    before = rig.vault.marks[-1]
    rig.keys.trouble = REVOKED
    await rig.apply("the key is held")
    await rig.service.forget_keys()
    assert rig.dropped == [None]
    for name in ("two", "three"):
        with pytest.raises(RigError) as caught:
            await rig.apply(name)
        assert caught.value.code == "KeyRevoked"
    assert len(rig.cache.blobs) == 2
    assert not rig.vault.asked  # no part is sent again for it
    rig.keys.trouble = None
    await rig.apply("four")
    rig.check()
    assert rig.vault.marks[-1].log_seq > before.log_seq
    assert rig.cache.blobs == {}


async def test_an_older_managed_disk_is_encrypted_before_a_part_is_applied(rig: EncryptedRig) -> None:
    rig.service = rig.new_service(None)
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold(rig.disk.sync())
    await rig.apply("one")
    rig.check(None)
    rig.service = rig.new_service(rig.keys)
    rig.keys.trouble = REVOKED
    with pytest.raises(RigError) as caught:
        await rig.apply("two")
    assert caught.value.code == "KeyRevoked"
    assert not is_encrypted(rig.disks / DISK_ID)
    rig.keys.trouble = None
    await rig.apply("three")
    assert is_encrypted(rig.disks / DISK_ID)
    rig.check()
    assert [path.name for path in rig.disks.iterdir()] == [DISK_ID]
    assert rig.waits.list() == []


async def test_a_state_of_an_encrypted_disk_is_compared(rig: EncryptedRig) -> None:
    """``siterig verify`` reads both sides at one position."""
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold(rig.disk.sync())
    await rig.apply("first")
    tag_key, spans = bytes(range(KEY_BYTES)), [(0, SIZE_BYTES // CHUNK_BYTES)]
    answer = await rig.service.checksums(
        disk_id=DISK_ID,
        comparison_id="one",
        key_hex=tag_key.hex(),
        chunk_bytes=CHUNK_BYTES,
        spans=spans,
        position=rig.disk.position,
    )
    data = bytes(rig.disk.data)
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, SIZE_BYTES, CHUNK_BYTES)]
    tags = {number: chunk_tag(tag_key, number, piece) for number, piece in enumerate(pieces)}
    assert unpack(answer.checked(spans).packed) == {number: tag for number, tag in tags.items() if any(tag)}
