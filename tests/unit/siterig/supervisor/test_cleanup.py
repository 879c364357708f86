"""Leftover processes of a rig are found among all others, whatever names those have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from siterig.core.paths import Layout, create
from siterig.supervisor import cleanup

pytestmark = pytest.mark.slow


def test_a_process_whose_arguments_are_no_text_hides_nothing(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "rig")
    wait = "import sys; print(flush=True); sys.stdin.read()"
    words: tuple[list[str | bytes], ...] = ([b"\xff"], ["siterig.roles.site", str(layout.root)])
    strange, ours = (
        subprocess.Popen([sys.executable, "-c", wait, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for more in words
    )
    try:
        for process in (strange, ours):  # it has its arguments
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
        assert [pid for pid, _ in cleanup.processes_of(layout)] == [ours.pid]
    finally:
        strange.communicate()
        ours.communicate()


async def test_a_process_that_has_got_the_number_of_a_leftover_is_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of(tmp_path / "rig")
    create(layout)
    with subprocess.Popen(["sleep", "600"]) as stranger:  # noqa: ASYNC220 (it returns at once)
        monkeypatch.setattr(cleanup, "processes_of", lambda _layout: [(stranger.pid, "siterig.roles.site")])
        assert await cleanup.clear(layout) == []
        assert stranger.poll() is None
        stranger.kill()
