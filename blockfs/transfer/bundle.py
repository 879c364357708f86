"""The bundle: one blob with several small parts, each in its own envelope, so that idle disks need no blob each.

``docs/reference/formats/bundle.md`` describes the bytes.  The index has a checksum; each section authenticates itself, with
the key of its disk and the name of its part (:mod:`siterig.blockfs.transfer.envelope`).  So damage of a section is damage of
one part, and nobody needs a key to read the index.  No input is trusted.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from siterig.blockfs.changelog.segment import Stream
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import NUMBER_MAX
from siterig.blockfs.transfer.part_name import GENERATION_MAX, PartName
from siterig.cext.checksums import crc32c

FOLDER = "bundles"
"""The first folder of the names of bundles; it is no id of a disk."""
MAGIC = b"SRIGBNDL"
VERSION = 1
PARTS_MAX = 512
"""Limit of the parts in a bundle."""
BUNDLE_BYTES_MAX = 4 << 20
"""Limit of the bytes of a bundle; a larger blob is none."""

_HEADER = struct.Struct("<8sHHI")
_ENTRY = struct.Struct("<16sIB3xQQII")
_CRC = struct.Struct("<I")
_STREAMS: tuple[Stream, ...] = ("sync", "log")
_NAME = re.compile(rf"{FOLDER}/log/([0-9a-f]{{32}})\.parts")


@dataclass(frozen=True, slots=True)
class BundleName:
    """The name of a bundle: ``digest`` is made of the names of its parts."""

    digest: str

    @classmethod
    def of(cls, parts: Iterable[PartName], attempt: int) -> BundleName:
        """Return the name of a bundle of these parts; another ``attempt`` gives another name."""
        text = "\n".join([str(attempt), *(part.blob() for part in parts)])
        return cls(hashlib.sha256(text.encode()).hexdigest()[:32])

    def blob(self) -> str:
        """Return the name of the blob."""
        return f"{FOLDER}/log/{self.digest}.parts"

    @classmethod
    def parse(cls, blob: str) -> BundleName | None:
        """Return the bundle of a blob's name; None if it is no name of one."""
        match = _NAME.fullmatch(blob)
        return None if match is None else cls(match[1])


@dataclass(frozen=True, slots=True)
class Section:
    """The place of a part's envelope in a bundle, in bytes."""

    offset: int
    length: int


def size_bytes(sections: Iterable[bytes]) -> int:
    """Return the bytes of a bundle with these sections."""
    return _HEADER.size + _CRC.size + sum(_ENTRY.size + len(section) for section in sections)


def encode(parts: Mapping[PartName, bytes]) -> bytes:
    """Return the bundle of the envelopes of some parts, which is within both limits."""
    at = _HEADER.size + _ENTRY.size * len(parts) + _CRC.size
    head = _HEADER.pack(MAGIC, VERSION, _ENTRY.size, len(parts))
    for part, section in parts.items():
        stream = _STREAMS.index(part.stream)
        disk = uuid.UUID(part.disk_id).bytes
        head += _ENTRY.pack(disk, part.generation, stream, part.first, part.last, at, len(section))
        at += len(section)
    return b"".join([head, _CRC.pack(crc32c(head)), *parts.values()])


def decode(name: BundleName, data: bytes) -> dict[PartName, Section]:
    """Return the sections of a bundle; they follow each other without gaps, up to the end of the blob.

    Raises:
        RigError: ``BundleCorrupt``.
    """
    if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise bad(name, "it does not begin with the header of a bundle")
    _, version, entry_bytes, count = _HEADER.unpack_from(data)
    if (version, entry_bytes) != (VERSION, _ENTRY.size):
        raise bad(
            name, f"it has version {version} with entries of {entry_bytes} bytes; this program reads version {VERSION}"
        )
    end = _HEADER.size + _ENTRY.size * count
    if not 1 <= count <= PARTS_MAX or len(data) > BUNDLE_BYTES_MAX or end + _CRC.size > len(data):
        raise bad(name, f"{count} parts in {len(data)} bytes; allowed are 1 to {PARTS_MAX} in {BUNDLE_BYTES_MAX}")
    if crc32c(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise bad(name, "the checksum of its index is wrong")
    found: dict[PartName, Section] = {}
    at = end + _CRC.size
    for number in range(count):
        part, section = _entry(name, data, _HEADER.size + _ENTRY.size * number)
        if part in found or section.offset != at or section.length == 0:
            raise bad(name, f"entry {number} is not the next section, or its part is named twice")
        found[part] = section
        at += section.length
    if at != len(data):
        raise bad(name, f"its sections end at byte {at} of {len(data)}")
    return found


def is_readable(name: BundleName, data: bytes) -> bool:
    """Return True if the index of a bundle is intact."""
    try:
        decode(name, data)
    except RigError:
        return False
    return True


def _entry(name: BundleName, data: bytes, at: int) -> tuple[PartName, Section]:
    disk, generation, stream, first, last, offset, length = _ENTRY.unpack_from(data, at)
    is_sound = (
        generation <= GENERATION_MAX
        and stream < len(_STREAMS)
        and 1 <= first <= last <= NUMBER_MAX
        and (_STREAMS[stream] == "log" or first == last)
        and not any(data[at + 21 : at + 24])
    )
    if not is_sound:
        raise bad(name, f"the entry at byte {at} names no part")
    return PartName(str(uuid.UUID(bytes=disk)), generation, _STREAMS[stream], first, last), Section(offset, length)


def bad(name: BundleName, why: str) -> RigError:
    """Return the error of a bundle that cannot be read."""
    return RigError(Code.BundleCorrupt, f"bundle {name.blob()} cannot be read: {why}")
