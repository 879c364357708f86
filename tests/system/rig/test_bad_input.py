"""Tests of the rig's answers to bad input and to machine faults: one line, a documented exit status, nothing lost.

All tests use the real command line.  The shared rig lies on a small file system, so that a test can fill it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from siterig.azure_emu.vault.db.migrations import OLDEST_VERSION
from siterig.azure_emu.vault.db.schema import FORMAT_VERSION
from siterig.blockfs.guests import loop_devices
from siterig.core import paths
from siterig.core.paths import Layout
from siterig.supervisor import cleanup, launch
from tests.support.needs import needs_program
from tests.support.warm_command import run_warm

pytestmark = pytest.mark.system

MIB = 1024 * 1024
HOST_BYTES = 160 * MIB
PATIENCE_S = 40.0
FULL = re.compile(r"siterig: error: .*the host's disk is full \(/[^)]*\) \(DiskFull\)\n")


class Rig:
    """A rig's folder, and commands that run on it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout.of(root)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``siterig ARGUMENTS`` on this rig."""
        return run_warm(*arguments, "--dir", self.layout.root, environment=environment)

    def good(self, *arguments: str) -> str:
        """Run a command that must succeed, and return its output; the status of an unhealthy rig counts as success."""
        result = self.run(*arguments)
        healthy = {0, 5, 6} if arguments[0] == "status" else {0}
        assert result.returncode in healthy, f"{result.stderr}{result.stdout}"
        return result.stdout

    def refused(self, *arguments: str) -> tuple[int, str]:
        """Run a command that must fail and print no result, and return its exit status and stderr."""
        result = self.run(*arguments)
        assert result.stdout == ""
        return result.returncode, result.stderr

    def item(self, vm: str) -> dict[str, Any]:
        """Return a protected item, as ``status --json`` shows it."""
        items = json.loads(self.good("status", "--json"))["items"]
        return next(item for item in items if item["vm"] == vm)

    def end(self) -> None:
        """End all processes, mounts and loop devices that a test left."""

        async def end() -> None:
            await loop_devices.release_below(self.layout.root)
            await launch.down(self.layout)

        trio.run(end)


@contextlib.contextmanager
def small_host(folder: Path) -> Iterator[Path]:
    """Mount a file system of ``HOST_BYTES`` during the block."""
    image, where = folder / "host.ext4", folder / "host"
    image.touch()
    os.truncate(image, HOST_BYTES)
    where.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Start a rig for all tests that need a running one; each test makes its own VMs."""
    with small_host(tmp_path_factory.mktemp("small")) as host:
        rig = Rig(host / "rig")
        try:
            rig.good("up", "--quick-retries")
            yield rig
        finally:
            rig.end()


@pytest.fixture
def down(tmp_path: Path) -> Iterator[Rig]:
    """Create a rig that never ran."""
    rig = Rig(tmp_path / "rig")
    paths.create(rig.layout)
    yield rig
    rig.end()


@pytest.fixture
def full(rig: Rig) -> Iterator[Callable[[], None]]:
    """Return a function that fills the rig's disk completely; call it again when blocks may have become free."""
    filler = rig.layout.root.parent / "filler"

    def fill() -> None:
        with filler.open("ab", buffering=0) as file:
            for size in (MIB, 4096, 512):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    yield fill
    filler.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(disk: str, where: Path) -> Iterator[Path]:
    """Mount a disk with ext4 as a user would."""

    async def begin() -> str:
        loop = await loop_devices.attach(Path(disk))
        await loop_devices.mount(loop, where, "ext4")
        return loop

    async def end(loop: str) -> None:
        await loop_devices.unmount(where)
        await loop_devices.detach(loop)

    loop = trio.run(begin)
    try:
        yield where
    finally:
        trio.run(end, loop)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition is true, or fail the test."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.2)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file durably, as a database would."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def path_of(vm: str, made: dict[str, Any]) -> str:
    assert made["vm"] == vm
    return str(made["disks"][0]["path"])


# ---- arguments that make no sense


@pytest.mark.parametrize("command", ["points", "failover planned", "resync"])
def test_an_unknown_vm_is_reported_with_the_known_vms(rig: Rig, command: str) -> None:
    assert rig.refused(*command.split(), "nosuch") == (
        2,
        "siterig: error: VM 'nosuch' is not protected; protected VMs: none (VmNotFound)\n",
    )


def test_an_unknown_vm_cannot_be_protected(rig: Rig) -> None:
    rig.good("vm", "create", "known", "--disk", "a:1MiB")
    status, stderr = rig.refused("protect", "nosuch")
    assert status == 2
    assert re.fullmatch(
        r"siterig: error: there is no VM 'nosuch' at the site; VMs there: .*known.* \(VmNotFound\)\n", stderr
    )


@pytest.mark.parametrize(
    ("disk", "line"),
    [
        ("a:1000", "size '1000' is 1000 bytes: it must be a positive multiple of 512 (InvalidDiskSize)"),
        ("a:0", "size '0' is 0 bytes: it must be a positive multiple of 512 (InvalidDiskSize)"),
        ("a:big", "size 'big' is not understood: write a number and KiB, MiB, GiB or TiB (InvalidDiskSize)"),
        ("a:1MiB:ntfs", "disk 'a:1MiB:ntfs': file system 'ntfs' is not one of ext4, xfs, btrfs (UnknownFilesystem)"),
        (
            "../a:1MiB",
            "disk is named '../a'; allowed: 1 to 63 letters, digits, '-' and '_', not '-' or '_' first (InvalidName)",
        ),
    ],
)
def test_an_impossible_disk_leaves_no_vm(rig: Rig, disk: str, line: str) -> None:
    assert rig.refused("vm", "create", "odd", "--disk", "good:1MiB", "--disk", disk) == (2, f"siterig: error: {line}\n")
    assert "odd" not in {vm["vm"] for vm in json.loads(rig.good("vm", "list", "--json"))}


@needs_program("qemu-img")
@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("x.img", ["-O", "raw"], "InvalidDiskSize"),
        ("fixed.vhd", ["-O", "vpc", "-o", "subformat=fixed,force_size=on"], "VhdCorrupt"),
        ("dynamic.vhd", ["-O", "vpc", "-o", "force_size=on"], "ImageUnusable"),
        ("x.qcow2", ["-O", "qcow2"], "ImageUnusable"),
        ("x.vhdx", ["-O", "vhdx"], "ImageUnusable"),
        ("x.vmdk", ["-O", "vmdk"], "ImageUnusable"),
    ],
)
def test_a_truncated_image_leaves_no_vm(rig: Rig, tmp_path: Path, name: str, options: list[str], code: str) -> None:
    disk, image = tmp_path / "disk.img", tmp_path / name
    disk.write_bytes(os.urandom(4 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, disk, image], check=True)
    os.truncate(image, image.stat().st_size * 2 // 3 | 1)
    status, stderr = rig.refused("vm", "create", "cut", "--disk", f"os={image}")
    assert status == 2
    assert re.fullmatch(rf"siterig: error: {re.escape(str(image))}: .* \({code}\)\n", stderr)
    assert "cut" not in {vm["vm"] for vm in json.loads(rig.good("vm", "list", "--json"))}
    assert not (rig.layout.site_disks / "cut").exists()


def test_the_error_for_a_disk_too_small_for_its_file_system_names_its_file(rig: Rig) -> None:
    path = rig.layout.site_mount / "tiny" / "a.img"
    assert rig.refused("vm", "create", "tiny", "--disk", "a:1MiB:xfs") == (
        2,
        f"siterig: error: {path} has 1048576 bytes: xfs needs at least 314572800 (300 MiB) (DiskTooSmall)\n",
    )
    assert not (rig.layout.site_disks / "tiny").exists()


@pytest.mark.parametrize("option", ["--interval", "--app-consistent-every"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_an_interval_that_is_not_finite_is_refused(rig: Rig, option: str, value: str) -> None:
    assert rig.refused("protect", "nosuch", option, value) == (
        2,
        f"siterig: error: {option}: {value} is not allowed; allowed: a finite number of seconds (InvalidPolicy)\n",
    )


# ---- the folder


def test_a_second_up_on_the_same_state_is_refused_and_changes_nothing(rig: Rig) -> None:
    before = json.loads(rig.good("status", "--json"))
    assert rig.refused("up") == (
        1,
        f"siterig: error: the rig in {rig.layout.root} is up already (supervisor's process id: {before['pid']}); "
        "end it with siterig down (AlreadyUp)\n",
    )
    assert json.loads(rig.good("status", "--json"))["roles"] == before["roles"]


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_the_state_of_another_version_is_refused_and_kept(down: Rig, command: str) -> None:
    down.layout.state.write_text('{"format": 99}')
    line = f"{down.layout.root} has state format 99, this siterig understands 1: use the siterig that created it"
    assert down.refused(command) == (2, f"siterig: error: {line} (StateVersion)\n")
    assert down.layout.state.read_text() == '{"format": 99}'
    down.layout.state.write_text('{"format": 1}')


def test_a_vault_of_another_version_stops_the_start(down: Rig) -> None:
    with contextlib.closing(sqlite3.connect(down.layout.vault_db)) as database, database:
        database.execute("create table format (version integer primary key)")
        database.execute("insert into format values (99)")
    status, stderr = down.refused("up")
    assert status == 2
    assert stderr.splitlines()[-1] == (
        f"siterig: error: role vault did not start: the vault's database sqlite:///{down.layout.vault_db} has format "
        f"version 99; this program reads versions {OLDEST_VERSION} to {FORMAT_VERSION}: use the siterig that created it "
        "(StateVersion)"
    )
    assert down.run("status").returncode == 3


def test_a_folder_that_cannot_be_created_is_reported_in_one_line() -> None:
    result = run_warm("up", "--dir", "/dev/null/rig")
    assert result.returncode == 2
    assert re.fullmatch(
        r"siterig: error: folder /dev/null/rig cannot hold a rig: [^\n]+ \(/dev/null/rig[^\n]*\) \(FolderUnusable\)\n",
        result.stderr,
    )


def test_a_file_system_without_room_for_a_rig_is_refused_at_once() -> None:
    result = run_warm("up", "--dir", "/proc/rig")
    assert result.returncode == 4
    assert result.stderr.splitlines() == [
        "siterig: error: this machine cannot run a rig: free space: 0 MiB at /proc (remedy: a rig needs 64 MiB: free "
        "some, or name a folder on a larger file system with --dir) (MachineUnfit)"
    ]


# ---- the machine


def test_a_port_that_another_program_uses_is_named(down: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (down.layout.azurite / "port").write_text(f"{port}\n")
        status, stderr = down.refused("up")
    assert status == 1
    assert stderr.splitlines()[-1] == (
        f"siterig: error: role azurite did not start: port {port} on 127.0.0.1 is taken by another program: stop it "
        "(ss -ltnp shows it) (PortTaken)"
    )
    assert not cleanup.mounts_below(down.layout.root)


def test_a_missing_azurite_is_named(down: Rig) -> None:
    result = down.run("up", SITERIG_AZURITE="/nonexistent/azurite-blob")
    assert result.returncode == 4
    assert result.stderr.splitlines()[-1] == (
        "siterig: error: this machine cannot run a rig: azurite: SITERIG_AZURITE names /nonexistent/azurite-blob, which is "
        "no file (remedy: run siterig setup azurite (in a checkout: ./rig), or npm install azurite in your project, or name "
        "its azurite-blob script in SITERIG_AZURITE) (AzuriteMissing)"
    )
    assert not down.layout.lock.exists()
    assert not cleanup.mounts_below(down.layout.root)


# ---- the host's disk is full


def test_on_a_full_disk_no_half_created_vm_stays(rig: Rig, full: Callable[[], None]) -> None:
    full()
    status, stderr = rig.refused("vm", "create", "full", "--disk", "a:64MiB:ext4", "--disk", "b:64MiB:ext4")
    assert status == 1
    assert FULL.fullmatch(stderr), stderr
    assert "full" not in {vm["vm"] for vm in json.loads(rig.good("vm", "list", "--json"))}
    assert not (rig.layout.site_disks / "full").exists()


def test_a_vm_that_a_full_disk_kept_from_protection_is_protected_later(
    rig: Rig, full: Callable[[], None], tmp_path: Path
) -> None:
    made = json.loads(rig.good("vm", "create", "late", "--disk", "a:32MiB:ext4", "--json"))
    with mounted(path_of("late", made), tmp_path / "guest") as guest:
        write_durably(guest / "file", os.urandom(8 * MIB))
    full()
    status, stderr = rig.refused("protect", "late", "--interval", "30")
    assert status == 1
    assert stderr.splitlines()[-1].startswith("siterig: error: "), stderr
    assert re.search(r"\((DiskFull|NotEnoughSpace)\)$", stderr), stderr
    assert all(role["state"] == "ready" for role in json.loads(rig.good("status", "--json"))["roles"])
    (rig.layout.root.parent / "filler").unlink()
    rig.good("protect", "late", "--interval", "30")
    assert rig.item("late")["protectionState"] == "Protected"
    rig.good("unprotect", "late")


def test_a_host_disk_that_fills_up_under_load_loses_nothing(rig: Rig, full: Callable[[], None], tmp_path: Path) -> None:
    made = json.loads(rig.good("vm", "create", "busy", "--disk", "a:64MiB:ext4", "--json"))
    rig.good("protect", "busy", "--interval", "1")
    before, during, after = os.urandom(2 * MIB), os.urandom(16 * MIB), os.urandom(2 * MIB)
    with mounted(path_of("busy", made), tmp_path / "guest") as guest:
        write_durably(guest / "before", before)
        full()
        with pytest.raises(OSError, match=r"No space left on device|Input/output error") as caught:
            write_durably(guest / "during", during)
        assert caught.value.errno in (errno.ENOSPC, errno.EIO)
        full()  # data that was replicated meanwhile was deleted at the site, which freed blocks

        # Each deletion frees blocks, so that a refused write can succeed.  Health and its error come from one status.
        def is_reported() -> bool:
            item = rig.item("busy")
            reported = "DiskFull" in {error["errorCode"] for error in item["healthErrors"]}
            assert not reported or item["replicationHealth"] in ("Warning", "Critical")
            return reported

        def is_refused() -> bool:
            full()
            return rig.run("take-point", "busy").returncode == 1

        until(is_reported, "DiskFull in the health")
        until(is_refused, "a point that is refused while the disk is full")
        status = json.loads(rig.good("status", "--json"))
        assert all(role["state"] == "ready" and role["restarts"] == 0 for role in status["roles"])
        assert (guest / "before").read_bytes() == before
    (rig.layout.root.parent / "filler").unlink()

    # The guest's ext4 may have met the error in its journal and become read-only, so it is mounted again.
    with mounted(path_of("busy", made), tmp_path / "guest") as guest:
        assert (guest / "before").read_bytes() == before
        write_durably(guest / "after", after)
        until(lambda: rig.run("take-point", "busy").returncode == 0, "a point after there is room again")
        until(
            lambda: "DiskFull" not in {e["errorCode"] for e in rig.item("busy")["healthErrors"]}, "health without DiskFull"
        )
    assert rig.item("busy")["resynchronizationRequired"] is None
    recovered = json.loads(rig.good("failover", "test", "busy", "--point", "latest", "--json"))["job"]["result"]
    with mounted(path_of("busy-test", recovered), tmp_path / "recovered") as copy:
        assert (copy / "before").read_bytes() == before
        assert (copy / "after").read_bytes() == after
    rig.good("cleanup", "busy")
    rig.good("unprotect", "busy")


def test_up_clears_mounts_of_a_killed_rig_and_keeps_its_disks(down: Rig, tmp_path: Path) -> None:
    rig = down
    rig.good("up", "--quick-retries")
    made = json.loads(rig.good("vm", "create", "kept", "--disk", "a:16MiB:ext4", "--json"))
    with mounted(path_of("kept", made), tmp_path / "guest") as guest:
        write_durably(guest / "file", b"kept" * 10_000)
    status = json.loads(rig.good("status", "--json"))
    for pid in [status["pid"], *(role["pid"] for role in status["roles"])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not launch.is_up(rig.layout), "the end of the supervisor")
    assert cleanup.mounts_below(rig.layout.root / "site")
    assert rig.refused("vm", "list") == (
        3,
        f"siterig: error: the rig in {rig.layout.root} was killed: siterig up or down clears it (NotUp)\n",
    )
    rig.good("up", "--quick-retries")
    with mounted(path_of("kept", made), tmp_path / "guest") as guest:
        assert (guest / "file").read_bytes() == b"kept" * 10_000
