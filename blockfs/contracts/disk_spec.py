"""The description of a disk to create at the site, as the command line, the vault and the agent pass it on."""

from __future__ import annotations

from siterig.blockfs.contracts.control import BackingImage
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.images.image_formats import ImageFormat

FILESYSTEMS = ("ext4", "xfs", "btrfs")
"""The file systems that a new disk can begin with."""


class DiskSpec(WireModel):
    """A disk to create: empty, with a file system, with the contents of an image, or thin over an image.

    Attributes:
        filesystem: one of ``FILESYSTEMS``, or None.
        image: absolute path of an image whose contents are copied to the disk.
        image_format: the format of the image; None: it is detected.
        sector_bytes: the logical sector size that the disk declares.
        backing: an image under a thin disk, used in place.
    """

    name: str
    size_bytes: int
    filesystem: str | None = None
    image: str | None = None
    image_format: ImageFormat | None = None
    sector_bytes: SectorBytes = 512
    backing: BackingImage | None = None
