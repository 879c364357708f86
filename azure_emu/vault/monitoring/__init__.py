"""Health of protected items: damage, standstills, repairs, the source after a failover.

Imports azure_emu.contracts, azure_emu.vault.alerts, azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.model,
azure_emu.vault.points, blockfs.contracts, blockfs.core.
"""
