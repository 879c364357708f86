"""The operations of the vault that a user can call, one class a noun.

Imports azure_emu.contracts, azure_emu.vault.alerts, azure_emu.vault.context, azure_emu.vault.db,
azure_emu.vault.inventory, azure_emu.vault.jobs, azure_emu.vault.keys, azure_emu.vault.model,
azure_emu.vault.monitoring, azure_emu.vault.mounts, azure_emu.vault.points, blockfs.contracts, blockfs.core.
"""
