"""kill -9 of the disk server at random moments under load: nothing acknowledged is lost, and the log equals the disk.

Over each front end.  ``SITERIG_KILLS`` (default 8) sets the number of kills of each, ``SITERIG_SEED`` replays a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockfs.disk_state import DiskState
from tests.system.disk_server_process import DiskServer
from tests.unit.disk_model import replay_files

pytestmark = pytest.mark.system

KILLS = int(os.environ.get("SITERIG_KILLS", "8"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
LOAD_S = 0.25
AREA_BYTES = 8 << 20
DISK_BYTES = 64 << 30
"""Sparse; so large only that the log of many kills, which nobody applies, stays below half of it."""
PAGE_BYTES = 4096


class Writer(threading.Thread):
    """Writes numbered blocks to one disk until the server is gone; remembers what was acknowledged.

    ``sure`` maps an offset to the bytes that a returned write put there; ``maybe`` holds the one write in flight.
    """

    def __init__(self, path: Path, seed: int, sure: bytearray) -> None:
        super().__init__()
        self.path = path
        self.rng = random.Random(seed)
        self.sure = sure
        self.maybe: tuple[int, bytes] | None = None
        self.acknowledged = 0
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR)
        except OSError as exc:
            self.error = exc
            return
        try:
            while True:
                offset = self.rng.randrange(0, AREA_BYTES - 20_000)
                data = self.rng.randbytes(self.rng.choice([1, 512, 4096, 4097, 16_384]))
                self.maybe = (offset, data)
                if os.pwrite(fd, data, offset) < len(data):  # killed between two requests of one write
                    raise OSError(errno.EIO, "short write")  # noqa: TRY301
                self.sure[offset : offset + len(data)] = data
                self.maybe = None
                self.acknowledged += 1
                if self.rng.random() < 0.02:
                    os.fsync(fd)
        except OSError as exc:
            self.error = exc
        finally:
            with contextlib.suppress(OSError):  # the server is dead: close reports that too
                os.close(fd)


@pytest.fixture(params=["pump", "pyfuse3"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path, disk_bytes=DISK_BYTES, front_end=request.param)
    yield server
    server.clean_up()


def logs(server: DiskServer, name: str) -> list[Path]:
    return sorted((server.root / "web01").glob(f"{name}.*.hrl"))


def test_kills_under_load_lose_nothing_and_need_no_resync(server: DiskServer) -> None:
    print(f"{KILLS} kills, SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    sure = {name: bytearray(AREA_BYTES) for name in ("os", "data")}
    total = 0
    for _ in range(KILLS):
        server.start()
        writers = {
            name: Writer(server.mountpoint / "web01" / f"{name}.img", rng.getrandbits(32), sure[name]) for name in sure
        }
        for writer in writers.values():
            writer.start()
        time.sleep(rng.random() * LOAD_S)  # the random moment of the kill, not a wait for anything
        if rng.random() < 0.5:
            server.cut()
        server.kill()
        for name, writer in writers.items():
            writer.join(timeout=30)
            assert not writer.is_alive()
            assert writer.error is not None
            total += writer.acknowledged
            if writer.maybe is not None:
                check_in_flight(server, name, sure[name], writer.maybe)
    server.start()
    for name, expected in sure.items():
        with (server.mountpoint / "web01" / f"{name}.img").open("rb") as disk:
            assert disk.read(AREA_BYTES) == expected
        assert replay_files(bytes(AREA_BYTES), logs(server, name)) == expected
        state = DiskState.load(server.root / "web01" / f"{name}.disk")
        assert (state.tracked, state.generation, state.needs_resync) == (True, 1, None)
    assert total > KILLS, "there was load"


def check_in_flight(server: DiskServer, name: str, sure: bytearray, maybe: tuple[int, bytes]) -> None:
    """Of the write that was not acknowledged, the first so many whole pages are there: the kernel may cut a write into
    several requests at page edges, each of which is logged whole or not at all.  From now on it is what the log says.
    """
    offset, data = maybe
    logged = replay_files(bytes(AREA_BYTES), readable_logs(server, name))[offset : offset + len(data)]
    before = bytes(sure[offset : offset + len(data)])
    edges = [0, len(data), *range(-offset % PAGE_BYTES, len(data), PAGE_BYTES)]
    assert logged in [data[:edge] + before[edge:] for edge in edges], (
        f"SITERIG_SEED={SEED}: a torn write at {offset} of {name}"
    )
    sure[offset : offset + len(data)] = logged


def readable_logs(server: DiskServer, name: str) -> list[Path]:
    """The logs as recovery will leave them: it runs at the next start, on the same files."""
    server.start()
    paths = logs(server, name)
    server.kill()
    return paths
