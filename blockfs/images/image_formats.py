"""Names of image formats.  This module loads nothing, so that a command line can name them."""

from __future__ import annotations

from typing import Literal, get_args

ImageFormat = Literal["raw", "vhd", "vhdx", "qcow2", "qcow", "vmdk", "vdi", "qed", "parallels"]
"""Format of an image, as a user names it; ``vhd`` is a fixed or a dynamic VHD."""
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
