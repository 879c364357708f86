"""``qemu-img``: images in formats that are not ours to read or write."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from blockfs.errors import RigError
from blockfs.host_folder import host_error
from blockfs.sparse_copy import find_unreadable, unreadable

PROGRAM, PACKAGE = "qemu-img", "qemu-utils"
_CHECK_LEAKS = 3
_READING = re.compile(r"error while reading at byte (\d+): (.*)")
_WRITING = "error while writing at byte"
_ROOM_BYTES = 1 << 20  # with less the target's file system is full
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Advance = Callable[[int], None]
"""Told how many bytes more are done."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What qemu-img says of an image."""

    size_bytes: int
    """Of the disk in it."""
    backing: str | None
    """Another file that it needs."""


def require(what: str) -> None:
    """``ToolMissing`` names the Debian package; ``what`` needs it."""
    if shutil.which(PROGRAM) is None:
        raise RigError(
            "ToolMissing", f"{what} needs {PROGRAM}, which is not installed; on Debian: apt-get install {PACKAGE}"
        )


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C"}


async def facts(path: Path, format_: str) -> ImageFacts:
    """Of an image in qemu-img's format ``format_``, never guessed; ``ImageUnusable``, ``ToolMissing``."""
    done = await _run(path, format_, "info", "--output=json")
    if done.returncode != 0:
        raise RigError("ImageUnusable", f"{path}: {_reason(done.stderr)}")
    found = json.loads(done.stdout)
    data = (found.get("format-specific") or {}).get("data", {})
    extents = [extent["filename"] for extent in data.get("extents", ()) if extent["filename"] != str(path)]
    return ImageFacts(
        size_bytes=found["virtual-size"],
        backing=found.get("backing-filename") or data.get("data-file") or next(iter(extents), None),
    )


async def check(path: Path, format_: str) -> None:
    """``ImageUnusable`` unless all that the image tells of is in it; space that it lost is no harm.

    ``convert`` does not look: it takes zeros for what a file that was cut off has no more.
    """
    done = await _run(path, format_, "check")
    if done.returncode not in (0, _CHECK_LEAKS):
        said = (done.stderr.strip() or done.stdout.strip()).partition(b"\n")[0]
        raise RigError("ImageUnusable", f"{path}: is damaged, or was cut off: qemu-img check says {_reason(said)!r}")


async def _run(path: Path, format_: str, command: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    require(f"{path}: a {format_} image")
    return await trio.run_process(
        [PROGRAM, command, *options, "-f", format_, str(path)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=_environment(),
        start_new_session=True,
    )


async def convert(
    source: Path, target: Path, *, from_: str, to: str, size_bytes: int, advance: Advance, options: Sequence[str] = ()
) -> None:
    """Convert.  Cancelled, it ends, and what it had written stays: whose it is cleans up.

    ``size_bytes``: of the disk, for ``advance``.  ``ReadFailed`` names the source and the byte of its disk; ``DiskFull``,
    ``InvalidDiskSize``, ``HostIoError`` the target; ``ConvertFailed``: anything else.
    """
    require(f"format {to if to != 'raw' else from_}")
    command = [PROGRAM, "convert", "-p", *options, "-f", from_, "-O", to, str(source), str(target)]
    told = 0
    with tempfile.TemporaryFile() as errors:
        process, output = _start(command, errors)
        try:
            async with output:
                async for text in output:
                    done = _percent(bytes(text))
                    if done is not None and (upto := int(size_bytes * done / 100)) > told:
                        advance(upto - told)
                        told = upto
        except BaseException:
            process.kill()
            raise
        finally:
            with trio.CancelScope(shield=True):
                status = await trio.to_thread.run_sync(process.wait)
        errors.seek(0)
        if status != 0:
            raise await trio.to_thread.run_sync(_why, source, target, from_, errors.read())


def _why(source: Path, target: Path, from_: str, stderr: bytes) -> RigError:
    text = stderr.decode(errors="replace")
    found = min(((int(at), why) for at, why in _READING.findall(text)), default=None)
    if found is not None:
        at, why = found  # where a piece of up to 2 MiB begins
        exact = find_unreadable(source, at) if from_ == "raw" else None
        return exact or unreadable(source, at, why)
    of_target = next((number for number in _OF_THE_TARGET if os.strerror(number) in text), None)
    if of_target is None and _WRITING in text:  # of a VMDK some errors become "Invalid argument"
        room = os.statvfs(target)
        of_target = errno.ENOSPC if room.f_bavail * room.f_frsize < _ROOM_BYTES else None
    if of_target is not None:
        return host_error(str(target), OSError(of_target, os.strerror(of_target)))
    return RigError("ConvertFailed", f"{target}: {_reason(stderr)}")


def _start(command: Sequence[str], errors: IO[bytes]) -> tuple[subprocess.Popen[bytes], trio.lowlevel.FdStream]:
    """It dies with this process, however that ends: nobody else would stop its writing.  What it prints can be read."""
    readable, writable = os.pipe()
    try:
        # Not trio.run_process: it forks in a worker thread, and a parent-death signal fires when the forking *thread* ends.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=writable,
            stderr=errors,
            env=_environment(),
            start_new_session=True,
        )
    except BaseException:
        os.close(readable)
        raise
    finally:
        os.close(writable)
    return process, trio.lowlevel.FdStream(readable)


def _percent(text: bytes) -> float | None:
    """The last of the lines ``    (12.50/100%)``, which end with a carriage return."""
    for line in reversed(text.split(b"\r")):
        number, slash, _ = line.strip().lstrip(b"(").partition(b"/")
        if slash:
            try:
                return min(float(number), 100.0)
            except ValueError:
                return None
    return None


def _reason(stderr: bytes) -> str:
    return " ".join(stderr.decode(errors="replace").split())[:500] or "it failed and said nothing"
