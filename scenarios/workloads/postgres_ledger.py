"""The ledger on PostgreSQL: ``python -m siterig.scenarios.workloads.postgres_ledger --cluster DIR --log-folder DIR ...``.

It starts a server on the cluster and commits numbered transactions, each acknowledged when its COMMIT has returned.  Each
inserts one row and changes another, so the rows after any number of transactions are known.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.workloads.ack_log import Ack, AckWriter
from siterig.scenarios.workloads.postgres_server import PostgresError, PostgresServer
from siterig.scenarios.workloads.worker import Steps, add_common_options, work

TABLE = "CREATE TABLE IF NOT EXISTS ledger (n bigint PRIMARY KEY, payload text NOT NULL, revised_by bigint NOT NULL)"
PAYLOAD = "repeat(md5(n::text), 1 + (n % 40)::int)"
"""The payload of row n, as SQL."""
REVISED_BY = "CASE WHEN 2 * n > {newest} THEN n ELSE least(2 * n + 1, {newest}) END"
"""The transaction that has changed row n last, after ``newest`` transactions, as SQL."""
_TRANSACTION = """\
BEGIN;
INSERT INTO ledger SELECT n, {payload}, n FROM (VALUES ({n}::bigint)) AS row(n);
UPDATE ledger SET revised_by = {n} WHERE n = {half};
COMMIT;
\\echo committed {n}
"""


class PostgresLedger(Steps):
    """The server, one session of it, and the acknowledgement file."""

    failures = (OSError, PostgresError)

    def __init__(self, cluster: Path, log_folder: Path, acks: AckWriter, position: Path, *, wal: Path | None = None) -> None:
        self.acknowledged = 0
        self._position = position
        self._server = PostgresServer(cluster, log_folder, wal)
        self._server.create()
        self._server.start()
        try:
            self._server.sql(TABLE)
            self.newest = int(self._server.sql("SELECT coalesce(max(n), 0) FROM ledger"))
            self._session: subprocess.Popen[bytes] = self._server.session()
            self._acks = acks
        except BaseException:
            self._server.stop(at_once=True)
            raise

    def step(self) -> None:
        n = self.newest + 1
        begin = read_position(self._position)
        stdin, stdout = self._session.stdin, self._session.stdout
        assert stdin is not None  # noqa: S101 (for the type checker)
        assert stdout is not None  # noqa: S101
        stdin.write(_TRANSACTION.format(n=n, half=n // 2, payload=PAYLOAD).encode())
        stdin.flush()
        line = stdout.readline().decode(errors="replace").strip()
        if line != f"committed {n}":
            raise PostgresError(f"transaction {n}: {line or self._server.log_tail()}")
        self._acks.append(Ack(n, begin, read_position(self._position), SYSTEM_CLOCK.wall_ns()))
        self.newest = self.acknowledged = n

    def close(self) -> None:
        self._acks.close()
        with contextlib.suppress(OSError):
            self._session.communicate(timeout=5)
        self._server.stop(at_once=True)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m siterig.scenarios.workloads.postgres_ledger")
    parser.add_argument("--cluster", type=Path, required=True)
    parser.add_argument("--log-folder", type=Path, required=True)
    parser.add_argument("--wal", type=Path)
    options = add_common_options(parser).parse_args()

    def make(acks: AckWriter) -> PostgresLedger:
        return PostgresLedger(options.cluster, options.log_folder, acks, options.position, wal=options.wal)

    return work(make, PostgresLedger.failures, options)


if __name__ == "__main__":
    sys.exit(main())
