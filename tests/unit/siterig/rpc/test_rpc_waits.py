"""Roles that hang: the command reports the wait, and calls that a role answers at once have a deadline."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.blockfs.core.deadlines import deadline_s
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.sides.provider import Provider
from siterig.core.paths import Layout, create
from siterig.rpc import client, directory
from siterig.rpc.contract import method_names
from tests.support.command import siterig


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Layout]:
    """A rig that looks up, and whose vault takes connections and says nothing."""
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    listeners = []
    for role in ("supervisor", "vault"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(layout.socket(role)))
        listener.listen()
        listeners.append(listener)
    yield layout
    for listener in listeners:
        listener.close()


def test_a_command_names_the_role_that_it_waits_for_and_then_fails(hung: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_REPORTED_S", 0.05)
    monkeypatch.setattr(VaultApi.points, "_deadline_s", 0.3)
    result = siterig("points", "web01", "--json", "--dir", str(hung.root))
    assert (result.exit_code, result.stdout) == (3, "")
    told = "the vault did not answer within 0.3 s"
    assert [json.loads(line) for line in result.stderr.splitlines()] == [
        {"note": "waiting for the vault ..."},
        {
            "error": {"code": "RoleUnavailable", "message": told, "recoverable": True},
            "text": f"siterig: error: {told} (RoleUnavailable)",
        },
    ]


async def test_a_long_call_has_no_deadline_and_only_its_caller_gets_notes(
    hung: Layout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WAIT_REPORTED_S", 0.05)
    monkeypatch.setattr(VaultApi.jobs, "_deadline_s", 0.05)
    vault = directory.vault(hung)
    with trio.move_on_after(0.5) as waited:
        await vault.create_point(vm="web01", kind="CrashConsistent", name="slow")
    assert waited.cancelled_caught
    with pytest.raises(RigError) as caught:
        await vault.jobs()
    assert (caught.value.code, caught.value.recoverable) == ("RoleUnavailable", True)
    assert capsys.readouterr().err == ""


def test_every_service_has_deadlines_but_long_calls_have_none() -> None:
    for service in directory.SERVICES:
        limits = [deadline_s(getattr(service.protocol, name)) for name in method_names(service.protocol)]
        assert any(limit_s < math.inf for limit_s in limits), service.protocol
    for unlimited in (VaultApi.create_point, VaultApi.mount_point, Provider.replicate_now, RecoverySide.process_latest):
        assert deadline_s(unlimited) == math.inf


def test_a_name_that_is_not_utf_8_is_refused_by_name(hung: Layout) -> None:
    result = siterig("points", "web\udcff", "--dir", str(hung.root))
    assert (result.exit_code, result.stderr) == (
        2,
        "siterig: error: vm is 'web\\udcff', with bytes that are not UTF-8: a rig cannot take such a name or path "
        "(InvalidName)\n",
    )


def test_a_name_within_an_argument_that_is_not_utf_8_is_shown_alone(hung: Layout) -> None:
    result = siterig("vm", "create", "web01", "--disk", "o\udcff:1MiB", "--dir", str(hung.root))
    assert result.exit_code == 2
    assert result.stderr.startswith("siterig: error: a text of disks is 'o\\udcff', with bytes that are not UTF-8")
