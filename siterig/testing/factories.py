"""Factories of fixtures: each call makes one more fixture, with settings of its own.

    from siterig import testing

    ledger = testing.fs(size="256MiB", setup="mkdir ledger")       # a fixture named ledger
    siterig_fs = testing.fs(fs="xfs", size="512MiB")               # replaces the fixture of the plugin

A fixture that cannot work on this machine skips its test with the reason and the remedy; with the setting ``require`` it
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.testing.settings import Keep, Setup, TestingSettings

if TYPE_CHECKING:
    from siterig.testing.clock_handle import ClockHandle
    from siterig.testing.disk_handles import DiskHandle, FileSystemHandle
    from siterig.testing.fault_handles import FaultsHandle
    from siterig.testing.rig_handles import RigHandle, VmHandle
    from siterig.testing.workbench import Workbench

T = TypeVar("T")
Scope = Literal["function", "class", "module", "package", "session"]
BENCH: pytest.StashKey[Workbench] = pytest.StashKey()
"""The workbench of this process, in the stash of pytest's configuration."""
SETTINGS: pytest.StashKey[TestingSettings] = pytest.StashKey()
"""The settings from options and ini file, in the same stash."""
FAILED: pytest.StashKey[bool] = pytest.StashKey()
"""True in the stash of a test, or of the session, that failed."""
KEPT: pytest.StashKey[list[str]] = pytest.StashKey()
"""The folders that are kept of a test, in its stash."""


FAULTS: pytest.StashKey[list[FaultsHandle]] = pytest.StashKey()
"""The handles of a test's faults, in its stash: they are judged when the test has run, before its fixtures end."""
_DISKS, _RIGS = ("siterig_fs", "siterig_disk"), ("siterig_rig", "siterig_vm")


class _Keepable(Protocol):
    def keep(self, folder: Path) -> list[Path]: ...


def lacking(request: pytest.FixtureRequest, error: RigError, require: bool | None) -> NoReturn:
    """Skip the test because the machine lacks something, or fail it with the setting ``require``.

    Raises:
        pytest.skip.Exception: the test is skipped.
        pytest.fail.Exception: the test fails.
    """
    text = f"siterig: {error.message} ({error.code})"
    if request.config.stash[SETTINGS].but(require=require).require:
        raise pytest.fail.Exception(f"{text}; siterig_require forbids to skip", pytrace=False) from None
    raise pytest.skip.Exception(text) from None


@contextmanager
def _skipping(request: pytest.FixtureRequest, require: bool | None) -> Iterator[None]:
    """Skip, or fail, if the block raises an error that means that the machine lacks something."""
    from siterig.testing.needs import is_lacking  # noqa: PLC0415 (pytest starts without it)

    try:
        yield
    except RigError as error:
        if is_lacking(error):
            lacking(request, error, require)
        raise _failure(error) from None  # the report shows no other exception


def _provide(
    request: pytest.FixtureRequest,
    make: Callable[[Workbench], AbstractContextManager[T]],
    *,
    require: bool | None,
    keep: Keep | None,
    release: Callable[[T], None] | None = None,
    rig_of: Callable[[T], RigHandle] | None = None,
) -> Iterator[T]:
    """Yield what ``make`` gives, keep its files as the settings demand, and remove it.

    A failure of ``release``, such as a file system that is still in use, counts as a failure of the test.
    """
    bench: Workbench = request.getfixturevalue("siterig_workbench")
    with failing():
        keep = request.config.stash[SETTINGS].but(keep=keep).keep
    folder = _keep_folder(request, keep)
    with _skipping(request, require):
        block = make(bench)
        handle: Any = block.__enter__()
    where = [] if folder is None else [folder]
    if where and rig_of is not None:
        where.append(bench.rig_files(rig_of(handle).folder))
    failed, is_kept = True, False
    problem: RigError | None = None
    try:
        _announce(request, where)
        yield handle
        failed = request.node.stash.get(FAILED, False)
        if not failed and release is not None:
            problem = _problem_of(release, handle)
        if folder is not None and (keep == "always" or failed or problem is not None):
            handle.keep(folder)
            if rig_of is not None:
                bench.keep_rig(rig_of(handle).folder)
            is_kept = True
    finally:
        if not is_kept:
            _withdraw(request, where)
        # After a failure, a program may still use it.
        error = AssertionError("the test failed") if failed or problem is not None else None
        with _skipping(request, None):
            _leave(block, error)
            if problem is not None:
                raise problem


def _problem_of(release: Callable[[T], None], handle: T) -> RigError | None:
    """Return the error with which the use of a handle ends; None if it ends without one."""
    try:
        release(handle)
    except RigError as error:
        return error
    return None


def _leave(block: AbstractContextManager[Any], error: Exception | None) -> None:
    """Leave a block, as after ``error``, which is not raised again."""
    try:
        block.__exit__(type(error) if error else None, error, None)
    except AssertionError as raised:
        if raised is not error:
            raise


def _keep_folder(request: pytest.FixtureRequest, keep: Keep) -> Path | None:
    """Return the folder in which the files of the fixture would be kept, below ``tmp_path`` of the test."""
    if keep == "never":
        return None
    if request.scope == "function":
        base: Path = request.getfixturevalue("tmp_path")
        return base / "siterig" / str(request.fixturename)
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return factory.mktemp("siterig-kept") / str(request.fixturename)


def _announce(request: pytest.FixtureRequest, folders: Sequence[Path]) -> None:
    """Note the folders for the report of a failure, which is written before the files are."""
    request.node.stash.setdefault(KEPT, []).extend(f"{request.fixturename}: {folder}" for folder in folders)


def _withdraw(request: pytest.FixtureRequest, folders: Sequence[Path]) -> None:
    """Forget the folders: nothing was kept in them."""
    kept = request.node.stash.get(KEPT, [])
    for folder in folders:
        if (text := f"{request.fixturename}: {folder}") in kept:
            kept.remove(text)


def disk(
    *,
    size: str | int | None = None,
    fs: str | None = None,
    setup: Setup = None,
    log: bool | None = None,
    keep: Keep | None = None,
    require: bool | None = None,
    timeout: float | None = None,
    scope: Scope = "function",
    name: str | None = None,
) -> Any:
    """Make a fixture that gives a new disk, a :class:`siterig.testing.DiskHandle`.

    Args:
        size: its size, like ``64MiB`` or a number of bytes.
        fs: ``ext4`` or ``xfs``: the disk begins with this file system; None: with zeros.
        setup: fills the file system once in a session: a shell command, or a function that gets the mounted folder.
        log: record every write, so that the disk has crash states.
        keep: ``never``, ``failed`` or ``always``: which tests keep the disk, its log and its timeline.
        require: fail instead of skip when the machine lacks something.
        timeout: the longest wait for the disk server in seconds.
        scope: the scope of the fixture.
        name: its name; None: the name of the variable.
    """

    def siterig_disk(request: pytest.FixtureRequest) -> Iterator[DiskHandle]:
        """Give a new disk, as a file: a ``siterig.testing.DiskHandle``."""

        def make(bench: Workbench) -> AbstractContextManager[DiskHandle]:
            return bench.disk(size=size, fs=fs, setup=setup, log=log, timeout=timeout)

        yield from _provide(request, make, require=require, keep=keep)

    return pytest.fixture(scope=scope, name=name)(siterig_disk)


def fs(
    *,
    size: str | int | None = None,
    fs: str | None = None,
    setup: Setup = None,
    log: bool | None = None,
    keep: Keep | None = None,
    require: bool | None = None,
    timeout: float | None = None,
    scope: Scope = "function",
    name: str | None = None,
) -> Any:
    """Make a fixture that gives a mounted file system, a :class:`siterig.testing.FileSystemHandle`.

    The arguments are those of :func:`disk`; without ``fs`` and ``setup`` the options and ini keys count.
    """

    def siterig_fs(request: pytest.FixtureRequest) -> Iterator[FileSystemHandle]:
        """Give a new, mounted file system on a disk of its own: a ``siterig.testing.FileSystemHandle``."""

        def make(bench: Workbench) -> AbstractContextManager[FileSystemHandle]:
            return bench.fs(size=size, fs=fs, setup=setup, log=log, timeout=timeout)

        yield from _provide(request, make, require=require, keep=keep, release=lambda fs: fs.unmount())

    return pytest.fixture(scope=scope, name=name)(siterig_fs)


def rig(
    *,
    share: bool | None = None,
    interval: float | None = None,
    keep: Keep | None = None,
    require: bool | None = None,
    timeout: float | None = None,
    scope: Scope = "function",
    name: str | None = None,
) -> Any:
    """Make a fixture that gives a rig that is up, a :class:`siterig.testing.RigHandle`.

    The rig stays up for the whole session.  At the end of the fixture's scope, a lost site is restored, and the VMs that
    were created through the handle are removed.

    Args:
        share: one rig for all workers of pytest-xdist.
        interval: the replication interval of protected VMs in seconds.
        keep: ``never``, ``failed`` or ``always``: which tests keep logs, events and timeline.
        require: fail instead of skip when the machine lacks something.
        timeout: the longest wait for the start, and for each job, in seconds.
        scope: the scope of the fixture.
        name: its name; None: the name of the variable.
    """

    def siterig_rig(request: pytest.FixtureRequest) -> Iterator[RigHandle]:
        """Give a rig that is up, with a site and a recovery side: a ``siterig.testing.RigHandle``."""

        def make(bench: Workbench) -> AbstractContextManager[RigHandle]:
            return bench.rig(share=share, interval=interval, timeout=timeout)

        yield from _provide(request, make, require=require, keep=keep, rig_of=lambda rig: rig)

    return pytest.fixture(scope=scope, name=name)(siterig_rig)


def vm(
    *,
    size: str | int | None = None,
    fs: str | None = None,
    setup: Setup = None,
    disks: tuple[str, ...] = ("data",),
    rig: str = "siterig_rig",
    keep: Keep | None = None,
    require: bool | None = None,
    scope: Scope = "function",
    name: str | None = None,
) -> Any:
    """Make a fixture that gives a VM at the site of a rig, a :class:`siterig.testing.VmHandle`.

    Args:
        size: the size of each disk.
        fs: the file system of each disk.
        setup: fills the file system once in a session.
        disks: the names of the disks.
        rig: the name of the fixture with the rig; its scope must not be narrower.
        keep: ``never``, ``failed`` or ``always``: which tests keep its disks, and logs, events and timeline of the rig.
        require: fail instead of skip when the machine lacks something.
        scope: the scope of the fixture.
        name: its name; None: the name of the variable.
    """

    def siterig_vm(request: pytest.FixtureRequest) -> Iterator[VmHandle]:
        """Give a VM at the site of a rig: a ``siterig.testing.VmHandle``."""
        at: RigHandle = request.getfixturevalue(rig)

        def make(bench: Workbench) -> AbstractContextManager[VmHandle]:
            return bench.vm(at, request.node.name, size=size, fs=fs, setup=setup, disks=disks)

        yield from _provide(request, make, require=require, keep=keep, release=lambda vm: vm.release())

    return pytest.fixture(scope=scope, name=name)(siterig_vm)


def azurite(
    *,
    share: bool | None = None,
    require: bool | None = None,
    timeout: float | None = None,
    name: str | None = None,
) -> Any:
    """Make a fixture of scope session that gives the connection string of an Azurite.

    Args:
        share: one Azurite for all workers of pytest-xdist.
        require: fail instead of skip when Azurite or Node.js is missing.
        timeout: the longest wait for its start in seconds.
        name: its name; None: the name of the variable.
    """

    def siterig_azurite(request: pytest.FixtureRequest) -> str:
        """Give the connection string of an Azurite."""
        bench: Workbench = request.getfixturevalue("siterig_workbench")
        with _skipping(request, require):
            return bench.azurite(share=share, timeout=timeout)

    return pytest.fixture(scope="session", name=name)(siterig_azurite)


def faults(
    *,
    on: str | None = None,
    seed: int | None = None,
    keep: Keep | None = None,
    timeout: float | None = None,
    scope: Scope = "function",
    name: str | None = None,
) -> Any:
    """Make a fixture for fault rules, a :class:`siterig.testing.FaultsHandle`.

    At the end of the test all rules are removed, before the other fixtures end; a rule that fired too rarely or too often
    fails the test.  With a wider scope this happens at the end of the scope.

    Args:
        on: the name of the fixture with the rig, VM, file system or disk; its scope must not be narrower.  None:
            ``siterig_fs`` or ``siterig_disk`` if the test uses it, otherwise ``siterig_rig``.
        seed: the seed of random choices.
        keep: ``never``, ``failed`` or ``always``: which tests keep verdicts and injections.
        timeout: the longest wait for faults in seconds.
        scope: the scope of the fixture.
        name: its name; None: the name of the variable.
    """

    def siterig_faults(request: pytest.FixtureRequest) -> Iterator[FaultsHandle]:
        """Give the fault rules of a file system, a disk or a rig: a ``siterig.testing.FaultsHandle``."""
        from siterig.testing.fault_handles import FaultsHandle  # noqa: PLC0415 (pytest starts without it)

        with failing():
            settings = request.config.stash[SETTINGS].but(seed=seed, keep=keep, timeout=timeout)
        at: Any = request.getfixturevalue(on or _fixture_with_faults(request))
        folder = _keep_folder(request, settings.keep)
        with failing():
            handle = FaultsHandle(at, seed=settings.seed, timeout_s=settings.timeout)
        where = [] if folder is None else [folder]
        _announce(request, where)
        if request.scope == "function":
            request.node.stash.setdefault(FAULTS, []).append(handle)
        yield handle
        failed = True
        try:
            with failing():
                handle.check()
            failed = request.node.stash.get(FAILED, False)
        finally:
            if folder is not None and (settings.keep == "always" or failed):
                with failing():
                    handle.keep(folder)
            else:
                _withdraw(request, where)

    return pytest.fixture(scope=scope, name=name)(siterig_faults)


def _fixture_with_faults(request: pytest.FixtureRequest) -> str:
    """Return the fixture that the rules of ``siterig_faults`` are for.

    Raises:
        pytest.fail.Exception: there are several, or the first test of a wider scope would decide for all.
    """
    disks = [name for name in _DISKS if name in request.fixturenames]
    rigs = [name for name in _RIGS if name in request.fixturenames]
    problem = None
    if disks and request.scope != "function":
        problem = f"is for a whole {request.scope}, whose tests use {', '.join([*disks, *rigs])}"
    elif len(disks) > 1 or (disks and rigs):
        problem = f"can act on each of {', '.join([*disks, *rigs])}"
    if problem is not None:
        text = f"siterig: {request.fixturename} {problem}: choose with siterig.testing.faults(on=NAME)"
        pytest.fail(text, pytrace=False)
    return disks[0] if disks else _RIGS[0]


@contextmanager
def failing() -> Iterator[None]:
    """Fail the test, without a traceback, if the block raises an error."""
    try:
        yield
    except RigError as error:
        raise _failure(error) from None  # the report shows no other exception


def _failure(error: RigError) -> BaseException:
    return pytest.fail.Exception(f"siterig: {error.message} ({error.code})", pytrace=False)


def clock(*, rig: str = "siterig_rig", scope: Scope = "function", name: str | None = None) -> Any:
    """Make a fixture for the clock of a rig, a :class:`siterig.testing.ClockHandle`.

    At the end of the fixture's scope the clock is the system's again.

    Args:
        rig: the name of the fixture with the rig; its scope must not be narrower.
        scope: the scope of the fixture.
        name: its name; None: the name of the variable.
    """

    def siterig_clock(request: pytest.FixtureRequest) -> Iterator[ClockHandle]:
        """Give the clock of a rig: a ``siterig.testing.ClockHandle``."""
        from siterig.testing.clock_handle import ClockHandle  # noqa: PLC0415 (pytest starts without it)

        at: Any = request.getfixturevalue(rig)
        with failing():
            handle = ClockHandle(at)
        yield handle
        with failing():
            handle.restore()

    return pytest.fixture(scope=scope, name=name)(siterig_clock)
