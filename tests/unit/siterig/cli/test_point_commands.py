"""``siterig point`` against a vault that answers what the test put there."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from siterig.azure_emu.vault.model.resources import MountedDisk, MountedPoint, RecoveryPoint
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.cli.app import program
from siterig.core.paths import Layout, create

MIB = 1 << 20


def point(number: int) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"p{number}",
        name="scheduled",
        type="CrashConsistent",
        time=f"t{number}",
        position=number,
        time_ns=number,
    )


class FakeVault:
    """Two points; what is mounted are files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted: dict[str, MountedPoint] = {}
        self.asked: list[dict[str, Any]] = []
        self.lent_to: list[HostProcess | None] = []
        self.unmounted: list[str] = []
        self.sizes = {"os": MIB, "odd": 512}

    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
        return [point(30), point(10)][:limit]

    async def mounted_points(self, *, vm: str) -> list[MountedPoint]:
        return sorted(self.mounted.values(), key=lambda state: -state.position)

    async def mount_point(
        self, *, vm: str, name: str | None = None, process: HostProcess | None = None, **choice: Any
    ) -> MountedPoint:
        self.asked.append(choice)
        self.lent_to.append(process)
        position = choice["position"] or 30
        disks = []
        for disk, size_bytes in self.sizes.items():
            path = self.folder / f"{disk}.img"
            path.write_bytes(random.Random(disk).randbytes(size_bytes))
            whole = size_bytes % MIB == 0
            vhd = self.folder / f"{disk}.vhd"
            vhd.write_bytes(path.read_bytes() + bytes(512))
            disks.append(MountedDisk(name=disk, size_bytes=size_bytes, path=str(path), vhd=str(vhd) if whole else None))
        made = MountedPoint(
            vm=vm,
            name=name or f"@{position}",
            position=position,
            time=choice["time"],
            recovery_point=point(30) if position == 30 else None,
            disks=disks,
            broken=None,
        )
        self.mounted[made.name] = made
        return made

    async def unmount_point(self, *, vm: str, name: str) -> None:
        if name not in self.mounted:
            raise RigError(Code.NotMounted, f"VM {vm!r} has no mounted point {name!r}; mounted are: none")
        del self.mounted[name]
        self.unmounted.append(name)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVault]:
    """A rig that looks up, in ``SITERIG_DIR``."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    supervisor = socket.socket(socket.AF_UNIX)
    supervisor.bind(str(layout.socket("supervisor")))
    supervisor.listen()
    fake = FakeVault(layout.scratch)
    monkeypatch.setattr("siterig.rpc.directory.vault", lambda _layout: fake)
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    yield fake
    supervisor.close()


def siterig(*arguments: str) -> Any:
    return CliRunner().invoke(program(arguments), list(arguments))


def test_mount_asks_for_the_given_point_and_shows_the_files(vault: FakeVault) -> None:
    result = siterig("point", "mount", "web01", "--position", "17")
    assert result.exit_code == 0, result.stderr
    assert [line.split("\t")[:3] for line in result.stdout.splitlines()] == [
        ["mounted", "position", "disk"],
        ["@17", "17", "os"],
        ["@17", "17", "odd"],
    ]
    siterig("point", "mount", "web01", "--point", "latest-app")
    siterig("point", "mount", "web01", "--time", "2026-11-21T22:13:17Z")
    assert vault.lent_to == [None] * 3, "they stay until they are unmounted"
    assert vault.asked == [
        {"point": None, "position": 17, "time": None},
        {"point": "LatestApplicationConsistent", "position": None, "time": None},
        {"point": None, "position": None, "time": "2026-11-21T22:13:17Z"},
    ]
    shown = json.loads(siterig("point", "mount", "web01", "--position", "30", "--json").stdout)
    assert (shown["name"], shown["recovery_point"]["id"], shown["disks"][1]["vhd"]) == ("@30", "p30", None)


def test_list_shows_mounted_states_with_their_points_or_between_points(vault: FakeVault) -> None:
    for position in ("30", "17"):
        siterig("point", "mount", "web01", "--position", position)
    siterig("point", "mount", "web01", "--time", "2026-11-21T22:13:17Z")  # the fake's is at 30, too
    vault.mounted["@17"] = vault.mounted["@17"].model_copy(update={"broken": "its managed disk is gone", "disks": []})
    result = siterig("point", "list", "web01")
    assert [line.split("\t") for line in result.stdout.splitlines()[1:]] == [
        ["30", "p30", "CrashConsistent", "t30", "scheduled", "recovery/web01/@30"],
        ["17", "-", "-", "-", "-", "recovery/web01/@17 (broken)"],
        ["10", "p10", "CrashConsistent", "t10", "scheduled", "-"],
    ]
    assert result.stderr == "siterig: note: recovery/web01/@17: its managed disk is gone\n"
    only = siterig("point", "list", "web01", "--mounted").stdout.splitlines()[1:]
    assert [line.split()[-1] for line in only] == ["recovery/web01/@30", "(broken)"]
    listed = json.loads(siterig("point", "list", "web01", "--limit", "1", "--json").stdout)
    assert [p["id"] for p in listed["points"]] == ["p30"]
    assert [state["name"] for state in listed["mounted"]] == ["@30", "@17"]
    assert [state["recovery_point"] for state in listed["mounted"]] == [listed["points"][0], None], "points have one shape"


def test_an_unknown_name_is_reported_with_status_2(vault: FakeVault) -> None:
    result = siterig("point", "unmount", "web01", "@1")
    assert (result.exit_code, result.stderr) == (
        2,
        "siterig: error: VM 'web01' has no mounted point '@1'; mounted are: none (NotMounted)\n",
    )


@pytest.mark.parametrize("format_", ["raw", "vhd"])
def test_export_writes_the_image_and_unmounts(vault: FakeVault, tmp_path: Path, format_: str) -> None:
    to = tmp_path / "out.img"
    result = siterig(
        "point", "export", "web01", "--disk", "os", "--position", "17", "--format", format_, "--to", str(to), "--json"
    )
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["disk"], shown["position"], shown["file_bytes"]) == ("os", 17, to.stat().st_size)
    assert to.read_bytes() == (vault.folder / ("os.img" if format_ == "raw" else "os.vhd")).read_bytes()
    assert (vault.mounted, vault.lent_to) == ({}, [HostProcess.own()])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "VM 'web01' has disks os, odd: select one with --disk (BadRequest)"),
        (("--disk", "nope"), "VM 'web01' has no disk 'nope'; it has: os, odd (DiskNotFound)"),
        (
            ("--disk", "odd", "--format", "vhd"),
            "web01/odd has 512 bytes: a fixed VHD has whole MiB, and at most 2040 GiB; export it as vhdx (InvalidDiskSize)",
        ),
    ],
)
def test_an_export_that_cannot_be_leaves_nothing_mounted_and_no_file(
    vault: FakeVault, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = siterig("point", "export", "web01", "--to", str(tmp_path / "out"), *options)
    assert (result.exit_code, result.stderr) == (2, f"siterig: error: {message}\n")
    assert (vault.mounted, (tmp_path / "out").exists()) == ({}, False)


def test_an_export_that_is_interrupted_leaves_nothing_mounted_and_no_file(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("siterig.blockfs.files.sparse_copy._write", interrupted)
    result = siterig("point", "export", "web01", "--disk", "os", "--to", str(tmp_path / "out"))
    assert (result.exit_code, result.stderr) == (130, "siterig: interrupted\n")
    assert (vault.mounted, len(vault.unmounted)) == ({}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["rig"]


def test_a_file_that_is_there_is_refused_before_anything_is_mounted(vault: FakeVault, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    result = siterig("point", "export", "web01", "--disk", "os", "--to", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "is there already: name another file, or replace it with --force (FileExists)" in result.stderr
    assert (vault.asked, (tmp_path / "out").read_bytes()) == ([], b"precious")
    nowhere = siterig("point", "export", "web01", "--to", str(tmp_path / "no" / "out"))
    assert "its folder does not exist" in nowhere.stderr
