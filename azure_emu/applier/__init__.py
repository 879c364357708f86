"""The applier: takes parts out of the cache account and applies them to managed disks.

Imports azure_emu.contracts, azure_emu.disks, azure_emu.scrub, azure_emu.upgrade, blockfs.core, blockfs.disk,
blockfs.files, blockfs.images, blockfs.layers, blockfs.transfer, cext.
"""
