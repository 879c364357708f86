"""Contracts between the roles of the recovery side, and with the site.

Imports blockfs.changelog, blockfs.contracts, blockfs.core, blockfs.transfer.
"""
