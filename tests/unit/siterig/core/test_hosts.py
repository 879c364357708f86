"""The boot of a host of a rig: it changes with an emulated reboot of that host, and with each reboot of the machine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.core.hosts import ROLES_OF_HOST, join_boot, note_reboot
from siterig.core.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    for host in ROLES_OF_HOST:
        (tmp_path / host).mkdir()
    yield Layout(tmp_path)
    boot.emulate_reboot(None)


def boot_of(layout: Layout, role: str) -> str:
    boot.emulate_reboot(None)  # as in a new process
    join_boot(layout, role)
    return boot.current_boot_id()


def test_a_reboot_changes_the_boot_of_the_roles_of_one_host(layout: Layout) -> None:
    kernel = boot.kernel_boot_id()
    assert {boot_of(layout, role) for role in ("site", "agent", "azure", "vault")} == {kernel}
    note_reboot(layout, "site")
    first = boot_of(layout, "site")
    assert first == boot_of(layout, "agent") == str(uuid.UUID(first)) != kernel
    assert {boot_of(layout, role) for role in ("azure", "vault", "applier")} == {kernel}
    note_reboot(layout, "site")
    assert boot_of(layout, "site") not in (first, kernel)


def test_a_reboot_of_the_machine_changes_the_boot_of_every_host(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    note_reboot(layout, "azure")
    before = boot_of(layout, "azure")
    monkeypatch.setattr(boot, "kernel_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    assert boot_of(layout, "azure") not in (before, boot.kernel_boot_id())


@pytest.mark.parametrize("text", ["", "x", "00000000-0000-4000-8000-00000000000g\n", "7" * 100])
def test_a_damaged_file_is_refused_by_name(layout: Layout, text: str) -> None:
    layout.reboot("site").write_text(text)
    with pytest.raises(RigError, match=r"site/reboot: must hold a UUID"):
        join_boot(layout, "agent")
