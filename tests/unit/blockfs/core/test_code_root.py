"""Tests of the environment in which Python child processes find siterig's code."""

from __future__ import annotations

import os
import site
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from siterig.blockfs.core import code_root
from siterig.blockfs.core.code_root import CODE_ROOT, child_environment

Flags = namedtuple("Flags", "ignore_environment")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_root, "CODE_ROOT", tmp_path)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path / "other"), str(tmp_path)])


def test_a_checkout_comes_before_the_folders_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert child_environment()["PYTHONPATH"] == f"{CODE_ROOT}{os.pathsep}/mine"
    monkeypatch.delenv("PYTHONPATH")
    assert child_environment()["PYTHONPATH"] == str(CODE_ROOT)


@pytest.mark.usefixtures("installed")
def test_an_installation_leaves_the_environment_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert child_environment() == dict(os.environ)
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in child_environment()


@pytest.mark.usefixtures("installed")
def test_an_installation_of_one_user_is_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(site, "getsitepackages", list)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path))
    for is_enabled in (True, False):
        monkeypatch.setattr(site, "ENABLE_USER_SITE", is_enabled)
        assert ("PYTHONPATH" in child_environment()) is not is_enabled


@pytest.mark.usefixtures("installed")
def test_a_process_that_ignores_the_environment_hands_no_path_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/other/siterig")
    monkeypatch.setattr(sys, "flags", Flags(ignore_environment=1))
    assert "PYTHONPATH" not in child_environment()
