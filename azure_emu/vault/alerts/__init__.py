"""Mail about alerts: the settings, the rules, the queue, and the delivery.

Imports azure_emu.contracts, azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.model, blockfs.core,
blockfs.files.
"""
