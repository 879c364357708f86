"""The FUSE server: C threads that answer requests on open disks, and pass requests on names and attributes to Python."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from siterig.cext._core import ffi, lib

THREADS_MAX: int = lib.SR_SERVER_THREADS_MAX
QUEUE_MAX = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class FuseServerOptions:
    """The way in which requests are read from the kernel.

    ``threads`` is the number of threads that read requests.  While one waits for a disk (a barrier), a standby thread
    replaces it.
    """

    threads: int = field(default_factory=lambda: 2 if (os.cpu_count() or 1) <= 2 else 4)
    request_bytes_max: int = 1 << 20
    """Most bytes of one read or write: whole pages; more than 1 MiB only if ``fs.fuse.max_pages_limit`` was raised."""
    queue: int = 64
    """Most requests in progress that no caller waits for: read-ahead and asynchronous direct I/O."""
    over_io_uring: bool = True
    """True to use io_uring if the kernel offers it (module parameter ``enable_uring`` of ``fuse``)."""


class FuseServer:
    """A running FUSE server.

    ``ended_fd`` becomes readable when the mount has ended or a thread failed.
    """

    def __init__(self, device_fd: int, upcall_fd: int, options: FuseServerOptions) -> None:
        """Start the server; it owns both descriptors, unless it raises OSError."""
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
        """Return the number of requests that were ``answered`` in C and ``forwarded`` to Python since the start."""
        found = self._counters()
        return {"answered": found.answered, "forwarded": found.forwarded}

    def over_io_uring(self) -> bool:
        """Return True if requests come over io_uring.

        Raises:
            OSError: the kernel offers io_uring, but it cannot be used.
        """
        found = self._counters().over_io_uring
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return bool(found)

    def _counters(self) -> Any:
        found = ffi.new("struct sr_server_counters *")
        lib.sr_server_counters(self._server, found)
        return found

    def stop(self) -> None:
        """End the threads and close all descriptors, which ends a mount that still exists; call it once.

        Raises:
            OSError: a thread failed with this error.
        """
        rc = lib.sr_server_stop(self._server)
        os.close(self.ended_fd)
        if rc != 0:
            raise OSError(-rc, os.strerror(-rc))
