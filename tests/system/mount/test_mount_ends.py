"""Tests of the end of a mount: by signals, by an unmount, while it is used, and with a copy in another mount namespace."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.disks.guest import write_durably
from tests.support.disks.mount_namespace import copied_mount
from tests.support.disks.mount_process import (
    DEAD,
    Start,
    copied,
    logs,
    loop_over,
    names,
    read,
    replayed,
)

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unmount_cleanly(image: Path, where: Path, start: Start, number: signal.Signals) -> None:
    where.mkdir()
    mount = start(image, where, "--log")
    write_durably(mount.disk, 0, b"last")
    mount.signal(number)
    status, printed, stderr = mount.ended()
    assert (status, list(printed[0])) == (0, ["unmounted"]), stderr
    assert names(where) == []
    again = start(image, where, "--log")
    assert again.mounted["log"]["generation"] == 1
    assert read(again.disk, 0, 4) == b"last"


def test_repeated_signals_do_not_interrupt_the_end_of_a_mount(image: Path, where: Path, start: Start) -> None:
    mount = start(image, where, "--log")
    write_durably(mount.disk, 0, b"last")
    while True:
        mount.signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            mount.process.wait(timeout=0.005)  # without a pause between signals Python could do nothing else
            break
    status, printed, stderr = mount.ended()
    assert (status, stderr, list(printed[0])) == (0, "", ["unmounted"])


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]], ids=lambda command: command[0])
def test_an_unmount_ends_the_mount_cleanly_and_another_can_follow(
    image: Path, where: Path, start_each: Start, command: list[str]
) -> None:
    before = copied(image)
    where.mkdir()
    for number in range(3):
        mount = start_each(image, where, "--log")
        assert mount.mounted["log"]["generation"] == 1
        write_durably(mount.disk, number * MIB, os.urandom(3 * MIB))
        subprocess.run([*command, where], check=True)
    status, printed, stderr = mount.ended()
    assert (status, list(printed[0])) == (0, ["unmounted"]), stderr
    assert replayed(before, logs(image)) == image.read_bytes()


def test_a_disk_in_use_is_unmounted_only_on_the_second_signal(image: Path, where: Path, start_each: Start) -> None:
    mount = start_each(image, where, "--log")
    with loop_over(mount.disk) as loop:
        mount.signal(signal.SIGINT)
        note = mount.note()
        assert note.startswith(f"siterig: note: {where} is in use by {loop}; end that first"), note
        write_durably(Path(loop), 0, b"goes on".ljust(512))
        assert read(mount.disk, 0, 7) == b"goes on"
    mount.end()
    assert read(image, 0, 7) == b"goes on"
    second = start_each(image, where, "--log")
    fd = os.open(second.disk, os.O_RDONLY)
    second.signal(signal.SIGTERM)
    assert f"({os.getpid()})" in second.note()
    second.signal(signal.SIGTERM)
    status, printed, stderr = second.ended()
    with pytest.raises(OSError, match=DEAD):
        os.close(fd)
    assert (status, printed) == (1, [])
    assert stderr.splitlines()[-1].endswith(
        "was unmounted while programs used it; the image and its log are closed (MountBusy)"
    )
    assert not where.exists()
    assert start_each(image, where, "--log").mounted["log"]["generation"] == 1


def test_a_loop_device_that_is_being_detached_is_no_user(image: Path, where: Path, start_each: Start) -> None:
    mount = start_each(image, where, "--log")
    with loop_over(mount.disk) as loop:
        fd = os.open(loop, os.O_RDONLY)
    mount.signal(signal.SIGINT)
    assert mount.is_silent(1), "a first signal must wait"
    os.close(fd)
    status, printed, stderr = mount.ended()
    assert (status, list(printed[0]), stderr) == (0, ["unmounted"], "")


def test_a_loop_device_that_stays_open_while_it_is_being_detached_is_named(image: Path, where: Path, start: Start) -> None:
    mount = start(image, where)
    with loop_over(mount.disk) as loop:
        fd = os.open(loop, os.O_RDONLY)
    mount.signal(signal.SIGINT)
    assert mount.note().startswith(f"siterig: note: {where} is in use by {loop}; end that first")
    os.close(fd)
    mount.end()


@pytest.mark.parametrize("patient", [True, False])
def test_a_copy_of_the_mount_in_another_mount_namespace_is_named(
    image: Path, where: Path, start: Start, patient: bool
) -> None:
    mount = start(image, where)
    with copied_mount(where) as holder:
        mount.signal(signal.SIGINT)
        assert mount.note() == (
            f"siterig: note: {where} is unmounted, but still mounted in the mount namespace of sleep ({holder}); "
            "end that first (a second signal ends this mount while it is in use)\n"
        )
        if not patient:
            mount.signal(signal.SIGINT)
            status, _, stderr = mount.ended()
            assert (status, stderr.splitlines()[-1][-11:]) == (1, "(MountBusy)")
    if patient:
        assert (mount.ended()[0], read(image, 0, 7)) == (0, bytes(7))
