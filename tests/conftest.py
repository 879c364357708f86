"""Settings of all tests: no test fails because a busy machine is slow, or because another test logs something."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from siterig.blockfs.core import boot
from siterig.supervisor import process
from tests.support import warm_command

settings.register_profile("siterig", deadline=None)
settings.load_profile("siterig")


UNIT = Path(__file__).parent / "unit"
BOOT_ID = "0b5e55ed-0000-4000-8000-000000000001"
"""The boot in which tests run, whatever machine they run on."""

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        # A shell starts a background command with SIGINT ignored, nohup does so with SIGHUP, and children inherit it.
        signal.signal(_number, signal.SIG_DFL if _number != signal.SIGINT else signal.default_int_handler)

LONGEST_FIRST = (
    "crash/test_thrash.py",
    "sanitizers/test_sanitizers.py",
    "unit/scenarios/simulation/test_seeds_1.py",
    "unit/scenarios/simulation/test_seeds_2.py",
    "unit/scenarios/simulation/test_seeds_3.py",
    "unit/scenarios/simulation/test_seeds_4.py",
    "system/rig/test_link_faults.py",
    "crash/test_kill_roles.py",
    "system/testing/test_examples.py",
    "system/rig/test_up_down.py",
    "system/rig/test_drill_on_plain_files.py",
    "system/rig/test_drill.py",
    "system/points/test_points.py",
    "system/rig/test_lost_blobs.py",
    "unit/azure_emu/disks/test_store_kills.py",
    "system/mount/test_mount_command.py",
    "system/databases/test_databases.py",
    "system/disks/test_hydrated_disks.py",
    "system/testing/test_plugin_rigs.py",
    "crash/test_store_power_loss.py",
    "unit/replication/test_agent_kills.py",
    "unit/vault/context/test_clock_jumps.py",
    "system/rig/test_bad_input.py",
    "system/rig/test_bisect.py",
    "unit/blockfs/disk/test_hydration.py",
    "system/test_installed_package.py",
    "system/test_tutorials.py",
    "system/points/test_points_under_load.py",
    "crash/test_power_loss.py",
    "crash/test_kill_loop.py",
)
"""Files that take longest: several processes take whole files in this order, so none begins a long file at the end."""


def pytest_sessionstart() -> None:
    """Switch the garbage collector off: the modules of the tests, which are loaded next, hold no garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Switch the garbage collector on.  It examines the loaded modules never again: that took 0.25 s each time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front; the order within a file stays."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST_FIRST)}
    missing = [str(path) for path in rank if not path.is_file()]
    assert not missing, f"LONGEST_FIRST names files that were moved: {missing}"
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def rigs_start_warm() -> Iterator[None]:
    """Start the rigs of a test's own process as forks of a process that has loaded their modules."""
    usual = process.start_module
    process.start_module = warm_command.start_module
    yield
    process.start_module = usual


@pytest.fixture(scope="session")
def boot_id_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a boot id, in the format of the kernel's file."""
    path = tmp_path_factory.mktemp("boot") / "boot_id"
    path.write_text(f"{BOOT_ID}\n")
    return path


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Set the usual umask: siterig refuses folders that other users can write to, and tests create folders."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Restore the handlers that a command in the test's own process sets: later tests start processes that inherit them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def boot_id(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, boot_id_file: Path) -> None:
    """Replace the machine's boot id, except in system tests, whose processes read the real one."""
    if request.node.get_closest_marker("system") is None:
        monkeypatch.setattr(boot, "SOURCE", boot_id_file)


_fast_test: list[str] = []
"""The unit test that runs now and is not marked slow."""


_ALLOWED = ("subprocess.Popen", "uname")  # once in a process: the Azure SDK's user agent has the type of the processor


def _refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    if _fast_test and event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        if (event, *arguments[:1]) == _ALLOWED:
            return
        raise AssertionError(f"{_fast_test[0]} starts a process: mark it with pytest.mark.slow")


sys.addaudithook(_refuse_processes)


@pytest.fixture(autouse=True)
def fast_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a unit test that starts a process and is not marked slow."""
    if UNIT in request.node.path.parents and request.node.get_closest_marker("slow") is None:
        _fast_test.append(request.node.nodeid)
    yield
    _fast_test.clear()


@pytest.fixture(autouse=True)
def log_settings() -> Iterator[None]:
    """A command that runs in the test's own process sets what is logged."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
