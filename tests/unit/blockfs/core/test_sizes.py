"""Each size is defined once; where C needs it too, both have the same value."""

from __future__ import annotations

import re

from siterig.blockfs.changelog.dirty_bitmap import CHUNK_BYTES
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.layers.base_update import BLOCK_BYTES
from siterig.cext.build_cext import SOURCE_ROOT


def test_the_largest_disk_is_the_same_in_c() -> None:
    header = (SOURCE_ROOT / "layers" / "layer.h").read_text()
    defined = re.search(r"#define SR_DISK_BYTES_MAX \((\d+)ull << (\d+)\)", header)
    assert defined is not None
    assert int(defined[1]) << int(defined[2]) == DISK_BYTES_MAX


def test_the_largest_disk_has_whole_chunks_and_blocks() -> None:
    assert DISK_BYTES_MAX % CHUNK_BYTES == 0
    assert CHUNK_BYTES % BLOCK_BYTES == 0
