"""The socket of a mount: in a private folder, found by the mount point, and a dead one is reported."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import FaultControl
from siterig.images import mount_calls, mount_sockets
from siterig.images.mount_calls import of_mount
from siterig.images.mount_sockets import FoundMount, find_mount, listening, socket_of

UID = os.geteuid()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the one folder in which sockets may be; its path is short, because a socket's path must be."""
    with tempfile.TemporaryDirectory(prefix="own-", dir="/tmp") as folder:
        monkeypatch.setattr(mount_sockets, "_bases", lambda _uid: [Path(folder, "siterig")])
        yield Path(folder)


def mount(device: str = "0:57") -> FoundMount:
    return FoundMount(Path("/m"), device, UID)


def test_a_socket_is_private_found_by_the_device_and_gone_at_the_end(runtime: Path) -> None:
    with listening("0:57") as (_, path):
        assert path == runtime / "siterig" / "mount-0-57" / "mount.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in list(path.parents)[:2]] == [0o700, 0o700]
        assert socket_of(mount()) == path
        with pytest.raises(RigError) as caught:
            socket_of(mount("0:58"))
        assert caught.value.code == Code.DeadMount
    assert not path.parent.exists()


def test_a_socket_that_a_killed_process_left_is_reported_and_replaced(runtime: Path) -> None:
    left = runtime / "siterig" / "mount-0-57" / "mount.sock"
    left.parent.mkdir(mode=0o700, parents=True)
    left.parent.parent.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as of_killed:
        of_killed.bind(str(left))
    with pytest.raises(RigError, match="/m: its process does not answer: it was killed; unmount it: fusermount3 -u /m"):
        socket_of(mount())
    with listening("0:57") as (_, again):
        assert socket_of(mount()) == again


def test_the_end_of_a_mount_leaves_the_socket_of_a_new_one(runtime: Path) -> None:
    with ExitStack() as ending:
        ending.enter_context(listening("0:57"))
        with listening("0:57") as (_, path):
            ending.close()
            assert socket_of(mount()) == path
    assert not path.parent.exists()


def test_a_stopped_process_with_many_waiting_connections_is_not_a_killed_one(runtime: Path) -> None:
    with listening("0:57") as (_, path), ExitStack() as waiting:
        while True:
            asking = waiting.enter_context(socket.socket(socket.AF_UNIX))
            asking.setblocking(False)
            if asking.connect_ex(str(path)) == errno.EAGAIN:
                break
        assert socket_of(mount()) == path
        with listening("0:58"):
            assert socket_of(mount()) == path


@pytest.mark.slow
@pytest.mark.skipif(UID != 0, reason="needs root, which becomes other users: run the tests as root")
def test_another_user_learns_that_the_mount_belongs_to_a_user(runtime: Path) -> None:
    with listening("0:57"):
        runtime.chmod(0o755)
        child = os.fork()
        if not child:
            try:
                os.setresuid(65533, 65533, 65533)
                socket_of(mount())
            except RigError as error:
                named = error.code == Code.NotPermitted and "/m: belongs to the user with the number 0" in error.message
                os._exit(0 if named else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0


def test_the_sockets_of_killed_processes_are_removed_by_the_next_mount(runtime: Path) -> None:
    with listening("0:57") as (_, alive):
        left = alive.parent.parent / "mount-0-99" / "mount.sock"
        left.parent.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as of_killed:
            of_killed.bind(str(left))
        with listening("0:58"):
            assert sorted(folder.name for folder in (runtime / "siterig").iterdir()) == ["mount-0-57", "mount-0-58"]
            assert socket_of(mount()) == alive


def test_a_folder_that_others_can_write_to_is_not_used(runtime: Path) -> None:
    (runtime / "siterig").mkdir(mode=0o755)
    with pytest.raises(RigError, match="is not a private folder of this user; set XDG_RUNTIME_DIR"), listening("0:57"):
        pass
    with pytest.raises(RigError) as caught:
        socket_of(mount())
    assert caught.value.code == Code.DeadMount


def test_a_folder_that_is_no_mount_is_refused_with_the_mounts_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        RigError, match="is no mount of siterig: nothing is mounted there; the mounts of siterig are: "
    ) as caught:
        find_mount(tmp_path)
    assert caught.value.code == Code.NotAMount
    with pytest.raises(RigError, match=r"/proc: is no mount of siterig: .* is mounted there"):
        find_mount(Path("/proc"))


def test_a_mount_is_found_without_a_question_to_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be stopped, and every look at its folder would wait for it."""
    asked: list[str] = []

    def realpath(path: Path) -> str:
        asked.append(str(path))
        return str(path)

    line = f"68 27 0:42 / {tmp_path} rw - fuse.siterig siterig:/d rw,user_id=7"
    monkeypatch.setattr(mount_sockets, "mount_lines", lambda: [line])
    monkeypatch.setattr("os.path.realpath", realpath)
    assert find_mount(tmp_path) == FoundMount(tmp_path, "0:42", 7)
    assert asked == [str(tmp_path.parent)]


async def test_a_process_that_does_not_answer_is_not_reported_as_killed(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent() -> None:
        raise RigError(Code.RoleUnavailable, "the mount did not answer within 5 s", recoverable=True)

    found = FoundMount(runtime, "0:57", UID)
    monkeypatch.setattr(mount_calls, "find_mount", lambda _where: found)
    monkeypatch.setattr(mount_calls, "proxy", lambda *_, **__: SimpleNamespace(list_faults=silent))
    with listening("0:57"):
        control = of_mount(runtime, FaultControl)
        with pytest.raises(RigError, match="did not answer within 5 s; its process runs, and is stopped or busy") as caught:
            await control.list_faults()
        assert caught.value.code == Code.RoleUnavailable
    with pytest.raises(RigError, match="it was killed; unmount it"):
        await control.list_faults()


def test_the_disks_of_a_rig_are_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"68 27 0:42 / {tmp_path} rw - fuse.siterig siterig:disks rw,user_id=0"
    monkeypatch.setattr(mount_sockets, "mount_lines", lambda: [line])
    with pytest.raises(RigError, match=r"the disks of a rig are mounted there, whose folder --dir names; .* are: none"):
        find_mount(tmp_path)
    monkeypatch.setattr(mount_sockets, "mount_lines", lambda: [line.replace(":disks", ":/disk.img"), line])
    with pytest.raises(RigError, match="the disks of a rig are mounted there"):
        find_mount(tmp_path)
    monkeypatch.setattr(
        mount_sockets, "mount_lines", lambda: [line, line.replace(":disks rw,user_id=0", ":/d rw,user_id=7")]
    )
    assert find_mount(tmp_path) == FoundMount(tmp_path, "0:42", 7)
