"""The fixtures of the pytest plugin for fault rules and for the clock of a rig."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.leftovers import await_no_leftovers

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.system


def test_rules_of_a_file_system_and_their_verdicts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import errno
        import os
        import threading
        import pytest
        from siterig.blockfs.core.errors import RigError

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

        def test_two_disks(siterig_disk, siterig_fs, siterig_faults):
            pass
        """
    )
    result = pytester.runpytest_subprocess("--basetemp=base")
    result.assert_outcomes(passed=4, failed=1, errors=1)
    shown = result.stdout.str()
    assert "siterig: fault 'broken' fired never; expected: >=1; no operation matched it (FaultNotFired)" in shown
    assert "choose with siterig.testing.faults(on=NAME)" in shown
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
