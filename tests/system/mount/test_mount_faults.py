"""Faults of a mount by hand: rules from a file and from commands, a guest's file, a power loss, and the verdicts."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import guest
from tests.support.disks.mount_process import ROOT, MountProcess, mounts, siterig

pytestmark = pytest.mark.system

MIB = 1 << 20
RULES = """
seed = 7
[[fault]]
name = "bad cable"
where = { layer = "disk", disk = "disk", op = "write", start = "32MiB", length = "1MiB" }
when = { occurrence = 2 }
what = { error = "EIO" }
[[fault]]
name = "never"
where = { layer = "disk", op = "write" }
when = { after = "mark:nowhere" }
what = { error = "EIO" }
[[fault]]
name = "perhaps"
where = { layer = "disk", op = "write" }
when = { after = "mark:nowhere" }
what = { error = "EIO" }
expect = { fired = "any" }
"""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountProcess]:
    """A mount with three rules of a file, which most tests use."""
    folder = tmp_path_factory.mktemp("faults")
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    (folder / "faults.toml").write_text(RULES)
    with mounts() as start:
        yield start(image, folder / "mnt", "--log", "--power-loss", "--faults", str(folder / "faults.toml"))


def fault(mount: MountProcess, command: str, *words: object) -> Any:
    """Run ``siterig fault COMMAND --mnt DIR --json``; return its document."""
    done = siterig("fault", command, *words, "--mnt", mount.where, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(mount: MountProcess, offset: int) -> int:
    """Write a block past the page cache; return 0 or the errno."""
    fd = os.open(mount.disk, os.O_WRONLY | os.O_DSYNC)
    try:
        os.pwrite(fd, b"x" * 4096, offset)
    except OSError as exc:
        return exc.errno or -1
    else:
        return 0
    finally:
        os.close(fd)


def test_rules_of_a_file_are_in_force_before_the_disk_is_there(mount: MountProcess) -> None:
    assert mount.mounted["faults"] == {"seed": 7, "armed": ["bad cable", "never", "perhaps"]}
    assert [write(mount, 32 * MIB) for _ in range(3)] == [0, errno.EIO, 0]
    found = {rule["name"]: rule for rule in fault(mount, "list")["faults"]}
    assert {name: (rule["matched"], rule["fired"], rule["state"]) for name, rule in found.items()} == {
        "bad cable": (3, 1, "armed"),
        "never": (0, 0, "waiting"),
        "perhaps": (0, 0, "waiting"),
    }


def test_a_rule_is_added_waited_for_and_removed_while_the_disk_is_in_use(mount: MountProcess) -> None:
    added = fault(mount, "add", "disk", "flush", "pause=true", "name=frozen")
    assert [rule["name"] for rule in added["faults"]][-1] == "frozen"
    command = [sys.executable, "-m", "siterig", "fault", "wait", "frozen", "--mnt", str(mount.where), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as waiting:
        flush = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))"
        with subprocess.Popen([sys.executable, "-c", flush, str(mount.disk)]) as flushing:
            printed, _ = waiting.communicate(timeout=60)
            assert json.loads(printed)["waiting"] == 1
            assert flushing.poll() is None
            assert "frozen" not in [rule["name"] for rule in fault(mount, "remove", "frozen")["faults"]]
            assert flushing.wait(60) == 0


def test_a_rule_names_a_file_of_the_guest(mount: MountProcess, tmp_path: Path) -> None:
    guest.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "-J", "size=4", mount.disk)
    with guest.loop_device(mount.disk, direct_io=True) as device, guest.mounted(device, tmp_path / "guest") as folder:
        (folder / "wal").mkdir()
        (folder / "wal" / "0001").write_bytes(os.urandom(MIB))
        (folder / "other").write_bytes(os.urandom(MIB))
        fault(mount, "add", "disk", "write", "error=EIO", "file=/wal/*", "name=wal")
        guest.write_durably(folder / "other", 0, os.urandom(8192))
        with pytest.raises(OSError, match="Input/output error"):
            guest.write_durably(folder / "wal" / "0001", 65536, os.urandom(4096))
        assert fault(mount, "remove", "wal")
        guest.write_durably(folder / "wal" / "0001", 65536, os.urandom(4096))
        refused = siterig("fault", "add", "--mnt", mount.where, "disk", "error=EIO", "file=/wall/*", "name=y")
        assert refused.returncode == 2
        assert f"fault 'y': where.file: '/wall/*': '/wall/*' matches no file of {folder}" in refused.stderr
        in_use = siterig("power-loss", mount.where)
        assert (in_use.returncode, f"disk disk is in use by {device} (mounted at {folder})" in in_use.stderr) == (1, True)


def test_the_power_is_lost_by_hand_in_the_same_way_for_the_same_seed(mount: MountProcess) -> None:
    states = []
    for _ in range(2):
        with mount.disk.open("r+b", buffering=0) as file:
            file.write(bytes(64 * 4096))
            os.fsync(file.fileno())
            for block in range(64):
                file.seek(block * 4096)
                file.write(bytes([block + 1]) * 4096)
        done = siterig("power-loss", mount.where, "--tear", "--seed", "3", "--json")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["disks"]
        assert row["lost"] > 0
        assert row["torn"] > 0
        states.append(mount.disk.read_bytes()[: 64 * 4096])
    assert states[0] == states[1]
    assert any(states[0])


def test_the_verdicts_decide_the_exit_status(mount: MountProcess) -> None:
    mount.signal(signal.SIGINT)
    status, printed, stderr = mount.ended()
    assert status == 1, stderr
    verdicts = {each["name"]: each["ok"] for each in printed[-1]["unmounted"]["faults"]["verdicts"]}
    assert verdicts == {"bad cable": True, "never": False, "perhaps": True, "frozen": True, "wal": True}
    injected = [each["injected"] for each in printed if "injected" in each]
    assert [each["sequence"] for each in injected] == list(range(1, len(injected) + 1))
    assert injected[0] | {"time": "", "position": 0} == {
        "sequence": 1,
        "rule": "bad cable",
        "layer": "disk",
        "operation": f"write disk, 4096 bytes at {32 * MIB}",
        "n": 2,
        "time": "",
        "position": 0,
        "done": "failed with EIO",
        "ranges": [[32 * MIB, 4096]],
    }


def test_wrong_rules_and_dead_mounts_are_refused(tmp_path: Path) -> None:
    image, where = tmp_path / "disk.img", tmp_path / "mnt"
    image.write_bytes(bytes(MIB))
    for words, named in {
        'layer = "link"': "'link' has no faults here; allowed: disk",
        'layer = "disk", vm = "web01"': "where.vm: 'web01': matches no disk; there are: disk",
        'layer = "disk", file = "/a"': "where.file: '/a': no file system of",
    }.items():
        (tmp_path / "faults.toml").write_text(f'[[fault]]\nwhere = {{ {words} }}\nwhat = {{ delay = "1s" }}\n')
        refused = siterig("mount", image, "--mnt", where, "--faults", tmp_path / "faults.toml")
        assert (refused.returncode, named in refused.stderr) == (2, True), refused.stderr
        assert not where.exists()
    with mounts() as start:
        plain = start(image, where)
        assert "siterig mount --power-loss" in siterig("power-loss", where).stderr
        no_log = siterig("fault", "add", "--mnt", where, "log", "append", "error=EIO").stderr
        assert "where.layer: 'log' has no faults here; allowed: disk; a change log: siterig mount --log" in no_log
        plain.kill()
        dead = siterig("fault", "list", "--mnt", where)
        assert (
            dead.returncode,
            "its process does not answer: it was killed; unmount it: fusermount3 -u" in dead.stderr,
        ) == (
            1,
            True,
        )
    assert "is no mount of siterig: nothing is mounted there" in siterig("fault", "clear", "--mnt", where).stderr
