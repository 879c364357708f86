"""Builds the C core as ``siterig.cext._core`` (cffi, API mode); run by setuptools through setup.py."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

SOURCE_ROOT = HERE / "src"
"""Folder of the C rooms; includes are relative to it."""
SOURCES = sorted(SOURCE_ROOT.glob("*/*.c"))
HEADERS = (
    *(
        "base/siterig.h",
        "base/clock_page.h",
        "base/io.h",
        "base/positions.h",
        "base/record.h",
        "base/splice.h",
        "base/xts.h",
    ),
    *("index/segment_index.h", "index/extent_map.h", "index/encrypted_segment.h"),
    *("layers/layer.h", "layers/view.h", "layers/base_update.h", "layers/decrypted.h", "layers/chunk_tags.h"),
    *("faults/decisions.h", "faults/rules.h", "faults/host_files.h"),
    *("disk/disk.h", "disk/faulty.h"),
    "fuse/server.h",
)
"""Ordered so that each header only uses names of earlier ones."""

WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
if "editable_wheel" in sys.argv:  # for developers; a compiler that knows more warnings must not end an installation
    WARNINGS.append("-Werror")


def declarations(header: str) -> str:
    """Return a header without preprocessor lines and assertions, in the form that cffi reads."""
    return re.sub(r"^(#|_Static_assert).*$", "", header, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef("struct iovec { void *iov_base; size_t iov_len; };")
for header in HEADERS:
    ffibuilder.cdef(declarations((SOURCE_ROOT / header).read_text()))
ffibuilder.cdef('extern "Python" int64_t sr_py_host_call(int, int, int64_t, int64_t, const struct iovec *, int);')
ffibuilder.set_source(
    "siterig.cext._core",
    "".join(f'#include "{header}"\n' for header in HEADERS),
    sources=[os.path.relpath(source) for source in SOURCES],
    include_dirs=[str(SOURCE_ROOT)],
    libraries=["crypto"],
    extra_compile_args=["-std=gnu11", "-O2", *WARNINGS],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
