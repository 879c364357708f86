"""Recovery points: their records, selection and retention.

Imports azure_emu.vault.context, azure_emu.vault.db, azure_emu.vault.model, blockfs.changelog, blockfs.core,
blockfs.transfer.
"""
