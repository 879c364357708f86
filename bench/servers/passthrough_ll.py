"""libfuse's C example ``passthrough_ll``, the peer in C: built from Debian's source of the installed libfuse.

Nothing of it is kept here: source and program lie in the user's cache folder.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siterig-bench"
_OPENED = "open(buf, fi->flags & ~O_NOFOLLOW)"
_OPENED_CACHED = "open(buf, fi->flags & ~(O_NOFOLLOW | O_DIRECT))"


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(
            f"passthrough_ll cannot be built: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def build() -> tuple[Path, str]:
    """Return the path of the program and its version; build it if it is missing.

    One change: an ``O_DIRECT`` of the guest's is not passed on to the host's file.  As it is, each direct write fails
    (``EINVAL``: libfuse's buffers are not aligned), and direct reads bypass the host's cache, which all others here use.
    """
    package, version = _run(["dpkg-query", "-W", "-f", "${source:Package} ${source:Version}", "libfuse3-dev"]).split()
    folder = CACHE / f"{package}-{version}"
    program = folder / "passthrough_ll"
    if not program.exists():
        source = _fetch(package, version, folder) / "example" / "passthrough_ll.c"
        text = source.read_text()
        if text.count(_OPENED) != 1:
            raise SystemExit(f"{source}: is not as expected: it has no {_OPENED!r}")
        source.write_text(text.replace(_OPENED, _OPENED_CACHED))
        flags = _run(["pkg-config", "--cflags", "--libs", "fuse3"]).split()
        unfinished = program.with_suffix(".new")
        _run(["gcc", "-O2", "-o", str(unfinished), str(source), *flags])
        unfinished.rename(program)
    return program, f"{package} {version}"


def _fetch(package: str, version: str, folder: Path) -> Path:
    """Unpack the source package; the machine's list of package sources is read, and left as it is."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    wanted = ["--format", "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages", "Origin: Debian"]
    lines = sorted(set(_run(["apt-get", "indextargets", *wanted]).splitlines()))
    if not lines:
        raise SystemExit("passthrough_ll cannot be built: apt knows no Debian archive whose sources it could fetch")
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    own = [f"-oDir::Etc::sourcelist={folder / 'sources.list'}", "-oDir::Etc::sourceparts=-", f"-oDir::State::lists={lists}"]
    own += [f"-oDir::Cache={folder}", "-oAPT::Sandbox::User="]
    _run(["apt-get", *own, "update"], folder)
    _run(["apt-get", *own, "source", f"{package}={version}"], folder)
    return folder / f"{package}-{version.rsplit('-', 1)[0]}"
