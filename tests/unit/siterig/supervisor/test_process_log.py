"""The log of a role is bounded for every writer, and a repeated line is not written again and again."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.core.process_setup import FILES_MIN
from siterig.supervisor import process_log
from siterig.supervisor.process import last_line
from siterig.supervisor.process_log import REPEAT_S, Repeats, RotatingLog, former_log
from tests.support.clocks import FakeClock

WRITE = """
import logging, sys
from pathlib import Path
from siterig.supervisor import process_log
process_log.LOG_BYTES_MAX = 10_000
process_log.log_to_stderr(Path(sys.argv[1]))
import structlog
"""


def run(folder: Path, program: str, *, name: str = "agent.log", files_max: int | None = None) -> Path:
    """Run a program that logs to a file in a folder, as a role does; the file."""
    log = folder / name

    def limit() -> None:
        if files_max is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

    with log.open("ab") as file:
        command = [sys.executable, "-c", WRITE + program, str(folder)]
        subprocess.run(command, stdout=file, stderr=file, check=False, preexec_fn=limit)
    return log


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "structlog.get_logger().info('line', n=n)",
        "logging.getLogger('trio.serve_listeners').error('line %d', n)",
        "print('line', n, 'of many', file=sys.stderr)",
    ],
)
def test_a_log_and_the_one_before_it_are_bounded_for_all_writers(tmp_path: Path, line: str) -> None:
    log = run(tmp_path, f"for n in range(2000):\n    {line}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.log", "agent.log.1"]
    assert log.stat().st_size < 11_000
    assert 10_000 < former_log(log).stat().st_size < 11_000
    assert "1999" in last_line(log)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.slow
def test_without_a_free_file_descriptor_the_log_is_bounded_all_the_same(tmp_path: Path) -> None:
    program = "import os\nwhile True:\n    try: os.dup(0)\n    except OSError: break\n"
    program += "for n in range(2000): print('line', n, 'of many', file=sys.stderr)"
    log = run(tmp_path, program, files_max=64)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.log"]
    assert log.stat().st_size < 21_000
    assert last_line(log) == "line 1999 of many"


@pytest.mark.slow
def test_a_traceback_is_in_the_log(tmp_path: Path) -> None:
    log = run(tmp_path, "raise KeyError('lost')")
    assert last_line(log) == "KeyError: 'lost'"


@pytest.mark.slow
def test_a_role_that_cannot_accept_calls_logs_that_once_a_minute(tmp_path: Path) -> None:
    program = """for _ in range(1000):
    try: raise OSError(24, "Too many open files")
    except OSError: logging.getLogger("trio.serve_listeners").error("accept returned EMFILE", exc_info=True)
"""
    log = run(tmp_path, program)
    assert log.read_text().count("accept returned EMFILE") == 1


def test_the_last_line_is_found_behind_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("")
    former_log(log).write_text("first\nthe reason\n")
    assert last_line(log) == "the reason"
    assert last_line(tmp_path / "none.log") == ""


def test_a_repeated_line_is_counted_and_written_once_in_a_while() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    event = {"event": "waiting", "vm": "web01"}
    assert repeats(None, "info", dict(event)) == event
    for _ in range(3):
        with pytest.raises(structlog.DropEvent):
            repeats(None, "info", dict(event))
    assert repeats(None, "warning", dict(event)) == event  # another level
    assert repeats(None, "info", event | {"vm": "web02"}) == event | {"vm": "web02"}
    clock.advance_ns(int(REPEAT_S) * SECOND_NS)
    assert repeats(None, "info", dict(event)) == event | {"repeated": 3}


def test_the_kept_part_of_lines_is_bounded() -> None:
    repeats = Repeats(FakeClock())
    lines = [{"event": f"line {number}"} for number in range(10_000)]
    for line in lines:
        repeats(None, "info", dict(line))
    for line in lines[-256:]:
        with pytest.raises(structlog.DropEvent):
            repeats(None, "info", dict(line))
    assert repeats(None, "info", dict(lines[-257])) == lines[-257]  # the older lines are forgotten


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def write(_fd: int, _data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(process_log.os, "write", write)  # type: ignore[attr-defined]
    yield


@pytest.mark.usefixtures("full")
def test_a_line_for_which_the_disk_has_no_room_is_dropped() -> None:
    assert RotatingLog(None).write("lost\n") == 5


SETUP = "import resource, sys\nfrom siterig.core import process_setup\nfrom siterig.blockfs.core.errors import RigError\n"


def setup(program: str, *, files_max: int | None = None) -> str:
    def limit() -> None:
        if files_max is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

    command = [sys.executable, "-c", SETUP + program]
    return subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=limit).stdout.strip()


@pytest.mark.slow
def test_too_low_a_limit_of_open_files_that_cannot_be_raised_is_named() -> None:
    program = (
        "def refuse(_what, limits):\n    if limits[1] > 63: raise ValueError('not allowed')\n"
        "resource.setrlimit = refuse\n"
        "try: process_setup.allow_many_files()\nexcept RigError as e: print(e.code, e.message)"
    )
    assert setup(program, files_max=63) == (
        f"TooFewFiles this process may open 63 files, and a process of a rig needs {FILES_MIN}: "
        "raise the hard limit (ulimit -Hn)"
    )


@pytest.mark.slow
def test_a_process_with_keys_dumps_no_core_and_its_children_read_proc() -> None:
    program = (
        "import ctypes, subprocess\nprocess_setup.forbid_core_dumps(holds_keys=True)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),\n"
        "      subprocess.run(['ls', '/proc/self/fd'], capture_output=True).returncode)"
    )
    assert setup(program) == "(0, 0) 0 0"


@pytest.mark.slow
def test_other_processes_only_get_no_core_file() -> None:
    program = (
        "import ctypes\nprocess_setup.forbid_core_dumps(holds_keys=False)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    assert setup(program) == "(0, 0) 1"


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [False, True])
def test_memory_of_parts_that_are_done_is_returned(*, reuse: bool) -> None:
    program = (
        f"process_setup.limit_free_memory(reuse={reuse})\n"
        "kept = []\n"
        "def used(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "def work():\n"
        "    blocks = [b'x' * (8 << 20) for _ in range(8)]\n"
        "    kept.append(b'y' * 100_000)\n"  # a small block that lies behind the large ones
        "before = used()\n"
        "for _ in range(3): work()\n"
        "trimmer = process_setup.MemoryTrimmer()\n"
        f"done = [trimmer.trim(), trimmer.trim()] if {reuse} else [True, False]\n"
        "print((used() - before) >> 20, *done)"
    )
    grown_mib, *done = setup(program).split()
    assert int(grown_mib) < 4
    assert done == ["True", "False"], "a process that has not grown is left alone"


def test_the_logging_of_the_tests_themselves_is_untouched() -> None:
    assert not any(type(handler).__module__ == process_log.__name__ for handler in logging.getLogger().handlers)
