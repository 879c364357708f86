"""Names of image formats.  This module loads nothing, so that a command line can name them."""

from __future__ import annotations

from typing import Literal, get_args

ImageFormat = Literal["raw", "vhd", "vhdx", "qcow2", "qcow", "vmdk", "vdi", "qed", "parallels"]
"""A format as a user gives it; ``vhd`` is a fixed or a dynamic one."""
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
