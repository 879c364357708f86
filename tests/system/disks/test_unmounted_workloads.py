"""Workloads whose disk is unmounted in the middle of a step: the step is not acknowledged, and fills no file below."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siterig.scenarios.workloads import file_tree, fio_rounds, ledger
from siterig.scenarios.workloads.ack_log import AckWriter, read_acks
from siterig.scenarios.workloads.fio_rounds import FioRounds
from siterig.scenarios.workloads.mounted_folders import MountedFolders
from siterig.scenarios.workloads.worker import Steps
from tests.support.disks.guest import run

pytestmark = pytest.mark.system

SIZE_BYTES = 1 << 20


class Place:
    """A mounted folder of a disk, the folder of this machine below it, and the files beside them."""

    def __init__(self, folder: Path) -> None:
        self.mount, self.position = folder / "mount", folder / "position"
        self.acks_path = folder / "acks"
        self.position.write_bytes(bytes(8))
        (self.mount / "load").mkdir(parents=True)  # below the mount: nothing may be written there
        for number in range(8):
            (self.mount / "load" / f"d{number}").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", self.mount)
        (self.mount / "load").mkdir()

    def acks(self) -> AckWriter:
        return AckWriter(self.acks_path, MountedFolders([self.mount]).check)

    def unmount(self) -> None:
        run("umount", "--lazy", self.mount)

    def bytes_below(self) -> int:
        return sum(path.stat().st_size for path in self.mount.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        while made.mount.is_mount():
            made.unmount()


def files(place: Place) -> Steps:
    return file_tree.FileTree(place.mount / "load", place.acks(), place.position)


def rounds(place: Place) -> Steps:
    return FioRounds(place.mount / "load", place.acks(), place.position, size_bytes=SIZE_BYTES, rounds=9)


def databases(place: Place) -> Steps:
    root = place.mount / "load"
    return ledger.Ledger(root / "os.db", root / "data.db", place.acks(), place.position)


@pytest.mark.parametrize(
    ("make", "module"),
    [
        pytest.param(files, file_tree, id="files"),
        pytest.param(
            rounds,
            fio_rounds,
            id="fio",
            marks=pytest.mark.skipif(shutil.which("fio") is None, reason="program fio is not installed"),
        ),
        pytest.param(databases, ledger, id="ledger"),
    ],
)
def test_a_step_on_an_unmounted_disk_is_not_acknowledged(
    place: Place, monkeypatch: pytest.MonkeyPatch, make: Callable[[Place], Steps], module: object
) -> None:
    steps = make(place)
    steps.step()

    def unmount(_: Path) -> int:
        if place.mount.is_mount():
            place.unmount()
        return 0

    monkeypatch.setattr(module, "read_position", unmount)
    with pytest.raises(steps.failures):
        steps.step()
    steps.close()
    assert [ack.n for ack in read_acks(place.acks_path)] == [1]


@pytest.mark.skipif(shutil.which("fio") is None, reason="program fio is not installed")
def test_fio_fills_no_file_of_this_machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, real = rounds(place), subprocess.run

    def unmount_first(words: list[str], **more: object) -> object:
        if words[0] == "fio" and place.mount.is_mount():
            place.unmount()
        return real(words, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", unmount_first)
    with pytest.raises(OSError, match="no longer mounted"):
        steps.step()
    steps.close()
    assert (read_acks(place.acks_path), place.bytes_below()) == ([], 0)


def test_another_disk_on_the_same_folder_is_found(place: Place) -> None:
    acks = place.acks()
    run("mount", "-t", "tmpfs", "tmpfs", place.mount)
    with pytest.raises(OSError, match="no longer mounted"):
        acks.check()
    place.unmount()
    acks.check()
    acks.close()


PROGRAM = """
import argparse, subprocess, sys
from pathlib import Path
from siterig.scenarios.workloads.worker import add_common_options, work
def make(acks):
    if {unmounts}:
        subprocess.run(["umount", "--lazy", {mount!r}], check=True)
    class Steps:
        failures, newest, acknowledged = (OSError,), 7, 0
        step = close = lambda self: None
    return Steps()
words = ["--acks", {acks!r}, "--position", {position!r}, "--mounted", {mount!r}]
sys.exit(work(make, (OSError,), add_common_options(argparse.ArgumentParser()).parse_args(words)))
"""


@pytest.mark.parametrize("unmounts", [False, True])
def test_a_disk_that_is_unmounted_during_the_start_ends_the_workload(place: Place, unmounts: bool) -> None:
    names = {"mount": str(place.mount), "acks": str(place.acks_path), "position": str(place.position)}
    words = [sys.executable, "-P", "-c", PROGRAM.format(unmounts=unmounts, **names)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, input="", timeout=60)
    if unmounts:
        assert (done.returncode, done.stdout.splitlines()) == (
            1,
            [f"failed 0 [Errno 19] the disk is no longer mounted: '{place.mount}'"],
        )
    else:
        assert (done.returncode, done.stdout.splitlines()) == (0, ["ready 7", "stopped 0"])
