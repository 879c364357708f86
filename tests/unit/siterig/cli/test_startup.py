"""The start of a command: it loads what it needs and no more, and the light way prints the same as the complete one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import typer
from typer.testing import CliRunner

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import ManagedDisk, ProtectedItem, Vm, VmDisk
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.blockfs.core.waits import Wait
from siterig.cli import light_commands
from siterig.cli.app import program
from siterig.cli.light_commands import light_command
from siterig.cli.summaries import SUMMARIES
from siterig.core.paths import Layout, create
from siterig.core.supervisor_contract import RigStatus, SupervisorControl
from siterig.rpc import server

HEAVY = {
    "alembic",
    "asyncio",
    "azure",
    "httpx",
    "hypercorn",
    "jinja2",
    "matplotlib",
    "numpy",
    "pydantic",
    "pyfuse3",
    "rich",
    "sqlalchemy",
    "starlette",
    "structlog",
    "trio",
}
RUN = "import sys, siterig.__main__ as m\ntry: m.main()\nfinally: print(*sys.modules, file=sys.stderr)"
VMS = [Vm(name="web01", side="site", state="Protected", disks=[VmDisk(name="os", size_bytes=2**30, path="/r/os.img")])]
MANAGED = [ManagedDisk(vm="web01", name="os", disk_id="0b5e55ed-0000-4000-8000-000000000001")]
ITEMS = [
    ProtectedItem.model_validate(
        {
            "vm": "web01",
            "policy_interval_s": 30.0,
            "app_consistent_every_s": None,
            "pinned_points": 0,
            "recovery_vm_name": "web01",
            "test_vm_name": "web01-test",
            "replication_state": "Replicating",
            "recoveryPointHistoryDuration": 24,
            "protectionState": "Protected",
            "testFailoverState": "None",
            "replicationHealth": "Normal",
            "healthErrors": [],
            "acknowledged_errors": [],
            "lastRpoInSeconds": 3.0,
            "applied_lag_s": 1e-7,
            "newest_point_age_s": None,
            "unapplied_bytes": 0,
            "activeLocation": "Primary",
            "resynchronizationRequired": None,
        }
    )
]


def loaded_by(*arguments: str) -> set[str]:
    """Run siterig with these words; the names of the modules that its process has loaded."""
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return set(done.stderr.splitlines()[-1].split())


class FakeVault:
    """Answers what ``status`` and ``vm list`` ask for."""

    async def list_vms(self) -> list[Vm]:
        return VMS

    async def items(self) -> list[ProtectedItem]:
        return ITEMS

    async def managed_disks(self) -> list[ManagedDisk]:
        return MANAGED


class FakeSupervisor:
    """Has one role, which waits for a managed disk."""

    async def status(self) -> RigStatus:
        wait = Wait(vm=None, disk=MANAGED[0].disk_id, code="DiskFull", reason="no room", since_ns=1)
        role = {
            "name": "applier",
            "state": "ready",
            "pid": 7,
            "restarts": 0,
            "detail": "",
            "since_ns": 1,
            "waits": [wait],
        }
        return RigStatus.model_validate({"folder": "/r", "pid": 5, "roles": [role]})


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    """A rig whose vault and supervisor answer in a thread of this process."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    scopes: list[tuple[trio.CancelScope, trio.lowlevel.TrioToken]] = []
    answering = threading.Event()

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            scopes.append((nursery.cancel_scope, trio.lowlevel.current_trio_token()))
            await nursery.start(server.serve, {"VaultApi": (VaultApi, FakeVault())}, layout.socket("vault"))
            supervisor = {"SupervisorControl": (SupervisorControl, FakeSupervisor())}
            await nursery.start(server.serve, supervisor, layout.socket("supervisor"))
            answering.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert answering.wait(60)
    yield layout
    scope, token = scopes[0]
    trio.from_thread.run_sync(scope.cancel, trio_token=token)
    thread.join()


COMMANDS = [("vm", "list"), ("status",)]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--version",), ("--help",), *COMMANDS], ids=" ".join)
def test_a_command_that_only_reads_loads_no_heavy_library(arguments: tuple[str, ...], served: Layout) -> None:
    loaded = loaded_by(*arguments)
    assert HEAVY & loaded == set()
    assert ("typer" in loaded) == (arguments == ("--help",)), "what parses options is loaded for the help alone"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_rig_that_is_not_up_is_reported_without_a_heavy_library(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert HEAVY & loaded_by(*arguments, "--dir", str(tmp_path / "none")) == set()


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_light_way_prints_the_same_as_the_complete_program(
    arguments: tuple[str, ...],
    as_json: tuple[str, ...],
    served: Layout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    light = light_command([*arguments, *as_json])
    assert light is not None
    light()
    printed = capsys.readouterr().out
    monkeypatch.setattr("siterig.rpc.light_client.answers", lambda *_: None)
    complete = CliRunner().invoke(program(arguments), [*arguments, *as_json])
    assert (complete.exit_code, complete.stderr) == (0, "")
    assert complete.stdout == printed
    assert "web01" in printed
    if as_json and arguments == ("vm", "list"):
        assert json.loads(printed) == [vm.model_dump(mode="json") for vm in VMS]


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--watch"],
        ["status", "--help"],
        ["status", "--dir"],
        ["status", "--dir="],
        ["status", "--json", "--json"],
        ["status", "--dir", "--json"],
        ["vm"],
        ["vm", "list", "x"],
        ["vm", "create"],
        ["vm", "list", "--dir", __file__],
        [],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_not_plain_is_parsed_by_the_complete_program(words: list[str]) -> None:
    assert light_command(words) is None


def test_the_folder_is_taken_from_the_option_or_else_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SITERIG_DIR", str(tmp_path / "environment"))
    for words, name in [([], "environment"), (["--dir", str(tmp_path / "a")], "a"), ([f"--dir={tmp_path}/b"], "b")]:
        light = light_command(["status", *words])
        assert light is not None
        with pytest.raises(SystemExit) as ended:
            light()
        assert ended.value.code == ExitStatus.NOT_UP
        assert f"the rig in {tmp_path}/{name} is not up" in capsys.readouterr().err


def test_a_call_that_fails_is_repeated_by_the_complete_client(
    served: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(_layout: Layout) -> Any:
        raise RigError(Code.RoleUnavailable, "the vault is away")

    served.socket("vault").unlink()
    monkeypatch.setattr("siterig.rpc.directory.vault", away)
    with pytest.raises(SystemExit) as ended:
        light_commands.list_vms(served.root, as_json=False)
    assert ended.value.code == ExitStatus.NOT_UP
    assert "the vault is away (RoleUnavailable)" in capsys.readouterr().err


def test_the_help_of_the_program_is_the_same_as_with_all_commands_loaded() -> None:
    group: Any = typer.main.get_command(program())
    texts = {name: command.short_help or command.help for name, command in group.commands.items()}
    summaries = {name: " ".join(text.strip().split("\n\n")[0].split()) for name, text in texts.items()}
    assert summaries == SUMMARIES
    everything, summary = (CliRunner().invoke(program(words), ["--help"]).stdout for words in ([], ["--help"]))
    assert everything == summary


@pytest.mark.slow
@pytest.mark.parametrize("role", ["azurite", "site", "azure", "vault", "applier", "agent"])
def test_a_role_loads_no_library_that_it_does_not_use(role: str) -> None:
    script = f"import gc, sys\nfrom siterig.core.quick_start import load\nload('siterig.roles.{role}')\n"
    script += "assert gc.isenabled() and gc.get_freeze_count()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    not_used = {"alembic", "jinja2", "mako", "matplotlib", "numpy", "pygments", "rich", "typer"}
    not_used |= {"sqlalchemy"} if role != "vault" else set()
    not_used |= {"azure"} if role not in ("azurite", "applier", "agent") else set()
    not_used |= {"pyfuse3"} if role not in ("site", "azure") else set()
    assert not_used & loaded == set()
    assert {"structlog", "trio"} < loaded
