"""A separate PostgreSQL for tests: a cluster in a given folder, reached by a socket, with Debian's programs."""

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
    """A cluster in ``folder`` with its socket in ``sockets``; the user ``postgres`` must be able to reach both.

    It changes nothing of the machine's own PostgreSQL.
    """

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._sockets = sockets
        self._environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGHOST": str(sockets), "PGUSER": USER}

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as its user, and return its output."""
        done = self.start(program, *arguments)
        output, _ = done.communicate(timeout=600)
        assert done.returncode == 0, f"{program}: exit status {done.returncode}: {output}\n{self._log_tail()}"
        return output

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one of PostgreSQL's programs as its user, without waiting for its end."""
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
        """Create a cluster with page checksums; it is not on stable storage yet."""
        for folder in (self.folder, self._sockets):
            shutil.chown(folder, USER, USER)
        self.run("initdb", "--pgdata", str(self._data), "--data-checksums", "--auth=trust", "--no-instructions", "--no-sync")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server during the block; it recovers the cluster first if that is necessary."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._sockets} -c jit=off"
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # the file is from the machine that the disk was copied from
        self.run("pg_ctl", "start", "--wait", "--pgdata", str(self._data), "--log", str(self.folder / "log"), "-o", options)
        try:
            yield
        except BaseException:
            self.run("pg_ctl", "stop", "--wait", "--mode=immediate", "--pgdata", str(self._data))
            raise
        self.run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata", str(self._data))

    def sql(self, statement: str) -> str:
        """Run a statement, which is committed on return; rows come back as lines, with columns separated by ``|``."""
        return self.run("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def check(self) -> None:
        """Check that every relation and index is sound, and that pgbench's sums agree."""
        self.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed")
        sums = self.sql(INVARIANTS).split("|")
        assert len(set(sums)) == 1, f"sums over accounts, branches, tellers and history differ: {sums}"

    def check_at_rest(self) -> None:
        """Check the checksum of every page, while the server does not run."""
        self.run("pg_checksums", "--check", "--pgdata", str(self._data))
