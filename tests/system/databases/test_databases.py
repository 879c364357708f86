"""Tests of databases under load: the log replays to the disk, and a database recovers from a cut under load.

Environment: ``SITERIG_TRANSACTIONS`` transactions of pgbench (default 400), at scale ``SITERIG_PGBENCH_SCALE``
(default 2), with ``SITERIG_CUTS`` cuts meanwhile (default 2).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.disk_server_process import DiskServer, StartServer
from tests.support.disks.guest import FSCK, MKFS, loop_device, mounted, run
from tests.support.disks.log_oracle import Model
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_program
from tests.system.databases.postgres import Cluster

pytestmark = pytest.mark.system

TRANSACTIONS = int(os.environ.get("SITERIG_TRANSACTIONS", "400"))
SCALE = int(os.environ.get("SITERIG_PGBENCH_SCALE", "2"))
CUTS = int(os.environ.get("SITERIG_CUTS", "2"))
DISK_BYTES = 8 << 30
DATABASE = "postgres"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Return a folder that any user can reach; other users cannot reach pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="siterig-guest-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def guest(reachable: Path) -> Path:
    """Return the folder where the guest mounts its disk."""
    folder = reachable / "guest"
    folder.mkdir()
    return folder


@pytest.fixture
def sockets(reachable: Path) -> Path:
    """Return a folder for sockets, like the guest's /run; it is not on the guest's disk."""
    folder = reachable / "run"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def recovered(server: DiskServer, disk: ShadowedDisk, position: int, guest: Path) -> Iterator[Path]:
    """Mount the file system of a disk as it was at a position."""
    image = Model(server.folder / f"at-{position}", server.disk_bytes)
    image.replay([Path(segment.path) for segment in disk.closed()], upto=position)
    with loop_device(image.path, direct_io=False) as device:
        with mounted(device, guest):
            yield guest
        run(*FSCK["ext4"], device)
    image.path.unlink()


@needs_program("initdb")
def test_postgres_recovers_from_cuts_under_load(start_server: StartServer, guest: Path, sockets: Path) -> None:
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    cuts = []
    with loop_device(server.os_disk, direct_io=True) as device:
        run(*MKFS["ext4"], device)
        with mounted(device, guest):
            cluster = Cluster(guest, sockets)
            cluster.create()
            with cluster.running():
                cluster.run("pgbench", "--initialize", "--quiet", f"--scale={SCALE}", DATABASE)
                cluster.sql("create table mark (number int)")
                run("sync", "--file-system", guest)
                load = cluster.start("pgbench", "--client=4", "--jobs=2", f"--transactions={TRANSACTIONS // 4}", DATABASE)
                for number in range(CUTS):
                    cluster.sql(f"insert into mark select {number}")
                    cuts.append((committed(cluster), server.cut()))
                    while committed(cluster) < TRANSACTIONS * (number + 1) // (CUTS + 1):
                        assert load.poll() is None
                output, _ = load.communicate()
                assert (load.returncode, committed(cluster)) == (0, TRANSACTIONS // 4 * 4), output
                cluster.check()
            cluster.check_at_rest()
        run(*FSCK["ext4"], device)
    disk.check()
    for number, (before, position) in enumerate(cuts):
        with recovered(server, disk, position, guest) as folder:
            cluster = Cluster(folder, sockets)
            with cluster.running():
                assert cluster.sql("select number from mark order by number").split() == [str(n) for n in range(number + 1)]
                assert before <= committed(cluster) < TRANSACTIONS
                cluster.check()
            cluster.check_at_rest()


def committed(cluster: Cluster) -> int:
    """Return the number of pgbench's committed transactions."""
    return int(cluster.sql("select count(*) from pgbench_history"))


class SqliteWriter(threading.Thread):
    """A thread that commits one number after the other until ``ended`` is set; ``acknowledged`` is the newest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.acknowledged = 0
        self.begun = 0
        self.ended = threading.Event()
        self._path = path

    def run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            database.execute("pragma journal_mode=wal")
            database.execute("pragma synchronous=full")
            database.execute("create table entry (number integer primary key, filling blob)")
            while not self.ended.is_set():
                self.begun += 1
                database.execute("insert into entry values (?, randomblob(3000))", (self.begun,))
                self.acknowledged = self.begun


def test_sqlite_recovers_from_cuts_under_load(start_server: StartServer, guest: Path) -> None:
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    cuts = []
    with loop_device(server.os_disk, direct_io=False) as device:
        run(*MKFS["ext4"], device)
        with mounted(device, guest):
            writer = SqliteWriter(guest / "database")
            writer.start()
            try:
                for number in range(CUTS * 2):
                    while writer.acknowledged < 20 * number + 20:
                        assert writer.is_alive()
                    before = writer.acknowledged
                    cuts.append((before, server.cut(), writer.begun))
            finally:
                writer.ended.set()
                writer.join()
    disk.check()
    for before, position, begun in cuts:
        with recovered(server, disk, position, guest) as folder:
            with contextlib.closing(sqlite3.connect(folder / "database")) as database:
                assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
                numbers = [number for (number,) in database.execute("select number from entry order by number")]
            assert numbers == list(range(1, len(numbers) + 1))
            assert before <= len(numbers) <= begun
