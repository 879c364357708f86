"""A comparison reads one state of a managed disk, whatever is applied and compacted meanwhile, and leaves no pin."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier.comparisons import IDLE_S, OPEN_MAX
from siterig.azure_emu.disks.pins import pin, pins
from siterig.blockfs.core.errors import Code, RigError
from siterig.cext.checksums import chunk_tag
from siterig.cext.packed_tags import unpack
from tests.support.disks.disk_history import CHUNK_BYTES, DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig

KEY = bytes(range(32))
COUNT = SIZE_BYTES // CHUNK_BYTES


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    await made.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    made.disk.scribble(20)
    return made


async def tags(rig: Rig, comparison_id: str, position: int | None = None) -> dict[int, bytes]:
    answer = await rig.service.checksums(
        disk_id=DISK_ID,
        comparison_id=comparison_id,
        key_hex=KEY.hex(),
        chunk_bytes=CHUNK_BYTES,
        spans=[(0, COUNT)],
        position=position,
    )
    return unpack(answer.checked([(0, COUNT)]).packed)


def plain(data: bytes) -> dict[int, bytes]:
    found = {i: chunk_tag(KEY, i, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in range(COUNT)}
    return {chunk: tag for chunk, tag in found.items() if any(tag)}


async def apply(rig: Rig, *names: str) -> None:
    rig.cache.hold([rig.log(name) for name in names])
    await rig.service.process_latest(disk_ids=[DISK_ID])


async def test_a_disk_without_a_state_is_zeros(rig: Rig) -> None:
    parts = rig.disk.sync()
    rig.cache.hold(parts[:1])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert await tags(rig, "one") == {}


async def test_a_comparison_reads_one_state_until_it_ends(rig: Rig) -> None:
    rig.cache.hold(rig.disk.sync())
    await rig.service.process_latest(disk_ids=[DISK_ID])
    first = plain(bytes(rig.disk.data))
    position = rig.disk.position
    assert await tags(rig, "latest") == first
    assert await tags(rig, "at", position) == first
    rig.disk.scribble(20)
    await apply(rig, "one")
    store = await rig.applier.parts.open(rig.applier.disk(DISK_ID))
    while store.compactor.compact_step(rig.disk.position):
        pass
    assert store.oldest_position == position  # the pin holds it
    assert plain(bytes(rig.disk.data)) != first
    assert await tags(rig, "latest") == await tags(rig, "at", position) == first
    assert await tags(rig, "later") == plain(bytes(rig.disk.data))
    for each in ("latest", "at", "later"):
        await rig.service.end_comparison(comparison_id=each)
    assert pins(store.folder) == []
    assert await tags(rig, "latest") == plain(bytes(rig.disk.data))


async def test_a_state_that_is_compacted_away_is_refused(rig: Rig) -> None:
    rig.cache.hold(rig.disk.sync())
    await rig.service.process_latest(disk_ids=[DISK_ID])
    with pytest.raises(RigError) as caught:
        await tags(rig, "later", rig.disk.position + 5)
    assert caught.value.code == "InvalidPosition"
    assert pins(rig.applier.folder / DISK_ID) == []


async def test_unused_comparisons_are_closed_and_pins_of_a_kill_removed(
    rig: Rig, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    rig.cache.hold(rig.disk.sync())
    await rig.service.process_latest(disk_ids=[DISK_ID])
    folder, position = rig.applier.folder / DISK_ID, rig.disk.position
    pin(folder, position, "comparison of a killed applier")
    kept = pin(folder, position, "vm web01/os")
    await nursery.start(rig.service.run)
    with trio.fail_after(60):
        while len(pins(folder)) > 1:  # noqa: ASYNC110 (the files of pins are the condition)
            await trio.sleep(0.1)
    await tags(rig, "one", position)
    assert len(pins(folder)) == 2
    await trio.sleep(IDLE_S / 2)
    await tags(rig, "one", position)  # it is in use
    await trio.sleep(IDLE_S * 0.7)
    assert len(pins(folder)) == 2
    await trio.sleep(IDLE_S)
    for _ in range(1000):  # the clock of the test jumps while a thread closes the state
        if len(pins(folder)) == 1:
            break
        await trio.to_thread.run_sync(time.sleep, 0.01)
    assert [each.pin_id for each in pins(folder)] == [kept]
    assert await tags(rig, "one", position) == plain(bytes(rig.disk.data))  # opened again


async def test_the_number_of_open_states_is_bounded(rig: Rig) -> None:
    rig.cache.hold(rig.disk.sync())
    await rig.service.process_latest(disk_ids=[DISK_ID])
    for number in range(OPEN_MAX + 3):
        await tags(rig, f"number {number}", rig.disk.position)
    assert len(pins(rig.applier.folder / DISK_ID)) == OPEN_MAX


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key_hex": "abcd"}, "key_hex is not 32 bytes in hexadecimal"),
        ({"key_hex": "no"}, "key_hex is not 32 bytes in hexadecimal"),
        ({"chunk_bytes": 100}, "chunk_bytes is 100; allowed: multiples of 4096 up to 1048576"),
        ({"spans": []}, "0 spans; allowed: 1 to 4096"),
        ({"spans": [(4, 2), (5, 1)]}, "span of 1 chunks from chunk 5: spans are in ascending order"),
        ({"spans": [(0, 0)]}, "span of 0 chunks from chunk 0: spans are in ascending order"),
        ({"spans": [(0, 1 << 62)]}, "span of 4611686018427387904 chunks from chunk 0"),
    ],
)
async def test_a_wrong_request_is_refused(rig: Rig, wrong: dict[str, object], message: str) -> None:
    request = {"disk_id": DISK_ID, "comparison_id": "x", "key_hex": KEY.hex(), "chunk_bytes": 4096, "spans": [(0, 1)]}
    with pytest.raises(RigError) as caught:
        await rig.service.checksums(**(request | wrong))  # type: ignore[arg-type]
    assert caught.value.code == Code.InvalidChecksumRequest
    assert caught.value.message.startswith(message)
