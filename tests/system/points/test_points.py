"""Tests of recovery points as files in a real mount: they equal copies of the disks that were made at the tags."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import MountedPoint
from siterig.blockfs.core.errors import RigError
from siterig.cli.reading_again import read_served
from siterig.images import image_export
from siterig.rpc import directory
from tests.support.needs import needs_program
from tests.support.rigs.protected_vm import MIB, SITERIG, SIZES, Images, floors, protected, retain, run, same, siterig
from tests.support.stores.stored_bytes import stored
from tests.support.warm_command import run_warm

pytestmark = pytest.mark.system

QEMU_NAMES = {"raw": "raw", "vhd": "vpc", "qcow2": "qcow2", "vhdx": "vhdx", "vmdk": "vmdk"}
"""The formats of an export, with their names in ``qemu-img``."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a short name: it contains a socket, and the kernel allows 107 bytes for the socket's path."""
    folder = tmp_path_factory.mktemp("p")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@needs_program("qemu-img")
async def test_points_and_positions_of_a_vm_are_mounted_and_survive_a_kill(folder: Path) -> None:
    async with protected(folder) as (testbed, source):
        vault = testbed.vault
        states: list[tuple[Images, MountedPoint]] = []
        first, first_point = await source.point("first")
        between, position = await source.position("between")
        second, second_point = await source.point("second")
        later, later_position = await source.position("later")
        last = await vault.create_point(vm="web01", kind="CrashConsistent", name="last")
        states.append((first, await vault.mount_point(vm="web01", point=first_point.id)))
        states.append((between, await vault.mount_point(vm="web01", position=position)))
        states.append((second, await vault.mount_point(vm="web01", time=second_point.time)))
        states.append((later, await vault.mount_point(vm="web01", position=later_position)))
        states.append((later, await vault.mount_point(vm="web01", point="LatestProcessed", name="newest")))
        assert states[2][1].recovery_point == second_point
        assert states[4][1].position >= last.position
        await source.write()  # later writes at the site change none of them
        for copy, mounted in states:
            await same(copy, mounted)

        images = {disk.name: disk for disk in states[1][1].disks}
        assert images["odd"].vhd is None  # its size is no multiple of 1 MiB
        vhd = images["os"].vhd
        assert "Images are identical." in await run("qemu-img", "compare", "-f", "raw", "-F", "vpc", between["os"], vhd)
        for refused in (lambda: os.open(images["os"].path, os.O_RDWR), lambda: os.truncate(images["os"].path, 4096)):
            with pytest.raises(OSError, match="Read-only file system"):
                await trio.to_thread.run_sync(refused)

        await testbed.supervisor.kill_role(name="azure", hold=False)
        with trio.fail_after(60):
            while True:
                try:
                    if len(await testbed.azure.list_mounted_points()) == len(states):
                        break
                except RigError:
                    pass
                await trio.sleep(0.1)
        for copy, mounted in states:
            await same(copy, mounted)
        await retain(testbed, second_point.position)
        for copy, mounted in states:
            await same(copy, mounted)
        assert max(await floors(testbed)) <= first_point.position  # a mounted position is not compacted
        assert len(json.loads(await siterig(testbed, "point", "list", "web01", "--json"))["mounted"]) == len(states)
        for _, mounted in states:
            await siterig(testbed, "point", "unmount", "web01", mounted.name)
        assert await vault.mounted_points(vm="web01") == []
        assert not (testbed.layout.azure_mount / "recovery").exists()
        with trio.fail_after(30):
            while min(await floors(testbed)) <= first_point.position:  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.1)
        assert max(await floors(testbed)) <= second_point.position
        with pytest.raises(RigError, match=f"position {first_point.position} cannot be read; allowed: "):
            await vault.mount_point(vm="web01", position=first_point.position)
        await same(second, await vault.mount_point(vm="web01", position=second_point.position))


@needs_program("qemu-img")
async def test_a_position_is_exported_in_every_format_and_imported_again(folder: Path) -> None:
    async with protected(folder) as (testbed, source):
        copy, position = await source.position("between")
        await testbed.vault.create_point(vm="web01", kind="CrashConsistent", name="last")
        what = ("point", "export", "web01", "--disk", "os", "--position", position)
        images = {format_: folder / f"exported.{format_}" for format_ in QEMU_NAMES}
        for format_, name in QEMU_NAMES.items():
            await siterig(testbed, *what, "--format", format_, "--to", images[format_])
            if format_ in ("qcow2", "vhdx", "vmdk"):
                assert "No errors were found" in await run("qemu-img", "check", "-f", name, images[format_])
            assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", name, copy["os"], images[format_])
        assert await testbed.vault.mounted_points(vm="web01") == []
        given = [word for format_, image in images.items() for word in ("--disk", f"{format_}={image}")]
        larger = f"larger={images['qcow2']}:32MiB"
        made = await siterig(testbed, "vm", "create", "copy", "--json", *given, "--disk", larger)
        disks = {disk["name"]: Path(disk["path"]) for disk in json.loads(made)["disks"]}
        expected = await trio.Path(copy["os"]).read_bytes()
        for format_ in QEMU_NAMES:
            assert await trio.Path(disks[format_]).read_bytes() == expected, format_
        assert await trio.Path(disks["larger"]).read_bytes() == expected + bytes(8 * MIB)


def child_names(pid: int) -> list[str]:
    """Return the names of the programs that a process's children run."""
    names = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the child has ended
            names.append(Path(f"/proc/{child}/comm").read_text().strip())
    return names


async def test_a_killed_export_leaves_nothing_mounted_and_no_file(folder: Path) -> None:
    async with protected(folder) as (testbed, _source):
        target, programs = folder / "images", folder / "programs"
        target.mkdir()
        programs.mkdir()
        fake = programs / "qemu-img"  # it is started with its input open, and never ends
        fake.write_text("#!/bin/bash\nexec sleep 1000\n")
        fake.chmod(0o755)
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        what = ("point", "export", "web01", "--disk", "os", "--format", "qcow2", "--to", str(target / "os.qcow2"))
        words = [*SITERIG, *what, "--dir", str(testbed.layout.root)]
        exporter = await trio.lowlevel.open_process(words, env=environment)
        with trio.fail_after(60):
            while "sleep" not in child_names(exporter.pid):  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.05)
            [state] = await testbed.vault.mounted_points(vm="web01")
            assert state.name.startswith("export-")
            exporter.kill()
            await exporter.wait()
        with trio.fail_after(60):
            while await testbed.vault.mounted_points(vm="web01"):  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.05)
        assert await testbed.azure.list_mounted_points() == []
        assert list(target.iterdir()) == []


def spoil(folder: Path, piece: bytes) -> None:
    """Change one byte of a piece of stored data in the file that contains it."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with path.open("r+b") as file:
            found = file.read().find(piece)
            if found >= 0:
                file.seek(found + len(piece) // 2)
                file.write(bytes([piece[len(piece) // 2] ^ 0xFF]))
                return
    raise AssertionError("the data is in no file")


@pytest.fixture
def full(folder: Path) -> Iterator[Path]:
    """Return a folder on a separate file system with space for 256 KiB."""
    path = folder / "full"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "siterig-test", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@needs_program("qemu-img")
async def test_an_export_fails_in_the_same_way_in_every_format(folder: Path, full: Path) -> None:
    async with protected(folder) as (testbed, source):
        await source.write()
        at, piece = SIZES["os"] // 2, random.randbytes(512)
        await source.write_at("os", at, piece)  # one write, so that one file contains the piece as a whole
        point = await testbed.vault.create_point(vm="web01", kind="CrashConsistent", name="last")

        async def refused(format_: str, to: Path) -> str:
            what = ["point", "export", "web01", "--disk", "os", "--point", point.id, "--format", format_, "--to", str(to)]
            done = await trio.to_thread.run_sync(run_warm, *what, "--dir", testbed.layout.root)
            assert (done.returncode, done.stdout) == (1, "")
            assert list(to.parent.iterdir()) == []
            return done.stderr

        for format_ in ("raw", "vhd", "qcow2", "vhdx", "vmdk"):
            said = await refused(format_, full / "x")
            assert said.startswith(f"siterig: error: {full / 'x'}: "), format_
            assert said.endswith(" (DiskFull)\n"), format_
        await trio.to_thread.run_sync(spoil, testbed.layout.managed_disks, await stored(testbed, "os", piece, at))
        (folder / "out").mkdir()
        found: dict[str, int] = {}
        for format_ in ("raw", "vhd", "qcow2", "vhdx", "vmdk"):
            to = folder / "out" / f"x.{format_}"
            said = await refused(format_, to)
            said = said[said.index("siterig: error: ") :]  # after the note about the known damage
            assert said.startswith(f"siterig: error: {to}: was not created: "), format_
            assert said.endswith(": Input/output error (ReadFailed)\n"), format_
            found[format_] = int(said.partition("at byte ")[2].partition(":")[0])
        assert len(set(found.values())) == 1, (at, found)
        assert at - 65536 < found["raw"] <= at


async def test_an_export_restarts_when_the_disk_host_was_killed(folder: Path) -> None:
    async with protected(folder) as (testbed, source):
        copy, point = await source.point("last")
        await testbed.vault.mount_point(vm="web01", point=point.id, name="exported")
        (mounted,) = await testbed.vault.mounted_points(vm="web01")
        image = next(Path(disk.path) for disk in mounted.disks if disk.name == "os")
        supervisor = directory.supervisor(testbed.layout)
        to = folder / "out" / "os.img"
        to.parent.mkdir()
        starts = 0

        async def read() -> None:
            nonlocal starts
            starts += 1
            (azure,) = [role for role in (await supervisor.status()).roles if role.name == "azure"]
            assert azure.pid is not None

            def kill_in_the_middle(_done_bytes: int, _total_bytes: int | None = None) -> None:
                assert azure.pid is not None
                if starts == 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(azure.pid, signal.SIGKILL)

            try:
                await image_export.export(image, to, "raw", force=False, advance=kill_in_the_middle)
            finally:
                assert list(to.parent.iterdir()) == ([to] if starts == 2 else [])

        notes: list[str] = []
        await read_served(supervisor, "azure", image, read, notes.append)
        assert starts == 2
        assert len(notes) == 1
        assert to.read_bytes() == copy["os"].read_bytes()
