"""The storage account of a user in place of Azurite: its secret, the file with it, and the client that follows it.

Imports azure_emu.storage, blockfs.core, blockfs.documents, blockfs.files, blockfs.transfer.
"""
