"""``siterig status VM`` and ``siterig status --watch``: lines, exit statuses, and a view that ends with Ctrl-C."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import HealthError, ProtectedItem
from siterig.azure_emu.vault.model.vm_status import ChangeCount, UnansweredRole, VmStatus
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import output
from siterig.cli.views import vm_view, watching
from siterig.core.paths import Layout, create
from siterig.core.supervisor_contract import RigStatus, SupervisorControl
from tests.support.command import siterig
from tests.support.repo.documents import key_paths, shared_keys
from tests.support.samples import Canned, sample
from tests.support.screens import text_of


class Rig:
    """A rig whose vault answers with samples; ``counts`` are the answers of ``wait_for_change``, then comes Ctrl-C."""

    def __init__(self) -> None:
        self.item = sample(ProtectedItem).model_copy(update={"name": "web01", "replication_state": "Replicating"})
        self.counts: list[ChangeCount | RigError] = []
        self.waits: list[dict[str, Any]] = []
        self.vault_is_away = False

    def of_health(self, health: str) -> None:
        """Give the VM a health."""
        self.item = self.item.model_copy(update={"replicationHealth": health})

    def status(self) -> VmStatus:
        """Return everything about the VM."""
        found: VmStatus = sample(VmStatus).model_copy(update={"item": self.item, "unanswered": []})
        return found


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    made = Rig()
    ready = sample(RigStatus)
    ready = ready.model_copy(update={"roles": [ready.roles[0].model_copy(update={"state": "ready", "waits": []})]})

    class Observation:
        async def vm_status(self, *, vm: str) -> VmStatus:
            if vm != "web01":
                raise RigError(Code.VmNotFound, f"VM {vm!r} is not protected; protected VMs: web01")
            return made.status()

        async def wait_for_change(self, **arguments: Any) -> ChangeCount:
            made.waits.append(arguments)
            if not made.counts:
                raise KeyboardInterrupt
            answer = made.counts.pop(0)
            if isinstance(answer, RigError):
                raise answer
            return answer

    class Vault:
        def __getattr__(self, name: str) -> Any:
            return getattr(Canned(VaultApi, {"items": [made.item], "managed_disks": [], "list_vms": []}), name)

    monkeypatch.setattr("siterig.rpc.directory.observation", lambda _layout: Observation())
    monkeypatch.setattr("siterig.rpc.directory.vault", lambda _layout: Vault())
    monkeypatch.setattr("siterig.rpc.directory.supervisor", lambda _layout: Canned(SupervisorControl, {"status": ready}))
    monkeypatch.setattr("siterig.cli.light_commands.rig_status.light_state", lambda _layout: None)
    monkeypatch.setattr(watching, "TICK_S", 0.001)
    monkeypatch.setenv("SITERIG_DIR", str(layout.root))
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(layout.socket("supervisor")))
        supervisor.listen()
        yield made
    output.set_json(False)


@pytest.mark.parametrize("words", [["status"], ["status", "web01"]])
@pytest.mark.parametrize(("health", "ends"), [("Normal", 0), ("None", 0), ("Warning", 5), ("Critical", 6)])
def test_the_exit_status_is_the_health(rig: Rig, words: list[str], health: str, ends: int) -> None:
    rig.of_health(health)
    for more in ([], ["--json"]):
        assert siterig(*words, *more).exit_code == ends


def test_a_vm_that_is_not_protected_is_an_error(rig: Rig) -> None:
    result = siterig("status", "web02")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "protected VMs: web01 (VmNotFound)" in result.stderr


def test_the_keys_of_the_json_of_a_vm_are_documented(rig: Rig) -> None:
    documents = set(key_paths(json.loads(siterig("status", "web01", "--json").stdout)))
    documents |= set(key_paths(sample(VmStatus).model_dump()))
    assert documents == set(shared_keys("(#vm-status)"))


def test_the_status_of_a_vm_fits_80_columns_with_every_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda _stream: True)
    monkeypatch.setenv("COLUMNS", "80")
    reason = "the managed disk of web01/data was not written to for four minutes, and the cache account grows"
    error = sample(HealthError).model_copy(update={"summaryMessage": reason, "errorCode": "ApplyStalled"})
    missing = UnansweredRole(role="agent", reason="role agent did not answer within 2 s")
    item = sample(ProtectedItem).model_copy(update={"healthErrors": [error]})
    found = sample(VmStatus).model_copy(update={"item": item, "unanswered": [missing]})
    lines = [text_of(line) for line in vm_view.lines_of(found)]
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    assert f"ApplyStalled: {reason}" in words
    assert "role agent: role agent did not answer within 2 s; its values are missing" in words


def test_values_that_are_missing_are_no_zeros() -> None:
    disk = (
        sample(VmStatus)
        .disks[0]
        .model_copy(update={"unsent_log_bytes": None, "account_bytes": None, "open_handles": None, "unapplied_bytes": 0})
    )
    found = sample(VmStatus).model_copy(update={"disks": [disk], "progress": None, "site_free_bytes": None})
    lines = [text_of(line) for line in vm_view.lines_of(found)]
    assert "backlog: log - at the site; 0 B unapplied in the account, which has - of the VM" in lines
    assert not [line for line in lines if line.startswith("source: ")]


def test_a_vm_without_a_state_at_the_recovery_side_has_no_lag() -> None:
    item = sample(ProtectedItem).model_copy(update={"lastRpoInSeconds": None, "applied_lag_s": None})
    lines = [text_of(line) for line in vm_view.lines_of(sample(VmStatus).model_copy(update={"item": item}))]
    assert "lag: no state of the VM is at the recovery side yet" in lines
    item = item.model_copy(update={"lastRpoInSeconds": 3.0})
    lines = [text_of(line) for line in vm_view.lines_of(sample(VmStatus).model_copy(update={"item": item}))]
    assert "lag: RPO 3 s (age of the newest state in the account)" in lines


def test_the_space_of_logs_and_snapshots_is_shown_with_its_limits() -> None:
    one, mib = sample(VmStatus).disks[0], 1 << 20
    copied = {"name": "os", "unsent_log_bytes": mib, "log_bytes_max": 32 * mib}
    copied |= {"snapshot_bytes": 3 * mib, "snapshot_bytes_max": 64 * mib}
    quiet = {
        "name": "data",
        "unsent_log_bytes": 0,
        "log_bytes_max": 8 * mib,
        "snapshot_bytes": 0,
        "snapshot_bytes_max": None,
    }
    found = sample(VmStatus).model_copy(update={"disks": [one.model_copy(update=values) for values in (copied, quiet)]})
    lines = [text_of(line) for line in vm_view.lines_of(found)]
    assert "log space: os 1 MiB of at most 32 MiB, data 0 B of at most 8 MiB" in lines
    assert "snapshots: os 3 MiB of at most 64 MiB" in lines


@pytest.mark.parametrize("words", [["status", "--watch"], ["status", "web01", "--watch"]])
def test_a_watch_prints_each_change_once_until_ctrl_c(rig: Rig, words: list[str]) -> None:
    first, second = ChangeCount(epoch="e", count=3), ChangeCount(epoch="e", count=4)
    if "web01" in words:
        quiet = sample(VmStatus).progress.model_copy(update={"disks": []})
        rig.status = lambda: sample(VmStatus).model_copy(update={"item": rig.item, "progress": quiet})  # type: ignore[method-assign]
    rig.counts = [first, first, first, second, second]
    result = siterig(*words, "--json")
    assert result.exit_code == 130
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(documents) == 2
    assert [wait["after"] for wait in rig.waits] == [0, 3, 3, 3, 4, 4]


def test_a_watch_survives_a_vault_that_is_away(rig: Rig) -> None:
    known = ChangeCount(epoch="e", count=3)
    rig.counts = [known, RigError(Code.RoleUnavailable, "gone", recoverable=True), known]
    result = siterig("status", "--watch")
    assert result.exit_code == 130
    assert result.stdout.count("supervisor 1") == 3
    assert rig.waits[2]["epoch"] == ""


def test_on_a_terminal_ages_grow_without_a_question(rig: Rig) -> None:
    item = {"lastRpoInSeconds": 3.0, "newest_point_age_s": None, "applied_lag_s": 1.0}
    assert watching._older(item, 2.5) == {  # noqa: SLF001 (what a terminal shows between two answers)
        "lastRpoInSeconds": 5.5,
        "newest_point_age_s": None,
        "applied_lag_s": 1.0,
    }
