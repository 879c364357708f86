"""The model of a disk: its bytes at each position, and the bytes that a loss of power may take."""

from __future__ import annotations

import random

from siterig.scenarios.simulation.disk_model import DiskModel

SIZE = 4096


def test_each_position_has_the_writes_up_to_it_in_whatever_order_is_asked() -> None:
    draws = random.Random(5)
    model, writes = DiskModel(SIZE), []
    for position in range(60):
        if position in (20, 40):
            model.begin_again(position, bytes([position]) * SIZE)
            writes.append((position, 0, bytes([position]) * SIZE))
            continue
        write = (position, draws.randrange(SIZE - 64), draws.randbytes(64))
        model.write(*write)
        writes.append(write)
    for position in [*range(60), *(draws.randrange(60) for _ in range(100))]:
        expected = bytearray(SIZE)
        for at, offset, data in writes:
            if at <= position:
                expected[offset : offset + len(data)] = data
        assert model.at(position) == expected, position


def test_a_write_after_a_flush_may_be_lost_without_a_new_position() -> None:
    model = DiskModel(SIZE)
    model.write(7, 0, b"kept")
    model.flushed()
    model.write(7, 100, b"gone")
    without = bytearray(SIZE)
    without[:4] = b"kept"
    assert model.lost(bytes(without)) is None
    assert model.lost(bytes(SIZE)) == 0


def test_a_loss_may_change_nothing_that_no_write_touched() -> None:
    model = DiskModel(SIZE)
    model.write(1, 0, b"maybe")
    assert model.lost(bytes(99) + b"x" + bytes(SIZE - 100)) == 99
