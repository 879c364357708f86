"""Only the one thing pyproject.toml cannot say: which cffi module to build."""

from setuptools import setup

setup(cffi_modules=["cext/build_cext.py:ffibuilder"])
