"""Every command has ``--json``; what it prints is valid JSON, in one style, and each key is documented."""

from __future__ import annotations

import json
import re
import socket
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import siterig.scenarios.drill.drill
from siterig.azure_emu.contracts.account_keys import AccountKeyApi
from siterig.azure_emu.contracts.certificates import CertificateApi
from siterig.azure_emu.contracts.recovery_side import Change, RecoverySide
from siterig.azure_emu.contracts.reports import DamageReports
from siterig.azure_emu.storage.azurite_setup import InstalledAzurite
from siterig.azure_emu.user_account.secret import parse_secret
from siterig.azure_emu.user_account.stored_account import new_place
from siterig.azure_emu.user_account.stored_account import store as store_account
from siterig.azure_emu.vault.model.alert_api import AlertApi
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import HealthError, Job, ManagedDisk, ProtectedItem, RecoveryPoint, Vm
from siterig.azure_emu.vault.model.vm_status import ObservationApi
from siterig.bisect.runner import Bisection, ChangeSeen, Report
from siterig.bisect.states import BisectState
from siterig.blockfs.clocks.clock_page import ClockPage, ensure_page
from siterig.blockfs.contracts.control import DiskHostControl, DiskInfo
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.sides.host_certificates import HostSetup
from siterig.cli import output, rig_status
from siterig.cli.app import program
from siterig.cli.commands import mount
from siterig.cli.trials import drill, power_loss
from siterig.core.fault_contract import FaultControl
from siterig.core.paths import Layout, create
from siterig.core.supervisor_contract import RigStatus, SupervisorControl
from siterig.scenarios.contracts.results import DrillResult
from siterig.scenarios.contracts.scenario_result import ScenarioResult
from siterig.scenarios.faults.records import FaultVerdict, Injection
from tests.support.disks.log_row import START, LogRow
from tests.support.repo.documents import documented_keys, key_paths
from tests.support.samples import Canned, sample
from tests.support.screens import text_of

OFFICIAL = {
    "sendToOwners",
    "customEmailAddresses",
    "scenarioName",
    "allowedActions",
    "friendlyName",
    "stateDescription",
    "targetObjectName",
    "startTime",
    "endTime",
    "recoveryPointHistoryDuration",
    "protectionState",
    "testFailoverState",
    "replicationHealth",
    "healthErrors",
    "lastRpoInSeconds",
    "activeLocation",
    "resynchronizationRequired",
    "errorCode",
    "errorId",
    "summaryMessage",
    "possibleCauses",
    "recommendedAction",
    "eventCode",
    "eventType",
    "timeOfOccurrence",
    "affectedObject",
}
"""Properties of the service, which keep their names; every other property is the rig's own and in snake_case."""

COMMANDS = {
    "doctor": "",
    "setup azurite": "",
    "up": "--faults {folder}/faults.toml",
    "down": "--remove-blobs",
    "status": "",
    "vm create": "web01 --disk os:1GiB",
    "vm list": "",
    "vm delete": "web01",
    "vm rename": "web01 web02",
    "vm update": "web01 --recovery-name web01-dr",
    "protect": "web01",
    "unprotect": "web01",
    "points": "web01",
    "take-point": "web01",
    "point list": "web01",
    "point mount": "web01",
    "point unmount": "web01 @1",
    "point export": "web01 --to {folder}/out.img",
    "point pin": "web01 p1",
    "point unpin": "web01 p1",
    "point delete": "web01 p1",
    "bisect": "web01 --good @1 --json -- true {{os}}",
    "disk list": "",
    "disk stats": "web01/os --side site",
    "disk scrub": "",
    "disk resize": "web01/os 2GiB --side site",
    "disk attach": "web01 data:1GiB",
    "disk protect": "web01/os",
    "disk unprotect": "web01/os",
    "disk kept list": "",
    "disk kept delete": "web01 os-20261129T141500Z.img",
    "failover test": "web01",
    "failover unplanned": "web01",
    "failover planned": "web01",
    "cleanup": "web01",
    "commit": "web01",
    "failback": "web01",
    "reprotect": "web01",
    "resync": "web01",
    "account rotate-keys": "",
    "account set": "{folder}/account.txt",
    "account show": "",
    "site fence": "web01",
    "site unfence": "web01",
    "alert show": "",
    "alert set": "--rpo-threshold 20",
    "bandwidth show": "",
    "bandwidth set": "20MiB",
    "app-script set": "web01 {folder}/quiesce.sh",
    "app-script show": "web01",
    "app-script clear": "web01",
    "policy show": "web01",
    "policy set": "web01 --interval 30",
    "verify": "web01",
    "pause": "web01",
    "resume": "web01",
    "jobs": "",
    "job list": "",
    "metrics": "",
    "job cancel": "j1",
    "error list": "",
    "error acknowledge": "web01 LogUnsent",
    "events": "",
    "key list": "",
    "key rotate": "",
    "key revoke": "1",
    "key restore": "1",
    "mount": "{folder}/os.img --mnt {folder}/m",
    "log show": "{log}",
    "log verify": "{log}",
    "log replay": "{log} --onto {folder}/os.img",
    "log export": "{log} --dm-log-writes {folder}/os.dmlog",
    "log import": "{folder}/dm --onto-log {folder}/new",
    "power-loss": "{folder}",
    "fault check": "{folder}/faults.toml",
    "fault import": "blkdebug {folder}/blkdebug.conf",
    "fault add": "disk web01/os write error=EIO",
    "fault list": "",
    "fault remove": "bad",
    "fault clear": "",
    "fault wait": "bad",
    "fault mark": "loaded",
    "fault injections": "",
    "fault verdict": "",
    "clock show": "",
    "clock advance": "1s",
    "clock rate": "2",
    "clock jump": "-1s",
    "clock skew": "agent +1s",
    "clock reset": "",
    "drill": "",
    "scenario list": "",
    "scenario describe": "site-lost-under-load",
    "scenario validate": "site-lost-under-load",
    "scenario new": "{folder}/new.toml",
    "scenario run": "site-lost-under-load",
    "role list": "",
    "role restart": "agent",
    "role kill": "agent",
    "certificate list": "",
    "certificate rotate": "site",
    "certificate revoke": "site --reason lost",
    "vault credentials": "{folder}/new.VaultCredentials",
    "site register": "{folder}/faults.toml",
    "site lose": "",
    "site restore": "",
    "completion": "bash",
    "man": "vm create",
}
"""Every command with the arguments that it needs.  A new command gets a line here; its keys go to docs/reference."""


NOT_PRINTED = {
    "log show": {"record.closed"},
    "log verify": {"error", "error.code", "error.message", "error.recoverable"},
    "man": {"files"},
}
"""Keys that these samples do not have."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
    for name, each in (inner or {}).items():
        yield from leaves(each, (*path, name))


ALL = dict(leaves(typer.main.get_command(program())))


def make_user_account(layout: Layout, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the rig a storage account of a user, whose secret is in a file, too."""
    monkeypatch.setattr("siterig.accounts.admission.check_account", nothing)
    monkeypatch.setattr("siterig.accounts.replacement.check_account", nothing)
    monkeypatch.setattr("siterig.accounts.rig_account.remove_blobs", removed_blobs)
    path.touch(mode=0o600)
    path.write_text(f"AccountName=acme1;AccountKey={'A' * 86}==")
    store_account(layout.keys, new_place(parse_secret(path.read_text())))


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Gives a command's words; the rig's services, and whatever takes long, are replaced by samples."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    ensure_page(layout.clock)
    with ClockPage(layout.clock) as page:
        slot = page.claim("agent").number
        page.change(lambda terms, kernel: terms.with_skews({slot: 10**9}, kernel))
    disk = sample(DiskInfo).model_copy(update={"vm": "web01", "name": "os", "path": "/dev/null"})
    finalize = sample(Job).model_copy(update={"scenarioName": "FinalizeProtection", "targetObjectName": "web01"})
    status = sample(RigStatus)
    status = status.model_copy(
        update={"roles": [status.roles[0].model_copy(update={"name": name}) for name in ("azure", "faults")]}
    )
    item = sample(ProtectedItem).model_copy(update={"name": "web01"})
    answers = {"list_disks": [disk], "resize_disk": disk, "managed_disks": [], "jobs": [finalize], "status": status}
    answers["issue_credentials"] = json.dumps({"site": "site", "expires": "2026-12-05T00:00:00.000000Z"})
    answers["items"] = [item]
    for name, protocol in {
        "vault": VaultApi,
        "observation": ObservationApi,
        "site": DiskHostControl,
        "azure": DiskHostControl,
        "supervisor": SupervisorControl,
        "recovery_side": RecoverySide,
        "damage_reports": DamageReports,
        "faults": FaultControl,
        "account_keys": AccountKeyApi,
        "alerts": AlertApi,
        "certificates": CertificateApi,
        "host_setup": HostSetup,
    }.items():
        monkeypatch.setattr(f"siterig.rpc.directory.{name}", lambda _layout, protocol=protocol: Canned(protocol, answers))
    monkeypatch.setattr("siterig.cli.commands.disks._until_seen", nothing)
    monkeypatch.setattr("siterig.supervisor.launch.up", up)
    monkeypatch.setattr("siterig.supervisor.launch.down", down)
    make_user_account(layout, tmp_path / "account.txt", monkeypatch)
    monkeypatch.setattr("siterig.images.image_export.export", export)
    monkeypatch.setattr("siterig.azure_emu.storage.azurite_setup.install_azurite", installed)
    monkeypatch.setattr(mount, "expose", expose)
    monkeypatch.setattr(power_loss, "of_mount", lambda _where, protocol: Canned(protocol, answers))
    monkeypatch.setattr(mount, "fuse_options_of", lambda *_, **__: None)
    monkeypatch.setattr(Bisection, "run", bisected)
    monkeypatch.setattr(siterig.scenarios.drill.drill, "run_drill", drilled)
    monkeypatch.setattr(drill, "_check_machine", nothing)
    monkeypatch.setattr("siterig.cli.doctor.require", lambda _: None)
    monkeypatch.setattr("siterig.scenario_runs.batch.Batch.run", scenarios_run)
    log = LogRow(tmp_path)
    log.rotate()
    log.write(0, b"x" * 512)
    log.tag("first")
    log.close()
    (tmp_path / "faults.toml").write_text('[[fault]]\nwhere = { layer = "disk" }\nwhat = { error = "EIO" }\n')
    (tmp_path / "blkdebug.conf").write_text('[inject-error]\nevent = "write_aio"\n')
    image = tmp_path / "os.img"
    image.write_bytes(START)
    dm_log = tmp_path / "dm"
    assert (
        CliRunner().invoke(program(["log"]), ["log", "export", str(log.paths[0]), "--dm-log-writes", str(dm_log)]).exit_code
        == 0
    )
    store = layout.managed_disks / "6a83da7e-b542-496d-a113-08b9b71d9e21"
    store.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(layout.socket("supervisor")))
        supervisor.listen()
        monkeypatch.setenv("SITERIG_DIR", str(layout.root))
        yield lambda path: [*path.split(), *COMMANDS[path].format(folder=tmp_path, log=log.paths[0]).split()]
    output.set_json(False)


async def nothing(*_: Any, **__: Any) -> None: ...


async def up(layout: Layout, **_: Any) -> Any:
    layout.root.mkdir(exist_ok=True)
    return SimpleNamespace(end=nothing)


async def down(*_: Any) -> list[str]:
    return ["unmounted /m"]


async def removed_blobs(_layout: Layout) -> int:
    return 2


async def export(_source: Path, to: Path, *_: Any, **__: Any) -> None:
    to.touch()


async def installed(_: object) -> InstalledAzurite:
    return InstalledAzurite(version="3.37.0", folder=Path("/npm"), script=Path("/npm/azurite"), is_new=True)


async def drilled(*_: Any) -> DrillResult:
    return typing.cast(DrillResult, sample(DrillResult))


async def scenarios_run(*_: Any) -> list[ScenarioResult]:
    return [sample(ScenarioResult)]


async def bisected(_: Bisection) -> Report:
    state = BisectState(position=1, time_ns=1, name="x", images={"os": Path("/os.img")})
    change = ChangeSeen("os", sample(Change), None)
    point = sample(RecoveryPoint)
    failing: Any = SimpleNamespace(output=b"", output_bytes=0)
    return Report(state, state, (), (change,), True, point, point, failing, 1)


async def expose(wanted: Any, listener: Any) -> Any:
    image = SimpleNamespace(path=wanted.image, format="raw", size_bytes=1 << 20, read_only=False)
    state = SimpleNamespace(tracked=True, disk_id="id", generation=1)
    alone = SimpleNamespace(disk=SimpleNamespace(state=state), segments=lambda: [Path("os.000001.hrl")])
    faults, verdicts = SimpleNamespace(seed=1, armed=["x"]), [sample(FaultVerdict)]
    disk = wanted.where / "os.img"
    mounted = SimpleNamespace(image=image, alone=alone, disk=disk, faults=faults, verdicts=verdicts)
    listener.ready(mounted)
    listener.injected(sample(Injection))
    return mounted


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def documents(text: str) -> list[Any]:
    """One document, or one a line."""
    try:
        return [json.loads(text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines()]


def test_the_list_above_has_every_command() -> None:
    assert set(COMMANDS) == set(ALL)


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_json_and_an_example_in_its_help(path: str) -> None:
    assert any("--json" in parameter.opts for parameter in ALL[path].params)
    assert re.search(rf"Example: siterig {path}\b", ALL[path].epilog or "")


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS)
def test_the_json_of_a_command_is_valid_in_one_style_and_documented(path: str, words: Any) -> None:
    given = words(path)
    arguments = given if "--json" in given else [*given, "--json"]
    result = CliRunner().invoke(program(arguments), arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.stdout, result.stderr
    found = [key for document in documents(result.stdout) for key in keys(document)]
    for key in found:
        assert key in OFFICIAL or re.fullmatch(r"[a-z][a-z0-9_]*|[A-Z]+", key), f"{key}: not in snake_case"
    printed = {key for document in documents(result.stdout) for key in key_paths(document)}
    documented = set(documented_keys(f"siterig-{path.replace(' ', '-')}"))
    assert {key for key in printed if not key.rpartition(".")[2].isupper()} - documented == set()
    assert documented - printed - NOT_PRINTED.get(path, set()) == set()
    for line in result.stderr.splitlines():
        json.loads(line)


@pytest.mark.parametrize("path", COMMANDS)
def test_an_option_that_does_not_exist_is_an_error_in_json(path: str) -> None:
    arguments = [*path.split(), "--json", "--no-such-option"]
    result = CliRunner().invoke(program(arguments), arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert json.loads(result.stderr)["error"]["code"] == "Usage"


def test_a_vm_a_point_and_a_side_have_one_name_in_every_document(words: Any) -> None:
    point, vm = set(RecoveryPoint.model_fields), {"vm", "side", "state", "disks", "lacking_disks"}
    for path in (
        "points",
        "take-point",
        "point list",
        "point mount",
        "point export",
        "bisect",
        "failover test",
        "jobs",
        "vm list",
    ):
        arguments = [*words(path), *(() if path == "bisect" else ("--json",))]
        (document,) = documents(CliRunner().invoke(program(arguments), arguments).stdout)
        for found in objects(document):
            assert not {"fabric", "recoveryPoint", "recoveryPointType", "downgradedBecause"} & set(found)
            if "downgraded_because" in found:
                assert set(found) == point
            for name in ("recovery_point", "point_before", "point_after"):
                assert name not in found or set(found[name]) == point
            if "result" in found:
                assert set(found["result"]) == vm
            assert isinstance(found.get("vm", ""), str)


def objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


def test_status_fits_80_columns_with_every_problem_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda _stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    reason = "the managed disk of web01/data was not written to for four minutes, and the cache account grows"
    error = sample(HealthError).model_copy(update={"summaryMessage": reason, "errorCode": "ApplyStalled"})
    item = sample(ProtectedItem).model_copy(
        update={"protectionState": "UnplannedFailoverCompleted", "activeLocation": "Recovery", "healthErrors": [error] * 2}
    )
    wait = sample(Wait).model_copy(update={"reason": reason, "since_ns": 1})
    status = sample(RigStatus)
    status = status.model_copy(update={"roles": [status.roles[0].model_copy(update={"waits": [wait] * 2, "state": "hung"})]})
    clock = {"wall_ahead_ns": -(10**13), "monotonic_ahead_ns": 10**15, "rate": 12.5, "skewed_roles": ["agent", "vault"]}
    state = rig_status.RigState(status.model_dump(), [sample(Vm).model_dump()], [item.model_dump()], clock=clock)
    lines = [text_of(line) for line in rig_status.lines_of(state)]
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    assert words.count(f"{reason} (ApplyStalled)") == 2
    assert words.count(reason) == 4


@pytest.mark.parametrize(
    ("detail", "command"),
    [
        ("killed on purpose", "siterig site restore site"),
        ("held down by fault 'power loss of site'", "siterig site restore site"),
        ("held down by fault 'gone'", "siterig fault remove 'gone'"),
    ],
)
def test_status_names_the_command_that_brings_a_lost_site_back(detail: str, command: str) -> None:
    status = sample(RigStatus)
    held = [
        status.roles[0].model_copy(update={"name": name, "state": "held", "detail": detail}) for name in ("site", "agent")
    ]
    rig = status.model_copy(update={"roles": held}).model_dump()
    lines = [text_of(line) for line in rig_status.lines_of(rig_status.RigState(rig, [], []))]
    assert f"site site is lost: {command} brings it back" in lines


def test_status_names_vm_and_disk_of_a_wait_that_knows_the_managed_disk_only() -> None:
    managed = sample(ManagedDisk).model_copy(update={"vm": "web01", "name": "data"})
    waits = [
        sample(Wait).model_copy(update={"vm": vm, "disk": disk, "since_ns": 1})
        for vm, disk in [(None, managed.disk_id), ("web01", managed.disk_id), (None, "another"), ("web02", None)]
    ]
    status = sample(RigStatus)
    status = status.model_copy(update={"roles": [status.roles[0].model_copy(update={"waits": waits})]})
    rig = rig_status.with_disk_names(status.model_dump(), [managed.model_dump()])
    named = [(wait["vm"], wait["disk"]) for wait in rig["roles"][0]["waits"]]
    assert named == [("web01", "data"), ("web01", "data"), (None, "another"), ("web02", None)]


def test_the_sample_of_a_vm_has_the_keys_of_a_vm() -> None:
    assert set(sample(Vm).model_dump()) == {"vm", "side", "state", "disks", "lacking_disks"}
