"""Tests of ``siterig man``."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from siterig.cli.app import program
from siterig.manual.page import pages

ALL = pages(program())


def man(*words: str) -> Result:
    return CliRunner().invoke(program(["man"]), ["man", *words])


def test_a_command_is_shown_as_markdown_where_no_terminal_is() -> None:
    done = man("vm", "create")
    assert done.exit_code == 0
    assert "# siterig vm create\n" in done.stdout
    assert "## EXIT STATUS\n" in done.stdout


@pytest.mark.parametrize("words", ["vm create", "vm-create", "siterig-vm-create"])
def test_a_command_may_be_written_as_the_name_of_its_page(words: str) -> None:
    (page,) = json.loads(man(*words.split(), "--json").stdout)["pages"]
    assert page["name"] == "siterig-vm-create"


def test_take_point_is_one_word() -> None:
    (page,) = json.loads(man("take-point", "--json").stdout)["pages"]
    assert page["name"] == "siterig-take-point"


def test_without_a_command_all_are_listed() -> None:
    assert len(json.loads(man("--json").stdout)["pages"]) == len(ALL)
    assert man().stdout.count("\n") == len(ALL) + 1


def test_an_unknown_command_is_a_usage_error() -> None:
    done = man("vm", "mend")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no command 'vm mend'" in done.stderr


@pytest.mark.slow
def test_all_pages_are_written_and_can_be_formatted_without_a_warning(tmp_path: Path) -> None:
    done = man("--to", str(tmp_path), "--json")
    files = [Path(name) for name in json.loads(done.stdout)["files"]]
    assert sorted(files) == sorted((tmp_path / "man1").iterdir())
    assert {path.name for path in files} == {f"{page.name}.1" for page in ALL}
    if shutil.which("groff") is not None:
        shown = ""
        for file in files:  # each by itself, as man does: a table near the end of a sheet is a warning
            command = ["groff", "-t", "-man", "-Tutf8", "-rcR=1", "-rLL=100n", "-ww", "-Wbreak", str(file)]
            formatted = subprocess.run(command, capture_output=True, text=True, check=True)
            assert (file, formatted.stderr) == (file, "")
            shown += formatted.stdout
        assert "siterig vm create VM --disk" in shown
