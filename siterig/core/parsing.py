"""Parsing and formatting of values on the command line: sizes, disks, recovery points, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from siterig.azure_emu.vault.model.choices import OFFICIAL_INTERVALS_S
from siterig.azure_emu.vault.points import selectors
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.documents.quantities import is_bytes, parse_bytes

if TYPE_CHECKING:
    from siterig.blockfs.contracts.disk_spec import DiskSpec


def parse_size(text: str) -> int:
    """Return the bytes of ``1GiB``, ``512MiB``, ``1.5G`` or ``1048576``.

    Raises:
        RigError: ``InvalidDiskSize`` unless it is a positive multiple of 512.
    """
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise RigError(Code.InvalidDiskSize, str(error)) from None
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
        raise RigError(
            Code.InvalidDiskSize, f"size {text!r} is {size_bytes} bytes: it must be a positive multiple of {SECTOR_BYTES}"
        )
    return size_bytes


def parse_rate(name: str, text: str) -> int | None:
    """Return the bytes a second of ``20MiB`` or ``20MiB/s``; None for ``none``, no limit.

    Raises:
        RigError: ``InvalidLimit``, which calls the value ``name``.
    """
    if text == "none":
        return None
    try:
        return parse_bytes(text.removesuffix("/s"))
    except ValueError:
        message = f"{name}: {text!r} is not understood; allowed: none, or bytes a second, for example 20MiB"
        raise RigError(Code.InvalidLimit, message) from None


def format_size(size_bytes: float) -> str:
    """Return a size as text with a binary unit: ``1 GiB``, ``37.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def parse_disk(text: str) -> DiskSpec:
    """Return the disk of ``NAME:SIZE`` or ``NAME:SIZE:FILESYSTEM``.

    Raises:
        RigError: ``InvalidDisk``, ``InvalidDiskSize`` or ``UnknownFilesystem``.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0]:
        raise RigError(
            Code.InvalidDisk, f"disk {text!r} is not understood: write NAME:SIZE or NAME:SIZE:FILESYSTEM, e.g. os:1GiB:ext4"
        )
    from siterig.blockfs.contracts.disk_spec import FILESYSTEMS, DiskSpec  # noqa: PLC0415 (format_size is used without it)

    filesystem = parts[2] if len(parts) == 3 else None
    if filesystem is not None and filesystem not in FILESYSTEMS:
        raise RigError(
            Code.UnknownFilesystem, f"disk {text!r}: file system {filesystem!r} is not one of {', '.join(FILESYSTEMS)}"
        )

    return DiskSpec(name=parts[0], size_bytes=parse_size(parts[1]), filesystem=filesystem)


def is_import(text: str) -> bool:
    """Return True if a disk is written as ``NAME=IMAGE``."""
    return "=" in text.partition(":")[0]


def parse_import(text: str) -> tuple[str, str, int | None]:
    """Parse ``NAME=IMAGE[:SIZE]``.

    A file whose name ends like a size (``x:1GiB``) is taken as the image.  If a file without that ending exists too, a
    colon after the name (``x:1GiB:``) states that no size follows.

    Returns:
        Name, path of the image, and size in bytes or None.
    Raises:
        RigError: ``InvalidDisk``.
    """
    name, _, rest = text.partition("=")
    if not name or not rest.rstrip(":"):
        raise RigError(
            Code.InvalidDisk, f"disk {text!r} is not understood: write NAME=IMAGE or NAME=IMAGE:SIZE, e.g. os=web.vhdx"
        )
    path, colon, size = rest.rpartition(":")
    if colon and path and not size and not Path(rest).exists():
        return name, path, None
    if colon and path and is_bytes(size):
        if not Path(rest).exists():
            return name, path, parse_size(size)
        if Path(path).exists():
            raise RigError(
                Code.InvalidDisk,
                f"disk {text!r}: there is an image {path!r} and an image {rest!r}; write {text}: for the second one, or "
                "another unit for the size of the first one",
            )
    if is_bytes(rest) and not Path(rest).exists():
        raise RigError(
            Code.InvalidDisk, f"disk {text!r}: there is no image {rest!r}; an empty disk of that size is {name}:{rest}"
        )
    return name, rest, None


def parse_of_disks(option: str, texts: Sequence[str], allowed: Sequence[str], disks: Sequence[str]) -> dict[str, str]:
    """Parse an option that is written as ``VALUE`` for all disks or ``NAME=VALUE`` for one.

    Returns:
        The value for each disk that has one.
    Raises:
        RigError: ``InvalidDisk``.
    """
    found: dict[str, str] = {}
    for text in sorted(texts, key=lambda text: "=" in text):
        name, equals, value = text.rpartition("=")
        if value not in allowed:
            raise RigError(Code.InvalidDisk, f"{option} {text!r}: {value!r} is not one of {', '.join(allowed)}")
        if equals and name not in disks:
            raise RigError(
                Code.InvalidDisk, f"{option} {text!r}: there is no --disk {name!r}; there are: {', '.join(disks)}"
            )
        found |= {name: value} if equals else dict.fromkeys(disks, value)
    return found


def parse_disk_name(text: str) -> tuple[str, str]:
    """Return VM and disk name of ``VM/NAME``; raise ``InvalidDisk`` if the text has another form."""
    vm, _, name = text.partition("/")
    if not vm or not name or "/" in name:
        raise RigError(Code.InvalidDisk, f"disk {text!r} is not understood: write VM/NAME, e.g. web01/os")
    return vm, name


def check_file_name(what: str, name: str) -> None:
    """Raise ``InvalidName`` unless the text can name a file and can be printed in one line."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise RigError(
            Code.InvalidName,
            f"{what} is named {name!r}: it must be a file's name, without a folder, of printable characters",
        )


def format_time(microseconds: float | None) -> str:
    """Return a duration as text: ``85 us``, ``1.2 ms``, ``3 s``; ``-`` for None."""
    if microseconds is None:
        return "-"
    for unit in ("us", "ms"):
        if microseconds < 1000:
            return f"{microseconds:.3g} {unit}"
        microseconds /= 1000
    return f"{microseconds:.4g} s"


def parse_point(text: str) -> str:
    """Return the vault's name for ``latest``, ``latest-processed`` or ``latest-app``, else the text unchanged."""
    selector = selectors.parse(text)
    return selector.text if selector.kind == "word" else text


def _not_a_time(option: str, seconds: float) -> RigError:
    # JSON knows neither nan nor inf: on the way to the vault they would turn into "none".
    return RigError(Code.InvalidPolicy, f"{option}: {seconds:g} is not allowed; allowed: a finite number of seconds")


def check_schedule(app_every_s: float | None) -> None:
    """Raise ``InvalidPolicy`` if the interval of application-consistent points is not a finite number."""
    if app_every_s is not None and not math.isfinite(app_every_s):
        raise _not_a_time("--app-consistent-every", app_every_s)


def interval_notice(interval_s: float) -> str | None:
    """Return a remark on a replication interval, or None if the service has it too.

    Raises:
        RigError: ``InvalidPolicy`` unless the interval is positive and finite.
    """
    official = ", ".join(f"{value:g}" for value in OFFICIAL_INTERVALS_S)
    if not math.isfinite(interval_s):
        raise _not_a_time("--interval", interval_s)
    if interval_s <= 0:
        raise RigError(Code.InvalidPolicy, f"interval {interval_s:g} s: it must be positive; the service has {official}")
    if interval_s in OFFICIAL_INTERVALS_S:
        return None
    return f"interval {interval_s:g} s exists in this rig only; the service has {official}"
