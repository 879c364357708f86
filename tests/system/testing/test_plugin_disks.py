"""The fixtures of the pytest plugin for disks and file systems, each run in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leftovers import leftovers

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.system


def test_disks_and_file_systems_have_crash_states(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import pytest

        pytestmark = pytest.mark.siterig_crash


        def sync(path):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


        def test_disk(siterig_disk):
            with open(siterig_disk, "r+b", buffering=0) as file:
                file.write(b"a" * 4096)
                first = siterig_disk.position
                file.write(b"b" * 4096)
            assert siterig_disk.size_bytes == 64 << 20 == os.stat(siterig_disk).st_size
            assert siterig_disk.state_at(first).read_bytes()[:8192] == b"a" * 4096 + bytes(4096)
            assert len(siterig_disk.positions()) == 2
            assert len(siterig_disk.positions(after=first)) == 1


        def test_fs(siterig_fs):
            (siterig_fs / "old").write_text("text")
            sync(siterig_fs / "old")
            sync(siterig_fs)
            position = siterig_fs.position
            (siterig_fs / "new").write_text("text")
            siterig_fs.remount()
            with siterig_fs.state(position) as folder:
                assert sorted(path.name for path in folder.iterdir()) == ["lost+found", "old"]
                (folder / "of the copy").touch()
            assert sorted(path.name for path in siterig_fs.path.iterdir()) == ["lost+found", "new", "old"]


        def test_each_test_begins_with_the_template(siterig_fs):
            assert [path.name for path in siterig_fs.path.iterdir()] == ["lost+found"]
        """
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=3)


def test_the_fixtures_work_with_every_kind_of_event_loop(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio
        import pytest
        import trio

        @pytest.mark.trio
        async def test_trio(siterig_fs):
            await trio.to_thread.run_sync((siterig_fs / "file").write_text, "text")
            await trio.to_thread.run_sync(siterig_fs.remount)

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_anyio(siterig_fs, anyio_backend):
            await asyncio.to_thread((siterig_fs / "file").write_text, "text")
            siterig_fs.remount()

        def test_none(siterig_fs):
            (siterig_fs / "file").write_text("text")
        """
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=3)


def test_a_setting_is_argument_then_option_then_ini_key(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsiterig_size = 16MiB\nsiterig_log = false\nsiterig_setup = echo ini > ini\n")
    pytester.makepyfile(
        """
        import pytest
        from siterig import testing
        from siterig.blockfs.core.errors import RigError

        small = testing.fs(size="8MiB", setup=lambda folder: (folder / "function").touch(), log=True)
        twice = testing.disk(scope="module", name="module_disk")

        def names(fs):
            return {path.name for path in fs.path.iterdir()} - {"lost+found"}

        def test_argument(small):
            assert small.disk.size_bytes == 8 << 20 and names(small) == {"function"} and small.positions()

        def test_option_and_ini(siterig_fs, module_disk):
            assert siterig_fs.disk.size_bytes == 32 << 20 and names(siterig_fs) == {"ini"}
            with pytest.raises(RigError, match="has no change log: set log=True, --siterig-log or siterig_log"):
                siterig_fs.positions()
        """
    )
    pytester.runpytest_subprocess("-q", "--siterig-size=32MiB").assert_outcomes(passed=2)


def test_files_of_a_failed_test_are_kept_and_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os

        def test_fails(siterig_fs):
            with (siterig_fs / "file").open("w") as file:
                file.write("unsynced")
                open_file = os.dup(file.fileno())
            assert open_file < 0

        def test_passes(siterig_fs):
            pass
        """
    )
    result = pytester.runpytest_subprocess("--basetemp=kept")
    result.assert_outcomes(passed=1, failed=1)
    (folder,) = re.findall(r"^siterig_fs: (.+)$", result.stdout.str(), flags=re.MULTILINE)
    kept = {path.name for path in Path(folder).iterdir()}
    assert kept == {"disk.img", "disk.before.img", "disk.000001.hrl", "timeline.jsonl"}
    shown = subprocess.run(
        ["debugfs", "-R", "cat /file", Path(folder, "disk.img")], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "unsynced"
    assert not list(Path(pytester.path, "kept").glob("test_passes*/siterig"))
    never = pytester.runpytest_subprocess("--basetemp=never", "--siterig-keep=never")
    assert "files are kept" not in never.stdout.str()
    assert not list(Path(pytester.path, "never").glob("test_*0/siterig"))
    pytester.runpytest_subprocess("--basetemp=always", "--siterig-keep=always")
    assert len(list(Path(pytester.path, "always").glob("test_*0/siterig/siterig_fs/disk.img"))) == 2


def test_a_file_system_that_stays_in_use_fails_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        LEAK = []

        @pytest.fixture
        def server(siterig_fs):
            yield siterig_fs
            raise OSError("it did not stop")

        def test_another_end_fails(server):
            pass

        def test_leaks(siterig_fs):
            LEAK.append((siterig_fs / "file").open("w"))
            LEAK[0].write("text")
            LEAK[0].flush()

        def test_next(siterig_fs):
            LEAK.pop().close()
        """
    )
    result = pytester.runpytest_subprocess("-q", "--basetemp=base")
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.re_match_lines([r"siterig: .*is still in use by this process: .*/file: close it first \(VmBusy\)"])
    (folder,) = re.findall(r"^siterig_fs: (.+)$", result.stdout.str(), flags=re.MULTILINE)  # none for the other error
    assert Path(folder).parent.parent.name == "test_leaks0"
    assert Path(folder, "disk.img").exists()


def test_workers_share_templates_and_the_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import pytest
        from siterig import testing

        filled = testing.fs(setup=f"date +%s%N >> {os.environ['MADE']}; touch made")

        @pytest.mark.parametrize("number", range(6))
        def test_template(filled, siterig_seed, number):
            assert (filled / "made").exists()
            assert siterig_seed == 4711
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MADE", str(pytester.path / "made"))
        result = pytester.runpytest_subprocess("-n2", "--siterig-seed=4711")
    result.assert_outcomes(passed=6)
    assert len(Path(pytester.path, "made").read_text().splitlines()) == 1
    result.stdout.fnmatch_lines(["siterig: --siterig-seed=4711"])


def test_a_setup_that_fails_shows_its_output(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(siterig_fs): pass")
    result = pytester.runpytest_subprocess("--siterig-setup=echo the reason; exit 3")
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([r".*setup 'echo the reason; exit 3' ended with exit status 3; the end.*", r".*the reason"])


def test_a_server_that_is_not_ready_in_time_shows_its_log(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(siterig_disk): pass")
    result = pytester.runpytest_subprocess("--siterig-timeout=0.001")
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines([r".*the disk server was not ready within 0\.001 s; .*its log .*disks\.log.*"])


def test_a_server_that_dies_is_named_and_replaced(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os
        import signal

        def test_killed(siterig_fs):
            os.kill(siterig_fs.disk.server_pid, signal.SIGKILL)

        def test_next(siterig_fs):
            (siterig_fs / "file").write_text("text")
        """
    )
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.re_match_lines([r".*the disk server ended while a test used it; .*its log .*"])
    pytester.runpytest_subprocess("-q", "-k", "killed").assert_outcomes(passed=1, errors=1, deselected=1)


def test_a_workbench_outside_pytest_has_fresh_templates(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["pytest"] = None
from pathlib import Path
from siterig.testing import Workbench

Path("input").write_text(sys.argv[1])
with Workbench(Path("bench")) as bench:
    with bench.fs(size="8MiB", setup=f"cp {Path('input').absolute()} input") as fs:
        found = [(fs / "input").read_text()]
        position = fs.position
        (fs / "later").write_text("text")
        fs.remount()
        with fs.state(position) as folder:
            found.append(str((folder / "later").exists()))
    for name in ("first", "second"):
        with bench.fs(size="8MiB", setup=lambda folder: (folder / name).touch()) as fs:
            found += sorted(path.name for path in fs.path.iterdir())
print(*found, *(path.name for path in Path("bench").iterdir()))
"""
    for word in ("old", "new"):
        done = subprocess.run(
            [sys.executable, "-c", program, word], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == f"{word} False first lost+found lost+found second log\n", done.stderr
    assert leftovers(tmp_path) == []
