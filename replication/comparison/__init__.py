"""Comparing the disks of both sides by keyed tags of their chunks.

Imports blockfs.contracts, blockfs.core, blockfs.layers, blockfs.sides, blockfs.transfer, cext.
"""
