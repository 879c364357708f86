"""Virtual machines of both sides, and limits of their disks.

Imports azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.model, azure_emu.vault.monitoring,
blockfs.contracts, blockfs.core, blockfs.host.
"""
