"""``siterig disk scrub``: over stores of a rig that is down, and with what the vault knows of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.vault.model.resources import ManagedDisk, RecoveryPoint
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli.commands import scrub
from siterig.core.paths import Layout, create
from tests.support.command import siterig
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    return layout.root


def make_store(rig: Path) -> tuple[Path, SiteDisk, int]:
    """A store with a point in it, the source, and the point's position."""
    folder = Layout(rig).managed_disks
    folder.mkdir(parents=True, exist_ok=True)
    scratch = rig / "scratch-of-test"
    scratch.mkdir()
    disk = SiteDisk(scratch, random.Random(5))
    store = ManagedDiskStore.create(folder / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
    for part, data in disk.sync():
        store.apply_part(part, data)
    disk.write(8192, b"payload!" * 512)
    position = disk.tag("point").position
    store.apply_part(*disk.close_log())
    store.close()
    return folder / DISK_ID, disk, position


def damage_payload(store: Path) -> tuple[Path, int]:
    [journal_file] = (store / "journal").iterdir()
    at = journal_file.read_bytes().index(b"payload!")
    with journal_file.open("r+b") as file:
        file.seek(at)
        file.write(b"P")
    return journal_file, at


class Vault:
    """A vault that keeps the calls of the command."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.told: list[tuple[str, list[Damage]]] = []

    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        self.told.append((disk_id, damages))

    async def managed_disks(self) -> list[ManagedDisk]:
        return [ManagedDisk(vm="web01", name="os", disk_id=DISK_ID)]

    async def points(self, *, vm: str) -> list[RecoveryPoint]:
        assert vm == "web01"
        return [
            RecoveryPoint(
                id=f"p{position}",
                name="n",
                type="CrashConsistent",
                time="t",
                position=position,
                time_ns=1,
            )
            for position in (self.position, self.position - 5)
        ]


@pytest.fixture
def up(rig: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, SiteDisk, Vault]:
    """A store with a point in it, the source, and a vault that knows them."""
    store, disk, position = make_store(rig)
    vault = Vault(position)
    monkeypatch.setattr(scrub, "_vault", lambda _folder: vault)
    monkeypatch.setattr("siterig.rpc.directory.damage_reports", lambda _layout: vault)
    return store, disk, vault


def test_of_a_rig_that_is_down_sound_stores_are_called_by_their_ids(rig: Path) -> None:
    make_store(rig)
    result = siterig("disk", "scrub", "--dir", str(rig))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{DISK_ID}: no damage, ")


def test_the_beginning_of_an_id_is_enough(rig: Path) -> None:
    make_store(rig)
    result = siterig("disk", "scrub", DISK_ID[:8], "--dir", str(rig))
    assert result.stdout.startswith(f"{DISK_ID}: no damage, ")
    assert siterig("disk", "scrub", DISK_ID[:8] + "-ffff", "--dir", str(rig)).exit_code == 2


def test_a_rig_without_managed_disks_is_reported(rig: Path) -> None:
    result = siterig("disk", "scrub", "--dir", str(rig))
    assert (result.exit_code, result.stdout) == (0, "no managed disks: siterig protect\n")


def test_damage_is_named_with_the_points_that_are_not_whole(rig: Path, up: tuple[Path, SiteDisk, Vault]) -> None:
    store, _, vault = up
    position = vault.position
    journal_file, at = damage_payload(store)
    result = siterig("disk", "scrub", "web01", "--dir", str(rig), "--json")
    assert result.exit_code == 1
    [found] = json.loads(result.stdout)
    assert (found["vm"], found["name"], found["disk_id"]) == ("web01", "os", DISK_ID)
    assert [damage["path"] for damage in found["damages"]] == [str(journal_file)]
    [damage] = found["damages"]
    assert damage["offset"] <= at < damage["offset"] + 4096
    assert damage["points"] == [f"p{position}"]
    text = siterig("disk", "scrub", "web01/os", "--dir", str(rig))
    assert text.exit_code == 1
    assert f"web01/os: 1 damaged, in {store}\n" in text.stdout
    assert f"from {damage['first_position']}" in text.stdout
    assert "siterig resync web01 sends the unreadable data again" in text.stderr
    sound = siterig("disk", "scrub", "--dir", str(rig))
    assert sound.exit_code == 1, "and without names, all are looked at"
    assert [(disk_id, [each.offset for each in damages]) for disk_id, damages in vault.told] == [
        (DISK_ID, [damage["offset"]])
    ] * 3


def test_a_resync_is_not_advised_for_damage_that_was_overwritten_since(rig: Path, up: tuple[Path, SiteDisk, Vault]) -> None:
    folder, disk, vault = up
    store = ManagedDiskStore.open(folder)
    disk.write(8192, b"anew" * 1024)
    store.apply_part(*disk.close_log())
    store.close()
    damage_payload(folder)
    result = siterig("disk", "scrub", "--dir", str(rig))
    assert result.exit_code == 1
    assert "web01/os: only older states are damaged; the damage is removed when they are compacted" in result.stderr
    assert "resync" not in result.stderr
    [(_, [told])] = vault.told
    assert told.last_position is not None


def test_a_scrub_reports_its_findings_also_if_the_vault_ends_meanwhile(
    rig: Path, up: tuple[Path, SiteDisk, Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(**_arguments: object) -> None:
        raise RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)

    monkeypatch.setattr(up[2], "scrubbed", gone)
    result = siterig("disk", "scrub", "--dir", str(rig))
    assert result.stdout.startswith("web01/os: no damage, ")
    assert (result.exit_code, result.stderr) == (
        0,
        "siterig: note: the result was not reported to the vault: nobody answers (RoleUnavailable)\n",
    )


class Recovery:
    """A recovery side that mends one byte, or says why not."""

    def __init__(self, journal_file: Path, at: int, byte: bytes) -> None:
        self.journal_file, self.at, self.byte = journal_file, at, byte
        self.refusal: RigError | None = None

    async def repair(self, *, disk_id: str) -> None:
        assert disk_id == DISK_ID
        if self.refusal is not None:
            raise self.refusal
        with self.journal_file.open("r+b") as file:
            file.seek(self.at)
            file.write(self.byte)


def test_a_repair_reports_the_remaining_damage(
    rig: Path, up: tuple[Path, SiteDisk, Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal_file, at = damage_payload(up[0])
    recovery = Recovery(journal_file, at, b"p")
    recovery.refusal = RigError(Code.StoreCorrupt, "byte 0: no frame begins here")
    monkeypatch.setattr("siterig.rpc.directory.recovery_side", lambda _layout: recovery)
    refused = siterig("disk", "scrub", "--repair", "--dir", str(rig))
    assert (refused.exit_code, refused.stderr) == (
        3,
        f"siterig: error: the rig in {rig} is not up: start it with siterig up (NotUp)\n",
    )
    monkeypatch.setattr(scrub, "running", Layout)
    kept = siterig("disk", "scrub", "--repair", "--dir", str(rig))
    assert kept.exit_code == 1
    assert "web01/os: nothing can be repaired: byte 0: no frame begins here (StoreCorrupt)" in kept.stderr
    assert "--repair rebuilds metadata" in siterig("disk", "scrub", "--dir", str(rig)).stderr
    recovery.refusal = None
    mended = siterig("disk", "scrub", "--repair", "--dir", str(rig))
    assert (mended.exit_code, mended.stderr) == (0, "siterig: note: web01/os: 1 of 1 repaired\n")
    assert mended.stdout.startswith("web01/os: no damage, ")


def test_a_disk_that_is_not_there_is_an_error_that_names_those_that_are(rig: Path) -> None:
    make_store(rig)
    result = siterig("disk", "scrub", "web02", "--dir", str(rig))
    assert result.exit_code == 2
    assert result.stderr == (f"siterig: error: there is no managed disk of 'web02'; there are: {DISK_ID} (DiskNotFound)\n")


def test_a_folder_that_is_no_rig_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = siterig("disk", "scrub", "--dir", str(tmp_path))
    assert result.exit_code != 0


def test_files_that_a_compaction_or_a_deletion_removes_meanwhile_are_no_error(
    rig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _ = make_store(rig)
    (store / "journal/000000000009.journal").symlink_to("deleted")  # as one that is gone when it is looked at
    assert scrub.used_bytes(store) > 0
    (store / "journal/000000000009.journal").unlink()

    def deleted(folder: Path, _advance: object) -> list[Damage]:
        raise RigError(Code.DiskNotFound, f"{folder}: gone")

    monkeypatch.setattr(scrub, "scrub_store", deleted)
    result = siterig("disk", "scrub", "--dir", str(rig))
    assert (result.exit_code, result.stdout) == (0, "no managed disks: siterig protect\n")
