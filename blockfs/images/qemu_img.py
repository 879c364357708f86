"""Runs ``qemu-img`` for images in formats that siterig does not read or write itself.

Fault contract: an image is passed as a descriptor and a format, never as a name, and its format is not guessed.  Files that
the image names (a backing file, extents, an external data file) are not opened
(:mod:`siterig.blockfs.images.helper_process`, and ``backing`` is null).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.files import block_device
from siterig.blockfs.files.host_errors import host_error
from siterig.blockfs.files.sparse_copy import find_unreadable, unreadable
from siterig.blockfs.images import helper_process
from siterig.blockfs.images.helper_process import HelperLimits, HelperResult

PROGRAM, PACKAGE = "qemu-img", "qemu-utils"
_CHECK_LEAKS, _CHECK_UNSUPPORTED = 3, 63
_EXTENT = re.compile(rb'"start": (\d+), "length": (\d+),.*"data": true, .*"offset": (\d+)')
_DATA = re.compile(rb'"start": (\d+), "length": (\d+),.*"data": true')
_READING = re.compile(r"error while reading at byte (\d+): (.*)")
_WRITING = "error while writing at byte"
_ROOM_BYTES = 1 << 20  # with fewer free bytes the target's file system is full
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WITH_BACKING = ("qcow2", "qcow", "qed", "vmdk")
_CPU_S, _CPU_BYTES_PER_S = 300, 8 << 20  # a program that needs more than this for a disk is in an endless loop
_LOOK_LIMITS = HelperLimits(cpu_s=_CPU_S, file_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An image that is open for reading; ``path`` is for messages, ``format`` is qemu-img's name of its format."""

    path: Path
    fd: int
    format: str

    def node(self) -> str:
        """Return the file name with which qemu-img uses the descriptor only."""
        return "json:" + json.dumps(self.options())

    def options(self) -> dict[str, object]:
        """Return the options of a block device of QEMU that uses the descriptor only."""
        driver = "host_device" if block_device.is_block_device(self.fd) else "file"
        node: dict[str, object] = {
            "driver": self.format,
            "file": {"driver": driver, "filename": f"/dev/fd/{self.fd}", "locking": "off"},  # this process has locked it
        }
        if self.format in _WITH_BACKING:
            node["backing"] = None
        return node

    def named(self, text: str) -> str:
        """Return a message with the name of the image in place of the descriptor."""
        return text.replace(self.node(), str(self.path)).replace(f"/dev/fd/{self.fd}", str(self.path))


@dataclass(frozen=True, slots=True)
class Target:
    """A file that is open for writing; ``path`` is for messages."""

    path: Path
    fd: int


def require(what: str) -> str:
    """Return the path of the program; ``ToolMissing`` names the Debian package that ``what`` needs."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise RigError(
            Code.ToolMissing, f"{what} needs {PROGRAM}, which is not installed; on Debian: apt-get install {PACKAGE}"
        )
    return str(Path(found).absolute())


async def disk_bytes(image: OpenImage) -> int:
    """Return the size of the disk in an image.

    Raises:
        RigError: ``ImageUnusable`` or ``ToolMissing``.
    """
    done = await _look(image, "info", "--output=json")
    if done.status != 0:
        raise RigError(Code.ImageUnusable, f"{image.path}: {_reason(image.named(_text(done)))}")
    try:
        return int(json.loads(done.out)["virtual-size"])
    except (ValueError, KeyError, TypeError) as exc:
        raise RigError(
            Code.ImageUnusable, f"{image.path}: qemu-img info does not name the disk's size: {exc!r:.100}"
        ) from exc


async def check_whole(image: OpenImage, file_bytes: int) -> None:
    """Raise ``ImageUnusable`` unless all data of the disk are within the ``file_bytes`` of the image's file.

    ``convert`` reads zeros past the end of a truncated file, and ``check`` notices only some cases.  Compressed data are
    not checked, because reading them fails if they are truncated.
    """
    rest = b""
    beyond: tuple[int, int] | None = None

    def on_output(piece: bytes) -> None:
        nonlocal rest, beyond
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            match = _EXTENT.search(line)
            if match is not None and beyond is None and int(match[3]) + int(match[2]) > file_bytes:
                beyond = int(match[1]), int(match[3])

    program = require(f"{image.path}: a {image.format} image")
    command = [program, "map", "--output=json", image.node()]
    done = await helper_process.run(command, limits=_LOOK_LIMITS, reads=[image.fd], on_output=on_output)
    on_output(b"\n")
    if beyond is not None:
        place, at = beyond
        where = f"the disk's bytes from {place} on are at byte {at} of the file, which has {file_bytes}"
        raise RigError(Code.ImageUnusable, f"{image.path}: is truncated: {where}")
    if done.status != 0:
        raise RigError(Code.ImageUnusable, f"{image.path}: {_reason(image.named(_text(done)))}")


async def check(image: OpenImage) -> None:
    """Raise ``ImageUnusable`` unless qemu-img check finds the image consistent; leaked space is accepted."""
    done = await _look(image, "check")
    if done.status not in (0, _CHECK_LEAKS, _CHECK_UNSUPPORTED):
        said = image.named(_text(done).strip() or done.out.decode(errors="replace").strip()).partition("\n")[0]
        raise RigError(
            Code.ImageUnusable, f"{image.path}: is damaged or truncated: qemu-img check reports {_reason(said)!r}"
        )


async def _look(image: OpenImage, command: str, *options: str) -> HelperResult:
    program = require(f"{image.path}: a {image.format} image")
    return await helper_process.run([program, command, *options, image.node()], limits=_LOOK_LIMITS, reads=[image.fd])


async def convert(
    source: OpenImage, target: Target, *, to: str, size_bytes: int, advance: Advance, options: Sequence[str] = ()
) -> None:
    """Convert an image.  If the call is cancelled, the target keeps the bytes written so far, and the caller deletes it.

    Args:
        source: the image.
        target: the file to write.
        to: qemu-img's name of the target format.
        size_bytes: size of the disk.
        advance: called with the bytes that are done.
        options: further options of ``qemu-img convert``.

    Raises:
        RigError: ``ReadFailed`` with the source and the byte of its disk; ``DiskFull``, ``InvalidDiskSize``,
            ``HostIoError`` for the target; ``ConvertFailed`` for other errors.
    """
    program = require(f"format {to if to != 'raw' else source.format}")
    done = 0

    def on_output(text: bytes) -> None:
        nonlocal done
        percent = _percent(text)
        if percent is not None and (upto := int(size_bytes * percent / 100)) > done:
            advance(upto - done)
            done = upto

    result = await helper_process.run(
        [program, "convert", "-p", *options, "-O", to, source.node(), f"/dev/fd/{target.fd}"],
        limits=HelperLimits(
            cpu_s=_CPU_S + size_bytes // _CPU_BYTES_PER_S,
            file_bytes=size_bytes + size_bytes // 8 + (64 << 20),  # with the tables of a container
        ),
        reads=[source.fd],
        writes=[target.fd],
        on_output=on_output,
    )
    if result.status != 0:
        raise _why(source, target, result)


async def data_ranges(image: OpenImage) -> list[tuple[int, int]]:
    """Return the ranges (offset, length) of the disk that the image has data of, in ascending order.

    Raises:
        RigError: ``ImageUnusable`` or ``ToolMissing``.
    """
    rest = b""
    found: list[tuple[int, int]] = []

    def on_output(piece: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + piece).split(b"\n")
        found.extend((int(match[1]), int(match[2])) for match in map(_DATA.search, lines) if match is not None)

    program = require(f"{image.path}: a {image.format} image")
    command = [program, "map", "--output=json", image.node()]
    done = await helper_process.run(command, limits=_LOOK_LIMITS, reads=[image.fd], on_output=on_output)
    on_output(b"\n")
    if done.status != 0:
        raise RigError(Code.ImageUnusable, f"{image.path}: {_reason(image.named(_text(done)))}")
    return found


async def read_into(image: OpenImage, fd: int, offset: int, length: int) -> None:
    """Write a range of the disk to the beginning of ``fd``, an empty file in memory (memfd_create).

    Raises:
        RigError: ``ReadFailed`` or ``ConvertFailed``; both name the image.
    """
    os.ftruncate(fd, length)
    node = "json:" + json.dumps({"driver": "raw", "offset": offset, "size": length, "file": image.options()})
    result = await helper_process.run(
        [
            require(f"{image.path}: a {image.format} image"),
            "convert",
            *("-n", "--target-is-zero", "-O", "raw"),
            *(node, f"/dev/fd/{fd}"),
        ],
        limits=HelperLimits(cpu_s=_CPU_S + length // _CPU_BYTES_PER_S, file_bytes=length),
        reads=[image.fd],
        writes=[fd],
    )
    if result.status != 0:
        text = image.named(_text(result).replace(node, str(image.path)))
        found = min(((int(at), why) for at, why in _READING.findall(text)), default=None)
        if found is not None:
            raise unreadable(image.path, offset + found[0], found[1])
        raise RigError(Code.ConvertFailed, f"{image.path}: {_reason(text)}")


def _why(source: OpenImage, target: Target, result: HelperResult) -> RigError:
    text = _text(result)
    found = min(((int(at), why) for at, why in _READING.findall(text)), default=None)
    if found is not None:
        at, why = found  # the beginning of a piece of up to 2 MiB
        exact = find_unreadable(source.path, source.fd, at) if source.format == "raw" else None
        return exact or unreadable(source.path, at, why)
    of_target = next((number for number in _OF_THE_TARGET if os.strerror(number) in text), None)
    if of_target is None and _WRITING in text:  # for a VMDK some errors become "Invalid argument"
        room = os.fstatvfs(target.fd)
        of_target = errno.ENOSPC if room.f_bavail * room.f_frsize < _ROOM_BYTES else None
    if of_target is not None:
        return host_error(str(target.path), OSError(of_target, os.strerror(of_target)))
    named = source.named(text).replace(f"/dev/fd/{target.fd}", str(target.path))
    return RigError(Code.ConvertFailed, f"{target.path}: {_reason(named)}")


def _percent(text: bytes) -> float | None:
    """Return the number in the last of the lines ``    (12.50/100%)``, which end with a carriage return."""
    for line in reversed(text.split(b"\r")):
        number, slash, _ = line.strip().lstrip(b"(").partition(b"/")
        if slash:
            try:
                return min(float(number), 100.0)
            except ValueError:
                return None
    return None


def _text(result: HelperResult) -> str:
    if result.stopped is not None:
        return f"{PROGRAM} was stopped: {result.stopped}"
    return result.err.decode(errors="replace")


def _reason(text: str) -> str:
    return " ".join(text.split())[:500] or "it failed and said nothing"
