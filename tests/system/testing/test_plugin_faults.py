"""The fixtures of the pytest plugin for fault rules and for the clock of a rig."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.support.leftovers import await_no_leftovers, leftovers
from tests.support.plugin_runs import FROZEN, STARTED_S, await_disk_wait, running

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.system


def test_rules_of_a_file_system_and_their_verdicts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import errno
        import os
        import threading
        import pytest
        from siterig import testing
        from siterig.blockfs.core.errors import RigError

        corpus = testing.fs(scope="module")
        corpus_faults = testing.faults(on="corpus", scope="module", seed=5)
        nameless = testing.faults(scope="module")

        def write(path):
            with path.open("wb") as file:
                file.write(bytes(8192))
                os.fsync(file.fileno())

        def test_an_error(siterig_fs, siterig_faults, siterig_seed):
            siterig_faults.add("disk write error=EIO times=1 name=broken")
            with pytest.raises(OSError) as caught:
                write(siterig_fs / "file")
            assert caught.value.errno == errno.EIO
            assert siterig_faults.wait("broken").fired == 1
            assert [each.done for each in siterig_faults.injections()] == ["failed with EIO"]
            assert siterig_faults.seed == siterig_seed

        def test_the_rule_never_fires(siterig_disk, siterig_faults):
            siterig_faults.add({"name": "broken", "where": {"layer": "disk", "op": "write"}, "what": {"error": "EIO"}})
            assert siterig_faults.injections() == []
            siterig_faults.remove("broken")

        def test_it_need_not_fire(siterig_disk, siterig_faults):
            siterig_faults.add("disk write error=EIO fired=any after=mark:never name=broken")
            assert siterig_faults.clear() == 1

        def test_a_write_that_waits_at_the_end(siterig_fs, siterig_faults):
            siterig_faults.add("disk write pause=true name=ice")
            threading.Thread(target=write, args=[siterig_fs / "file"]).start()
            siterig_faults.wait("ice")

        def test_wrong_rules(siterig_disk, siterig_faults):
            for rule, text in (
                ("disk wrte error=EIO", "where.vm: 'wrte'"),
                ("disk write eror=EIO", "did you mean error"),
                ("process agent kill=SIGKILL", "allowed: disk, log"),
            ):
                with pytest.raises(RigError, match=text):
                    siterig_faults.add(rule)
            with pytest.raises(RigError, match="has added no fault 'x'; it has added: none"):
                siterig_faults.wait("x")

        def test_a_rule_of_the_log_does_not_meet_the_sync_for_a_rule_with_a_file(siterig_fs, siterig_faults):
            (siterig_fs / "file").write_bytes(bytes(8192))  # its place on the disk is not chosen yet
            siterig_faults.add("log append error=ENOSPC name=log", "disk write file=/file error=EIO fired=any name=data")
            assert siterig_faults.injections() == []
            with pytest.raises(OSError):
                write(siterig_fs / "other")
            assert {each.rule for each in siterig_faults.injections()} == {"log"}

        def test_two_disks(siterig_disk, siterig_fs, siterig_faults):
            pass

        def test_rules_of_a_module(corpus, corpus_faults):
            assert corpus_faults.seed == 5
            corpus_faults.add("disk write error=EIO times=1 name=once", "disk read error=EIO after=mark:never name=late")
            with pytest.raises(OSError):
                write(corpus / "file")

        def test_the_rules_of_a_module_stay(corpus, corpus_faults):
            assert [rule.fired for rule in corpus_faults.rules()] == [1, 0]

        def test_a_module_without_a_name(siterig_fs, nameless):
            pass
        """
    )
    result = pytester.runpytest_subprocess("--basetemp=base", "--siterig-seed=4711")
    result.assert_outcomes(passed=7, failed=1, errors=3)
    shown = result.stdout.str()
    assert "\nsiterig: fault 'broken' fired never; expected: >=1; no operation matched it (FaultNotFired)\n" in shown
    assert "siterig_faults can act on each of siterig_fs, siterig_disk: choose with siterig.testing.faults(on=NAME)" in shown
    assert "nameless is for a whole module, whose tests use siterig_fs: choose with" in shown
    assert "siterig: fault 'late' fired never; expected: >=1; its window did not open: mark:never did not come" in shown
    assert "the choices of this run are repeated with --siterig-seed=4711" in shown
    assert "During handling" not in shown
    folders = re.findall(r"^siterig_faults: (.+)$", shown, flags=re.MULTILINE)
    (verdict,) = json.loads(Path(folders[0], "faults.json").read_text())["verdicts"]
    assert not verdict["ok"]


def test_a_killed_test_whose_write_waits_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, signal, threading

        def test_it(siterig_fs, siterig_faults):
            siterig_faults.add("disk write pause=true name=ice")
            threading.Thread(target=lambda: ((siterig_fs / "file").write_text("x"), os.sync())).start()
            siterig_faults.wait("ice")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pytester.runpytest_subprocess(timeout=60)
    await_no_leftovers(pytester.path)


def test_a_run_that_waits_for_a_frozen_disk_ends_with_ctrl_c(pytester: pytest.Pytester) -> None:
    at = pytester.path / "at"
    pytester.makepyfile(FROZEN.format(fixtures="siterig_fs, siterig_faults", folder="siterig_fs.path", at=str(at)))
    run = running(pytester, at.exists)
    await_disk_wait(run)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=STARTED_S)
    assert "KeyboardInterrupt" in output
    assert leftovers(pytester.path) == []


def test_faults_and_clock_of_one_rig(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from siterig.blockfs.core.errors import RigError

        def test_a_killed_role(siterig_rig, siterig_faults):
            siterig_faults.add("process agent kill=SIGKILL name=killed after=mark:go")
            siterig_faults.mark("go")
            assert siterig_faults.wait("killed").fired == 1
            assert [each.rule for each in siterig_faults.injections()] == ["killed"]

        def test_the_same_name_never_fires(siterig_rig, siterig_faults):
            siterig_faults.add("process agent kill=SIGKILL name=killed after=mark:never")

        def test_the_rules_of_other_tests_are_gone(siterig_rig, siterig_faults):
            assert siterig_rig.run("fault", "list")["faults"] == []

        def test_the_clock(siterig_clock):
            before = siterig_clock.now()
            siterig_clock.advance("25h")
            assert (siterig_clock.now() - before).total_seconds() >= 25 * 3600
            siterig_clock.jump("-1h")
            siterig_clock.rate(60)
            state = siterig_clock.skew("agent", "+1h", drift="+200ppm")
            assert {role.role for role in state.roles if role.skew_ns} == {"agent"}
            with pytest.raises(RigError, match="did you mean agent"):
                siterig_clock.skew("agnt", "+1h")

        def test_the_clock_is_the_systems_again(siterig_rig):
            state = siterig_rig.run("clock", "show")
            assert (state["rate"], state["wall_ahead_ns"]) == (1.0, 0)
            assert not any(role["skew_ns"] for role in state["roles"])
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=4, failed=1)
    assert "fault 'killed' fired never" in result.stdout.str()
