"""A pin is durable when it is made, and stays removed when it is released, whatever a kill left of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.azure_emu.disks.pins import PINS, pin, pins, unpin
from tests.crash.recording import Event, NamesSynced, Recorder
from tests.support.stores.managed_disk import seeded


@contextmanager
def recorded(store: Path) -> Iterator[list[Event]]:
    recorder = Recorder(store / PINS)
    with recorder.recording():
        yield recorder.events
    recorder.close()


def test_a_pin_that_is_there_already_is_durable_before_it_is_taken_for_made(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    pin_id = pin(store.folder, disk.position, "vm web01/os")  # and killed before its name was synced
    with recorded(store.folder) as events:
        assert pin(store.folder, disk.position, "vm web01/os") == pin_id
    assert events == [NamesSynced()]


def test_a_pin_that_is_gone_already_is_durably_so_before_it_is_taken_for_gone(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    unpin(store.folder, pin(store.folder, disk.position, "vm web01/os"))  # and killed before that was synced
    with recorded(store.folder) as events:
        unpin(store.folder, "a0c1")
    assert (events, pins(store.folder)) == ([NamesSynced()], [])
    unpin(tmp_path / "no store", "a0c1")
