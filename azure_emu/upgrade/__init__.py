"""Managed disks of older versions of siterig: they become what a new one is.

Imports azure_emu.disks, blockfs.core, blockfs.files, blockfs.layers, blockfs.transfer, cext.
"""
