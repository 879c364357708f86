"""An image that the managed disk of a protected VM begins with."""

from __future__ import annotations

from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.images.image_formats import ImageFormat


class SeedSource(WireModel):
    """An offline seed of one disk.

    ``disk``: the name of the disk; None: the VM's only disk.  ``image``: absolute path of the image on the recovery side's
    host.  ``format`` overrides its detected format.
    """

    disk: str | None
    image: str
    format: ImageFormat | None = None
