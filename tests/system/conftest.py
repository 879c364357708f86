"""Fixtures that the tests of real disks share: a disk server with each of its front ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.disk_server import FRONT_ENDS
from tests.support.disks.disk_server_process import DiskServer, StartServer, skip_unless_possible


@pytest.fixture(params=FRONT_ENDS)
def front_end(request: pytest.FixtureRequest) -> str:
    """Return each front end with which a disk server answers the kernel, one after the other."""
    assert isinstance(request.param, str)
    skip_unless_possible(request.param)
    return request.param


@pytest.fixture
def start_server(front_end: str, tmp_path: Path) -> Iterator[StartServer]:
    """Return a function that starts a disk server with disks of a given size.

    The server's folder, which may take much space, is removed after the test.
    """
    folder = tmp_path / "server"
    servers: list[DiskServer] = []

    def start(disk_bytes: int) -> DiskServer:
        folder.mkdir()
        server = DiskServer(folder, disk_bytes=disk_bytes, front_end=front_end)
        servers.append(server)
        server.start()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.clean_up()
        shutil.rmtree(folder, ignore_errors=True)
