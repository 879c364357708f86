"""Background work of the vault: retention.

Imports azure_emu.contracts, azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.jobs, azure_emu.vault.model,
azure_emu.vault.monitoring, azure_emu.vault.points, blockfs.core, blockfs.transfer.
"""
