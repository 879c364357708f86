"""The rig's lock: held by one process, looked at by any number, waited for while a rig is being ended."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.core import lock as lock_module
from siterig.core.lock import ENDING, is_locked, take_ending, take_lock


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_lock_that_is_not_there_is_not_held_and_not_made_by_a_look(lock: Path) -> None:
    assert not is_locked(lock)
    assert not lock.exists()


def test_the_lock_is_held_until_its_descriptor_is_closed(lock: Path) -> None:
    fd = take_lock(lock)
    assert lock.read_text() == f"{os.getpid()}\n"
    assert is_locked(lock)
    assert not is_locked(lock, ENDING)
    with pytest.raises(RigError) as caught:
        take_lock(lock)
    assert (caught.value.code, caught.value.message) == (
        "AlreadyUp",
        f"the rig in {lock.parent} is up already (supervisor's process id: {os.getpid()}); end it with siterig down",
    )
    assert is_locked(lock)  # a refused attempt, and a look, release nothing
    os.close(fd)
    assert not is_locked(lock)


@pytest.mark.slow
def test_any_number_of_looks_is_in_nobodys_way(lock: Path) -> None:
    lock.touch()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_locked(lock)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            os.close(take_lock(lock))
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_an_up_waits_for_a_down_that_is_about_to_free_the_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, held = take_ending(lock), take_lock(lock, waits=False)
    waited = threading.Event()
    monkeypatch.setattr("siterig.core.lock.SYSTEM_CLOCK.sleep_thread", lambda _s: waited.set())
    taken: list[int] = []
    up = threading.Thread(target=lambda: taken.append(take_lock(lock)))
    up.start()
    assert waited.wait(20)
    assert taken == []
    os.close(held)
    up.join(20)
    assert len(taken) == 1
    os.close(taken[0])
    os.close(ending)


def test_an_up_that_waited_for_a_down_in_vain_is_refused(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, held = take_ending(lock), take_lock(lock, waits=False)
    monkeypatch.setattr("siterig.core.lock.SYSTEM_CLOCK.sleep_thread", lambda _s: os.close(ending))
    with pytest.raises(RigError, match="is up already"):
        take_lock(lock)
    os.close(held)


def test_a_second_down_that_waits_too_long_names_the_reason(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "WAIT_S", 0.05)
    ending = take_ending(lock)
    with pytest.raises(RigError) as caught:
        take_ending(lock)
    assert (caught.value.code, caught.value.recoverable) == ("RigBusy", True)
    os.close(ending)
    os.close(take_ending(lock))
