"""Versions of siterig and of the software below it, for ``--version`` and the report of the drill.

The module imports little, because ``--version`` must be quick.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from siterig.azure_emu.storage.azurite_files import find_script, version_of
from siterig.blockfs.core.code_root import CODE_ROOT
from siterig.blockfs.core.errors import RigError
from siterig.cli import output

GIT_S_MAX = 5.0


def versions() -> dict[str, str | None]:
    """Return the versions of siterig (with its commit), Python, the kernel and Azurite; None for what cannot be known."""
    return {
        "version": importlib.metadata.version("siterig"),
        "commit": commit(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "azurite": _azurite(),
    }


def print_versions(*, as_json: bool) -> None:
    """Print the output of ``siterig --version``."""
    found = versions()
    if as_json:
        output.print_json(found)
        return
    known = {name: value or "unknown" for name, value in found.items()}
    output.line(f"siterig {known['version']}, commit {known['commit']}")
    output.line(f"Python {known['python']}, Linux {known['kernel']}, Azurite {known['azurite']}")


def commit() -> str | None:
    """Return the commit of this code, ending with ``-dirty`` if a file was changed since.

    In a checkout git is asked; of a package that pip installed from a repository, pip recorded it (PEP 610).
    """
    if (CODE_ROOT / ".git").exists():
        return _git_commit()
    recorded = importlib.metadata.distribution("siterig").read_text("direct_url.json")
    found = json.loads(recorded).get("vcs_info", {}).get("commit_id") if recorded else None
    return found if isinstance(found, str) else None


def _git_commit() -> str | None:
    # Root may look at a checkout of another user: git refuses that unless it is named as safe.
    asked = [
        "git",
        "-c",
        f"safe.directory={CODE_ROOT}",
        "-C",
        str(CODE_ROOT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            [*asked, "--exclude=*"], capture_output=True, text=True, timeout=GIT_S_MAX, check=False, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _azurite() -> str | None:
    try:
        return version_of(find_script())
    except RigError:
        return None


def host(folder: Path) -> dict[str, str | int | None]:
    """Return the machine: CPUs that this process may use, their model, memory, and the file system of ``folder``."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": _field("/proc/cpuinfo", "model name"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME") if Path("/etc/os-release").exists() else None,
        "file_system": _file_system(folder),
    }


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)


def _file_system(folder: Path) -> str | None:
    """The type of the file system that ``folder`` (or its nearest parent that exists) lies on."""
    there = Path(os.path.realpath(folder))
    while not there.exists():
        there = there.parent
    device = there.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    found = None
    for line in mounts:  # the last one mounted is the one that is seen
        fields, _, kind = line.partition(" - ")
        if fields.split()[2] == number:
            found = kind.split()[0]
    return found
