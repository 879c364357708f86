"""The command line against a vault that is an object: what is printed, what comes back, and that docs do not drift."""

from __future__ import annotations

import json
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import typer
from typer.testing import CliRunner

from siterig.azure_emu.vault.model.job_parts import JobError
from siterig.azure_emu.vault.model.resources import Job, RecoveryPoint, Task, Vm, VmDisk
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.blockfs.core.progress import CopyTotals, DiskProgress, VmProgress
from siterig.cli import follow, output, provenance
from siterig.cli.app import SUBJECTS, program
from siterig.core.paths import Layout, create
from tests.support.command import siterig

VM = Vm(name="web01-test", side="azure", state="TestFailover", disks=[VmDisk(name="os", size_bytes=2**30, path="/r/os.img")])
POINT_JSON = {
    "id": "p1",
    "name": "n",
    "type": "CrashConsistent",
    "time": "t",
    "time_ns": 1,
    "position": 9,
    "downgraded_because": None,
    "pinned": False,
    "lacking_disks": [],
}


def job(state: str, *, result: Vm | None = None, errors: tuple[JobError, ...] = ()) -> Job:
    ended = state in ("Succeeded", "Failed")
    task = {
        "name": "FailoverTask",
        "friendlyName": "Failing over",
        "state": state,
        "stateDescription": None,
        "startTime": "t0",
        "endTime": "t1" if ended else None,
    }
    return Job.model_validate(
        {
            "name": "j1",
            "scenarioName": "TestFailover",
            "friendlyName": "Test failover",
            "state": state,
            "stateDescription": None,
            "targetObjectName": "web01",
            "vm": "web01",
            "startTime": "t0",
            "endTime": "t1" if ended else None,
            "tasks": [Task.model_validate(task)],
            "errors": list(errors),
            "result": result,
        }
    )


class FakeVault:
    """Notes what is asked, and answers with what the test put there."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.ends_as = job("Succeeded", result=VM)
        self.finalize = job("Succeeded").model_copy(update={"name": "j2", "scenarioName": "FinalizeProtection"})

    async def jobs(self, **_arguments: Any) -> list[Job]:
        return [self.finalize, self.ends_as]

    async def list_vms(self) -> list[Vm]:
        return [VM]

    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
        if vm != "web01":
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r};\nthere are: web01")
        return [RecoveryPoint(id="p1", name="n", type="CrashConsistent", time="t", position=9, time_ns=1)]

    async def progress(self, *, vm: str) -> VmProgress:
        return VmProgress(vm=vm, phase=None, disks=[])

    async def job(self, *, name: str, with_progress: bool = False) -> Job:
        assert name == "j1"
        return self.ends_as

    def __getattr__(self, name: str) -> Any:
        async def start(**arguments: Any) -> Job:
            self.asked.append((name, arguments))
            return job("InProgress")

        return start


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVault]:
    """A rig that looks up, in ``SITERIG_DIR``."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    supervisor = socket.socket(socket.AF_UNIX)
    supervisor.bind(str(layout.socket("supervisor")))
    supervisor.listen()
    fake = FakeVault()
    monkeypatch.setattr("siterig.rpc.directory.vault", lambda _layout: fake)
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    yield fake
    supervisor.close()


def commands(command: Any, path: tuple[str, ...] = ("siterig",)) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_protect_succeeds_only_if_protection_was_finalized(vault: FakeVault) -> None:
    vault.finalize = vault.finalize.model_copy(
        update={"state": "Failed", "errors": [JobError(code="VaultStopped", message="no point came")]}
    )
    result = siterig("protect", "web01", "--interval", "30")
    assert (result.exit_code, "siterig: error: no point came (VaultStopped)" in result.stderr) == (1, True)


ALL = dict(commands(typer.main.get_command(program())))


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_help_with_an_example(path: str) -> None:
    result = siterig(*path.split()[1:], "--help")
    assert result.exit_code == 0
    example = re.search(r"Example: (siterig [^\n]*)", ALL[path].epilog or "")
    assert example is not None
    assert "Example: siterig" in result.output


@pytest.mark.parametrize("path", ALL)
def test_every_example_names_a_command_and_options_that_exist(path: str) -> None:
    words = (ALL[path].epilog or "").removeprefix("Example: ").split()
    named = max((known for known in ALL if words[: len(known.split())] == known.split()), key=len)
    assert named.startswith(path)
    options = {option for parameter in ALL[named].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} - {"--"} <= options


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("siterig point mount", "--point"),
        ("siterig point export", "--point"),
        ("siterig failover test", "--point"),
        ("siterig failover unplanned", "--point"),
        ("siterig bisect", "--good"),
    ],
)
def test_the_help_of_every_command_describes_points_in_the_same_words(path: str, option: str) -> None:
    (found,) = [parameter for parameter in ALL[path].params if option in parameter.opts]
    words = "latest, latest-processed, latest-app, the id or name of a point, @POSITION, or a time (RFC 3339)."
    assert str(found.help).endswith(words)


def test_a_failover_waits_and_gives_the_vm_and_the_job(vault: FakeVault) -> None:
    result = siterig("failover", "test", "web01", "--point", "latest-app", "--json")
    assert result.exit_code == 0
    assert vault.asked == [("test_failover", {"vm": "web01", "point": "LatestApplicationConsistent"})]
    printed = json.loads(result.stdout)
    assert printed["job"]["result"]["disks"] == [
        {"name": "os", "size_bytes": 2**30, "path": "/r/os.img", "sector_bytes": 512}
    ]
    assert printed["job"]["scenarioName"] == "TestFailover"
    assert [json.loads(line) for line in result.stderr.splitlines()] == [
        {"progress": "Test failover web01: Failing over: InProgress"},
        {"progress": "Test failover web01: Failing over: Succeeded"},
        {"progress": "Test failover web01: Succeeded"},
    ]


@pytest.mark.parametrize(
    ("before", "text"), [(0, "364 MiB, 242 MiB sent"), (122 << 20, "364 MiB, 242 MiB sent after 122 MiB")]
)
def test_a_copy_that_succeeded_names_all_bytes_of_its_disks(vault: FakeVault, before: int, text: str) -> None:
    copied = CopyTotals(
        phase="InitialReplication", total_bytes=364 << 20, sent_bytes=242 << 20, duration_s=9, before_bytes=before
    )
    vault.ends_as = job("Succeeded").model_copy(update={"copied": copied})
    assert f"\t{text}\t" in siterig("job", "list").stdout
    assert f"copied: {text} in 9 s" in siterig("jobs", "j1").stdout


def test_a_job_that_failed_gives_its_errors_and_status_1(vault: FakeVault) -> None:
    vault.ends_as = job("Failed", errors=(JobError(code="NoSpace", message="disk is full"),))
    result = siterig("failover", "unplanned", "web01", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["job"]["result"] is None
    assert json.loads(result.stderr.splitlines()[-1]) == {
        "error": {"code": "NoSpace", "message": "disk is full", "recoverable": False},
        "text": "siterig: error: disk is full (NoSpace)",
    }
    told = siterig("failover", "unplanned", "web01").stderr
    assert told.splitlines()[-1] == "siterig: error: disk is full (NoSpace)"


@pytest.mark.parametrize(
    ("arguments", "call", "keywords"),
    [
        (["failover", "unplanned", "web01"], "unplanned_failover", {"point": "Latest", "source_actions": False}),
        (["failover", "planned", "web01"], "planned_failover", {}),
        (["cleanup", "web01"], "cleanup_test_failover", {}),
        (["commit", "web01"], "commit_failover", {}),
        (["failback", "web01"], "failback", {}),
        (["reprotect", "web01"], "reprotect", {}),
        (["resync", "web01"], "resync", {}),
        (["pause", "web01"], "pause_replication", {}),
        (["resume", "web01"], "resume_replication", {}),
        (
            ["policy", "set", "web01", "--app-consistent-every", "0", "--retention", "3"],
            "change_policy",
            {"interval_s": None, "app_consistent_every_s": 0, "history_hours": 3},
        ),
        (
            ["vm", "update", "web01", "--recovery-name", ""],
            "update_vm_properties",
            {"recovery_vm_name": "", "test_vm_name": None},
        ),
        (["unprotect", "web01"], "disable_protection", {}),
        (
            ["protect", "web01", "--interval", "30", "--retention", "3"],
            "enable_protection",
            {
                "interval_s": 30,
                "app_consistent_every_s": None,
                "history_hours": 3,
                "start_at": None,
                "seeds": [],
                "exclude": None,
            },
        ),
    ],
)
def test_an_operation_asks_the_vault(vault: FakeVault, arguments: list[str], call: str, keywords: dict[str, Any]) -> None:
    assert siterig(*arguments).exit_code == 0
    assert vault.asked == [(call, {"vm": "web01", **keywords})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy", "set", "web01"], "no option; allowed: --interval, --retention, --app-consistent-every (BadRequest)"),
        (["vm", "update", "web01"], "no option; allowed: --recovery-name, --test-name (BadRequest)"),
        (
            ["bandwidth", "set", "fast"],
            "RATE: 'fast' is not understood; allowed: none, or bytes a second, for example 20MiB (InvalidLimit)",
        ),
        (
            ["bandwidth", "set", "none", "--work-limit", "1KiB"],
            "--work-limit: '1KiB' is not allowed; allowed: none, or 64 KiB to 1 TiB a second (siterig pause stops "
            "the uploads of a VM) (InvalidLimit)",
        ),
        (
            ["bandwidth", "set", "1MiB", "--work-hours", "9-18"],
            "--work-hours: '9-18' is not understood; allowed: two times of a day, for example 09:00-18:00 (InvalidLimit)",
        ),
        (
            ["bandwidth", "set", "1MiB", "--work-days", "mon-fry"],
            "--work-days: 'mon-fry' is not understood; allowed: mon, tue, wed, thu, fri, sat, sun, and two of them with a "
            "dash (InvalidLimit)",
        ),
    ],
)
def test_a_bad_value_is_refused_before_the_vault_is_asked(vault: FakeVault, arguments: list[str], message: str) -> None:
    result = siterig(*arguments)
    assert (result.exit_code, vault.asked) == (2, [])
    assert result.stderr == f"siterig: error: {message}\n"


def test_a_bandwidth_limit_is_sent_in_seconds_and_bytes(vault: FakeVault) -> None:
    siterig(
        "bandwidth", "set", "20MiB/s", "--work-limit", "none", "--work-hours", "22:30-06:00", "--work-days", "sat-mon,wed"
    )
    assert [call for call, _ in vault.asked] == ["set_bandwidth", "bandwidth"]
    assert vault.asked[0][1]["limit"].model_dump() == {
        "work_days": ["mon", "wed", "sat", "sun"],
        "work_begin_s": 81000,
        "work_end_s": 21600,
        "work_bytes_s": None,
        "other_bytes_s": 20 << 20,
    }


def test_an_interval_of_the_rig_only_is_noticed(vault: FakeVault) -> None:
    result = siterig("protect", "web01", "--interval", "5")
    assert result.stderr.startswith("siterig: note: interval 5 s exists in this rig only; the service has 30, 300, 900\n")
    assert vault.asked[0][1]["interval_s"] == 5


def test_a_retention_of_the_rig_only_is_noticed(vault: FakeVault) -> None:
    result = siterig("protect", "web01", "--interval", "30", "--retention", "72")
    assert result.stderr.startswith("siterig: note: retention 72 h: a Hyper-V policy of the service has at most 24 h; ")
    assert vault.asked[0][1]["history_hours"] == 72


def test_a_task_that_had_nothing_to_do_is_skipped(vault: FakeVault) -> None:
    task = Task(
        name="T", friendlyName="Synchronizing", state="Other", stateDescription="Skipped", startTime=None, endTime=None
    )
    vault.ends_as = vault.ends_as.model_copy(update={"tasks": [task]})
    followed = siterig("failover", "test", "web01")
    assert any(line.endswith("Synchronizing: Skipped") for line in followed.stderr.splitlines())
    assert siterig("jobs", "j1").stdout.splitlines()[-1].split() == ["Synchronizing", "T", "Skipped", "-", "-"]
    assert '"state": "Other"' in siterig("jobs", "j1", "--json").stdout, "by its official name"


def test_points_are_given_by_the_contract(vault: FakeVault) -> None:
    result = siterig("points", "web01", "--json")
    assert json.loads(result.stdout) == [POINT_JSON]


def test_vms_are_given_by_the_contract(vault: FakeVault) -> None:
    result = siterig("vm", "list", "--json")
    assert json.loads(result.stdout) == [
        {
            "vm": "web01-test",
            "side": "azure",
            "state": "TestFailover",
            "disks": [{"name": "os", "size_bytes": 2**30, "path": "/r/os.img", "sector_bytes": 512}],
            "lacking_disks": [],
        }
    ]


def test_an_expected_error_is_one_line_and_its_status(vault: FakeVault) -> None:
    result = siterig("points", "web02")
    assert result.exit_code == 2
    assert result.stderr == "siterig: error: there is no VM 'web02';\\nthere are: web01 (VmNotFound)\n"
    assert result.stdout == ""


def test_a_bad_disk_is_refused_before_the_vault_is_asked(vault: FakeVault) -> None:
    result = siterig("vm", "create", "web01", "--disk", "os:1000")
    assert result.exit_code == 2
    assert (
        result.stderr
        == "siterig: error: size '1000' is 1000 bytes: it must be a positive multiple of 512 (InvalidDiskSize)\n"
    )
    assert vault.asked == []


def test_a_rig_that_is_not_up_is_status_3(tmp_path: Path) -> None:
    result = siterig("vm", "list", "--dir", str(tmp_path / "none"))
    assert result.exit_code == 3
    assert result.stderr == (f"siterig: error: the rig in {tmp_path}/none is not up: start it with siterig up (NotUp)\n")


def test_a_rig_that_was_killed_is_status_3_too(vault: FakeVault, tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "killed")
    create(layout)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(layout.socket("supervisor")))
    result = siterig("status", "--dir", str(layout.root))
    assert result.exit_code == 3
    assert result.stderr == f"siterig: error: the rig in {layout.root} was killed: siterig up or down clears it (NotUp)\n"


def test_a_state_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"format": 99}')
    result = siterig("status", "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == (
        f"siterig: error: {tmp_path} has state format 99, this siterig understands 1: "
        "use the siterig that created it (StateVersion)\n"
    )


def test_a_folder_that_is_no_rigs_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    result = siterig("up", "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.endswith("name an empty or a new folder with --dir (NotARig)\n")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_command_loads_its_own_module_and_no_other(subject: str) -> None:
    for word in SUBJECTS[subject]:
        named = typer.main.get_command(program([word, "--json"]))
        assert set(getattr(named, "commands")) == set(SUBJECTS[subject]), word  # noqa: B009 (typer hides its type)
    wrong = typer.main.get_command(program(["wrong"]))
    assert set(SUBJECTS[subject]) < set(getattr(wrong, "commands"))  # noqa: B009


def test_ctrl_c_is_status_130(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(self: FakeVault) -> list[Vm]:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeVault, "list_vms", interrupted)
    result = siterig("vm", "list")
    assert result.exit_code == 130
    assert result.stderr == "siterig: interrupted\n"


def test_ctrl_c_names_the_job_that_continues(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(self: FakeVault, **_arguments: Any) -> Job:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeVault, "job", interrupted)
    result = siterig("failover", "test", "web01")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "siterig: note: job j1 (Test failover web01) continues; its state: siterig jobs j1; "
        "to end it: siterig job cancel j1",
        "siterig: interrupted",
    ]


def test_a_bug_is_not_hidden(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: FakeVault) -> list[Vm]:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeVault, "list_vms", broken)
    assert isinstance(siterig("vm", "list").exception, ZeroDivisionError)


class ImportingVault(FakeVault):
    """A VM is made when it was asked often enough how far that is."""

    def __init__(self) -> None:
        super().__init__()
        self.progress_asked = 0

    async def progress(self, *, vm: str) -> VmProgress:
        self.progress_asked += 1
        done = DiskProgress(disk="os", done_bytes=self.progress_asked << 20, total_bytes=4 << 20, sent_bytes=0)
        return VmProgress(vm=vm, phase="Import", disks=[done])

    async def create_vm(self, **_arguments: Any) -> Vm:
        with trio.move_on_after(0.5):
            while self.progress_asked < 3:
                await trio.lowlevel.checkpoint()
        return VM


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_import_shows_how_far_it_is_on_a_terminal_only(
    vault: FakeVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, more: tuple[str, ...]
) -> None:
    importing = ImportingVault()
    monkeypatch.setattr("siterig.rpc.directory.vault", lambda _layout: importing)
    monkeypatch.setattr(follow, "POLL_S", 0.001)
    monkeypatch.setattr(output, "is_terminal", lambda _stream: terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    image = tmp_path / "os.img"
    image.write_bytes(bytes(4096))
    result = siterig("vm", "create", "web01", "--disk", f"os={image}:4MiB", "--disk", "data:1GiB", *more)
    assert result.exit_code == 0, result.stderr
    assert ("web01: import" in result.stderr, "3.0/4.0 MiB" in result.stderr) == (terminal, terminal)
    assert (importing.progress_asked > 0) == terminal
    if more:
        assert json.loads(result.stdout)["vm"] == VM.name


@pytest.mark.slow
def test_a_long_table_in_a_pipe_has_a_line_a_row_and_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(number, "[red]x\t\x1b[/red]", "") for number in range(10_000)]
    began = time.perf_counter()
    output.print_table(("position", "name", "mounted"), rows, empty="none")
    assert time.perf_counter() - began < 2  # some 20 ms on an idle machine; five seconds if it is drawn
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["position\tname\tmounted", "0\t[red]x\\t\\x1b[/red]\t-"]
    assert len(lines) == 10_001


@pytest.mark.slow
def test_the_version_names_commit_python_kernel_and_azurite(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(siterig("--version", "--json").stdout)
    assert list(found) == ["version", "commit", "python", "kernel", "azurite"]
    assert (found["python"], found["kernel"]) == (platform.python_version(), platform.release())
    monkeypatch.setattr(provenance, "versions", lambda: dict.fromkeys(found))
    assert siterig("--version").stdout.splitlines() == [
        "siterig unknown, commit unknown",
        "Python unknown, Linux unknown, Azurite unknown",
    ]


@pytest.mark.slow
def test_the_version_is_answered_without_loading_the_commands() -> None:
    program = "import sys; sys.argv = ['siterig', '--version']; import siterig.__main__ as m; m.main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("siterig ")
    assert not {"typer", "trio", "pydantic", "httpx", "siterig.cli.commands"} & set(done.stdout.split())


@pytest.mark.slow
def test_the_commit_of_an_installed_package_is_the_one_that_pip_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded: dict[str, str | None] = {"direct_url.json": None}
    monkeypatch.setattr(provenance, "CODE_ROOT", tmp_path)
    monkeypatch.setattr("importlib.metadata.distribution", lambda _name: SimpleNamespace(read_text=recorded.get))
    assert provenance.commit() is None
    recorded["direct_url.json"] = json.dumps({"url": "https://host/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert provenance.commit() == "abc"
    (tmp_path / ".git").touch()
    assert provenance.commit() is None, "a broken checkout has no commit"


@pytest.mark.slow
def test_a_drill_names_the_requirement_that_the_machine_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SITERIG_AZURITE", "/nonexistent/azurite-blob")
    result = CliRunner().invoke(program(["drill"]), ["drill", "--dir", str(tmp_path / "rig"), "--json"])
    output.set_json(False)
    assert result.exit_code == ExitStatus.ENVIRONMENT
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert "SITERIG_AZURITE names /nonexistent/azurite-blob, which is no file" in error["message"]
    assert list(tmp_path.iterdir()) == []
