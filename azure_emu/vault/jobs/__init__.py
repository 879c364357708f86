"""The job engine, and the tasks of every operation.

Imports azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.inventory, azure_emu.vault.keys,
azure_emu.vault.model, azure_emu.vault.monitoring, azure_emu.vault.mounts, azure_emu.vault.points, blockfs.contracts,
blockfs.core.
"""
