"""Tests of the rig's processes: up, down, kills of one role and of all, a second up, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests import loop_devices
from siterig.core.paths import Layout
from siterig.roles import azurite
from siterig.rpc import directory
from siterig.supervisor import cleanup, launch
from siterig.testing.testbed import Testbed
from tests.support.warm_command import run_warm

pytestmark = pytest.mark.system

SITERIG = (sys.executable, "-m", "siterig")
MIB = 1024 * 1024


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    """Return a rig's folder, and end everything that the test left there."""
    layout = Layout.of(tmp_path / "rig")
    yield layout

    async def end() -> None:
        if launch.is_up(layout):
            supervisor = supervisor_pid(layout)
            os.kill(supervisor, signal.SIGTERM)
            await gone(supervisor)
        await launch.down(layout)

    trio.run(end)


def siterig(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_warm(*arguments, "--dir", layout.root)


async def start(layout: Layout) -> None:
    up = await trio.to_thread.run_sync(siterig, layout, "up")
    assert up.returncode == 0, up.stderr


def traces(layout: Layout) -> list[str]:
    """Return all mounts, loop devices and processes of the rig that are left on this host."""
    command = ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"]
    loops = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [line for line in loops.stdout.splitlines() if line.startswith(str(layout.root))]
    found += [str(mount) for mount in cleanup.mounts_below(layout.root)]
    for entry in Path("/proc").iterdir():
        try:
            words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if entry.name != str(os.getpid()) and any(word.startswith(str(layout.root)) for word in words):
            found.append(" ".join(words))
    return found


async def guest(testbed: Testbed, where: Path) -> Path:
    """Mount a disk of a source VM, as a user would."""
    vm = await testbed.vault.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=32 * MIB, filesystem="ext4")])
    loop = await loop_devices.attach(Path(vm.disks[0].path))
    await loop_devices.mount(loop, where, "ext4")
    return where


@contextmanager
def sitting_in(where: Path) -> Iterator[int]:
    """Run a process that keeps a mount busy, and yield its id."""
    sitter = subprocess.Popen(["sleep", "infinity"], cwd=where)
    try:
        yield sitter.pid
    finally:
        sitter.kill()
        sitter.wait()


def supervisor_pid(layout: Layout) -> int:
    return int(layout.lock.read_text())


async def gone(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def test_after_down_another_up_continues_with_the_same_state(layout: Layout) -> None:
    up = siterig(layout, "up", "--log-share-max", "0.25")
    assert up.returncode == 0, up.stderr
    assert f"the rig is up: state in {layout.root}" in up.stdout
    made = siterig(layout, "vm", "create", "web01", "--disk", "os:8MiB", "--json")
    assert made.returncode == 0, made.stderr
    disk = Path(json.loads(made.stdout)["disks"][0]["path"])
    with disk.open("r+b") as file:
        file.write(b"kept")

    (listed,) = json.loads(siterig(layout, "disk", "list", "--json").stdout)
    assert (listed["side"], listed["name"], listed["log_bytes_max"]) == ("site", "os", 2 * MIB)
    grown = siterig(layout, "disk", "resize", "web01/os", "16MiB", "--json")
    assert (grown.returncode, disk.stat().st_size, json.loads(grown.stdout)["log_bytes_max"]) == (0, 16 * MIB, 4 * MIB)
    counted = json.loads(siterig(layout, "disk", "stats", "web01/os", "--json").stdout)
    assert counted["requests"]["write"]["bytes"] == 4

    again = siterig(layout, "up")
    assert again.returncode == 1
    assert again.stderr == (
        f"siterig: error: the rig in {layout.root} is up already (supervisor's process id: {supervisor_pid(layout)}); "
        "end it with siterig down (AlreadyUp)\n"
    )
    status = json.loads(siterig(layout, "status", "--json").stdout)
    assert {role["name"]: role["state"] for role in status["roles"]} == dict.fromkeys(
        ("azurite", "site", "azure", "vault", "applier", "agent"), "ready"
    )
    nice = {role["name"]: os.getpriority(os.PRIO_PROCESS, role["pid"]) for role in status["roles"]}
    assert nice["azurite"] == (nice["agent"] + azurite.NICE if os.geteuid() == 0 else nice["agent"])

    down = siterig(layout, "down")
    assert down.returncode == 0, down.stderr
    assert traces(layout) == []
    assert siterig(layout, "status").returncode == 3
    assert siterig(layout, "down").returncode == 0

    assert siterig(layout, "up").returncode == 0
    assert disk.read_bytes()[:4] == b"kept"


async def test_a_rig_ends_with_its_block_even_if_a_guest_is_busy(layout: Layout, tmp_path: Path) -> None:
    with ExitStack() as stack:
        async with Testbed.up(layout.root) as testbed:
            where = await guest(testbed, tmp_path / "guest")
            stack.enter_context(sitting_in(where))
        assert traces(layout) == []
        assert not cleanup.mounts_below(where)


async def test_down_is_refused_while_a_process_uses_a_mounted_disk(layout: Layout, tmp_path: Path) -> None:
    await start(layout)
    where = await guest(Testbed(layout), tmp_path / "guest")
    with sitting_in(where) as pid:
        with pytest.raises(RigError) as caught:
            await launch.down(layout)
        assert caught.value.code == "VmBusy"
        assert f"sleep ({pid})" in caught.value.message
        assert all(role.state == "ready" for role in (await directory.supervisor(layout).status()).roles)
    assert f"unmounted {where}" in await launch.down(layout)
    assert traces(layout) == []


@pytest.mark.parametrize("command", ["down", "up"])
async def test_up_and_down_clear_the_traces_of_a_kill_of_all_processes(layout: Layout, tmp_path: Path, command: str) -> None:
    await start(layout)
    where = await guest(Testbed(layout), tmp_path / "guest")
    (where / "file").write_bytes(b"unsynced")
    status = await directory.supervisor(layout).status()
    os.kill(status.pid, signal.SIGKILL)
    for role in status.roles:
        assert role.pid is not None
        try:
            await gone(role.pid)
        except ProcessLookupError:
            continue
    assert traces(layout) != []
    result = await trio.to_thread.run_sync(siterig, layout, command)
    assert result.returncode == 0, result.stderr
    assert not cleanup.mounts_below(where)
    if command == "up":
        vms = await directory.vault(layout).list_vms()
        assert Path(vms[0].disks[0].path).stat().st_size == 32 * MIB
        await launch.down(layout)
    assert traces(layout) == []


def test_the_rig_ends_when_the_process_that_holds_its_stdin_is_killed(layout: Layout) -> None:
    command = [*SITERIG, "up", "--until-eof", "--dir", str(layout.root)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() != b""
    supervisor = supervisor_pid(layout)
    holder.kill()
    trio.run(gone, supervisor)
    holder.communicate()
    assert traces(layout) == []


@pytest.mark.parametrize(
    ("after", "number"),
    [
        ("azurite: starting", signal.SIGINT),
        ("site: ready", signal.SIGINT),
        ("agent: starting", signal.SIGINT),
        ("site: ready", signal.SIGTERM),
        ("site: ready", signal.SIGHUP),
    ],
)
def test_ctrl_c_during_up_leaves_nothing(layout: Layout, after: str, number: signal.Signals) -> None:
    up = subprocess.Popen([*SITERIG, "up", "--dir", str(layout.root)], stderr=subprocess.PIPE, text=True)
    assert up.stderr is not None
    for line in up.stderr:
        if line.strip() == after:
            break
    up.send_signal(number)
    rest = up.communicate()[1]
    assert up.returncode == 130, rest
    assert rest.endswith("siterig: interrupted\n")
    assert traces(layout) == []
    assert not layout.root.exists()


def test_a_failed_up_removes_a_new_rig_and_keeps_an_old_one(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "bin" / "node"
    node.parent.mkdir()
    real = shutil.which("node")
    node.write_text(f'#!/bin/sh\ncase "$*" in *--version) exec {real} "$@";; esac\necho no luck today >&2\nexit 7\n')
    node.chmod(0o700)
    layout.root.mkdir(mode=0o700)

    def failed() -> str:
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{node.parent}:{os.environ['PATH']}")
            result = siterig(layout, "up")
        assert result.returncode == 1, result.stderr
        assert traces(layout) == []
        return result.stderr

    assert "azurite: its log said: " in failed()
    assert list(layout.root.iterdir()) == []
    layout.root.rmdir()
    said = failed()
    assert "no luck today" in said
    assert not layout.root.exists()

    trio.run(start, layout)
    assert siterig(layout, "down").returncode == 0
    before = {path.name for path in layout.root.iterdir()}
    assert "its log said" not in failed()
    assert {path.name for path in layout.root.iterdir()} >= before
    assert layout.log("azurite").read_text().count("no luck today") > 0


async def test_a_killed_site_restarts_with_its_disks(layout: Layout, tmp_path: Path) -> None:
    async with Testbed.up(layout.root) as testbed:
        await guest(testbed, tmp_path / "guest")
        await testbed.kill_site()
        with pytest.raises(RigError) as caught:
            await testbed.site.list_disks()
        assert caught.value.code == "RoleUnavailable"
        await testbed.restart_site()
        disks = await testbed.site.list_disks()
        assert [(disk.vm, disk.name) for disk in disks] == [("web01", "os")]
        assert Path(disks[0].path).stat().st_size == 32 * MIB
        assert read_position(testbed.site_position) == await testbed.site.position()


def test_a_missing_azurite_is_reported_before_anything_is_started(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITERIG_AZURITE", "/nonexistent/azurite-blob")
    result = siterig(layout, "up")
    assert result.returncode == 4
    (line,) = result.stderr.splitlines()
    assert line.startswith("siterig: error: this machine cannot run a rig: azurite: ")
    assert line.endswith("(AzuriteMissing)")
    assert not layout.root.exists()
    assert traces(layout) == []


def test_a_rig_without_its_state_file_can_be_listed_and_stopped(layout: Layout) -> None:
    assert siterig(layout, "up").returncode == 0
    layout.state.unlink()
    status = siterig(layout, "status")
    assert status.returncode == 0, status.stderr
    down = siterig(layout, "down")
    assert down.returncode == 0, down.stderr
    assert f"{layout.state} was missing and was restored" in down.stderr
    assert traces(layout) == []
    assert siterig(layout, "up").returncode == 0


def test_a_lost_site_stays_down_until_it_is_restored(layout: Layout) -> None:
    assert siterig(layout, "up").returncode == 0
    lost = siterig(layout, "site", "lose", "--json")
    assert {role["name"]: role["state"] for role in json.loads(lost.stdout)} == {"site": "held", "agent": "held"}
    status = siterig(layout, "status")
    assert status.returncode == 1
    assert "site site is lost: siterig site restore site brings it back" in status.stdout
    refused = siterig(layout, "up")
    assert refused.returncode == 1
    assert "role agent is down on purpose; start it with siterig role restart agent, or" in refused.stderr
    assert siterig(layout, "disk", "list").returncode == 3
    assert siterig(layout, "site", "restore").returncode == 0
    assert siterig(layout, "role", "list").returncode == 0
    pids = {role["name"]: role["pid"] for role in json.loads(siterig(layout, "role", "list", "--json").stdout)}
    again = json.loads(siterig(layout, "role", "restart", "agent", "--json").stdout)
    assert [(role["name"], role["state"]) for role in again] == [("agent", "ready")]
    assert again[0]["pid"] != pids["agent"]
    assert siterig(layout, "site", "lose", "moon").returncode == 2
