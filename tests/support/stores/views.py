"""Views of a managed disk's base and journal, made from a test's own journal file."""

from __future__ import annotations

import os
import random
from pathlib import Path

from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import ViewLayer
from tests.support.stores.volume import BLOCK_BYTES, DISK_BYTES, Volume, base_source, blocks_of


def start_bytes(seed: int) -> bytes:
    """Return a base of random bytes with some blocks of zeros."""
    rng = random.Random(seed)
    return b"".join(
        bytes(BLOCK_BYTES) if rng.random() < 0.3 else rng.randbytes(BLOCK_BYTES)
        for _ in range(DISK_BYTES // BLOCK_BYTES + 1)
    )[:DISK_BYTES]


def base_map(data: bytes) -> list[tuple[int, int]]:
    """Return the ranges of data of a base; the last block ends where the disk ends."""
    blocks = blocks_of(data)
    return [(i * BLOCK_BYTES, min(BLOCK_BYTES, len(data) - i * BLOCK_BYTES)) for i in range(len(blocks)) if any(blocks[i])]


def view_of(folder: Path, volume: Volume, base: bytes | None = None, *, upto: int | None = None) -> ViewLayer:
    """Open the volume, over a base if there is one, up to a position."""
    extents = ExtentMap()
    volume.add_to(extents, upto=upto)
    if base is not None:
        extents.add_base(base_map(base))
    extents.merge_pending()
    sources = [None if base is None else base_source(folder, base), volume.source(folder)]
    return ViewLayer(extents, sources, DISK_BYTES)


def open_base(folder: Path) -> tuple[int, int]:
    """Open the two files of the base for writing."""
    return os.open(folder / "base", os.O_RDWR), os.open(folder / "base.sums", os.O_RDWR)


def affected(volume: Volume, upto: int) -> list[tuple[int, int]]:
    """Return the ranges of blocks that the records up to a position touch."""
    extents = ExtentMap()
    volume.add_to(extents, upto=upto)
    extents.merge_pending()
    return extents.touched(BLOCK_BYTES)
