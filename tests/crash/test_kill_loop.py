"""Tests with kill -9 of the disk server under load: no acknowledged data is lost, and the log equals the disk.

``SITERIG_KILLS`` (default 4) is the number of kills for each front end; ``SITERIG_SEED`` repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.disk.disk_state import DiskState
from tests.crash.kill_load import AREA_BYTES, Area, Writer
from tests.support.disks.disk_server import FRONT_ENDS
from tests.support.disks.disk_server_process import CAN_MAKE_HOLES, VM, DiskServer, skip_unless_possible
from tests.support.disks.log_oracle import Model

pytestmark = pytest.mark.system

KILLS = int(os.environ.get("SITERIG_KILLS", "4"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
LOAD_S = 0.3
CUT_S = 0.02
START_S = 1.0
"""The longest life of a server that is killed before it answers."""
DISK_BYTES = 512 << 20
NAMES = ("os", "data")


@pytest.fixture(params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskServer]:
    """Return a server with each of its front ends."""
    front_end = str(request.param)
    skip_unless_possible(front_end)
    server = DiskServer(tmp_path, disk_bytes=DISK_BYTES, front_end=front_end)
    yield server
    server.clean_up()
    shutil.rmtree(tmp_path)


class KilledDisk:
    """A disk of the server, its expected contents, and a replay of its log that continues over all kills."""

    def __init__(self, server: DiskServer, name: str) -> None:
        self.server = server
        self.name = name
        self.areas = [Area(begin) for begin in (0, DISK_BYTES // 2)]
        self.model = Model(server.folder / f"{name}.model", DISK_BYTES)

    def writers(self, rng: random.Random) -> list[Writer]:
        """Return two writers: one writes directly, one through the page cache."""
        holes, path = self.server.front_end in CAN_MAKE_HOLES, self.server.disk(self.name)
        return [
            Writer(path, area, rng.getrandbits(32), direct=direct, holes=holes)
            for area, direct in zip(self.areas, rng.sample([True, False], 2), strict=True)
        ]

    def check(self, where: str, *, applied: bool) -> None:
        """Check the recovered disk; with ``applied`` the recovery side confirms everything, so segments are recycled."""
        segments = [found for found in self.server.call("segments", vm=VM) if found["path"].endswith(self._suffix(found))]
        fresh = [found for found in segments if found["last_seq"] > self.model.seq]
        self.model.replay([Path(found["path"]) for found in fresh])
        self.model.check(self.server.backing(self.name), mounted=self.server.disk(self.name))
        with self.server.disk(self.name).open("rb") as disk:
            for area in self.areas:
                disk.seek(area.begin)
                area.check(disk.read(AREA_BYTES), where)
        state = DiskState.load(self.server.root / VM / f"{self.name}.disk")
        assert (state.tracked, state.generation, state.needs_resync) == (True, 1, None), where
        if applied and segments:
            self.server.call("trim_log", disk_id=state.disk_id, generation=1, last_seq=segments[-1]["last_seq"])

    def _suffix(self, found: dict[str, object]) -> str:
        return f"/{self.name}.{found['number']:06d}.hrl"


def disturb(server: DiskServer, rng: random.Random) -> None:
    """Make cuts, and perhaps a snapshot, until the random moment of the kill; the last cut may get no answer."""
    if rng.random() < 0.2:
        server.call("begin_snapshot", vm=VM)
    for _ in range(rng.randrange(3)):
        time.sleep(rng.random() * LOAD_S / 3)
        server.cut()
    if rng.random() < 0.5:
        server.ask("cut", vm=VM, kind="CrashConsistent", name="test")
        time.sleep(rng.random() * CUT_S)
    else:
        time.sleep(rng.random() * LOAD_S / 3)
    server.kill()


def test_kills_under_load_lose_nothing_and_need_no_resync(server: DiskServer) -> None:
    rng = random.Random(SEED)
    server.start()
    disks = [KilledDisk(server, name) for name in NAMES]
    acknowledged = synced = early = 0
    for kill in range(KILLS):
        where = f"SITERIG_SEED={SEED}, kill {kill}"
        writers = [writer for disk in disks for writer in disk.writers(rng)]
        for writer in writers:
            writer.start()
        disturb(server, rng)
        for writer in writers:
            writer.join(timeout=60)
            assert not writer.is_alive()
            assert writer.error is None, f"{where}: {writer.error!r}"
        acknowledged += sum(writer.acknowledged for writer in writers)
        synced += sum(writer.synced for writer in writers)
        if rng.random() < 0.25:  # during recovery
            server.launch()
            time.sleep(rng.random() * START_S)
            server.kill()
            early += 1
        server.start()
        for disk in disks:
            disk.check(where, applied=rng.random() < 0.5)
    records = sum((disk.model.counts for disk in disks), Counter[str]())
    print(f"{server.front_end}: {KILLS} kills under load, {early} of starting servers, SITERIG_SEED={SEED}")
    print(f"{acknowledged} changes acknowledged, {synced} fsyncs; records in the logs: {dict(records)}")
    assert acknowledged > KILLS, "there was no load"
