"""``siterig setup azurite``: npm installs the packages of ``package-lock.json`` into a folder of the user's data.

npm takes the packages from the registry that the user has set, and compares each with its digest in the lock.  No script of
a package runs.

Fault contract: packages are installed into a folder of another name, which is renamed when it is complete and on the disk.
An error, an interruption or a kill leaves at most such a folder, which the next call removes.  Calls for one user wait for
each other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.azure_emu.storage import child_process
from siterig.azure_emu.storage.azurite_files import NODE_MAJOR_MIN, NODE_REMEDY, SCRIPT, find_node, find_npm, version_of
from siterig.blockfs.core import npm_packages
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_synced
from siterig.blockfs.files.free_space import require_free_space
from siterig.blockfs.files.os_errors import reason

SPACE_BYTES = 100 << 20
"""Space that npm needs, with its cache, until types and source maps are removed."""
PROGRESS_S = 5.0
LOCK_RETRY_S = 0.2
_UNFINISHED = ".unfinished"
_LINES_KEPT = 40
_LINE_CHARACTERS_MAX = 300
_INSTALL = (
    *("ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"),
    *("--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"),
    # in place of settings of the user for other projects, with which no script is linked, or packages are elsewhere
    *("--bin-links", "--package-lock", "--no-global", "--no-dry-run", "--install-strategy=hoisted", "--loglevel=notice"),
)
_PING = (
    *("ping", "--no-update-notifier", "--loglevel=notice"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=15000"),
)
_NOT_UNPACKED = re.compile(r"TAR_ENTRY_ERROR (\w*)")
"""npm's warning about a file that it could not write; its exit status is 0 all the same."""
_DEVELOPER_FILES = re.compile(r".*(\.map|\.d\.[mc]?ts)$")
_NO_REGISTRY = {
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ENOTFOUND",
    "ERR_SOCKET_TIMEOUT",
    "ETIMEDOUT",
}


@dataclass(frozen=True, slots=True)
class InstalledAzurite:
    """The result: the version, its folder and script; ``is_new`` is False if it was there before."""

    version: str
    folder: Path
    script: Path
    is_new: bool


async def install_azurite(report: Callable[[str], None], *, clock: Clock = SYSTEM_CLOCK) -> InstalledAzurite:
    """Install the Azurite of ``package-lock.json`` for this user, unless it is there.

    Args:
        report: gets a line for each step, and one every few seconds while npm works.
        clock: the clock of the waits.
    Raises:
        RigError: ``NodeMissing`` without npm or a Node that is new enough; ``NotEnoughSpace``; ``FolderUnusable`` if the
            folder cannot be created; ``AzuriteSetupFailed``.
    """
    folder = npm_packages.setup_folder()
    if (found := _installed(folder)) is not None:
        return found
    command = find_npm()
    _check_node()
    try:
        safe_files.make_folder(folder.parent, parents=True)
        async with _lock(folder.parent, report, clock):
            if (found := _installed(folder)) is not None:  # by the call for which this one waited
                return found
            return await _install(command, folder, report, clock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from error
        raise RigError(Code.FolderUnusable, f"Azurite cannot be installed in {folder}: {reason(error)}") from error


def _installed(folder: Path) -> InstalledAzurite | None:
    script = folder / "node_modules" / SCRIPT
    version = version_of(script) if script.is_file() else None
    return None if version is None else InstalledAzurite(version, folder, script, is_new=False)


def _check_node() -> None:
    node = find_node()
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise RigError(Code.NodeMissing, f"{node} does not run: {error}; {NODE_REMEDY}") from error
    major = re.match(r"v(\d+)\.", answer)
    if major is None or int(major[1]) < NODE_MAJOR_MIN:
        raise RigError(
            Code.NodeMissing,
            f"Node.js {answer or 'without a version'} at {node} is too old (at least {NODE_MAJOR_MIN}): {NODE_REMEDY}",
        )


@asynccontextmanager
async def _lock(folder: Path, report: Callable[[str], None], clock: Clock) -> AsyncIterator[None]:
    """Hold the lock of the user's folder; the kernel releases it when the process ends."""
    fd = safe_files.open_file(folder / "npm.lock", os.O_RDWR | os.O_CREAT)
    try:
        is_first = True
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if is_first:
                    report(f"another siterig setup azurite works in {folder}: waiting for its end")
                is_first = False
            await clock.sleep(LOCK_RETRY_S)
        yield
    finally:
        os.close(fd)


async def _install(command: list[str], folder: Path, report: Callable[[str], None], clock: Clock) -> InstalledAzurite:
    for left in folder.parent.glob(f"npm-*{_UNFINISHED}"):
        await trio.to_thread.run_sync(shutil.rmtree, left)
    require_free_space([(folder.parent, SPACE_BYTES)], f"Azurite cannot be installed in {folder}", "npm needs")
    work = folder.with_name(folder.name + _UNFINISHED)
    names = _package_folders(npm_packages.MANIFESTS[-1])
    report(f"npm installs Azurite and the chart libraries, {len(names)} packages, into {folder}")
    try:
        safe_files.make_folder(work)
        for manifest in npm_packages.MANIFESTS:
            write_synced(work / manifest.name, manifest.read_bytes())
        await _with_progress(lambda: _install_packages(command, work, report), work, names, report, clock)
        await trio.to_thread.run_sync(_remove_developer_files, work)
        version = _checked_version(work)
        await trio.to_thread.run_sync(os.sync)  # thousands of small files: one call for all of them
        work.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(work, ignore_errors=True))
        raise
    return InstalledAzurite(version, folder, folder / "node_modules" / SCRIPT, is_new=True)


def _package_folders(lock: Path) -> list[str]:
    """Return the folders of all packages of the lock that are not for developers only."""
    packages = json.loads(lock.read_bytes())["packages"]
    return [name for name, about in packages.items() if name and not about.get("dev")]


def _checked_version(work: Path) -> str:
    wanted = str(json.loads(npm_packages.MANIFESTS[-1].read_bytes())["packages"]["node_modules/azurite"]["version"])
    done = _installed(work)
    if done is None or done.version != wanted:
        found = "no Azurite" if done is None else f"Azurite {done.version}"
        raise RigError(Code.AzuriteSetupFailed, f"npm installed {found} in place of Azurite {wanted}")
    return wanted


async def _install_packages(command: list[str], work: Path, report: Callable[[str], None]) -> None:
    """Let npm install the packages of the lock, from its cache alone if the registry does not answer.

    Without the first question npm asks for each package, with its retries, before it reports that there is no network.
    """
    status, answer = await _run_npm([*command, *_PING], work)
    unreachable = _codes(answer) & _NO_REGISTRY if status else set()
    if unreachable:
        report(f"npm's registry does not answer ({', '.join(sorted(unreachable))}): npm takes what its cache has")
    status, lines = await _run_npm([*command, *_INSTALL, *(["--offline"] if unreachable else [])], work)
    if status and unreachable and "ENOTCACHED" in _codes(lines):
        raise _no_registry(unreachable, answer)
    if status or any(map(_NOT_UNPACKED.search, lines)):
        raise _npm_error(status, lines, work)


async def _run_npm(command: list[str], work: Path) -> tuple[int, deque[str]]:
    """Run npm in a folder; return its exit status and the last lines of its output, after the first unwritten file."""
    child, output = _start_npm(command, work)
    lines: deque[str] = deque(maxlen=_LINES_KEPT)
    try:
        async with output:
            first = await _drain(output, lines)
            return await child_process.wait(child), deque([*filter(None, [first]), *lines])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _start_npm(command: list[str], work: Path) -> tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream]:
    readable, writable = os.pipe()
    try:
        node = Path(find_node()).parent
        child = subprocess.Popen(
            [*child_process.KILLED_WITH_PARENT, *command],
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=writable,
            stderr=writable,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends npm and removes what it wrote
            umask=0o022,  # modes do not depend on that of the user
            env={**os.environ, "PATH": f"{node}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
        )
    except OSError as error:
        os.close(readable)
        raise RigError(
            Code.AzuriteSetupFailed, f"cannot start {command[0]} through setpriv (util-linux): {reason(error)}"
        ) from error
    finally:
        os.close(writable)
    return child, trio.lowlevel.FdStream(readable)


async def _drain(output: trio.lowlevel.FdStream, lines: deque[str]) -> str | None:
    """Read the output to its end into ``lines``; return the first line about a file that was not written."""
    rest, first = b"", None
    while chunk := await output.receive_some(65536):
        *complete, rest = (rest + chunk).split(b"\n")
        rest = rest[-65536:]
        for line in filter(None, (raw.decode(errors="replace").strip() for raw in complete)):
            lines.append(line)
            first = first or (line if _NOT_UNPACKED.search(line) else None)
    if rest.strip():
        lines.append(rest.decode(errors="replace").strip())
    return first


async def _with_progress(
    work: Callable[[], Awaitable[None]], folder: Path, names: list[str], report: Callable[[str], None], clock: Clock
) -> None:
    """Do the work, and report the number of unpacked packages every few seconds meanwhile."""
    error: RigError | None = None

    async def repeat() -> None:
        while True:
            await clock.sleep(PROGRESS_S)
            present = sum((folder / name / "package.json").exists() for name in names)
            report(f"npm is at work: {present} of {len(names)} packages are unpacked")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(repeat)
        try:
            await work()
        except RigError as failed:  # raised in the nursery it would be a group
            error = failed
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


def _remove_developer_files(folder: Path) -> None:
    """Remove types and source maps, a third of all bytes: they are for people who develop with the packages."""
    for parent, _, names in os.walk(folder / "node_modules"):
        for name in names:
            if _DEVELOPER_FILES.fullmatch(name):
                Path(parent, name).unlink()


def _errors(lines: deque[str]) -> list[str]:
    """Return npm's lines about errors, without its prefix."""
    return [text for line in lines if (text := re.sub(r"^npm (error|ERR!)\s*", "", line)) != line]


def _codes(lines: deque[str]) -> set[str]:
    return {line.split()[1] for line in _errors(lines) if re.fullmatch(r"(code|errno) \S+", line)}


def _message(lines: deque[str]) -> str:
    """Return npm's message in one line, without codes, the name of its log and the stack of its code."""
    said = [line for line in _errors(lines) if line and not re.match(r"(code|errno|syscall|A complete log|\s*/|at )", line)]
    return " | ".join(said or lines)[:_LINE_CHARACTERS_MAX] or "(none)"


def _npm_error(status: int, lines: deque[str], work: Path) -> RigError:
    codes = _codes(lines) | {found[1] for line in lines if (found := _NOT_UNPACKED.search(line))}
    if codes & {"ENOSPC", "EDQUOT"}:
        return _full(work.with_name(work.name.removesuffix(_UNFINISHED)))
    if codes & _NO_REGISTRY:
        return _no_registry(codes & _NO_REGISTRY, lines)
    if "EINTEGRITY" in codes:
        return RigError(
            Code.AzuriteSetupFailed,
            f"a package of the registry differs from its digest in package-lock.json: {_message(lines)}",
        )
    how = child_process.how_it_ended(status) if status else "did not write all files"
    return RigError(Code.AzuriteSetupFailed, f"npm {how}; its message: {_message(lines)}")


def _no_registry(codes: set[str], lines: deque[str]) -> RigError:
    return RigError(
        Code.AzuriteSetupFailed,
        f"npm cannot reach its registry ({', '.join(sorted(codes))}): check the network, and npm config get registry; its"
        f" message: {_message(lines)}",
        recoverable=True,
    )


def _full(folder: Path) -> RigError:
    return RigError(
        Code.NotEnoughSpace,
        f"Azurite cannot be installed in {folder}: the file system, or that of npm's cache, is full;"
        f" npm needs {SPACE_BYTES} bytes",
        recoverable=True,
    )
