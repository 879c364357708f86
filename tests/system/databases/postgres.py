"""A PostgreSQL of its own: a cluster in a given folder, reached by a socket in it, with Debian's programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from siterig.cli.doctor import ThisMachine

USER = "postgres"
INVARIANTS = """
    select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
           (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)
"""


class Cluster:
    """A cluster in ``folder`` with its socket in ``sockets``; its user must be able to reach both.

    Nothing of the machine's own PostgreSQL is touched.
    """

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._sockets = sockets
        self._environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGHOST": str(sockets), "PGUSER": USER}

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as its user; what it printed."""
        done = self.start(program, *arguments)
        output, _ = done.communicate(timeout=600)
        assert done.returncode == 0, f"{program}: exit status {done.returncode}: {output}\n{self._log_tail()}"
        return output

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """The same, without waiting for it."""
        initdb = ThisMachine().program("initdb")
        assert initdb is not None
        return subprocess.Popen(
            [Path(initdb).resolve().with_name(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
            cwd="/",
            user=USER,
            group=USER,
            extra_groups=[],
        )

    def _log_tail(self) -> str:
        log = self.folder / "log"
        return log.read_text()[-3000:] if log.exists() else ""

    def create(self) -> None:
        """A new cluster, with checksums; not yet on stable storage."""
        for folder in (self.folder, self._sockets):
            shutil.chown(folder, USER, USER)
        self.run("initdb", "--pgdata", str(self._data), "--data-checksums", "--auth=trust", "--no-instructions", "--no-sync")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """For the time of the block it is up, and has recovered if there was anything to recover."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets} -c jit=off"
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # of the machine that the disk was taken from
        self.run("pg_ctl", "start", "--wait", "--pgdata", str(self._data), "--log", str(self.folder / "log"), "-o", options)
        try:
            yield
        except BaseException:
            self.run("pg_ctl", "stop", "--wait", "--mode=immediate", "--pgdata", str(self._data))
            raise
        self.run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", str(self._data))

    def sql(self, statement: str) -> str:
        """Committed when this returns; rows as lines, columns divided by ``|``."""
        return self.run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def check(self) -> None:
        """Every relation and index is sound, and pgbench's sums agree."""
        self.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
        sums = self.sql(INVARIANTS).split("|")
        assert len(set(sums)) == 1, f"sums over accounts, branches, tellers and history differ: {sums}"

    def check_at_rest(self) -> None:
        """Every page's checksum is right; the cluster is down."""
        self.run("pg_checksums", "--check", "--pgdata", str(self._data))
