"""``siterig fault check`` and ``siterig fault import``: files of fault rules, without a rig."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli.app import program
from siterig.scenarios.faults.records import RuleStatus
from siterig.scenarios.faults.rule_files import read_rules

FILE = """\
seed = 4711

[[fault]]
name = "disk is full"
[fault.where]
layer = "disk"
vm = "web01"
disk = "data"
[fault.when]
after = "mark:a"
[fault.what]
full_after = "0B"

[[fault]]
where = { layer = "link", link = "agent-azurite", op = "connect" }
when = { times = 3 }
what = { connection = "reset" }
expect = { fired = 3 }
"""
BLKDEBUG = """\
[inject-error]
event = "write_aio"
errno = "28"
once = "on"
"""


def siterig(*arguments: object) -> Any:
    return CliRunner().invoke(program(["fault"]), ["fault", *map(str, arguments)])


def test_the_rules_of_a_file_are_shown_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(FILE)
    shown = siterig("check", path)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "fault\twhere\twhen\twhat\texpected",
        "disk is full\tdisk web01/data\tafter=mark:a\tfull_after=0B\t>=1",
        "-\tlink agent-azurite connect\ttimes=3\tconnection=reset\t==3",
    ]
    printed = json.loads(siterig("check", path, "--json").stdout)
    assert printed["seed"] == 4711
    assert [rule["words"] for rule in printed["faults"]] == [
        "disk web01/data after=mark:a full_after=0B name='disk is full'",
        "link agent-azurite connect times=3 connection=reset fired===3",
    ]


def test_a_wrong_file_is_refused_with_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(FILE.replace("full_after", "full_aftr"))
    refused = siterig("check", path)
    assert refused.exit_code == 2
    expected = f"siterig: error: {path}:12: fault[1].what.full_aftr: unknown key (did you mean full_after?); allowed: error"
    assert refused.stderr.startswith(expected)
    assert siterig("check", tmp_path / "none").exit_code == 2


@pytest.mark.parametrize("text", ["", "seed = 3\n", "# [[fault]]\n"])
def test_a_file_without_a_rule_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text(text)
    expected = f"siterig: error: {path}: there is no [[fault]] table: a file of rules has at least one (InvalidFault)\n"
    for refused in (siterig("check", path), siterig("add", "--file", path)):
        assert (refused.exit_code, refused.stderr) == (2, expected)


@pytest.mark.parametrize("command", ["list", "wait x", "add disk error=EIO", "remove x", "clear", "mark x", "verdict"])
def test_without_a_rig_the_folder_of_a_mount_is_named_too(tmp_path: Path, command: str) -> None:
    refused = siterig(*command.split(), "--dir", tmp_path / "rig")
    assert refused.exit_code == 3
    assert "is not up: start it with siterig up; or name the folder of siterig mount: --mnt DIR (NotUp)" in refused.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("wait x --fired 0", "'--fired': '0' is not allowed: input should be greater than or equal to 1"),
        ("wait x --timeout nan", "'--timeout': 'nan' is not allowed: input should be greater than or equal to 0"),
        ("add disk error=EIO --seed x", "'--seed': 'x' is not allowed: input should be a valid integer"),
        ("import nbdkit x", "'FORMAT': 'nbdkit' is not one of 'lazyfs', 'toxiproxy', 'blkdebug'"),
    ],
)
def test_a_wrong_value_of_the_command_line_is_named(words: str, named: str) -> None:
    refused = siterig(*words.split())
    assert (refused.exit_code, f"Invalid value for {named}" in refused.stderr) == (2, True), refused.stderr


class RestartedDirector:
    """A director that is killed while a command waits."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def wait_fired(self, *, name: str, times: int) -> RuleStatus:
        self.calls.append(f"wait {name} {times}")
        if len(self.calls) == 1:
            raise RigError(Code.RoleUnavailable, "it was killed", recoverable=True, role="faults", uncertain=True)
        counts = {"matched": 3, "fired": times, "spared": 0, "last": None, "expected": ">=1"}
        return RuleStatus.model_validate({"name": name, "words": "", "layer": "disk", "state": "armed", **counts})

    async def list_faults(self) -> None:
        self.calls.append("list")


def test_a_wait_continues_when_the_director_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    director = RestartedDirector()

    async def known(*_: object) -> RestartedDirector:
        return director

    monkeypatch.setattr("siterig.cli.fault_director.known_director", known)
    waited = siterig("wait", "bad", "--fired", "2", "--json")
    assert (waited.exit_code, json.loads(waited.stdout)["fired"]) == (0, 2)
    assert director.calls == ["wait bad 2", "list", "wait bad 2"]


@pytest.mark.parametrize("command", ["fault import", "scenario new"])
def test_a_file_that_is_half_written_is_removed(command: str, tmp_path: Path) -> None:
    source, to = tmp_path / "b.conf", tmp_path / "faults.toml"
    source.write_text(BLKDEBUG)
    rest = ("blkdebug", str(source), "--to", str(to)) if command == "fault import" else (str(to),)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        refused = CliRunner().invoke(program(command.split()), [*command.split(), *rest])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert (refused.exit_code, f"{to}: the file cannot be written: File too large" in refused.stderr) == (1, True)
    assert not to.exists()


def test_an_imported_file_is_a_file_of_rules(tmp_path: Path) -> None:
    source, to = tmp_path / "b.conf", tmp_path / "faults.toml"
    source.write_text(BLKDEBUG)
    printed = siterig("import", "blkdebug", source)
    assert printed.exit_code == 0
    written = siterig("import", "blkdebug", source, "--to", to)
    assert written.stdout == f"{to}: 1 fault\n"
    assert to.read_text() == printed.stdout
    assert to.read_text().startswith("# blkdebug lies above an image format")
    assert [rule.label for rule in read_rules(to).fault] == ["blkdebug inject-error 1: ENOSPC"]
    again = siterig("import", "blkdebug", source, "--to", to)
    assert (again.exit_code, "the file exists" in again.stderr) == (1, True) or again.exit_code == 2
    printed = json.loads(siterig("import", "blkdebug", source, "--json").stdout)
    assert (len(printed["faults"]), len(printed["notes"])) == (1, 2)


def test_an_entry_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    source = tmp_path / "b.conf"
    source.write_text(BLKDEBUG.replace("write_aio", "l2_load"))
    refused = siterig("import", "blkdebug", source)
    assert refused.exit_code == 2
    assert f"{source}:1: inject-error.event: 'l2_load' has no counterpart" in refused.stderr
    assert "(FaultNotImported)" in refused.stderr
    assert siterig("import", "nbdkit", source).exit_code == 2
