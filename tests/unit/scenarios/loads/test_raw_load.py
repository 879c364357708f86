"""Raw writes to an area of a disk: their check accepts each state that a cut may leave, and no other one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from siterig.scenarios.loads.raw_load import RawLoad, RawTable
from siterig.scenarios.workloads.ack_log import Ack, AckWriter, read_acks
from siterig.scenarios.workloads.raw_areas import AREA_BYTES, NUMBER_BYTES, RawAreas, change

SEED, START, STEPS = "7/area", 1 << 20, 40
TABLE = RawTable("area", SEED, START, 10)


class Written:
    """A disk after some steps of the workload, each at a position of its own."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.position = folder / "disk.img", folder / "position"
        with self.disk.open("wb") as file:
            file.truncate(START + AREA_BYTES)
        self._now = 0
        self.run(STEPS)

    def run(self, count: int) -> None:
        self._advance()
        steps = RawAreas(self.disk, START, SEED, AckWriter(self.disk.with_suffix(".acks")), self.position)
        for _ in range(count):
            steps.step()
            self._advance()
        steps.close()

    def _advance(self) -> None:
        self._now += 10
        self.position.write_bytes(struct.pack("<Q", self._now))

    @property
    def acks(self) -> list[Ack]:
        return read_acks(self.disk.with_suffix(".acks"))

    def put(self, offset: int, data: bytes) -> None:
        with self.disk.open("r+b") as file:
            file.seek(START + offset)
            file.write(data)

    def failed(self, cut: int | None = None) -> list[str]:
        findings, _ = RawLoad(TABLE, ["disk"]).findings({"disk": self.disk}, self.disk.parent, self.acks, cut)
        return [finding.name for finding in findings if not finding.ok]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def test_a_disk_with_all_changes_passes_and_a_new_process_continues(written: Written) -> None:
    assert written.failed() == []
    written.run(STEPS)
    assert [ack.n for ack in written.acks] == list(range(1, 2 * STEPS + 1))
    assert written.failed() == []


def test_changes_have_few_bytes_and_many_at_any_byte_and_some_are_discards() -> None:
    made = [change(SEED, n) for n in range(1, 400)]
    assert {len(each.data) for each in made} >= {8, 512, 4096}
    assert any(each.offset % 512 for each in made)
    assert any(each.discard for each in made)
    assert all(each.offset >= NUMBER_BYTES and each.offset + len(each.data) <= AREA_BYTES for each in made)


def test_one_wrong_byte_is_found_wherever_it_is(written: Written) -> None:
    following = change(SEED, STEPS + 1)
    places = {0x2000, AREA_BYTES - 1} - set(range(following.offset, following.offset + len(following.data)))
    for offset in places:
        with written.disk.open("rb") as file:
            file.seek(START + offset)
            (byte,) = file.read(1)
        written.put(offset, bytes([byte ^ 1]))
        assert written.failed() == ["bytes"]
        written.put(offset, bytes([byte]))
    assert written.failed() == []


def test_the_begin_of_the_next_change_is_allowed_and_its_end_alone_is_not(written: Written) -> None:
    number = next(
        n for n in range(STEPS + 1, STEPS + 100) if len(change(SEED, n).data) > 600 and not change(SEED, n).discard
    )
    written.run(number - STEPS - 1)
    following = change(SEED, number)
    written.put(following.offset, following.data[:300])
    assert written.failed() == []
    written.put(following.offset + 400, following.data[400:])
    assert written.failed() == ["bytes"]
    written.put(following.offset, following.data)
    assert written.failed() == []


def test_an_acknowledged_change_that_is_missing_is_found(written: Written) -> None:
    acks = written.acks
    kept = written.disk.read_bytes()
    written.run(1)
    assert written.failed(acks[-1].end_position + 5) == ["no change from after the state"]
    written.disk.write_bytes(kept)
    assert written.failed() == ["every change acknowledged"]
    assert written.failed(acks[-1].end_position + 5) == []


def test_a_number_that_no_process_wrote_is_found(written: Written) -> None:
    written.put(0, (10**9).to_bytes(NUMBER_BYTES, "little"))
    assert "bytes" in written.failed()
