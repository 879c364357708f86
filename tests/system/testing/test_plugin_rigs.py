"""The fixtures of the pytest plugin for rigs, VMs and the Azurite."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.system


def test_a_vm_is_protected_and_failed_over(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import httpx
        import pytest
        import trio
        from siterig import testing
        from siterig.blockfs.core.errors import RigError

        two = testing.vm(disks=("data", "log"), setup="mkdir folder")

        def test_test_failover(siterig_vm):
            with siterig_vm.mounted() as guest:
                siterig_vm.protect()
                (guest / "file").write_text("text")
                os.sync()
                siterig_vm.wait_until_replicated()
            copy = siterig_vm.test_failover()
            with copy.mounted() as guest:
                assert (guest / "file").read_text() == "text"
            siterig_vm.cleanup()

        def test_the_vms_of_other_tests_are_gone(siterig_rig):
            assert siterig_rig.run("vm", "list") == []

        @pytest.mark.trio
        async def test_the_testbed_is_for_trio(siterig_rig, two):
            vms = await siterig_rig.testbed.vault.list_vms()
            assert [vm.name for vm in vms] == [two.name]

        def test_a_lost_site(siterig_rig, two):
            with two.mounted("log") as guest:
                assert (guest / "folder").is_dir()
            two.protect()
            siterig_rig.lose_site()
            answer = siterig_rig.run("failover", "unplanned", two.name)
            assert answer["job"]["state"] == "Succeeded"
            with pytest.raises(RigError, match="siterig protect: .*"):
                siterig_rig.run("protect")

        def test_the_next_rig_is_whole(siterig_rig):
            assert siterig_rig.run("vm", "list") == []
            assert {role["state"] for role in siterig_rig.run("role", "list")} == {"ready"}

        def test_azurite(siterig_azurite):
            endpoint = dict(part.split("=", 1) for part in siterig_azurite.strip(";").split(";"))["BlobEndpoint"]
            assert httpx.get(endpoint).headers["server"].startswith("Azurite-Blob")
        """
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=6)


def test_workers_share_a_rig_and_the_last_one_ends_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pathlib
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(siterig_rig, siterig_vm, worker_id, number):
            with pathlib.Path("rigs").open("a") as file:
                file.write(f"{siterig_rig.folder} {worker_id}\\n")
        """
    )
    pytester.runpytest_subprocess("-n2", "--siterig-share").assert_outcomes(passed=4)
    lines = [line.split() for line in Path(pytester.path, "rigs").read_text().splitlines()]
    assert len({folder for folder, _ in lines}) == 1
    assert len({worker for _, worker in lines}) == 2
    assert not Path(lines[0][0]).exists()


def test_the_logs_of_a_rig_are_kept_after_a_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(siterig_rig, siterig_vm):
            (siterig_vm.mount() / "file").write_text("unsynced")
            assert siterig_rig.events() is None
        """
    )
    result = pytester.runpytest_subprocess("--basetemp=base")
    result.assert_outcomes(failed=1)
    kept, rig = map(Path, re.findall(r"^siterig_rig: (.+)$", result.stdout.str(), flags=re.MULTILINE))
    names = {path.name for path in kept.iterdir()}
    assert names >= {"timeline.jsonl", "events.json", "jobs.json", "site.log", "vault.log", "supervisor.log"}
    base = Path(pytester.path, "base")
    assert rig == base / "siterig0" / "rig-1" / "rig"
    assert (rig / "vault.db").exists()
    assert not rig.is_symlink()  # it lay elsewhere while the rig was up, because of the long path
    (disk,) = base.glob("test_it0/siterig/siterig_vm/site-test_it-*-data.img")
    shown = subprocess.run(["debugfs", "-R", "cat /file", disk], capture_output=True, text=True, check=True)
    assert shown.stdout == "unsynced"


def test_a_test_is_skipped_with_the_remedy_or_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITERIG_AZURITE", "/nowhere/azurite-blob")
    pytester.makepyfile("def test_it(siterig_azurite): pass")
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.re_match_lines([r".*siterig: SITERIG_AZURITE names /nowhere/azurite-blob, which is no file: .*"])
    result = pytester.runpytest_subprocess("--siterig-require")
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([r".*SITERIG_AZURITE names .*\(AzuriteMissing\); siterig_require forbids to skip"])
