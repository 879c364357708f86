"""Builds the C core as ``cext._core`` (cffi, API mode); run by setuptools through setup.py."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef(
    """
    uint32_t sr_crc32c(uint32_t crc, const void *data, size_t bytes);
    int sr_is_zero(const void *data, size_t bytes);
    int sr_chunk_tag(const uint8_t *key, uint64_t index, const void *data, size_t bytes, uint8_t *tag);
    int sr_chunk_tags_fd(int fd, const uint8_t *key, size_t chunk_bytes, uint64_t first, size_t count, uint8_t *tags);
    int sr_punch_hole(int fd, int64_t offset, int64_t bytes);
    int sr_set_io_flusher(void);
    """
)
ffibuilder.set_source(
    "cext._core",
    '#include "siterig.h"',
    sources=[os.path.relpath(HERE / name) for name in ("crc32c.c", "hasher.c", "kernel.c")],
    include_dirs=[str(HERE)],
    libraries=["crypto"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
