"""Managed disks: journal, base image, checkpoints, pins, compaction, views at any position.

Imports azure_emu.contracts, blockfs.changelog, blockfs.core, blockfs.disk, blockfs.files, blockfs.layers,
blockfs.transfer, cext.
"""
