"""The cache storage account, and Azurite, which emulates it.

Imports azure_emu.contracts, blockfs.core, blockfs.files, blockfs.transfer, blockfs.trust.
"""
