"""The example projects of the documents pass in a new virtual environment, in which siterig is installed by pip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from siterig.azure_emu.storage.azurite_files import BINARY_VARIABLE, find_node, find_script
from tests.support.leftovers import leftovers
from tests.support.new_environment import NewEnvironment, built_wheel
from tests.support.repo.documents import DOCS

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> NewEnvironment:
    return NewEnvironment(tmp_path_factory.mktemp("new") / "venv", built_wheel(tmp_path_factory))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (DOCS / "examples").glob("*/pyproject.toml")))
def test_an_example_passes_as_a_project_of_its_own(name: str, environment: NewEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(DOCS / "examples" / name, project, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    variables = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
    variables |= {BINARY_VARIABLE: str(find_script()), "PATH": f"{Path(find_node()).parent}:{variables['PATH']}"}
    done = subprocess.run(
        [environment.python, "-m", "pytest", "-q", "--siterig-require", f"--basetemp={tmp_path / 'base'}"],
        cwd=project,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert leftovers(tmp_path) == []
