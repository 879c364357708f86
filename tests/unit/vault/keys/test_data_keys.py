"""Data keys of a vault survive restarts and rotations; a revoked version gives none of them."""

from __future__ import annotations

import errno
import json
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from siterig.azure_emu.vault.db.schema import DataKeyRow
from siterig.azure_emu.vault.keys import key_file
from siterig.azure_emu.vault.keys.key_file import KeyFile
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import checked_document
from siterig.blockfs.transfer.envelope import DataKey
from tests.crash.recording import Recorder
from tests.crash.states import Crashing
from tests.support.rigs import vault_fakes
from tests.support.rigs.fake_world import World

DISK, OTHER = "4f1f0f5e-8f4b-4b52-a5c1-0123456789ab", "4f1f0f5e-8f4b-4b52-a5c1-0123456789ac"


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def vault_of(world: World, folder: Path) -> AsyncIterator[Vault]:
    async with vault_fakes.running(world, folder) as vault:
        yield vault


async def refused(vault: Vault, disk_id: str = DISK, generation: int = 1) -> RigError:
    with pytest.raises(RigError) as caught:
        await vault.data_keys.part_key(disk_id=disk_id, generation=generation)
    return caught.value


def wrapped(folder: Path) -> dict[str, tuple[int, bytes]]:
    with closing(sqlite3.connect(folder / "vault.db")) as database:
        rows = database.execute("SELECT key_id, wrapped_by, wrapped FROM data_key").fetchall()
    return {key_id: (version, data) for key_id, version, data in rows}


async def test_each_disk_and_generation_has_one_key_that_a_restart_keeps(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        keys = {
            (disk, generation): await vault.data_keys.part_key(disk_id=disk, generation=generation)
            for disk in (DISK, OTHER)
            for generation in (1, 2)
        }
    assert len({key.secret_hex for key in keys.values()}) == len({key.key_id for key in keys.values()}) == 4
    async with vault_of(world, tmp_path) as vault:
        for (disk, generation), key in keys.items():
            assert await vault.data_keys.part_key(disk_id=disk, generation=generation) == key


async def test_the_key_of_a_managed_disk_is_not_that_of_its_parts(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        part = await vault.data_keys.part_key(disk_id=DISK, generation=1)
        disk = await vault.data_keys.disk_key(disk_id=DISK)
        assert (len(part.key().secret), len(disk.key().secret)) == (32, 64)
        assert part.secret_hex not in disk.secret_hex
        assert part.key_id != disk.key_id
        await vault.keys.rotate_key()
    async with vault_of(world, tmp_path) as vault:
        assert await vault.data_keys.disk_key(disk_id=DISK) == disk
        await vault.keys.revoke_key(version=2)
        with pytest.raises(RigError, match="was revoked"):
            await vault.data_keys.disk_key(disk_id=DISK)


async def test_a_rotation_changes_only_how_data_keys_are_encrypted(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        key = await vault.data_keys.part_key(disk_id=DISK, generation=1)
        before = wrapped(tmp_path)
        versions = await vault.keys.rotate_key()
        assert [(each.version, each.current, each.data_keys) for each in versions] == [(1, False, 0), (2, True, 1)]
        after = wrapped(tmp_path)
        assert after.keys() == before.keys() == {key.key_id}
        assert (before[key.key_id][0], after[key.key_id][0]) == (1, 2)
        assert before[key.key_id][1] != after[key.key_id][1]
        await vault.keys.revoke_key(version=1)
        assert await vault.data_keys.part_key(disk_id=DISK, generation=1) == key
        assert [event.eventCode for event in await vault.status.events()] == ["EncryptionKeyRevoked", "EncryptionKeyRotated"]
    async with vault_of(world, tmp_path) as vault:
        assert await vault.data_keys.part_key(disk_id=DISK, generation=1) == key


async def test_a_rotation_that_a_kill_cut_is_completed_at_the_next_start(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        key = await vault.data_keys.part_key(disk_id=DISK, generation=1)
        vault.data_keys.keys().add()  # durable, and the transaction was not committed
    async with vault_of(world, tmp_path) as vault:
        assert wrapped(tmp_path)[key.key_id][0] == 2
        assert await vault.data_keys.part_key(disk_id=DISK, generation=1) == key


async def test_a_revoked_version_gives_no_key_until_it_is_restored(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        key = await vault.data_keys.part_key(disk_id=DISK, generation=1)
        world.calls.clear()
        await vault.keys.revoke_key(version=1)
        assert world.calls == ["site.forget_keys", "recovery.forget_keys"]
        for disk in (DISK, OTHER):  # an old key and a new one
            error = await refused(vault, disk)
            assert (error.code, error.recoverable) == ("KeyRevoked", False)
            assert "siterig key restore 1" in error.message
        await vault.keys.rotate_key()
        assert (await refused(vault)).code == "KeyRevoked"
        await vault.data_keys.part_key(disk_id=OTHER, generation=1)
    async with vault_of(world, tmp_path) as vault:
        assert (await refused(vault)).code == "KeyRevoked"
        await vault.keys.restore_key(version=1)
        assert await vault.data_keys.part_key(disk_id=DISK, generation=1) == key
        codes = [event.eventCode for event in await vault.status.events()]
        assert codes == ["EncryptionKeyRestored", "EncryptionKeyRotated", "EncryptionKeyRevoked"]


async def test_a_revocation_does_not_wait_for_roles_that_are_away(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        world.failing["site.forget_keys"] = RigError(Code.RoleUnavailable, "the agent is down", recoverable=True)
        assert [each.state for each in await vault.keys.revoke_key(version=1)] == ["Revoked"]
        assert world.calls[-1] == "recovery.forget_keys"


async def test_a_version_that_does_not_exist_is_named(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        for call in (vault.keys.revoke_key, vault.keys.restore_key):
            with pytest.raises(RigError, match="no version 7: its versions are 1 to 1") as caught:
                await call(version=7)
            assert caught.value.code == "KeyNotFound"


async def test_the_row_of_another_disk_does_not_open(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        for disk in (DISK, OTHER):
            await vault.data_keys.part_key(disk_id=disk, generation=1)

        def swap(session: object) -> None:
            first, second = session.query(DataKeyRow).all()  # type: ignore[attr-defined]
            first.wrapped, second.wrapped = second.wrapped, first.wrapped

        await vault.context.database.transact(swap)
        assert (await refused(vault)).code == "KeyMissing"


async def test_keys_of_a_disk_go_with_its_protection(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        await vault_fakes.protected(vault)
        for disk in world.site["web01"].values():
            await vault.data_keys.part_key(disk_id=disk.disk_id, generation=1)
        await vault.data_keys.part_key(disk_id=OTHER, generation=1)
        await vault.protection.disable_protection(vm="web01")
        await vault_fakes.idle(vault)
        assert len(wrapped(tmp_path)) == 1


async def test_disks_of_an_older_siterig_that_are_not_encrypted_are_listed(world: World, tmp_path: Path) -> None:
    async with vault_of(world, tmp_path) as vault:
        await vault_fakes.protected(vault)
        assert await vault.keys.unencrypted_disks() == []
        world.unencrypted |= {disk.disk_id for disk in world.site["web01"].values()}
        world.azure["web01-test"] = {
            "os": world.disk("web01-test", "os", 1 << 20),
            "data": world.disk("web01-test", "data", 1 << 20).model_copy(update={"encrypted": True}),
        }
        names = sorted(world.site["web01"])
        assert [(each.kind, each.vm, each.disk) for each in await vault.keys.unencrypted_disks()] == [
            *(("managed disk", "web01", name) for name in names),
            ("disk of a recovered VM", "web01-test", "os"),
        ]


async def test_a_vault_with_data_keys_does_not_start_without_their_file(world: World, tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    async with vault_of(world, tmp_path) as vault:
        await vault.data_keys.part_key(disk_id=DISK, generation=1)
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(RigError, match="is missing, and 1 data keys") as caught:
        async with vault_of(world, tmp_path):
            pass
    assert caught.value.code == "KeysUnreadable"
    assert not path.exists()
    path.write_bytes(kept)
    path.chmod(0o600)
    async with vault_of(world, tmp_path) as vault:
        await vault.data_keys.part_key(disk_id=DISK, generation=1)


async def test_an_older_file_of_keys_is_named(world: World, tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    async with vault_of(world, tmp_path) as vault:
        old = path.read_bytes()
        await vault.keys.rotate_key()
        await vault.data_keys.part_key(disk_id=DISK, generation=1)
    path.write_bytes(old)
    async with vault_of(world, tmp_path) as vault:
        error = await refused(vault)
    assert error.code == "KeyMissing"
    assert f"version 2 of the vault's key is needed, and {path} has versions 1 to 1" in error.message


def test_the_file_is_private_and_has_the_only_copy_of_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    file = KeyFile.create(path, SYSTEM_CLOCK)
    assert path.stat().st_mode & 0o777 == 0o600
    (version,) = json.loads(path.read_bytes())["keys"]["versions"]
    assert version["secret_hex"] == file.current.secret_hex
    assert version["secret_hex"] not in repr(file.current) + str(file.versions)
    path.chmod(0o640)
    with pytest.raises(RigError, match="mode 0640"):
        KeyFile.load(path, SYSTEM_CLOCK)


def test_a_version_is_durable_before_it_encrypts_a_data_key(tmp_path: Path) -> None:
    """In every state after a power loss, the file opens all data keys that were encrypted before."""
    folder, rng = tmp_path / "keys", random.Random(1)
    folder.mkdir()
    recorder = Recorder(folder)
    crashing, secrets = Crashing(recorder.start), list[tuple[int, DataKey, tuple[int, bytes]]]()
    with recorder.recording():
        file = KeyFile.create(folder / "vault.keys", SYSTEM_CLOCK)
        for number in range(4):
            key = DataKey.generate()
            secrets.append((len(recorder.events), key, file.wrap(key, "part")))
            (file.add if number % 2 else lambda: file.set_state(1, "Enabled"))()
            file.add()
    checked = 0
    for index, event in enumerate(recorder.events):
        for _ in range(3):
            state = crashing.sample(rng)
            after = tmp_path / "after"
            after.write_bytes(state.get("vault.keys", b""))
            after.chmod(0o600)
            for begun, key, (version, sealed) in secrets:
                if begun <= index:
                    assert KeyFile.load(after, SYSTEM_CLOCK).unwrap(DataKey(key.key_id, sealed), "part", version) == key
                    checked += 1
        crashing.take(event)
    recorder.close()
    assert checked > 50


async def test_a_rotation_whose_version_cannot_be_stored_changes_no_data_key(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with vault_of(world, tmp_path) as vault:
        key = await vault.data_keys.part_key(disk_id=DISK, generation=1)
        before = wrapped(tmp_path), (tmp_path / "vault.keys").read_bytes()
        with monkeypatch.context() as patched, pytest.raises(RigError, match="cannot be written"):
            patched.setattr(checked_document, "write_atomically", full)
            await vault.keys.rotate_key()
        assert (wrapped(tmp_path), (tmp_path / "vault.keys").read_bytes()) == before
        assert await vault.data_keys.part_key(disk_id=DISK, generation=1) == key


def test_a_file_that_has_all_versions_it_can_have_stays_readable(tmp_path: Path) -> None:
    versions = [{**version(number), "secret_hex": "f" * 64} for number in range(1, key_file.VERSIONS_MAX + 1)]
    path = tmp_path / "vault.keys"
    path.write_bytes(key_file._DOCUMENT.encode(body(*versions)))  # noqa: SLF001
    path.chmod(0o600)
    file = KeyFile.load(path, SYSTEM_CLOCK)
    before = path.read_bytes()
    with pytest.raises(RigError, match=r"has 1000 versions, and .* can have 1000") as caught:
        file.add()
    assert caught.value.code == "KeyVersionsFull"
    assert path.read_bytes() == before
    assert file.set_state(1000, "Revoked")
    assert len(KeyFile.load(path, SYSTEM_CLOCK).versions) == 1000


def body(*versions: object) -> dict[str, object]:
    return {"versions": list(versions)}


def version(number: object = 1, **changed: object) -> dict[str, object]:
    return {
        "version": number,
        "secret_hex": "5e" * 32,
        "state": "Enabled",
        "created_ns": 1,
        "changed_ns": 1,
        **changed,
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (body(), "versions"),
        (body(version(2)), "are not 1, 2, 3"),
        (body(version(), version()), "are not 1, 2, 3"),
        (body(version(secret_hex="5e" * 31)), "secret_hex"),
        (body(version(secret_hex="5E" * 32)), "secret_hex"),
        (body(version(state="Disabled")), "state"),
        (body(version(created_ns=-1)), "created_ns"),
        (body(version(extra="5e5e")), "extra"),
        (body(version("1")), "version"),
        ({"versions": [], "more": 1}, "versions"),
        ([], "valid dictionary"),
    ],
)
def test_a_damaged_file_of_keys_is_an_error_that_shows_no_secret(content: object, text: str, tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    path.write_bytes(key_file._DOCUMENT.encode(content))  # type: ignore[arg-type]  # noqa: SLF001
    path.chmod(0o600)
    with pytest.raises(RigError) as caught:
        KeyFile.load(path, SYSTEM_CLOCK)
    assert caught.value.code == "KeysUnreadable"
    assert text in caught.value.message
    assert str(path) in caught.value.message
    assert "5e5e" not in caught.value.message.lower().replace(str(path).lower(), "")


@pytest.mark.parametrize("at", range(0, 260, 13))
def test_every_changed_byte_of_the_file_is_found(at: int, tmp_path: Path) -> None:
    path = tmp_path / "vault.keys"
    KeyFile.create(path, SYSTEM_CLOCK)
    good = path.read_bytes()
    at = min(at, len(good) - 2)
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(RigError) as caught:
        KeyFile.load(path, SYSTEM_CLOCK)
    assert caught.value.code in ("KeysUnreadable", "StateVersion")
    path.write_bytes(good[:at])
    with pytest.raises(RigError) as caught:
        KeyFile.load(path, SYSTEM_CLOCK)
    assert caught.value.code == "KeysUnreadable"
