"""The vault: protected items, jobs, recovery points, health. ``service`` puts its parts together, ``report_handlers``
answers reports.

Imports azure_emu.contracts, azure_emu.vault.alerts, azure_emu.vault.context, azure_emu.vault.db,
azure_emu.vault.inventory, azure_emu.vault.jobs, azure_emu.vault.keys, azure_emu.vault.model,
azure_emu.vault.monitoring, azure_emu.vault.mounts, azure_emu.vault.operations, azure_emu.vault.points,
azure_emu.vault.workers, blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.sides, blockfs.transfer.
"""
