"""A run of pytest leaves no mount, loop device or process behind, however it ends."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.support.leftovers import await_no_leftovers, leftovers
from tests.support.plugin_runs import FROZEN, STARTED_S, await_disk_wait, running

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.system

WAITS = """
    import pathlib
    import signal

    def test_waits(siterig_fs, {more}):
        (siterig_fs / "file").write_text("text")
        pathlib.Path({at!r}).touch()
        signal.pause()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing(pytester: pytest.Pytester, how: signal.Signals) -> None:
    at = pytester.path / "at"
    pytester.makepyfile(WAITS.format(more="siterig_azurite", at=str(at)))
    run = running(pytester, at.exists)
    assert any("/fs/" in line for line in leftovers(pytester.path))
    run.send_signal(how)
    output, _ = run.communicate(timeout=STARTED_S)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in output
        assert leftovers(pytester.path) == []
    await_no_leftovers(pytester.path)


def test_a_worker_that_is_killed_leaves_nothing_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import signal
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(siterig_fs, number):
            if number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    result = pytester.runpytest_subprocess("-n2", "--max-worker-restart=0")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*worker 'gw*' crashed while running*"])
    await_no_leftovers(pytester.path)


def test_a_run_that_ends_during_the_setup_leaves_nothing(pytester: pytest.Pytester) -> None:
    at = pytester.path / "at"
    pytester.makepyfile("def test_it(siterig_fs): pass")
    run = running(pytester, at.exists, f"--siterig-setup=touch {at}; exec sleep 30")
    run.kill()
    run.communicate(timeout=STARTED_S)
    await_no_leftovers(pytester.path)


def test_a_rig_ends_with_a_killed_run_that_waits_for_its_frozen_disk(pytester: pytest.Pytester) -> None:
    at = pytester.path / "at"
    pytester.makepyfile(FROZEN.format(fixtures="siterig_vm, siterig_faults", folder="siterig_vm.mount()", at=str(at)))
    run = running(pytester, at.exists)
    await_disk_wait(run)
    roles = [line for line in leftovers(pytester.path) if re.search(r"siterig\.roles\.", line)]
    assert len(roles) >= 6
    run.kill()
    run.communicate(timeout=STARTED_S)
    await_no_leftovers(Path(pytester.path))
