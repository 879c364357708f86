"""Tests of ``siterig mount`` by a user who is not root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.fuse_device import fuse_for_all
from tests.support.disks.mount_process import ROOT, Start, copied_as, logs, names, replayed, siterig

pytestmark = pytest.mark.system

MIB = 1 << 20
NOBODY = 65534
RIG = ROOT / "rig"
"""The rig script: the checkout's Python may lie where only root can reach it, and the script finds another Python."""
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.fixture
def home() -> Iterator[Path]:
    """Create a folder that belongs to an ordinary user."""
    with tempfile.TemporaryDirectory(prefix="siterig-user-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        probe = subprocess.run([*AS_NOBODY, RIG, "--version"], cwd="/", capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            pytest.skip(f"an ordinary user cannot run this checkout: {probe.stderr.strip()}")
        with fuse_for_all():
            yield Path(folder)


def test_an_ordinary_user_can_mount_write_kill_and_mount_again(home: Path, start: Start) -> None:
    image, where = home / "disk.img", home / "mnt"
    image.write_bytes(bytes(MIB))
    os.chown(image, NOBODY, NOBODY)
    before = copied_as(image, "before")
    as_user = {"prefix": AS_NOBODY, "environment": {"HOME": str(home)}, "program": [str(RIG)]}
    mount = start(image, where, "--log", **as_user)

    def user(*command: str) -> str:
        done = subprocess.run([*AS_NOBODY, *command], check=True, capture_output=True, text=True)
        return done.stdout

    user("dd", "if=/dev/urandom", f"of={mount.disk}", "bs=64k", "count=4", "seek=3", "conv=notrunc,fsync")
    with pytest.raises(PermissionError):
        names(where)  # no other user has access, not even root
    assert "x\tdisk\tarmed" in user(
        str(RIG), "fault", "add", "--mnt", str(where), "disk", "write", "error=EIO", "fired=any", "name=x"
    )
    assert "removed 1 fault" in siterig("fault", "clear", "--mnt", where).stdout, "root reaches the mount of a user"
    user("fusermount3", "-u", str(where))
    status, _, stderr = mount.ended()
    assert status == 0, stderr
    mount = start(image, where, "--log", **as_user)
    assert mount.mounted["log"]["generation"] == 1
    user("dd", "if=/dev/urandom", f"of={mount.disk}", "bs=64k", "count=1", "conv=notrunc")
    mount.kill()
    mount = start(image, where, "--log", **as_user)
    assert user("ls", str(where)).split()[-3:] == ["disk.img", "disk.stats", "disk.vhd"]
    mount.end()
    assert {path.stat().st_uid for path in logs(image)} == {NOBODY}
    assert replayed(before, logs(image)) == image.read_bytes()


def test_an_ordinary_user_gets_an_error_for_the_files_of_others(home: Path) -> None:
    foreign, own = home / "foreign.img", home / "own.img"
    for path in (foreign, own):
        path.write_bytes(bytes(MIB))
    os.chown(own, NOBODY, NOBODY)
    foreign.chmod(0o644)

    def refused(*arguments: object) -> tuple[int, str]:
        done = subprocess.run(
            [*AS_NOBODY, RIG, "mount", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=os.environ | {"HOME": str(home)},
        )
        return done.returncode, done.stderr

    assert refused(foreign, "--mnt", home / "m") == (
        2,
        f"siterig: error: {foreign}: cannot be opened: Permission denied; it can be mounted read-only (ImageUnusable)\n",
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        status, stderr = refused(own, "--mnt", folder)
        assert (status, "you may not write to it" in stderr) == (2, True), stderr
        status, stderr = refused(own, "--mnt", Path(folder) / "made")
        assert (status, "cannot be created: Permission denied" in stderr) == (2, True), stderr
    home.chmod(0o755)
    os.chown(home, 0, 0)
    (home / "m").mkdir()
    os.chown(home / "m", NOBODY, NOBODY)
    assert refused(own, "--mnt", home / "m", "--log") == (
        2,
        f"siterig: error: {home}: cannot hold the change log of own.img: Permission denied ({home}/own.disk) "
        "(FolderUnusable)\n",
    )
