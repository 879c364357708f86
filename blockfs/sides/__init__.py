"""Contracts between the site and the recovery side: the vault's calls to the agent, and the agent's calls to the vault.

Imports blockfs.contracts, blockfs.core, blockfs.transfer.
"""
