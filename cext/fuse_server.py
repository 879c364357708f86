"""The FUSE server: C threads that answer requests on open disks, and hand those on names to Python."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from siterig.cext._core import ffi, lib

THREADS_MAX: int = lib.SR_SERVER_THREADS_MAX
QUEUE_MAX = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class FuseServerOptions:
    """How requests are taken from the kernel.

    ``threads`` take requests; for each that waits for a disk (a barrier), another takes its place.
    """

    threads: int = field(default_factory=lambda: 2 if (os.cpu_count() or 1) <= 2 else 4)
    request_bytes_max: int = 1 << 20
    """What one read or write may carry: whole pages; more than 1 MiB only if ``fs.fuse.max_pages_limit`` was raised."""
    queue: int = 64
    """How many requests the kernel keeps under way on its own account: read-ahead, asynchronous direct I/O.  A reader or
    writer that waits for its answer is not counted."""
    over_io_uring: bool = True
    """Where the kernel offers it (module parameter ``enable_uring`` of ``fuse``)."""


class FuseServer:
    """A running FUSE server.  ``ended_fd`` becomes readable when the mount is gone or a thread gave up."""

    def __init__(self, device_fd: int, upcall_fd: int, options: FuseServerOptions) -> None:
        """Takes both descriptors over; on OSError they stay the caller's."""
        self.ended_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        server = ffi.new("struct sr_server **")
        setup = {
            "device_fd": device_fd,
            "upcall_fd": upcall_fd,
            "ended_fd": self.ended_fd,
            "threads": options.threads,
            "request_bytes_max": options.request_bytes_max,
            "queue": options.queue,
            "over_io_uring": options.over_io_uring,
        }
        rc = lib.sr_server_start(ffi.new("struct sr_server_setup *", setup), server)
        if rc != 0:
            os.close(self.ended_fd)
            raise OSError(-rc, os.strerror(-rc))
        self._server = server[0]

    def counters(self) -> dict[str, int]:
        """Requests ``answered`` here and ``forwarded`` to Python, since the start."""
        found = self._counters()
        return {"answered": found.answered, "forwarded": found.forwarded}

    def over_io_uring(self) -> bool:
        """Whether requests come over io_uring; OSError if the kernel offers it, but it cannot be used."""
        found = self._counters().over_io_uring
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return bool(found)

    def _counters(self) -> Any:
        found = ffi.new("struct sr_server_counters *")
        lib.sr_server_counters(self._server, found)
        return found

    def stop(self) -> None:
        """End the threads and close all descriptors; a mount that is still there ends with them.  Once.

        Raises OSError with what a thread gave up with.
        """
        rc = lib.sr_server_stop(self._server)
        os.close(self.ended_fd)
        if rc != 0:
            raise OSError(-rc, os.strerror(-rc))
