"""Roles as forks of a server that has loaded their modules."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.core import quick_start
from siterig.core.paths import Layout, create
from siterig.supervisor import fork_server
from siterig.supervisor import forker as forker_module
from siterig.supervisor.forker import Forker
from siterig.supervisor.process import Child
from tests.support.rigs import forked_role

pytestmark = pytest.mark.slow

ROLE = forked_role.__name__


@pytest.fixture
async def forker(tmp_path: Path) -> AsyncIterator[Forker]:
    layout = Layout(tmp_path / "rig")
    create(layout)
    forker = Forker(layout, ["--long-option=of-the-rig", "--another=" + "x" * 60], [ROLE])
    yield forker
    forker.close()


@asynccontextmanager
async def started(forker: Forker, log: Path, *arguments: str, module: str = ROLE) -> AsyncIterator[Child]:
    child = await forker.start("a", [*quick_start.command(module), *arguments], log)
    try:
        yield child
    finally:
        await child.kill()
        await child.close()


def facts(log: Path) -> dict[str, Any]:
    return dict(json.loads(log.read_text()))


def server_of(found: dict[str, Any]) -> int:
    parent, told = found["parents"]
    assert parent == told
    return int(parent)


async def test_a_role_has_a_session_a_name_and_descriptors_of_its_own(forker: Forker, tmp_path: Path) -> None:
    async with started(forker, tmp_path / "a", "wait") as first, started(forker, tmp_path / "b", "wait", "--x") as second:
        await first.ready()
        await second.ready()
        for child, log, words in ((first, tmp_path / "a", ["wait"]), (second, tmp_path / "b", ["wait", "--x"])):
            found = facts(log)
            assert (found["pid"], found["session"], found["name"]) == (child.pid, child.pid, "forked_role")
            assert found["words"][: len(words) + 1] == [ROLE, *words]
            assert found["words"][-1] == str(server_of(found))
            assert found["others"] == []
        assert server_of(facts(tmp_path / "a")) == server_of(facts(tmp_path / "b"))


async def test_the_end_of_a_role_is_reported_as_of_a_program(forker: Forker, tmp_path: Path) -> None:
    async with started(forker, tmp_path / "a", "exit", "3") as child:
        assert await child.wait() == 3
        child.send(signal.SIGTERM)  # to nothing
        assert await child.ending() == f"exit status 3: {(tmp_path / 'a').read_text().strip()}"
    async with started(forker, tmp_path / "b", "wait") as child:
        await child.ready()
        child.send(signal.SIGTERM)
        assert await child.wait() == -signal.SIGTERM
        stat = Path(f"/proc/{child.pid}/stat")
        assert stat.read_text().rpartition(")")[2].split()[0] == "Z"  # its number is that of no other process
    with trio.fail_after(30):
        while stat.exists():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.01)


async def test_after_the_server_is_killed_its_roles_end_and_another_one_forks(forker: Forker, tmp_path: Path) -> None:
    async with started(forker, tmp_path / "a", "wait") as child:
        await child.ready()
        server = server_of(facts(tmp_path / "a"))
        os.kill(server, signal.SIGKILL)
        with trio.fail_after(30):
            assert await child.wait() == -signal.SIGKILL
    async with started(forker, tmp_path / "b", "exit", "0") as child:
        assert await child.wait() == 0
        assert server_of(facts(tmp_path / "b")) != server


async def test_a_stopped_server_is_killed_and_replaced(
    forker: Forker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(forker, tmp_path / "a", "wait") as child:
        await child.ready()
        os.kill(server_of(facts(tmp_path / "a")), signal.SIGSTOP)
        monkeypatch.setattr(forker_module, "FORK_TIMEOUT_S", 0.1)
        with pytest.raises(RigError, match=r"role b was not forked within 0.1 s") as caught:
            await forker.start("b", quick_start.command(ROLE), tmp_path / "b")
        assert (caught.value.code, caught.value.recoverable) == ("RoleFailed", True)
        monkeypatch.undo()
        with trio.fail_after(30):
            assert await child.wait() == -signal.SIGKILL
    async with started(forker, tmp_path / "c", "exit", "0") as child:
        assert await child.wait() == 0


async def test_a_module_that_cannot_be_loaded_is_in_the_log_of_its_role(forker: Forker, tmp_path: Path) -> None:
    async with started(forker, tmp_path / "a", module="siterig.no_such_role") as child:
        with pytest.raises(RigError, match=r"No module named 'siterig.no_such_role'"):
            await child.ready()
    async with started(forker, tmp_path / "b", "exit", "0") as child:
        assert await child.wait() == 0


async def test_the_server_ends_when_it_is_closed(forker: Forker, tmp_path: Path) -> None:
    async with started(forker, tmp_path / "a", "wait") as child:
        await child.ready()
        server = server_of(facts(tmp_path / "a"))
        forker.close()
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
        with trio.fail_after(30):
            assert await child.wait() == -signal.SIGKILL


def test_a_fork_that_fails_is_reported_and_the_server_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", no_memory)
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps({"module": "json", "arguments": []}).encode()
    answers = []
    with control, theirs, (tmp_path / "log").open("wb") as log:
        for _ in range(2):
            status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            answers.append(status)
            with their_status:
                socket.send_fds(control, [request], [log.fileno(), log.fileno(), their_status.fileno()])
        control.close()
        assert fork_server.serve(theirs) is None
    for status in answers:
        with status:
            assert json.loads(status.recv(1024)) == {"error": "Cannot allocate memory"}
            assert status.recv(1024) == b""
