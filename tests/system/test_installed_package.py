"""Tests of the package: a wheel has all files, and works in a new virtual environment, outside the checkout.

The environment takes the dependencies from that of the tests, so nothing is downloaded.  The C part is compiled, as by
``pip install .``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from siterig.azure_emu.storage.azurite_files import BINARY_VARIABLE, SCRIPT, find_node
from siterig.blockfs.core import npm_packages
from tests.support.new_environment import NewEnvironment, built_wheel
from tests.support.repo import rooms
from tests.support.repo.rooms import ROOT

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the new environment, with the wheel installed by pip."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    NewEnvironment(folder, wheel)
    return folder


class Installation:
    """Runs commands of the new environment in an empty folder of a user without any setting."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.bin = environment / "bin"
        self.folder = folder
        self.variables = {"PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}

    def run(self, *words: str | Path, status: int = 0) -> str:
        """Run a program of the environment; return its output."""
        done = subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (words, done.stdout, done.stderr)
        return done.stdout

    def siterig(self, *words: str | Path, status: int = 0) -> str:
        return self.run("siterig", *words, status=status)


@pytest.fixture
def installation(environment: Path, tmp_path: Path) -> Installation:
    return Installation(environment, tmp_path)


def test_the_wheel_has_every_module_and_every_file_that_the_code_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in rooms.modules().values()}
    assert {name if name.startswith("siterig/") else f"siterig/{name}" for name in modules} <= names
    for pattern in (
        *("cext/src/*/*.[ch]", "siterig/manual/commands/*.md", "azure_emu/storage/*.cjs"),
        *("scenarios/report/*.*", "scenarios/library/*.toml"),
    ):
        found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)]
        assert found
        assert {f"siterig/{name.removeprefix('siterig/')}" for name in found} <= names
    assert {"siterig/py.typed", "siterig/package.json", "siterig/package-lock.json"} <= names
    assert [name for name in names if not name.startswith(("siterig/", "siterig-"))] == []
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", wheel.name), "one wheel for Python 3.11 and every newer one"


def test_a_wheel_of_the_source_distribution_has_the_same_files(wheel: Path, tmp_path: Path) -> None:
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    ours = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("siterig/") and not name.endswith(".so")}
    assert ours <= names
    assert "siterig/cext/build_cext.py" in names


def test_the_code_is_that_of_the_installation(installation: Installation) -> None:
    where = "import siterig.blockfs.disk.disk as d, siterig.cext._core as c; print(d.__file__); print(c.__file__)"
    files = installation.run("python", "-c", where).splitlines()
    assert len(files) == 2
    assert all(file.startswith(str(installation.bin.parent)) for file in files)


def test_the_commands_that_need_no_disk(installation: Installation) -> None:
    assert installation.siterig("--version").startswith("siterig 0.1.0, commit unknown\nPython ")
    assert "siterig mount" in installation.siterig("man", "mount")
    installation.siterig("man", "--to", installation.folder)
    assert (installation.folder / "man1" / "siterig-setup-azurite.1").is_file()
    assert "complete" in installation.siterig("completion", "bash")
    installation.siterig("scenario", "new", "my.toml", "--from", "planned-failover-loses-nothing")
    installation.siterig("scenario", "validate", "my.toml")
    installation.variables |= {"_SITERIG_COMPLETE": "bash_complete", "COMP_WORDS": "siterig set", "COMP_CWORD": "1"}
    assert "setup" in installation.siterig()


def test_a_missing_azurite_is_named_with_the_way_to_install_it(installation: Installation) -> None:
    rows = json.loads(installation.siterig("doctor", "--json", status=4))
    (azurite,) = [row for row in rows if row["name"] == "azurite"]
    assert azurite["ok"] is False
    assert azurite["remedy"].startswith("run siterig setup azurite")


def test_a_disk_is_mounted_and_taken_to_an_earlier_state_without_node(installation: Installation) -> None:
    script = installation.folder / "crash.py"
    script.write_text(
        """
import os, pathlib, sys
from siterig.testing.logged_disk import LoggedDisk

with LoggedDisk(pathlib.Path("disks"), 1 << 20) as disk:
    with open(disk.path, "r+b", buffering=0) as file:
        for number in range(8):
            os.pwrite(file.fileno(), bytes([number]) * 4096, 4096 * number)
            os.fsync(file.fileno())
            if number == 4:
                good = disk.position
    print(good, *disk.log)
"""
    )
    (installation.folder / "disks").mkdir()
    position, *segments = installation.run("python", script).split()
    assert segments
    installation.siterig("log", "verify", *segments)
    image = installation.folder / "before.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    installation.siterig("log", "replay", *segments, "--onto", image, "--upto", position)
    data = image.read_bytes()
    assert [data[4096 * number] for number in range(8)] == [0, 1, 2, 3, 4, 0, 0, 0]


def test_azurite_of_a_project_serves_a_rig_of_an_installation(installation: Installation) -> None:
    """The roles work in another folder; they find the Azurite of the folder in which ``siterig up`` ran."""
    project = installation.folder / "node_modules"
    project.symlink_to(npm_packages.node_modules()[0])
    link = installation.folder / "node"
    link.symlink_to(find_node())
    installation.variables["PATH"] += f":{installation.folder}"
    rig = installation.folder / "rig"
    installation.siterig("up", "--dir", rig)
    try:
        installation.siterig("vm", "create", "web01", "--disk", "os:64MiB", "--dir", rig)
        roles = json.loads(installation.siterig("role", "list", "--json", "--dir", rig))
        assert {role["state"] for role in roles} == {"ready"}
        (pid,) = [role["pid"] for role in roles if role["name"] == "azurite"]
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert os.fsencode(f"{BINARY_VARIABLE}={project / SCRIPT}") in variables
        assert [each for each in variables if each.startswith(b"PYTHONPATH=")] == []
    finally:
        installation.siterig("down", "--dir", rig)
