"""Contracts that replication needs of the vault and the cache account.

Imports blockfs.contracts, blockfs.core, blockfs.transfer.
"""
