"""The pytest plugin: options, fixtures, and the folders of kept files in the report of a failure.

pytest loads it by the entry point ``siterig`` of the group ``pytest11``.  It loads the rest of siterig only when a test uses
one of the fixtures.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.testing.factories import BENCH, FAILED, FAULTS, KEPT, azurite, clock, disk, failing, faults, fs, rig, vm
from siterig.testing.factories import SETTINGS as STASHED
from siterig.testing.settings import SETTINGS, Setting, TestingSettings

if TYPE_CHECKING:
    from siterig.testing.workbench import Workbench

MARKERS = ("siterig_crash: a test of the states that a power cut leaves; select such tests with -m siterig_crash",)
"""The markers of the plugin, as pytest shows them."""

siterig_disk = disk()
siterig_fs = fs()
siterig_rig = rig()
siterig_vm = vm()
siterig_azurite = azurite()
siterig_faults = faults()
siterig_clock = clock()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option and an ini key for each setting."""
    group = parser.getgroup("siterig", "disks, file systems and rigs for tests")
    for setting in SETTINGS:
        text = f"{setting.text}: {setting.values} (default: {setting.default or 'none'})"
        if setting.flag:
            group.addoption(setting.option, action="store_const", const="true", dest=setting.ini, default=None, help=text)
        else:
            group.addoption(setting.option, metavar=setting.name.upper(), dest=setting.ini, default=None, help=text)
        parser.addini(setting.ini, text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and read the settings."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)

    def find(setting: Setting) -> tuple[str, object] | None:
        handed: dict[str, str] = getattr(config, "workerinput", {}).get("siterig", {})
        if setting.name in handed:  # the seed of the process that started this worker
            return setting.option, handed[setting.name]
        if (option := config.getoption(setting.ini)) is not None:
            return setting.option, option
        ini = config.getini(setting.ini)
        return (setting.ini, ini) if ini else None

    try:
        config.stash[STASHED] = TestingSettings.of(find)
    except RigError as error:
        raise pytest.UsageError(f"siterig: {error.message}") from None


def pytest_report_header(config: pytest.Config) -> str:
    """Show the seed, with which a run can be repeated."""
    return f"siterig: --siterig-seed={config.stash[STASHED].seed}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each worker of pytest-xdist the seed."""
    node.workerinput["siterig"] = {"seed": str(node.config.stash[STASHED].seed)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Remove the fault rules of a test before its fixtures end, and fail it if one did not fire as it should."""
    try:
        result = yield
    except BaseException:
        for handle in item.stash.get(FAULTS, []):
            with suppress(RigError):  # the failure of the test counts
                handle.check()
        raise
    for handle in item.stash.get(FAULTS, []):
        with failing():
            handle.check()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note a failure for the end of the fixtures, and name the kept folders in its report."""
    report = yield
    nodes = [item, *item.listchain()]
    if report.failed:
        for node in nodes:
            node.stash[FAILED] = True
    kept = [text for node in dict.fromkeys(nodes) for text in node.stash.get(KEPT, [])]
    if report.failed:
        lines = ["files are kept in", *kept] if kept else []
        if item.stash.get(FAULTS, []) or "siterig_seed" in getattr(item, "fixturenames", ()):
            lines.append(f"the choices of this run are repeated with --siterig-seed={item.config.stash[STASHED].seed}")
        if lines:
            report.sections.append(("siterig", "\n".join(lines)))
    if report.when == "teardown":
        item.stash[KEPT] = []
    return report


@pytest.fixture(scope="session")
def siterig_workbench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """The workbench of this process: it makes disks, file systems, VMs and servers, also for fixtures of wider scopes."""
    from siterig.testing.workbench import Workbench  # noqa: PLC0415 (pytest starts without it)

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    folder = tmp_path_factory.mktemp("siterig")
    with Workbench(folder, request.config.stash[STASHED], shared=shared / "siterig-shared") as bench:
        request.config.stash[BENCH] = bench
        yield bench


@pytest.fixture(scope="session")
def siterig_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; give it to every source of random choices."""
    return request.config.stash[STASHED].seed
