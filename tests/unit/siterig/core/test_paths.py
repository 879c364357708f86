"""A rig's state folder: for its owner alone, and refused if another user owns it or can change it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner

from siterig.azure_emu.storage.azurite import load_or_create_account
from siterig.blockfs.core.errors import RigError
from siterig.cli.app import program
from siterig.cli.light_commands import running
from siterig.core.lock import take_lock
from siterig.core.paths import Layout, check_format, create
from siterig.rpc import server
from siterig.supervisor import launch
from siterig.supervisor.process import open_log
from tests.support.other_user import UID, folder_of_other_user, link_of_other_user, needs_root


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A rig's folder, as ``up`` leaves it."""
    made = Layout.of(tmp_path / "rig")
    create(made)
    load_or_create_account(made.keys)
    return made


def refused(layout: Layout) -> RigError:
    with pytest.raises(RigError) as failed:
        check_format(layout)
    return failed.value


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_new_state_folder_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        layout = Layout.of(tmp_path / "above" / "rig")
        create(layout)
        load_or_create_account(layout.keys)
        os.close(take_lock(layout.lock))
        open_log(layout.log("vault")).close()

        async def serve() -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, {}, layout.socket("vault"))
                assert layout.socket("vault").stat().st_mode & 0o777 == 0o600
                nursery.cancel_scope.cancel()

        trio.run(serve)
    finally:
        os.umask(before)
    found = [layout.root.parent, layout.root, *layout.root.rglob("*")]
    assert {path for path in found if path.stat().st_mode & 0o777 != (0o700 if path.is_dir() else 0o600)} == set()
    assert {"account.key", "lock", "vault.log", "state.json", "run"} <= {path.name for path in found}


@needs_root
@pytest.mark.parametrize("name", ["", "run", "keys", "keys/account.key", "state.json", "azure"])
def test_a_state_folder_is_refused_if_another_user_owns_it_or_something_in_it(layout: Layout, name: str) -> None:
    os.chown(layout.root / name, UID, UID)
    error = refused(layout)
    assert error.code == "FolderUnusable"
    assert error.message.startswith(
        f"{layout.root / name}: belongs to user nobody (uid {UID}); a rig's state folder must be"
    )
    assert "name a folder that you make yourself" in error.message


@pytest.mark.parametrize("name", ["", "run", "keys", "keys/account.key", "state.json", "azure"])
def test_a_state_folder_that_another_user_can_write_to_is_refused(layout: Layout, name: str) -> None:
    path = layout.root / name
    path.chmod(0o777)
    error = refused(layout)
    assert error.code == "FolderUnusable"
    assert error.message.startswith(f"{path}: can be written to by other users (mode 0777)")
    assert error.message.endswith(f"chmod go-w {path}")


@needs_root
def test_up_looks_at_everything_in_the_folder(layout: Layout) -> None:
    folder_of_other_user(layout.site_disks / "web01")
    check_format(layout)
    with pytest.raises(RigError, match=f"{layout.site_disks}/web01: belongs to user nobody"):
        create(layout)


def test_mounts_in_the_folder_are_not_examined(layout: Layout) -> None:
    (layout.site_mount / "web01").mkdir(mode=0o777)
    (layout.site_mount / "web01").chmod(0o777)
    create(layout)


@needs_root
def test_a_state_folder_is_not_reached_through_another_users_link(layout: Layout, tmp_path: Path) -> None:
    theirs = folder_of_other_user(tmp_path / "theirs")
    link_of_other_user(theirs / "rig", layout.root)
    with pytest.raises(RigError, match=f"{theirs}/rig: is a symbolic link of user nobody") as failed:
        Layout.of(theirs / "rig")
    assert failed.value.code == "ForeignFile"
    with pytest.raises(RigError, match=f"{theirs}: belongs to user nobody"):
        check_format(Layout.of(theirs / "new" / "rig"))


@needs_root
@pytest.mark.parametrize("command", [["up"], ["down"], ["status"], ["vm", "list"], ["jobs"], ["points", "web01"]])
def test_every_command_refuses_a_folder_of_another_user(layout: Layout, command: list[str]) -> None:
    os.chown(layout.root, UID, UID)
    done = CliRunner().invoke(program([]), [*command, "--dir", str(layout.root)])
    assert done.exit_code == 2, done.output
    assert f"{layout.root}: belongs to user nobody" in done.output


def test_a_log_is_appended_to_and_never_through_a_link(layout: Layout, tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        with open_log(layout.log("vault")) as log:
            log.write(text)
    assert layout.log("vault").read_bytes() == b"one\ntwo\n"
    layout.log("site").symlink_to(tmp_path / "victim")
    with pytest.raises(RigError, match="is a symbolic link"):
        open_log(layout.log("site"))
    assert not (tmp_path / "victim").exists()


def test_a_folder_that_cannot_be_looked_up_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RigError) as failed:
        Layout.of(tmp_path / "file" / "rig")
    assert failed.value.code == "FolderUnusable"
    with pytest.raises(RigError, match="is not up"):
        running(tmp_path / "none")
    assert not launch.is_up(Layout.of(tmp_path / "none"))
