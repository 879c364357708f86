"""Offline seeds: images that fill managed disks before the initial replication."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.transfer.part_name import Watermark


class SeedImage(WireModel):
    """An image that can fill a managed disk.

    ``size_bytes`` is the size of the disk in it, ``data_bytes`` the most that is copied, and ``remark`` a remark about the
    detected format, or None.
    """

    format: ImageFormat
    size_bytes: int
    data_bytes: int
    remark: str | None = None


class Seeds(Protocol):
    """The part of the recovery side that fills managed disks from images."""

    async def check_seed(self, *, image: str, image_format: ImageFormat | None, size_bytes: int) -> SeedImage:
        """Check that an image can fill a managed disk of ``size_bytes``; nothing is changed.

        Raises:
            RigError: ``ImageUnusable``, ``ImageBusy``, ``InvalidDiskSize``, ``VhdCorrupt``, ``VhdUnsupported``,
                ``ToolMissing``, ``ForeignFile``; ``DiskTooSmall`` for an image that is larger; ``NotEnoughSpace``.
        """
        ...

    async def seed_disk(self, *, disk_id: str, image: str, image_format: ImageFormat | None) -> Watermark:
        """Fill an empty managed disk with the data of an image; a repeated call continues.

        A managed disk with data of the site is left as it is.

        Returns:
            The watermark afterwards: of generation 1, with a complete sync but without a valid position.
        """
        ...

    @deadline(ANSWER_S)
    async def seed_progress(self, *, disk_id: str) -> int:
        """Return how many bytes of the disk were read of the image so far; 0 if it is not being seeded."""
        ...
