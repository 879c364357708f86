"""An image that the managed disk of a protected VM begins with."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
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

    @classmethod
    def parse(cls, text: str, folder: Path, what: str) -> SeedSource:
        """Return the seed of ``[NAME=]IMAGE``; a relative path of an image begins in ``folder``.

        ``what`` names the option in an error.

        The text before the first ``=`` is the name of a disk unless it has a ``/``: an image whose own name has a ``=`` is
        written with its folder, as in ``./a=b.img``.

        Raises:
            RigError: ``InvalidDisk``.
        """
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = "", text
        if not path or (equals and not name and path != text):
            allowed = "write IMAGE or NAME=IMAGE, e.g. os=/media/os.img"
            raise RigError(Code.InvalidDisk, f"{what} {text!r} is not understood: {allowed}")
        return cls(disk=name or None, image=str((folder / path).absolute()))
