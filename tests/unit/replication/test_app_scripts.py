"""The scripts of application-consistent points: order, limits, output, and a call with --post after every kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.replication.guests import app_scripts
from siterig.replication.guests.app_scripts import AppScripts, check_script
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

slow = pytest.mark.slow


def script(folder: Path, body: str, limit_s: float = 30.0) -> AppScript:
    """Return a script that notes its calls in the file ``calls``, and then does ``body``."""
    path = folder / "quiesce.sh"
    path.write_text(f'#!/bin/sh\necho "$1" >> {folder}/calls\n{body}\n')
    path.chmod(0o700)
    return AppScript(path=str(path), time_limit_s=limit_s)


def calls(folder: Path) -> list[str]:
    """Return the calls of the script."""
    file = folder / "calls"
    return file.read_text().split() if file.exists() else []


async def until_called(folder: Path, expected: list[str]) -> None:
    """Wait until the script was called like this."""
    with trio.fail_after(60):
        while calls(folder) != expected:  # noqa: ASYNC110 (another process writes the file)
            await trio.sleep(0.02)


@slow
async def test_the_script_is_called_before_and_after_with_its_own_environment(tmp_path: Path) -> None:
    body = f'env | sort > {tmp_path}/env$1; pwd >> {tmp_path}/env$1; head -c 100000 /dev/zero | tr "\\0" x'
    scripts = AppScripts(tmp_path / "records", Waits())
    async with scripts.prepared(VM, "daily", script(tmp_path, body)):
        assert calls(tmp_path) == ["--pre"]
    assert calls(tmp_path) == ["--pre", "--post"]
    assert scripts.failed_after(VM) is None
    lines = (tmp_path / "env--pre").read_text().split("\n")
    assert {f"SITERIG_VM={VM}", "SITERIG_POINT=daily", f"PATH={app_scripts.PATH}", "/"} <= set(lines)
    assert not any(line.startswith("PYTHONPATH=") for line in lines)
    assert list((tmp_path / "records").iterdir()) == []


@slow
async def test_a_script_that_runs_is_shown_as_a_wait_until_it_ends(tmp_path: Path) -> None:
    waits, gates = Waits(), {step: tmp_path / step for step in ("pre", "post")}
    for gate in gates.values():
        os.mkfifo(gate)
    waiting = script(tmp_path, f'read word < "{tmp_path}/${{1#--}}"')
    ready, leave = trio.Event(), trio.Event()

    async def call() -> None:
        async with AppScripts(tmp_path / "records", waits).prepared(VM, "p", waiting):
            ready.set()
            await leave.wait()

    def end(step: str) -> None:
        gates[step].write_text("go\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        for step, before, after in (("pre", trio.Event(), ready), ("post", leave, trio.Event())):
            before.set()
            await until_called(tmp_path, ["--pre", "--post"][: 1 if step == "pre" else 2])
            text = f"script {waiting.path} of VM {VM!r}: --{step} has not ended; its time limit is 30 s"
            assert [(wait.code, wait.vm, wait.reason) for wait in waits.list()] == [("AppScriptRuns", VM, text)]
            await trio.to_thread.run_sync(end, step)
            if step == "pre":
                await after.wait()
                assert waits.list() == []
    assert waits.list() == []


@slow
async def test_a_script_that_fails_is_an_error_and_post_follows(tmp_path: Path) -> None:
    scripts = AppScripts(tmp_path / "records", Waits())
    failing = script(tmp_path, 'echo "no database"; exit 3')
    with pytest.raises(RigError, match=r"--pre ended with status 3: no database") as failed:
        async with scripts.prepared(VM, "p", failing):
            pytest.fail("the block must not run")
    assert (failed.value.code, failed.value.recoverable) == ("AppScriptFailed", True)
    assert calls(tmp_path) == ["--pre", "--post"]
    assert list((tmp_path / "records").iterdir()) == []

    only_post = script(tmp_path, '[ "$1" = --pre ]')
    async with scripts.prepared(VM, "p", only_post):
        pass
    error = scripts.failed_after(VM)
    assert error is not None
    assert (error.code, scripts.failed_after(VM)) == ("AppScriptFailed", None)


@slow
async def test_a_hanging_script_is_ended_with_its_children_and_post_follows(tmp_path: Path) -> None:
    scripts = AppScripts(tmp_path / "records", Waits())
    hanging = script(
        tmp_path, f'[ "$1" = --post ] || {{ trap "" TERM; sleep 1000 & echo $! > {tmp_path}/child; wait; wait; }}', 1.0
    )
    with pytest.raises(RigError, match=r"--pre ran longer than 1 s and was ended") as failed:
        async with scripts.prepared(VM, "p", hanging):
            pytest.fail("the block must not run")
    assert failed.value.code == "AppScriptTimedOut"
    assert calls(tmp_path) == ["--pre", "--post"]
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}/stat").exists() or ") Z" in Path(f"/proc/{child}/stat").read_text()


@slow
async def test_applications_are_at_rest_for_a_limited_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_scripts, "HOLD_S_MAX", 0.2)
    async with AppScripts(tmp_path / "records", Waits()).prepared(VM, "p", script(tmp_path, "")):
        await until_called(tmp_path, ["--pre", "--post"])


@slow
async def test_post_follows_a_kill_of_the_guard(tmp_path: Path) -> None:
    scripts = AppScripts(tmp_path / "records", Waits())
    async with scripts.prepared(VM, "p", script(tmp_path, f"echo $PPID > {tmp_path}/guard")):
        os.kill(int((tmp_path / "guard").read_text()), signal.SIGKILL)
    assert calls(tmp_path) == ["--pre", "--post"]
    assert list((tmp_path / "records").iterdir()) == []


_AGENT = """
import sys, trio
from siterig.replication.guests.app_scripts import AppScripts
from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.core.waits import Waits
from pathlib import Path

async def main():
    async with AppScripts(Path(sys.argv[1]), Waits()).prepared("web01", "p", AppScript(path=sys.argv[2])):
        print("prepared", file=sys.stderr, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@slow
@pytest.mark.parametrize("guard_too", [False, True])
async def test_post_follows_a_kill_of_the_agent(tmp_path: Path, guard_too: bool) -> None:
    made = script(tmp_path, f"echo $PPID > {tmp_path}/guard")
    records = tmp_path / "records"
    command = [sys.executable, "-P", "-c", _AGENT, str(records), made.path]
    agent = await trio.lowlevel.open_process(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=child_environment()
    )
    try:
        assert agent.stderr is not None
        assert await agent.stderr.receive_some() in (b"prepared", b"prepared\n")
        if guard_too:
            os.kill(int((tmp_path / "guard").read_text()), signal.SIGKILL)
    finally:
        agent.kill()
        await agent.wait()
    if guard_too:
        assert calls(tmp_path) == ["--pre"]
        assert [path.name for path in records.iterdir()] == ["web01.json"]
    await AppScripts(records, Waits()).finish_all()
    assert calls(tmp_path) == ["--pre", "--post"]
    assert list(records.iterdir()) == []


async def test_a_damaged_record_is_removed(tmp_path: Path) -> None:
    (tmp_path / "web01.json").write_text('{"format": 1, "vm": 7}')
    await AppScripts(tmp_path, Waits()).finish_all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "message"),
    [(0o600, "is not executable"), (0o770, "has mode 770"), (0o702, "has mode 702"), (None, "No such file")],
)
def test_a_script_that_others_can_change_is_refused(tmp_path: Path, mode: int | None, message: str) -> None:
    path = tmp_path / "script"
    if mode is not None:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    with pytest.raises(RigError, match=message) as failed:
        check_script(VM, AppScript(path=str(path)))
    assert failed.value.code == "AppScriptUnusable"


# --- points -------------------------------------------------------------------------------------------------------


class _Scripts:
    """Stands for the calls of scripts."""

    def __init__(self) -> None:
        self.error: RigError | None = None
        self.after: RigError | None = None
        self.at_rest = False

    @asynccontextmanager
    async def prepared(self, _vm: str, _point: str, _script: AppScript) -> AsyncIterator[int]:
        if self.error is not None:
            raise self.error
        self.at_rest = True
        try:
            yield 1 << 62
        finally:
            self.at_rest = False

    def failed_after(self, _vm: str) -> RigError | None:
        return self.after


async def test_points_with_a_script(tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    fake = _Scripts()
    monkeypatch.setattr(AppScripts, "prepared", fake.prepared)
    monkeypatch.setattr(AppScripts, "failed_after", fake.failed_after)
    rig = Rig(tmp_path / "rig")
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        await agent.set_app_script(vm=VM, script=script(tmp_path, ""))
        cut = await agent.replicate_now(vm=VM, kind="ApplicationConsistent", name="one")
        assert (cut.kind, cut.downgraded_because) == ("ApplicationConsistent", None)  # no file system is mounted

        fake.after = RigError(Code.AppScriptFailed, "post failed")
        cut = await agent.replicate_now(vm=VM, kind="ApplicationConsistent", name="two")
        assert cut.kind == "ApplicationConsistent"
        assert rig.vault.script_failures == [("AppScriptFailed", "post failed")]
        fake.after = None

        fake.error = RigError(Code.AppScriptTimedOut, "too long", recoverable=True)
        with pytest.raises(RigError, match="too long"):
            await agent.replicate_now(vm=VM, kind="ApplicationConsistent", name="three")
        assert rig.vault.script_failures[1:] == [("AppScriptTimedOut", "too long")]
        await agent.change_schedule(vm=VM, interval_s=30, app_consistent_every_s=30)
        await trio.sleep(100)
        assert "too long (AppScriptTimedOut)" in rig.vault.downgraded.values()
        assert len(rig.vault.script_failures) == 2, "a scheduled point names the reason itself"
        assert not fake.at_rest

        await agent.rename_vm(vm=VM, name="web02")
        assert await agent.app_script(vm="web02") is not None
        with pytest.raises(RigError, match="there is no VM"):
            await agent.app_script(vm=VM)
