"""A rig in one process: the production roles, put together over links, an account and clocks in memory.

Imports azure_emu.applier, azure_emu.contracts, azure_emu.disks, azure_emu.vault, azure_emu.vault.db,
azure_emu.vault.model, blockfs.contracts, blockfs.core, blockfs.disk, blockfs.files, blockfs.host, blockfs.images,
blockfs.layers, blockfs.sides, blockfs.transfer, cext, replication.engine, replication.guests, replication.hyperv.
"""
