"""Clients of a server of tests: which of them must end, and hold a lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from siterig.testing.servers.client_process import ClientProcess, lock_holders

KILL, INT, ALRM, CHLD = 0x100, 0x2, 0x2000, 0x10000


def client(proc: Path, state: str, *, own: int = 0, shared: int = 0, blocked: int = 0) -> ClientProcess:
    """Return a client whose file in procfs has these values."""
    (proc / "7").mkdir(exist_ok=True)
    signals = {"SigPnd": own, "ShdPnd": shared, "SigBlk": blocked}
    lines = ["Name:\tpytest", f"State:\t{state}", *(f"{name}:\t{bits:016x}" for name, bits in signals.items())]
    (proc / "7" / "status").write_text("\n".join(lines) + "\n")
    return ClientProcess(7, proc)


def test_a_process_that_has_ended_or_was_killed_is_ending_at_once(tmp_path: Path) -> None:
    assert ClientProcess(8, tmp_path).is_ending()
    assert client(tmp_path, "Z (zombie)").is_ending()
    assert client(tmp_path, "D (disk sleep)", own=KILL).is_ending()
    assert client(tmp_path, "D (disk sleep)", shared=KILL).is_ending()


@pytest.mark.parametrize("signal", [INT, ALRM])
def test_a_signal_that_cannot_arrive_counts_at_the_second_look(tmp_path: Path, signal: int) -> None:
    user = client(tmp_path, "D (disk sleep)", shared=signal)
    assert [user.is_ending(), user.is_ending()] == [False, True]


def test_other_processes_are_not_ending(tmp_path: Path) -> None:
    for user in (
        client(tmp_path, "S (sleeping)"),
        client(tmp_path, "D (disk sleep)"),
        client(tmp_path, "D (disk sleep)", shared=CHLD),
        client(tmp_path, "D (disk sleep)", shared=INT, blocked=INT),
        client(tmp_path, "S (sleeping)", shared=INT, blocked=INT),
    ):
        assert not any([user.is_ending(), user.is_ending()])


def test_a_wait_between_two_looks_starts_again(tmp_path: Path) -> None:
    user = client(tmp_path, "D (disk sleep)", shared=INT)
    assert not user.is_ending()
    client(tmp_path, "R (running)")
    assert not user.is_ending()
    client(tmp_path, "D (disk sleep)", shared=INT)
    assert not user.is_ending()


def test_this_process_runs_and_holds_its_lock(tmp_path: Path) -> None:
    assert not ClientProcess(os.getpid()).is_ending()
    fds = [os.open(tmp_path / "users", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    try:
        assert lock_holders(fds[0]) == []
        fcntl.flock(fds[0], fcntl.LOCK_SH)
        assert lock_holders(fds[1]) == [os.getpid()]
    finally:
        for fd in fds:
            os.close(fd)
