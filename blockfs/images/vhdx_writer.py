"""Writes a raw disk as a dynamic VHDX with logical sectors of 4096 bytes, which qemu-img cannot write.

Layout: the headers in the first MiB, an empty log of 1 MiB, the metadata, the block allocation table, the blocks.  Blocks of
zeros are left out.  Source and structures: :mod:`siterig.blockfs.images.vhdx`.

Fault contract: the caller gives the file its final name when it is complete.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.progress import Advance
from siterig.blockfs.files.sparse_copy import STEP_BYTES, read_data, seek, write_data
from siterig.blockfs.images import vhdx
from siterig.blockfs.images.vhdx import MIB
from siterig.cext.checksums import is_zero

BLOCK_BYTES = 32 * MIB
_LOG_AT, _METADATA_AT, _BAT_AT = MIB, 2 * MIB, 3 * MIB
_CREATOR = "siterig".encode("utf-16-le")
_REQUIRED, _OF_DISK = 4, 2
_ITEMS_AT = 64 << 10


@dataclass(frozen=True, slots=True)
class VhdxWriter:
    """Writes to a new, empty file.  The caller owns the descriptors; the paths are for messages."""

    source: Path
    source_fd: int
    target: Path
    target_fd: int
    size_bytes: int
    sector_bytes: int

    async def run(self, advance: Advance) -> None:
        """Write the whole image.

        Raises:
            RigError: ``ReadFailed``, ``DiskFull``, ``InvalidDiskSize`` or ``HostIoError``.
        """
        chunk_blocks = vhdx.CHUNK_SECTORS * self.sector_bytes // BLOCK_BYTES
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        table = bytearray(8 * (blocks + (blocks - 1) // chunk_blocks))
        bat_bytes = -(-len(table) // MIB) * MIB
        end = _BAT_AT + bat_bytes
        for block in range(blocks):
            start = block * BLOCK_BYTES
            length = min(BLOCK_BYTES, self.size_bytes - start)
            if await self._copy(start, length, end):
                struct.pack_into("<Q", table, 8 * (block + block // chunk_blocks), end | vhdx.PRESENT)
                end += BLOCK_BYTES
            advance(length)
        os.ftruncate(self.target_fd, end)
        await trio.to_thread.run_sync(self._write_tables, bytes(table), bat_bytes)

    async def _copy(self, start: int, length: int, to: int) -> bool:
        """Copy one block; return False, and write nothing, if it is all zeros."""
        written = False
        at = start
        while at < start + length:
            at = seek(self.source_fd, at, os.SEEK_DATA, start + length)
            if at == start + length:
                break
            step = min(STEP_BYTES, start + length - at)
            data = await trio.to_thread.run_sync(read_data, self.source, self.source_fd, at, step, abandon_on_cancel=True)
            if not is_zero(data):
                await trio.to_thread.run_sync(write_data, self.target, self.target_fd, data, to + at - start)
                written = True
            at += len(data)
        return written

    def _write_tables(self, table: bytes, bat_bytes: int) -> None:
        def write(data: bytes, at: int) -> None:
            write_data(self.target, self.target_fd, data, at)

        write(vhdx.SIGNATURE + _CREATOR, 0)
        for sequence, at in enumerate(vhdx.HEADERS_AT, 1):
            ids = uuid.uuid4().bytes_le, uuid.uuid4().bytes_le, bytes(16)  # no log is to be replayed
            header = vhdx.HEADER.pack(b"head", 0, sequence, *ids, 0, 1, MIB, _LOG_AT)
            write(vhdx.checksummed(header.ljust(vhdx.HEADER_BYTES, b"\0")), at)
        regions = vhdx.REGIONS.pack(b"regi", 0, 2, 0)
        regions += vhdx.REGION.pack(vhdx.BAT_REGION, _BAT_AT, bat_bytes, 1)
        regions += vhdx.REGION.pack(vhdx.METADATA_REGION, _METADATA_AT, MIB, 1)
        for at in vhdx.REGIONS_AT:
            write(vhdx.checksummed(regions.ljust(vhdx.REGIONS_BYTES, b"\0")), at)
        write(self._metadata(), _METADATA_AT)
        write(table, _BAT_AT)

    def _metadata(self) -> bytes:
        items = (
            (vhdx.FILE_PARAMETERS, _REQUIRED, struct.pack("<II", BLOCK_BYTES, 0)),
            (vhdx.DISK_SIZE, _REQUIRED | _OF_DISK, struct.pack("<Q", self.size_bytes)),
            (vhdx.DISK_ID, _REQUIRED | _OF_DISK, uuid.uuid4().bytes_le),
            (vhdx.LOGICAL_SECTOR, _REQUIRED | _OF_DISK, struct.pack("<I", self.sector_bytes)),
            (vhdx.PHYSICAL_SECTOR, _REQUIRED | _OF_DISK, struct.pack("<I", 4096)),
        )
        table, body = vhdx.METADATA.pack(b"metadata", 0, len(items)), b""
        for guid, flags, value in items:
            table += vhdx.ITEM.pack(guid, _ITEMS_AT + len(body), len(value), flags)
            body += value
        return table.ljust(_ITEMS_AT, b"\0") + body
