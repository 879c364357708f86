"""VHDX: the header, the block allocation table, and the place of each block of the disk in the file.

Source: Microsoft, *[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format*.  All numbers are little endian.  qemu-img reads and
writes images with sectors of 512 bytes only.  Images with sectors of 4096 bytes are read here, and written by
:mod:`siterig.blockfs.images.vhdx_writer`.

Fault contract: the file may have any bytes; they result in facts or in ``ImageUnusable``.  A truncated block is an error,
never zeros.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.cext.checksums import crc32c

MIB = 1 << 20
SIGNATURE = b"vhdxfile"
HEADERS_AT, HEADER_BYTES = (64 << 10, 128 << 10), 4096
REGIONS_AT, REGIONS_BYTES = (192 << 10, 256 << 10), 64 << 10
METADATA_TABLE_BYTES = 64 << 10
HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
REGIONS, REGION = struct.Struct("<4sIII"), struct.Struct("<16sQII")
METADATA, ITEM = struct.Struct("<8sHH20x"), struct.Struct("<16sIII4x")
_LOCATOR, _LOCATOR_ENTRY = struct.Struct("<16sHH"), struct.Struct("<IIHH")
SECTOR_SIZES = (512, 4096)
CHUNK_SECTORS = 1 << 23
"""Number of sectors with one entry for a sector bitmap in the table, after the entries of their blocks."""
SIZE_BYTES_MAX = 64 << 40
_BLOCK_BYTES_MIN, _BLOCK_BYTES_MAX = MIB, 256 * MIB
_REGIONS_MAX, _ITEMS_MAX, _LOCATOR_BYTES_MAX = 2047, 2047, 1 << 20
HAS_PARENT = 2
PRESENT, PARTLY_PRESENT = 6, 7


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


BAT_REGION = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")


@dataclass(frozen=True, slots=True)
class VhdxHeader:
    """The header of an image.

    Attributes:
        parent: the parent file of a differencing disk, or None.
        has_log: True if the image was not closed cleanly.
    """

    size_bytes: int
    sector_bytes: int
    block_bytes: int
    parent: str | None
    has_log: bool
    bat_at: int
    bat_bytes: int

    @property
    def chunk_blocks(self) -> int:
        """Number of blocks that share one entry for a sector bitmap."""
        return CHUNK_SECTORS * self.sector_bytes // self.block_bytes


def checksummed(data: bytes) -> bytes:
    """Return a header or region table with its checksum in bytes 4 to 7."""
    return data[:4] + struct.pack("<I", crc32c(data[:4] + bytes(4) + data[8:])) + data[8:]


def read_header(file: ImageBytes) -> VhdxHeader:
    """Return the header of an image; ``ImageUnusable`` has the reason why it cannot be used."""
    if file.read(0, len(SIGNATURE)) != SIGNATURE:
        raise file.error("is no VHDX: it does not begin with vhdxfile")
    log_guid = _newest_header(file)
    regions = _regions(file)
    metadata_at, metadata_bytes = regions[METADATA_REGION]
    items = _items(file, metadata_at, metadata_bytes)
    block_bytes, flags = struct.unpack("<II", _item(file, items, FILE_PARAMETERS, 8))
    (size_bytes,) = struct.unpack("<Q", _item(file, items, DISK_SIZE, 8))
    (sector_bytes,) = struct.unpack("<I", _item(file, items, LOGICAL_SECTOR, 4))
    if sector_bytes not in SECTOR_SIZES:
        raise file.error(f"has logical sectors of {sector_bytes} bytes; 512 and 4096 are supported")
    if not _BLOCK_BYTES_MIN <= block_bytes <= _BLOCK_BYTES_MAX or block_bytes & (block_bytes - 1):
        raise file.error(f"has blocks of {block_bytes} bytes; a power of two from 1 to 256 MiB is allowed")
    if not 0 < size_bytes <= SIZE_BYTES_MAX or size_bytes % sector_bytes:
        raise file.error(f"is a disk of {size_bytes} bytes; a positive multiple of {sector_bytes} up to 64 TiB is allowed")
    parent = _parent(file, items) if flags & HAS_PARENT else None
    return VhdxHeader(size_bytes, sector_bytes, block_bytes, parent, log_guid != bytes(16), *regions[BAT_REGION])


def _newest_header(file: ImageBytes) -> bytes:
    """Return the id of the log from the valid header with the higher sequence number."""
    found: list[tuple[int, bytes, int]] = []
    for at in HEADERS_AT:
        raw = file.read(at, HEADER_BYTES)
        signature, _, sequence, _, _, log_guid, _, version, _, _ = HEADER.unpack_from(raw)
        if signature == b"head" and raw == checksummed(raw):
            found.append((sequence, log_guid, version))
    if not found:
        raise file.error("is damaged: neither of its two VHDX headers has the right checksum")
    _, log_guid, version = max(found)
    if version != 1:
        raise file.error(f"has VHDX version {version}; 1 is supported")
    return log_guid


def _regions(file: ImageBytes) -> dict[bytes, tuple[int, int]]:
    for at in REGIONS_AT:
        raw = file.read(at, REGIONS_BYTES)
        signature, _, count, _ = REGIONS.unpack_from(raw)
        if signature == b"regi" and count <= _REGIONS_MAX and raw == checksummed(raw):
            rows = [REGION.unpack_from(raw, REGIONS.size + REGION.size * n) for n in range(count)]
            found = {guid: (offset, length) for guid, offset, length, _ in rows}
            if not {BAT_REGION, METADATA_REGION} <= found.keys():
                raise file.error("is damaged: its region table names no block allocation table, or no metadata")
            return found
    raise file.error("is damaged: neither of its two VHDX region tables has the right checksum")


def _items(file: ImageBytes, at: int, length: int) -> dict[bytes, tuple[int, int]]:
    raw = file.read(at, METADATA_TABLE_BYTES)
    signature, _, count = METADATA.unpack_from(raw)
    if signature != b"metadata" or count > _ITEMS_MAX:
        raise file.error("is damaged: its VHDX metadata table cannot be read")
    rows = [ITEM.unpack_from(raw, METADATA.size + ITEM.size * n) for n in range(count)]
    return {guid: (at + offset, size) for guid, offset, size, _ in rows if offset + size <= length}


def _item(file: ImageBytes, items: dict[bytes, tuple[int, int]], guid: bytes, length: int) -> bytes:
    if guid not in items or items[guid][1] < length:
        raise file.error(f"is damaged: its VHDX metadata lack item {uuid.UUID(bytes_le=guid)}")
    return file.read(items[guid][0], length)


def _parent(file: ImageBytes, items: dict[bytes, tuple[int, int]]) -> str:
    """Return the name of the parent from the locator, or a text for the message that there is none."""
    at, length = items.get(PARENT_LOCATOR, (0, 0))
    raw = file.read(at, min(length, _LOCATOR_BYTES_MAX))
    found: dict[str, str] = {}
    if len(raw) >= _LOCATOR.size:
        _, _, count = _LOCATOR.unpack_from(raw)
        for n in range(min(count, (len(raw) - _LOCATOR.size) // _LOCATOR_ENTRY.size)):
            key_at, value_at, key_bytes, value_bytes = _LOCATOR_ENTRY.unpack_from(
                raw, _LOCATOR.size + _LOCATOR_ENTRY.size * n
            )
            key, value = raw[key_at : key_at + key_bytes], raw[value_at : value_at + value_bytes]
            found[key.decode("utf-16-le", "replace")] = value.decode("utf-16-le", "replace")
    return found.get("absolute_win32_path") or found.get("relative_path") or "(no name is in it)"


def blocks(file: ImageBytes, header: VhdxHeader) -> Iterator[tuple[int, int, int]]:
    """Yield (offset on the disk, offset in the file, bytes) of each block with data, in order; all others are zeros.

    Raises:
        RigError: ``ImageUnusable`` if a block is truncated, or the table has a state that is not allowed.
    """
    count = -(-header.size_bytes // header.block_bytes)
    entries = count + (count - 1) // header.chunk_blocks
    if entries * 8 > header.bat_bytes:
        raise file.error(f"is damaged: its block allocation table has {header.bat_bytes} bytes; {entries * 8} are needed")
    step = 1 << 16
    for first in range(0, entries, step):
        number = min(step, entries - first)
        table = struct.unpack(f"<{number}Q", file.read(header.bat_at + first * 8, number * 8))
        for index, entry in enumerate(table, first):
            chunk, within = divmod(index, header.chunk_blocks + 1)
            if within == header.chunk_blocks or entry & 7 < PRESENT:
                continue
            place = (chunk * header.chunk_blocks + within) * header.block_bytes
            at, length = entry & ~(MIB - 1), min(header.block_bytes, header.size_bytes - place)
            if entry & 7 == PARTLY_PRESENT:
                raise file.error(f"is damaged: block at byte {place} of the disk is partly its parent's, and it has none")
            if at < MIB or at + length > file.size_bytes:
                raise file.error(
                    f"is truncated: the block at byte {place} of the disk is at byte {at}; the file has {file.size_bytes}"
                )
            yield place, at, length
