"""Builds the C core as ``siterig.cext._core`` (cffi, API mode); run by setuptools through setup.py."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

SOURCES = (
    *("crc32c.c", "hasher.c", "kernel.c"),
    *("io.c", "edge.c", "layers.c", "top.c", "positions.c", "log.c", "snapshot.c", "disk.c", "handles.c"),
    *("index.c", "extents.c", "mapped.c", "view.c", "fill.c"),
    *("requests.c", "names.c", "ring.c", "fuse_uring.c", "pump.c"),
)
HEADERS = ("siterig.h", "io.h", "layers.h", "positions.h", "disk.h", "pump.h", "index.h", "extents.h", "view.h", "fill.h")
"""In an order in which each knows the names of the ones before."""


def declarations(header: str) -> str:
    """A header without its preprocessor lines: what cffi reads."""
    return re.sub(r"^#.*$", "", header, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef("struct iovec { void *iov_base; size_t iov_len; };")
for header in HEADERS:
    ffibuilder.cdef(declarations((HERE / header).read_text()))
ffibuilder.set_source(
    "siterig.cext._core",
    "".join(f'#include "{header}"\n' for header in HEADERS),
    sources=[os.path.relpath(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE)],
    libraries=["crypto"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
