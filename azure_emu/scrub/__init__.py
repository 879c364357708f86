"""The scrubber: reads every byte of a managed disk and reports damage.

Imports azure_emu.contracts, azure_emu.disks, blockfs.changelog, blockfs.core, blockfs.files, blockfs.layers,
blockfs.transfer, cext.
"""
