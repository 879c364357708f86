"""The small files of a managed disk (``disk.json``, ``progress``, pins): JSON with a format version and a checksum.

Fault contract: a file is replaced atomically and durably, so a kill or a power loss leaves the old one or the new
one.  Any changed byte is ``StoreCorrupt``, another format version ``StoreVersion``; both name the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from blockfs.durable import write_atomically
from blockfs.errors import RigError
from blockfs.wire import WireModel
from cext.hashing import crc32c

FORMAT_VERSION = 2
DISK_META = "disk.json"
PROGRESS = "progress"


class DiskMeta(WireModel):
    """``disk.json``: written when the disk is made, and when an initial replication begins with a disk that has grown.

    ``size_bytes`` is the size of ``base.img``.
    """

    disk_id: str
    size_bytes: int
    created_ns: int


class FoldNote(WireModel):
    """A fold that is under way: ``base.img`` is becoming the disk as it was after frame ``frame``, at ``position``."""

    frame: int
    position: int


class Progress(WireModel):
    """``progress``: what ``base.img`` holds, which is everything up to the floor, and of what generation that is.

    While the initial replication goes on: ``sync_parts`` of the generation's sync stream.  ``position``, ``time_ns`` and
    ``first_seq`` (first sequence number of the log that is not in the snapshot) are 0 until ``complete``, which the
    stream's ``sync-end`` tag sets.  ``first_position`` is that of part 1: lower than ``position`` if the copy was cut
    and went on with another snapshot.  ``log_seq``, ``log_position`` and ``log_time_ns`` are of the last log record that was
    folded into the base.

    ``frame``: number of the last frame that was folded into the base.  ``floor``, ``floor_time_ns``: the oldest position
    that can be read.  ``size_bytes``: of the disk there.  The last three are 0 before ``complete``.
    """

    generation: int
    sync_parts: int = 0
    first_position: int = 0
    complete: bool = False
    position: int = 0
    time_ns: int = 0
    first_seq: int = 0
    log_seq: int = 0
    log_position: int = 0
    log_time_ns: int = 0
    frame: int = 0
    floor: int = 0
    floor_time_ns: int = 0
    size_bytes: int = 0
    fold: FoldNote | None = None


M = TypeVar("M", bound=WireModel)


def write_meta(path: Path, model: WireModel) -> None:
    """Replace ``path`` durably by ``model``."""
    fields = {"format": FORMAT_VERSION, **model.model_dump()}
    text = json.dumps({**fields, "crc32c": _checksum(fields)}, sort_keys=True, indent=1)
    write_atomically(path, text.encode() + b"\n")


def read_meta(path: Path, kind: type[M]) -> M:
    """Read what :func:`write_meta` wrote: ``StoreCorrupt`` or ``StoreVersion`` if it is anything else."""
    try:
        fields = json.loads(path.read_bytes())
    except OSError as exc:
        raise store_corrupt(path, f"cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise store_corrupt(path, "is not JSON") from exc
    if not isinstance(fields, dict):
        raise store_corrupt(path, "is not a JSON object")
    checksum = fields.pop("crc32c", None)
    if checksum != _checksum(fields):
        raise store_corrupt(path, f"checksum is {checksum!r}; the content's is {_checksum(fields)!r}")
    version = fields.pop("format", None)
    if version != FORMAT_VERSION:
        raise RigError("StoreVersion", f"{path}: managed disk format {version}; this siterig reads {FORMAT_VERSION}")
    try:
        return kind.model_validate(fields)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise store_corrupt(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from exc


def store_corrupt(path: Path, why: str) -> RigError:
    """The error for anything in a managed disk's folder that is not as it was written."""
    return RigError("StoreCorrupt", f"{path}: managed disk is corrupt: {why}")


def _checksum(fields: dict[str, Any]) -> str:
    return f"{crc32c(json.dumps(fields, sort_keys=True).encode()):08x}"
