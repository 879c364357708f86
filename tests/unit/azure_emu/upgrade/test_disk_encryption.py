"""A managed disk without encryption becomes an encrypted one with the same positions, whatever interrupts that."""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from siterig.azure_emu.disks.pins import pin, pins
from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers
from siterig.azure_emu.disks.view import is_encrypted, open_disk, open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.azure_emu.upgrade import disk_encryption
from siterig.azure_emu.upgrade.disk_encryption import encrypt_disk
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.envelope import DataKey
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import apply, assert_same, site, whole

KEY = DataKey(uuid.UUID(int=9), bytes((7 * i + 3) % 256 for i in range(64)))


def plain_store(tmp_path: Path) -> ManagedDiskStore:
    (tmp_path / "disks").mkdir()
    folder = tmp_path / "disks" / DISK_ID
    return ManagedDiskStore.create(folder, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)


def history(tmp_path: Path, seed: int) -> tuple[SiteDisk, Path]:
    """Return a disk, and the folder of its managed disk after a compaction, growth, and a resync."""
    disk, store = site(tmp_path, seed), plain_store(tmp_path)
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync())
    for number in range(3):
        disk.scribble(10)
        if number == 1:
            disk.resize(SIZE_BYTES + 64 * 1024)
        middle = disk.tag(f"point {number}").position
        apply(store, [disk.close_log()])
        if number == 1:
            store.compactor.compact(middle)
    disk.new_generation()
    disk.scribble(10)
    disk.close_log()
    apply(store, disk.sync(against=whole(store.latest_view())))
    disk.scribble(10)
    disk.tag("new")
    apply(store, [disk.close_log()])
    store.close()
    return disk, store.folder


def run(folder: Path) -> None:
    for _ in encrypt_disk(folder, KEY, SYSTEM_CLOCK):
        pass


def check(disk: SiteDisk, folder: Path, what: str) -> None:
    """Check every position that can be read, scrub, and apply another part."""
    store = ManagedDiskStore.open(folder, key=KEY)
    ends = {end for valid in store.valid_ranges() for end in valid} & disk.states.keys()
    assert len(ends) >= 3, what
    for position in ends:
        assert_same(whole(store.view(position)), disk.states[position], f"{what}, position {position}")
    assert list(scrub(folder)) == [], what
    store.close()


@pytest.mark.parametrize("seed", range(2))
def test_every_position_stays_and_no_plaintext_is_left(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    disk, folder = history(tmp_path, seed)
    store = ManagedDiskStore.open(folder)
    oldest = store.oldest_position
    before, mark, tags = store.debug_state().valid(), store.watermark(), store.tags()
    store.close()
    pin_id = pin(folder, oldest, "vm web01/os")
    view = open_view(folder, oldest)
    with mock.patch.object(disk_encryption, "STEP_BYTES", 16 << 10):
        run(folder)
    assert_same(whole(view), disk.states[oldest], "a view that was open before")
    assert [(each.pin_id, each.position) for each in pins(folder)] == [(pin_id, oldest)]
    assert [path.name for path in folder.parent.iterdir()] == [DISK_ID]
    check(disk, folder, f"seed {seed}")
    store = ManagedDiskStore.open(folder, key=KEY)
    assert store.is_encrypted
    assert (store.debug_state().valid(), store.watermark(), store.tags()) == (before, mark, tags)
    lines = Counter(bytes(disk.data[at : at + 16]) for at in range(0, len(disk.data), 16))
    del lines[bytes(16)]
    for path in folder.rglob("*.journal"):
        data = path.read_bytes()
        assert not any(data[at : at + 16] in lines for at in range(0, len(data) - 15, 8)), path
    base = (folder / "base.img").read_bytes()
    assert not any(base[at : at + 16] in lines for at in range(0, len(base), 16))
    disk.scribble(10)
    disk.tag("after")
    apply(store, [disk.close_log()])
    store.compactor.compact(disk.position)
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "after more parts and a compaction")
    store.close()


def test_a_kill_at_any_step_leaves_a_disk_with_the_same_positions(tmp_path: Path) -> None:
    disk, folder = history(tmp_path, 5)
    kept = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    states: Counter[bool | None] = Counter()
    steps, step = 1000, 0
    while step < steps:
        step += 1 if step < 12 else 7
        seen = 0

        def reached(_name: str, step: int = step) -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                raise Killed

        with suppress(Killed), failpoint.all_armed(reached, "store."):
            run(folder)
            steps = step
        discard_leftovers(folder.parent)
        states[is_encrypted(folder)] += 1
        assert [path.name for path in folder.parent.iterdir()] == [DISK_ID], f"killed at step {step}"
        if step % 5 == 0 or is_encrypted(folder):
            check(disk, folder, f"killed at step {step}")
        for path, data in kept.items():
            (folder / path).write_bytes(data)
        for path in {each.relative_to(folder) for each in folder.rglob("*") if each.is_file()} - kept.keys():
            (folder / path).unlink()
    assert states[False] > 5
    assert states[True] >= 1


@pytest.mark.parametrize("step", ["store.encrypt.journal", "store.encrypt.exchanged"])
def test_a_kill_before_and_after_the_exchange_leaves_one_whole_disk(tmp_path: Path, step: str) -> None:
    disk, folder = history(tmp_path, 6)
    with failpoint.armed(step, failpoint.raises(Killed)), pytest.raises(Killed):
        run(folder)
    assert is_encrypted(folder) is (step == "store.encrypt.exchanged")
    discard_leftovers(folder.parent)
    check(disk, folder, step)
    if not is_encrypted(folder):
        run(folder)
        check(disk, folder, f"{step}, then again")


def test_damage_stays_damage(tmp_path: Path) -> None:
    disk, store = site(tmp_path), plain_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    apply(store, disk.sync())
    disk.write(0, b"x" * 4096)
    disk.tag("point")
    apply(store, [disk.close_log()])
    store.close()
    journal = next(store.folder.glob("journal/*"))
    good = journal.read_bytes()
    (flipped := bytearray(good))[good.index(b"x" * 100)] ^= 1
    with (store.folder / "base.img").open("r+b") as base:
        base.seek(5 * 4096 + 7)
        base.write(bytes([base.read(1)[0] ^ 1]))
    journal.write_bytes(flipped)
    with pytest.raises(RigError, match="frame 1 cannot be encrypted") as caught:
        run(store.folder)
    assert caught.value.code == "StoreCorrupt"
    assert str(journal) in caught.value.message
    assert is_encrypted(store.folder) is False
    journal.write_bytes(good)
    with mock.patch("siterig.azure_emu.disks.base_image.REREAD_DELAY_S", 0.0):
        run(store.folder)
    assert [(Path(damage.path).name, damage.offset) for damage in scrub(store.folder)] == [("base.img", 5 * 4096)]
    view = open_disk(store.folder, disk.position, KEY)
    with pytest.raises(OSError, match="Input/output error"):
        view.pread(5 * 4096, 4096)
    assert view.pread(6 * 4096, 4096) == disk.data[6 * 4096 : 7 * 4096]
    assert view.pread(0, 4096) == b"x" * 4096
    view.close()


def test_an_initial_replication_continues_after_the_encryption(tmp_path: Path) -> None:
    disk, store = site(tmp_path), plain_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    parts = disk.sync()
    assert len(parts) >= 3
    apply(store, parts[:2])
    with failpoint.armed("store.base.copied", failpoint.raises(Killed)), pytest.raises(Killed):
        apply(store, parts[2:3])
    store.close()
    with mock.patch("siterig.azure_emu.disks.base_image.REREAD_DELAY_S", 0.0):
        run(store.folder)
    store = ManagedDiskStore.open(store.folder, key=KEY)
    apply(store, parts)
    assert_same(whole(store.latest_view()), bytes(disk.data), "the newest state")
    assert list(scrub(store.folder)) == []
    store.close()
    empty = store.folder.parent / str(uuid.UUID(int=3))
    ManagedDiskStore.create(empty, disk_id=empty.name, size_bytes=SIZE_BYTES, created_ns=1).close()
    run(empty)
    assert is_encrypted(empty)
