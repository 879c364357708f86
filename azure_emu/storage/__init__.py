"""The cache storage account, and Azurite, which emulates it.

Imports blockfs.core, blockfs.files, blockfs.transfer, blockfs.trust.
"""
