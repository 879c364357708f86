"""Ending a rig whose supervisor does not answer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.core.paths import Layout, create
from siterig.core.supervisor_contract import SupervisorControl
from siterig.rpc.directory import supervisor as supervisor_of
from siterig.rpc.role_guide import RoleGuide
from siterig.supervisor import launch

pytestmark = pytest.mark.slow

HANGS = """
import os, signal, socket, sys
from pathlib import Path
from siterig.core.lock import take_lock
lock = take_lock(Path(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[2])
    listener.listen()
    print("up", flush=True)
    if sys.argv[3] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    monkeypatch.setattr(SupervisorControl.status, "_deadline_s", 0.05)
    monkeypatch.setattr(launch, "HUNG_END_TIMEOUT_S", 0.2)
    return layout


@contextmanager
def supervisor(layout: Layout, how: str) -> Iterator[subprocess.Popen[str]]:
    socket = layout.socket("supervisor")
    command = [sys.executable, "-c", HANGS, str(layout.lock), str(socket), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


async def test_a_supervisor_that_is_stopped_is_killed_by_down(layout: Layout) -> None:
    with supervisor(layout, "stop") as process:
        done = await launch.down(layout)
        assert "killed the supervisor, which did not end within 0.2 s" in done
        assert process.wait() == -signal.SIGKILL
    assert not launch.is_up(layout)


async def test_a_supervisor_that_does_not_answer_but_ends_on_sigterm_is_not_killed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "HUNG_END_TIMEOUT_S", 20.0)
    with supervisor(layout, "serve nothing") as process:
        assert not [line for line in await launch.down(layout) if "killed" in line]
        assert process.wait() == -signal.SIGTERM


async def test_a_command_that_meets_a_hung_supervisor_names_the_remedy(layout: Layout) -> None:
    with supervisor(layout, "stop"), pytest.raises(RigError, match="siterig down, then siterig up") as caught:
        try:
            await supervisor_of(layout).status()
        except RigError as error:
            await RoleGuide(layout.socket("supervisor").parent, lambda _text: None).wait_until_back(
                "supervisor", error, again=True
            )
    assert caught.value.code == "RoleUnavailable"
