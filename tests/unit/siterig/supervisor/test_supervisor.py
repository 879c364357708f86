"""The supervisor with roles that are tiny programs: order, readiness, restarts, holding down, ending."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.core.failures import unwrap_rig_error
from siterig.core.paths import Layout, create
from siterig.supervisor import supervisor as supervisor_module
from siterig.supervisor.supervisor import RoleSpec, Supervisor

pytestmark = pytest.mark.slow

READY = "import os, signal, sys; fd = int(sys.argv[1]); "
SERVE = READY + "os.write(fd, b'{}\\n'); signal.pause()"
STUBBORN = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(fd, b'{}\\n')\nwhile True: signal.pause()"
BREAK = "print('first'); print('disk on fire'); print(); raise SystemExit(3)"
REFUSE = READY + 'os.write(fd, b\'{"code": "PortTaken", "message": "port 7 is taken"}\\n\')'
ANSWER = """import os, signal, sys, time
fd = int(sys.argv[1])
os.write(fd, b'{}\\n')
wait = '{"vm": "web01", "disk": null, "code": "DiskFull", "reason": "no room", "since_ns": 7}'
while os.read(fd, 1):
    os.write(fd, ('{"waits": [%s]}\\n' % wait).encode())
"""
GRUMBLE = ANSWER.replace('{"waits": [%s]}\\n\' % wait)', '{"problem": "node is silent"}\\n\')')
END_SOON = READY + "os.write(fd, b'{}\\n'); print('had enough'); raise SystemExit(4)"


def role(name: str, program: str, *needs: str) -> RoleSpec:
    return RoleSpec(name, (sys.executable, "-S", "-c", program), needs)


def checked(name: str, program: str) -> RoleSpec:
    return RoleSpec(name, (sys.executable, "-S", "-c", program), answers_checks=True)


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "CHECK_EVERY_S", 0.02)
    monkeypatch.setattr(supervisor_module, "REPORT_EVERY_S", 0.02)


@asynccontextmanager
async def running(
    layout: Layout, *specs: RoleSpec, report: Callable[[list[RoleStatus]], Awaitable[None]] | None = None
) -> AsyncIterator[Supervisor]:
    create(layout)
    supervisor = Supervisor(layout, specs, report=report)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        yield supervisor
        nursery.cancel_scope.cancel()


@contextmanager
def failing(code: str, message: str) -> Iterator[None]:
    with pytest.raises(ExceptionGroup) as caught:
        yield
    error = unwrap_rig_error(caught.value)
    assert error is not None
    assert (error.code, error.message) == (code, message)


async def status(supervisor: Supervisor, name: str) -> RoleStatus:
    return {role.name: role for role in (await supervisor.status()).roles}[name]


async def until(supervisor: Supervisor, name: str, wanted: Callable[[RoleStatus], bool]) -> RoleStatus:
    with trio.fail_after(60):
        while not wanted(found := await status(supervisor, name)):  # noqa: ASYNC110 (a process outside changes it)
            await trio.sleep(0.01)
    return found


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(tmp_path / "rig")


async def test_a_role_starts_after_those_it_needs_and_is_announced(layout: Layout) -> None:
    create(layout)
    heard: list[tuple[str, str]] = []
    supervisor = Supervisor(layout, [role("b", SERVE, "a"), role("a", SERVE)], announce=lambda *what: heard.append(what))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        nursery.cancel_scope.cancel()
    assert heard == [("a", "starting"), ("a", "ready"), ("b", "starting"), ("b", "ready")]


async def test_a_role_that_ends_at_start_is_named_with_the_last_line_of_its_log(layout: Layout) -> None:
    with failing("RoleFailed", "role b did not start (exit status 3): disk on fire"):
        async with running(layout, role("a", SERVE), role("b", BREAK, "a")):
            pytest.fail("must not get here")


async def test_the_reason_of_a_role_that_cannot_start_is_quoted(layout: Layout) -> None:
    with failing("PortTaken", "role a did not start: port 7 is taken"):
        async with running(layout, role("a", REFUSE)):
            pytest.fail("must not get here")


async def test_a_killed_role_is_started_again(layout: Layout) -> None:
    async with running(layout, role("a", SERVE)) as supervisor:
        before = await status(supervisor, "a")
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        after = await until(supervisor, "a", lambda role: role.state == "ready" and role.pid != before.pid)
        assert after.restarts == 1


async def test_a_role_that_keeps_ending_is_failed_with_its_reason(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 0.001)
    async with running(layout, role("a", END_SOON)) as supervisor:
        found = await until(supervisor, "a", lambda role: role.state == "failed")
        assert found.pid is None
        assert found.detail == "ended 5 times within 60 s; last: exit status 4: had enough"


async def test_a_role_killed_on_purpose_is_held_until_it_is_started(layout: Layout) -> None:
    async with running(layout, role("a", SERVE)) as supervisor:
        before = await status(supervisor, "a")
        held = await supervisor.kill_role(name="a", hold=True)
        assert (held.state, held.pid, held.restarts) == ("held", None, 0)
        assert not alive(before.pid)
        again = await supervisor.start_role(name="a")
        assert again.state == "ready"
        assert alive(again.pid)


async def test_a_role_that_is_killed_on_purpose_is_always_restarted(layout: Layout) -> None:
    async with running(layout, role("a", SERVE)) as supervisor:
        for _ in range(supervisor_module.DEATHS_MAX + 1):
            await supervisor.kill_role(name="a")
            await until(supervisor, "a", lambda role: role.state == "ready")
        assert (await status(supervisor, "a")).restarts == 0


async def test_a_failed_role_can_be_started_again(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 0.001)
    cured = tmp_path / "cured"
    program = READY + f"os.write(fd, b'{{}}\\n'); os.path.exists({str(cured)!r}) and signal.pause()"
    async with running(layout, role("a", program)) as supervisor:
        await until(supervisor, "a", lambda role: role.state == "failed")
        cured.touch()
        assert (await supervisor.start_role(name="a")).state == "ready"


async def test_a_failed_role_can_be_held_down_and_is_started_by_a_restart(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 0.001)
    cured = tmp_path / "cured"
    program = READY + f"os.write(fd, b'{{}}\\n'); os.path.exists({str(cured)!r}) and signal.pause()"
    async with running(layout, role("a", program)) as supervisor:
        await until(supervisor, "a", lambda role: role.state == "failed")
        assert (await supervisor.kill_role(name="a", hold=True)).state == "held"
        assert (await supervisor.wait_for_steady_state(name="a")).state == "held"
        cured.touch()
        await supervisor.kill_role(name="a")
        assert (await supervisor.start_role(name="a")).state == "ready"


async def test_an_unknown_role_is_named_with_those_there_are(layout: Layout) -> None:
    async with running(layout, role("a", SERVE), role("b", SERVE)) as supervisor:
        with pytest.raises(RigError) as caught:
            await supervisor.kill_role(name="c")
        assert (caught.value.code, caught.value.message) == ("NoSuchRole", "unknown role 'c'; there are: a, b")


async def test_stopping_ends_the_last_started_first_and_then_the_run(layout: Layout) -> None:
    create(layout)
    supervisor = Supervisor(layout, [role("a", SERVE), role("b", SERVE)])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            assert await supervisor.stop_all() == ["ended b", "ended a"]
    assert [role.state for role in (await supervisor.status()).roles] == ["stopped", "stopped"]


async def test_a_role_that_ignores_sigterm_is_killed_in_bounded_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siterig.supervisor.process.TERM_TIMEOUT_S", 0.1)
    async with running(layout, role("a", STUBBORN)) as supervisor:
        pid = (await status(supervisor, "a")).pid
    assert not alive(pid)


async def test_a_role_that_never_gets_ready_is_failed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.supervisor.process.READY_TIMEOUT_S", 1)
    with failing("RoleFailed", "role a was not ready after 1 s: hm"):
        async with running(layout, role("a", "import signal; print('hm', flush=True); signal.pause()")):
            pytest.fail("must not get here")


@pytest.mark.usefixtures("quick_checks")
async def test_a_role_reports_its_waits(layout: Layout) -> None:
    async with running(layout, checked("a", ANSWER)) as supervisor:
        found = await until(supervisor, "a", lambda role: bool(role.waits))
    assert (found.state, found.waits) == (
        "ready",
        [Wait(vm="web01", disk=None, code="DiskFull", reason="no room", since_ns=7)],
    )


async def test_status_shows_a_stopped_role_as_hung_until_it_answers(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STATUS_ANSWER_S", 0.2)
    async with running(layout, checked("a", ANSWER), checked("b", ANSWER)) as supervisor:
        before = await status(supervisor, "a")
        assert before.pid is not None
        os.kill(before.pid, signal.SIGSTOP)
        hung = await status(supervisor, "a")
        assert (hung.state, hung.pid, hung.restarts) == ("hung", before.pid, 0)
        assert re.fullmatch(r"has not answered since \d\d:\d\d:\d\d UTC", hung.detail)
        assert hung.since_ns > before.since_ns
        assert (await status(supervisor, "b")).state == "ready"
        os.kill(before.pid, signal.SIGCONT)
        again = await until(supervisor, "a", lambda role: role.state == "ready")
        assert (again.pid, again.detail) == (before.pid, "")


@pytest.mark.usefixtures("quick_checks")
async def test_a_stopped_role_is_found_and_reported_without_anybody_asking(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "ANSWER_S", 0.2)
    monkeypatch.setattr("siterig.supervisor.process.TERM_TIMEOUT_S", 0.1)  # a stopped process does not end by SIGTERM
    seen: dict[str, str] = {}
    hung = trio.Event()

    async def report(roles: list[RoleStatus]) -> None:
        seen.update({role.name: role.state for role in roles})
        if seen["a"] == "hung":
            hung.set()

    async with running(layout, checked("a", ANSWER), checked("b", ANSWER), report=report) as supervisor:
        pid = (await status(supervisor, "a")).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(60):
            await hung.wait()
    assert seen == {"a": "hung", "b": "ready"}


async def test_a_role_whose_own_server_is_silent_is_hung_and_names_it(layout: Layout) -> None:
    async with running(layout, checked("a", GRUMBLE)) as supervisor:
        found = await status(supervisor, "a")
    assert (found.state, found.detail) == ("hung", "node is silent")


@pytest.mark.usefixtures("quick_checks")
async def test_a_report_that_the_vault_refuses_is_sent_again(layout: Layout) -> None:
    reports = 0
    twice = trio.Event()

    async def report(_roles: list[RoleStatus]) -> None:
        nonlocal reports
        reports += 1
        if reports == 2:
            twice.set()
        raise RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)

    async with running(layout, role("a", SERVE), report=report):
        with trio.fail_after(60):
            await twice.wait()


async def test_a_hung_role_can_be_killed_and_comes_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STATUS_ANSWER_S", 0.2)
    async with running(layout, checked("a", ANSWER)) as supervisor:
        before = await status(supervisor, "a")
        assert before.pid is not None
        os.kill(before.pid, signal.SIGSTOP)
        assert (await status(supervisor, "a")).state == "hung"
        await supervisor.kill_role(name="a")
        again = await until(supervisor, "a", lambda role: role.state == "ready")
        assert again.pid != before.pid


async def test_starting_a_hung_role_is_refused_with_the_remedy(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "STATUS_ANSWER_S", 0.05)
    monkeypatch.setattr("siterig.supervisor.process.TERM_TIMEOUT_S", 0.1)  # a stopped process does not end by SIGTERM
    async with running(layout, checked("a", ANSWER)) as supervisor:
        pid = (await status(supervisor, "a")).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert (await status(supervisor, "a")).state == "hung"
        with trio.fail_after(60), pytest.raises(RigError, match="siterig role restart a") as caught:
            await supervisor.start_role(name="a")
        assert caught.value.code == "RoleHung"


async def test_a_role_that_is_held_while_it_is_started_ends_the_start(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_FIRST_S", 60.0)
    async with running(layout, role("a", END_SOON)) as supervisor:
        await until(supervisor, "a", lambda role: role.state == "restarting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(supervisor.kill_role, name="a", hold=True))
            with trio.fail_after(60), pytest.raises(RigError) as caught:
                await supervisor.start_role(name="a")
        assert caught.value.code == "RoleHeld"


async def test_a_role_dies_with_its_parent(layout: Layout) -> None:
    """The parent is a program of its own, and is shot; the role's pid comes over a pipe that ends with the role."""
    child = (
        "import sys; from siterig.core.process_setup import die_with_parent; die_with_parent(int(sys.argv[1])); print('in')"
    )
    child += "\nsys.stdout.flush(); import signal; signal.pause()"
    parent = f"import os, subprocess, sys, signal; subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])"
    parent += "; signal.pause()"
    process = await trio.lowlevel.open_process([sys.executable, "-c", parent], stdout=-1)
    assert process.stdout is not None
    said = b""
    while said != b"in\n":  # which may come in pieces
        said += await process.stdout.receive_some(1)
    process.kill()
    await process.wait()
    with trio.fail_after(30):
        assert await process.stdout.receive_some() == b""
    await process.stdout.aclose()
