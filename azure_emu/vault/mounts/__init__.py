"""Mounted points, and leases of them to processes.

Imports azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.inventory, azure_emu.vault.model,
azure_emu.vault.monitoring, azure_emu.vault.points, blockfs.contracts, blockfs.core.
"""
