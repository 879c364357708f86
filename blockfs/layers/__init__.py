"""Layers of a disk in C: a raw file, a writable overlay, a view of a managed disk; and the maps of blocks and extents.

Imports blockfs.core, blockfs.files, cext.
"""
