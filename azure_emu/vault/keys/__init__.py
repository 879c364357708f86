"""The vault's key, and the keys of the data that it encrypts.

Imports azure_emu.vault.db, blockfs.core, blockfs.files, blockfs.transfer.
"""
