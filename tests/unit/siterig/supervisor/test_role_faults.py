"""Faults of processes: the supervisor keeps them in force, and a status names the rule as the cause."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import ASK_FOR_RULES
from siterig.core.paths import Layout, create
from siterig.core.supervisor_contract import RoleFault, StartFaults
from siterig.supervisor import cleanup
from siterig.supervisor import supervisor as supervisor_module
from siterig.supervisor.role_faults import children_of
from siterig.supervisor.supervisor import RoleSpec, Supervisor

pytestmark = pytest.mark.slow

ANSWER = """import os, sys
fd = int(sys.argv[-2])
os.write(fd, b'{}\\n')
while os.read(fd, 1):
    os.write(fd, b'{"waits": []}\\n')
"""


PROGRAM = f"""import subprocess
subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", "sleep", "600"])
{ANSWER}"""


def role(name: str, *, on_demand: bool = False, asks_for_rules: bool = False) -> RoleSpec:
    command = (sys.executable, "-S", "-c", ANSWER)
    return RoleSpec(name, command, answers_checks=True, on_demand=on_demand, asks_for_rules=asks_for_rules)


@pytest.fixture(autouse=True)
def _quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "CHECK_EVERY_S", 0.02)


async def nothing() -> None:
    pass


async def no_faults(_role: str) -> StartFaults:
    return StartFaults()


@asynccontextmanager
async def running(
    folder: Path,
    *specs: RoleSpec,
    start_faults: Callable[[str], Awaitable[StartFaults]] = no_faults,
    end_faults: Callable[[], Awaitable[object]] = nothing,
) -> AsyncIterator[Supervisor]:
    layout = Layout.of(folder / "rig")
    create(layout)
    supervisor = Supervisor(layout, specs, start_faults=start_faults, end_faults=end_faults, director="director")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


async def status(supervisor: Supervisor, name: str = "a") -> RoleStatus:
    return {role.name: role for role in (await supervisor.status()).roles}[name]


async def until(supervisor: Supervisor, *states: str) -> RoleStatus:
    with trio.fail_after(30):
        while (found := await status(supervisor)).state not in states:  # noqa: ASYNC110 (a process outside changes it)
            await trio.sleep(0.01)
    return found


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def soft(pid: int | None, limit: int) -> int:
    assert pid is not None
    return resource.prlimit(pid, limit)[0]


async def test_a_stopped_role_is_hung_by_a_named_fault_until_it_is_lifted(tmp_path: Path) -> None:
    async with running(tmp_path, role("a")) as supervisor:
        await supervisor.impose_role_fault(fault=RoleFault(fault="stop it", role="a", pause=True))
        found = await status(supervisor)
        assert (found.state, found.detail) == ("hung", "stopped by fault 'stop it'")
        assert found.pid is not None
        assert state(found.pid) == "T"
        await supervisor.lift_role_faults(fault="stop it")
        after = await status(supervisor)
        assert (after.state, after.detail, after.pid) == ("ready", "", found.pid)


async def test_the_program_of_a_role_is_stopped_and_limited_with_it(tmp_path: Path) -> None:
    spec = RoleSpec("a", (sys.executable, "-S", "-c", PROGRAM), answers_checks=True, has_program=True)
    async with running(tmp_path, spec) as supervisor:
        pid = (await status(supervisor)).pid
        assert pid is not None
        (program,) = children_of(pid)
        before = soft(program, resource.RLIMIT_NOFILE)
        await supervisor.impose_role_fault(fault=RoleFault(fault="stop it", role="a", pause=True, files_max=40))
        assert (state(pid), state(program), soft(program, resource.RLIMIT_NOFILE)) == ("T", "T", 40)
        await supervisor.lift_role_faults(fault="stop it")
        assert "T" not in (state(pid), state(program))
        assert soft(program, resource.RLIMIT_NOFILE) >= before
        await supervisor.impose_role_fault(fault=RoleFault(fault="stop it", role="a", pause=True))
        with trio.fail_after(5):  # a program that stays stopped would not end before the time limit
            assert await supervisor.stop_all() == ["ended a"]


async def test_a_role_that_is_killed_while_it_is_stopped_starts_again(tmp_path: Path) -> None:
    async with running(tmp_path, role("a")) as supervisor:
        await supervisor.impose_role_fault(fault=RoleFault(fault="stop it", role="a", pause=True))
        await supervisor.kill_role(name="a")
        assert (await until(supervisor, "ready")).detail == ""


async def test_limits_hold_for_this_process_and_the_next_until_they_are_lifted(tmp_path: Path) -> None:
    async with running(tmp_path, role("a")) as supervisor:
        before = soft((await status(supervisor)).pid, resource.RLIMIT_NOFILE)
        await supervisor.impose_role_fault(fault=RoleFault(fault="few", role="a", files_max=40, memory_max=1 << 30))
        found = await status(supervisor)
        assert found.detail == "at most 40 open files, at most 1073741824 bytes of address space by fault 'few'"
        for _ in range(2):
            found = await until(supervisor, "ready")
            assert [soft(found.pid, limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)] == [40, 1 << 30]
            await supervisor.kill_role(name="a")
        found = await until(supervisor, "ready")
        await supervisor.lift_role_faults(fault="few")
        assert soft(found.pid, resource.RLIMIT_NOFILE) >= before
        assert soft(found.pid, resource.RLIMIT_AS) == resource.RLIM_INFINITY


async def test_a_role_that_a_fault_holds_down_is_not_started_by_anybody_else(tmp_path: Path) -> None:
    async with running(tmp_path, role("a")) as supervisor:
        await supervisor.impose_role_fault(fault=RoleFault(fault="off", role="a", hold=True))
        found = await status(supervisor)
        assert (found.state, found.detail) == ("held", "held down by fault 'off'")
        with pytest.raises(RigError, match="role a is held down by fault 'off'; remove it with siterig fault remove"):
            await supervisor.start_role(name="a")
        await supervisor.lift_role_faults(fault="off")
        assert (await until(supervisor, "ready")).restarts == 0


async def test_a_signal_of_a_fault_is_no_failure_of_the_role(tmp_path: Path) -> None:
    async with running(tmp_path, role("a")) as supervisor:
        before = await status(supervisor)
        await supervisor.signal_role(name="a", signal="SIGKILL", fault="end")
        after = await until(supervisor, "ready")
        assert after.pid != before.pid
        assert after.restarts == 0
        changes = await supervisor.role_changes(after=0, patience_s=0)
        assert [(change.change, change.pid) for change in changes.changes] == [
            ("RoleReady", before.pid),
            ("RoleEnded", before.pid),
            ("RoleReady", after.pid),
        ]


async def test_a_start_is_delayed_and_meets_the_faults_of_the_director(tmp_path: Path) -> None:
    asked: list[str] = []

    async def faults(name: str) -> StartFaults:
        asked.append(name)
        limit = RoleFault(fault="slow", role="a", files_max=33, ends_with_process=True)
        return StartFaults(delay_ns=50_000_000, fault="slow", lasting=[limit]) if len(asked) == 1 else StartFaults()

    specs = (role("a"), role("director", on_demand=True))
    async with running(tmp_path, *specs, start_faults=faults) as supervisor:
        await supervisor.start_role(name="director")
        assert asked == []
        await supervisor.ask_before_starts(ask=True)
        await supervisor.kill_role(name="a")
        delayed = (await until(supervisor, "starting")).detail
        assert delayed == "its start is delayed by fault 'slow'; at most 33 open files by fault 'slow'"
        found = await until(supervisor, "ready")
        assert soft(found.pid, resource.RLIMIT_NOFILE) == 33
        await supervisor.kill_role(name="a")
        assert soft((await until(supervisor, "ready")).pid, resource.RLIMIT_NOFILE) > 33
        assert asked == ["a", "a"]


async def test_a_start_does_not_wait_for_a_director_that_does_not_answer(tmp_path: Path) -> None:
    async def fails(_name: str) -> StartFaults:
        raise RigError(Code.RoleUnavailable, "it is away")

    async with running(tmp_path, role("a"), role("director", on_demand=True), start_faults=fails) as supervisor:
        await supervisor.start_role(name="director")
        await supervisor.ask_before_starts(ask=True)
        await supervisor.kill_role(name="a")
        await until(supervisor, "ready")


async def test_a_role_asks_for_its_rules_if_there_is_a_director(tmp_path: Path) -> None:
    async def asks() -> bool:
        return ASK_FOR_RULES.encode() in Path(f"/proc/{(await until(supervisor, 'ready')).pid}/cmdline").read_bytes()

    specs = (role("a", asks_for_rules=True), role("director", on_demand=True))
    async with running(tmp_path, *specs) as supervisor:
        assert not await asks()
        await supervisor.start_role(name="director")
        await supervisor.kill_role(name="a")
        assert await asks()
        await supervisor.kill_role(name="director", hold=True)
        await supervisor.kill_role(name="a")
        assert not await asks()


async def test_a_role_on_demand_starts_when_it_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, role("a"), role("b", on_demand=True)) as supervisor:
        assert [role.name for role in (await supervisor.status()).roles] == ["a"]
        with pytest.raises(RigError, match="unknown role 'b'; there are: a"):
            await supervisor.kill_role(name="b")
        first = await supervisor.start_role(name="b")
        assert first.state == "ready"
        await supervisor.signal_role(name="b", signal=signal.SIGKILL.name, fault="end")
        with trio.fail_after(30):
            while (await status(supervisor, "b")).pid in (None, first.pid):  # noqa: ASYNC110 (a process outside changes it)
                await trio.sleep(0.01)


async def test_a_host_that_is_off_has_no_role_that_was_just_starting(tmp_path: Path) -> None:
    async def slow(_name: str) -> StartFaults:
        return StartFaults(delay_ns=600_000_000_000, fault="slow")

    async with running(tmp_path, role("a"), role("director", on_demand=True), start_faults=slow) as supervisor:
        await supervisor.start_role(name="director")
        await supervisor.ask_before_starts(ask=True)
        await supervisor.kill_role(name="a")
        await until(supervisor, "starting")
        await supervisor.ask_before_starts(ask=False)
        with trio.fail_after(30):
            await supervisor.impose_role_fault(fault=RoleFault(fault="off", role="a", hold=True))
        found = await status(supervisor)
        assert (found.state, found.pid, found.restarts) == ("held", None, 0)
        await supervisor.lift_role_faults(fault="off")
        await until(supervisor, "ready")


async def test_the_end_of_a_rig_ends_faults_that_keep_its_disks_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    continues = trio.Event()

    async def release(_folder: Path) -> list[str]:
        if continues.is_set():  # a second time, when the roles have ended
            return []
        await continues.wait()
        return [f"unmounted while the role was {state(pid)}"]

    async def end_faults() -> None:
        continues.set()

    monkeypatch.setattr(supervisor_module, "RELEASE_S", 0.01)
    async with running(tmp_path, role("a"), end_faults=end_faults) as supervisor:
        await supervisor.impose_role_fault(fault=RoleFault(fault="stop it", role="a", pause=True))
        pid = (await status(supervisor)).pid or 0
        await supervisor.note_armed_faults(count=1)
        monkeypatch.setattr(cleanup, "release_guests", release)
        with trio.fail_after(30):
            assert (await supervisor.stop_all())[0] != "unmounted while the role was T"


async def test_a_rule_that_kills_each_start_leaves_the_processor_to_others(tmp_path: Path) -> None:
    starts: list[float] = []
    enough = trio.Event()

    async def kill(_name: str) -> StartFaults:
        starts.append(trio.current_time())
        if len(starts) == 3:
            enough.set()
        return StartFaults(kill="SIGKILL", fault="end")

    async with running(tmp_path, role("a"), role("director", on_demand=True), start_faults=kill) as supervisor:
        await supervisor.start_role(name="director")
        await supervisor.ask_before_starts(ask=True)
        await supervisor.kill_role(name="a")
        with trio.fail_after(30):
            await enough.wait()
        assert min(starts[1] - starts[0], starts[2] - starts[1]) >= supervisor_module.BACKOFF_FIRST_S
        assert (await status(supervisor)).restarts == 0
