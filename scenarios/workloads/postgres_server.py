"""A PostgreSQL server of its own: a cluster in a folder, reached by an abstract socket, which has no file.

It changes nothing of the machine's own PostgreSQL.  Root runs it as the user ``postgres``, to whom no folder but those on
the disk belongs: a rig does not start with a folder of another user in its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.files.durable_io import sync_folder
from siterig.cext import linux

_USER = "postgres"
_SETTINGS = {
    "listen_addresses": "",
    "jit": "off",
    "max_connections": "10",
    "shared_buffers": "16MB",
    "autovacuum": "off",
    "max_wal_size": "32MB",
    "min_wal_size": "8MB",
}
_WAL_SEGMENT_MB = 4
"""The size of a file of the write-ahead log: a small one, so that a cluster fits on a disk of 128 MiB."""
_CREATED = ".created"
_START_TRIES = 600
_TRY_S = 0.05
_STOP_S = 20


class PostgresError(Exception):
    """A program of PostgreSQL failed; the text is the end of its output."""


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if the server is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    here = shutil.which("initdb")
    best = Path(here).resolve() if here else found[-1] if found else None
    return best.parent if best is not None and best.with_name("postgres").exists() else None


class PostgresServer:
    """The server of one cluster.

    Args:
        folder: the folder of the cluster, on the disk; created if it is missing.
        log_folder: a folder for its own log, on no virtual disk; created if it is missing.
        wal: the folder of the write-ahead log, which may be on another disk; None for the usual one inside of the cluster.
    """

    def __init__(self, folder: Path, log_folder: Path, wal: Path | None = None) -> None:
        self._bin = programs()
        if self._bin is None:
            raise PostgresError("the programs initdb and postgres are not installed; on Debian: apt-get install postgresql")
        self.data, self._wal = folder, wal
        self.log = log_folder / "postgres.log"
        self._socket = f"@siterig-{secrets.token_hex(8)}"
        self._server: subprocess.Popen[bytes] | None = None
        log_folder.mkdir(parents=True, exist_ok=True)
        self._is_root = os.getuid() == 0

    def _spawn(
        self, program: str, *words: str, output: int | IO[bytes], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        assert self._bin is not None  # noqa: S101 (for the type checker)
        user = _USER if self._is_root else None
        return subprocess.Popen(
            [self._bin / program, *words],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=user,
            extra_groups=[] if self._is_root else None,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGHOST": self._socket, "PGUSER": _USER},
            cwd="/",
            preexec_fn=lambda: linux.set_parent_death_signal(signal.SIGQUIT),  # noqa: PLW1509 (this process has one thread that starts programs)
        )

    def run(self, program: str, *words: str) -> str:
        """Run one of PostgreSQL's programs, and return its output.

        Raises:
            PostgresError: with the end of its output if it fails.
        """
        with self._spawn(program, *words, output=subprocess.PIPE) as process:
            output = process.communicate()[0].decode(errors="replace")
        if process.returncode:
            raise PostgresError(f"{program}: exit status {process.returncode}: {' '.join(output.split())[-300:]}")
        return output

    def create(self) -> None:
        """Create the cluster, durably; a cluster that is there already stays, and one that is half created does not."""
        created = self.data / _CREATED
        if created.exists():
            return
        for folder in (self.data, self._wal):
            if folder is None:
                continue
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            if self._is_root:
                shutil.chown(folder, _USER, _USER)
            folder.chmod(0o700)
        words = ["--pgdata", str(self.data), "--data-checksums", "--auth=trust", "--no-instructions", "-U", _USER]
        words += [f"--wal-segsize={_WAL_SEGMENT_MB}"]
        words += [] if self._wal is None else [f"--waldir={self._wal}"]
        self.run("initdb", *words)
        created.touch()
        for folder in (self.data, self.data.parent, *([] if self._wal is None else [self._wal.parent])):
            sync_folder(folder)

    def _find_wal(self) -> None:
        """Name the folder of the write-ahead log where its disk is mounted now."""
        link = self.data / "pg_wal"
        if self._wal is None or (link.is_symlink() and link.readlink() == self._wal):
            return
        link.unlink(missing_ok=True)
        link.symlink_to(self._wal)

    def start(self) -> None:
        """Start the server, and return when it answers; it recovers the cluster first if that is necessary."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # of the machine that the disk was copied from
        self._find_wal()
        settings = _SETTINGS | {"unix_socket_directories": self._socket}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._server = self._spawn("postgres", "-D", str(self.data), *options, output=log)
        for _ in range(_START_TRIES):
            if self._server.poll() is not None:
                raise PostgresError(f"postgres ended: {self.log_tail()}")
            with self._spawn("pg_isready", "-q", output=subprocess.DEVNULL) as asked:
                asked.wait()
            if asked.returncode == 0:
                return
            SYSTEM_CLOCK.sleep_thread(_TRY_S)
        raise PostgresError(f"postgres did not accept connections: {self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last line of the server's log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "its log is empty"

    def sql(self, statement: str) -> str:
        """Run a statement, which is committed on return; rows come back as lines, with columns separated by ``|``."""
        return self.run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", statement).strip()

    def session(self) -> subprocess.Popen[bytes]:
        """Start psql with pipes: statements in, results out; it ends at the first error."""
        words = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
        return self._spawn("psql", *words, output=subprocess.PIPE, stdin=subprocess.PIPE)

    def stop(self, *, at_once: bool = False) -> None:
        """End the server and wait; ``at_once`` without a shutdown checkpoint, as a crash does."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        try:
            self._server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(at_once=error is not None)
