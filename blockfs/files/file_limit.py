"""The limit of this process on the size of files (``ulimit -f``), and errors of files that are too large."""

from __future__ import annotations

import resource

from siterig.blockfs.core.errors import Code, RigError


def file_bytes_max() -> int | None:
    """Return the limit in bytes; None if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def check_file_limit(what: str, size_bytes: int, *, is_device: bool = False) -> None:
    """Check that this process may write a file up to that size; a block device has no limit.

    Raises:
        RigError: ``InvalidDiskSize`` if it may not.
    """
    limit = file_bytes_max()
    if limit is not None and size_bytes > limit and not is_device:
        raise too_large(what, size_bytes)


def too_large(what: str, size_bytes: int | None = None) -> RigError:
    """Return the error for a file that is larger than this process or the file system allows (``EFBIG``)."""
    limit = file_bytes_max()
    if limit is None or (size_bytes is not None and size_bytes <= limit):
        return RigError(Code.InvalidDiskSize, f"{what}: larger than the host's file system allows")
    has = "is" if size_bytes is None else f"needs a file of {size_bytes} bytes, which is"
    return RigError(
        Code.InvalidDiskSize,
        f"{what}: {has} larger than this process may write: its limit on files is {limit} bytes; raise it with ulimit -f",
    )
