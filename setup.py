"""Settings of the build that pyproject.toml cannot express: the cffi module, the folder of the build, the wheel's tag."""

from __future__ import annotations

import tempfile

from setuptools import setup

# Not ./build: setuptools takes modules that were removed since from it, and two builds at once would share it.
_build_base = tempfile.TemporaryDirectory(prefix="siterig-build-")

setup(
    cffi_modules=["siterig/cext/build_cext.py:ffibuilder"],  # by the link: a source distribution has no other cext
    options={
        "build": {"build_base": _build_base.name},
        "bdist_wheel": {"py_limited_api": "cp311"},  # cffi uses the stable interface of Python only
    },
)
