"""Memory for the bytes of the parts of a copy, which is used again: fresh pages cost more than reading into them."""

from __future__ import annotations

import mmap


class PartBuffers:
    """Buffers of one size for one copy; all calls but those of one buffer's owner are on the trio thread.

    The memory of a buffer that is not in use stays, so there are as many as parts were in work at the same time.
    """

    def __init__(self, size_bytes: int) -> None:
        """Make no buffer yet."""
        self.size_bytes = size_bytes
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        """Return a buffer; its contents are undefined."""
        if self._free:
            return self._free.pop()
        made = mmap.mmap(-1, self.size_bytes)
        made.madvise(mmap.MADV_HUGEPAGE)
        return made

    def give_back(self, buffer: mmap.mmap) -> None:
        """Take back a buffer that nobody reads any more."""
        self._free.append(buffer)
